# SPDX-License-Identifier: Apache-2.0
"""Which state of the provisioner's database this node follows; see :mod:`kumo_client.stamp`.

It remembers the latest one it was told of, and lets nobody take anything away whose database does
not come from there: what such a provisioner does not know may be in use.
"""

from __future__ import annotations

from oslo_log import log

from kumo_client import errors, stamp
from kumo_client.schemas.node import Stamp as Wire
from kumo_client.schemas.node import StampSpec
from kumo_client.stamp import Line, Stamp
from kumo_node.spec import Data, Spec, StampRecord

LOG = log.getLogger(__name__)
# Ends of the paths of what destroys or gives up data although it is no DELETE.
_TAKING = ("/revert", "/release")
_COPIES = "/v1/copies/"


def takes_away(method: str, path: str) -> bool:
    """Whether a request destroys something, or takes it away from a host."""
    if method == "DELETE":
        return True
    return method == "PUT" and (path.endswith(_TAKING) or path.startswith(_COPIES))


def parse(text: str | None) -> Line | None:
    """What a request tells of the database behind it; None when it tells nothing.

    :raises InvalidInputError: it cannot be read.
    """
    try:
        return stamp.parse(text)
    except ValueError as error:
        raise errors.InvalidInputError(
            f"The header {stamp.HEADER} cannot be read: {error}"
        ) from error


def _known(data: Data) -> Stamp | None:
    record = data.stamp
    return None if record is None else Stamp(record.database, record.branch, record.number)


def _record(new: Stamp) -> StampRecord:
    return StampRecord(database=new.database, branch=new.branch, number=new.number)


class Following:
    """The stamp in the node's record."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec

    def wire(self) -> Wire | None:
        """What the API shows."""
        known = _known(self._spec.data)
        return None if known is None else Wire.of(known)

    def is_news(self, sent: Line) -> bool:
        """Whether a state is to be remembered: the first one, or one that comes from the last."""
        return _is_news(self._spec.data, sent)

    def remember(self, sent: Line) -> None:
        """Have it on disk, if it is to be remembered."""
        with self._spec.edit(counts=False) as data:
            if _is_news(data, sent):
                data.stamp = _record(sent.now)

    def check(self, sent: Line | None) -> None:
        """See that a request may take something away. One that tells nothing may, as ever.

        :raises OutdatedRecordError: its sender knows less than we were told, or something else.
        """
        known = _known(self._spec.data)
        if sent is None or known is None or sent.covers(known):
            return
        error = errors.OutdatedRecordError(
            f"This node was last told of the database {known}, and that of the provisioner, "
            f"{sent.now}, does not come from there: it is an old copy, or another one",
            node=self._spec.data.persistent_id,
            way_out="Look with 'kumo restored show' and decide with 'kumo restored accept'",
        )
        # It helps only to ask anew with what another instance has written meanwhile.
        error.transient = False
        raise error

    def put(self, wish: StampSpec) -> Wire:
        """Remember another state. The same again changes nothing.

        :raises ConflictError: something else than ``replaces`` is remembered.
        """
        new, old = wish.stamp.plain, wish.replaces.plain
        with self._spec.edit(counts=False) as data:
            known = _known(data)
            if known not in (None, new, old):
                raise errors.ConflictError(
                    f"This node remembers {known}, not {old}", node=data.persistent_id
                )
            data.stamp = _record(new)
        if known != new:
            LOG.warning("This node follows the database %s; it was %s before", new, known)
        return wish.stamp


def _is_news(data: Data, sent: Line) -> bool:
    known = _known(data)
    return known is None or (known != sent.now and sent.covers(known))
