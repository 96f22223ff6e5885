# SPDX-License-Identifier: Apache-2.0
"""What is on the node and in no record: told, and never touched.

Namespaces and hosts that somebody put into our subsystems, subsystems that look like ours, and
volumes in our groups that carry our tag or a name of ours. Volumes of other names are nobody's
problem: an operator may have given a replica up, or may want one adopted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from oslo_log import log

from kumo_client import errors
from kumo_node.context import Context
from kumo_node.lvm import TAG, Volume, replica_name, snapshot_name
from kumo_node.nvmet import MODEL, Configfs
from kumo_node.revert import beside
from kumo_node.spec import READY, Data

LOG = log.getLogger(__name__)
_OURS = re.compile(r"[rsv]-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# So many names are told of each kind; the rest is a number.
_SOME = 5


def known_volumes(data: Data) -> set[tuple[str, str]]:
    """(pool, name) of every volume that the record leads to."""
    known = {(record.pool, snapshot_name(u)) for u, record in data.snapshots.items()}
    for uuid, record in data.replicas.items():
        names = [replica_name(uuid), beside(uuid)]
        if record.state != READY and record.other_name:
            names.append(record.other_name)
        known |= {(record.pool, name) for name in names}
    return known


def unknown_volumes(
    pool: str, seen: Iterable[Volume], known: Collection[tuple[str, str]]
) -> list[str]:
    """Names of the volumes that look like ours and are not on record; pure."""
    return sorted(
        volume.name
        for volume in seen
        if (pool, volume.name) not in known and (TAG in volume.tags or _OURS.fullmatch(volume.name))
    )


def unknown_namespaces(
    wanted: Mapping[str, Collection[int]], seen: Mapping[str, Collection[int]]
) -> list[str]:
    """Namespaces that are in no record, as ``subsystem/nsid``; pure.

    :param wanted: numbers on record by subsystem.
    :param seen: numbers that are there, by subsystem that is or looks like ours.
    """
    return sorted(
        f"{subsystem}/{nsid}"
        for subsystem, nsids in seen.items()
        for nsid in nsids
        if nsid not in wanted.get(subsystem, ())
    )


class Strangers:
    """Looks now and then; a look costs one report of LVM for each pool."""

    def __init__(self, ctx: Context, configfs: Configfs) -> None:
        self.ctx = ctx
        self.configfs = configfs
        self._problems: dict[str, str] = {}

    def problems(self) -> list[str]:
        """What is in no record, one sentence each."""
        return list(self._problems.values())

    def look(self) -> None:
        """Compare everything once. What could not be told stays as it was told last."""
        found = dict(self._problems)
        before = known_volumes(self.ctx.spec.data)
        for pool in self.ctx.pools.values():
            if pool.failed or pool.known() is None:
                continue
            try:
                seen = [v for v in pool.lvm.volumes().values() if v.name != pool.lvm.pool_name]
            except errors.KumoError as error:
                LOG.debug("The volumes of pool %s could not be compared: %s", pool.name, error)
                continue
            # A volume is recorded before it is made and until after it is removed.
            known = before | known_volumes(self.ctx.spec.data)
            names = unknown_volumes(pool.name, seen, known)
            what = f"Pool {pool.name} has volumes that look like ours and are not on record"
            found[f"pool {pool.name}"] = _sentence(what, names)
        self._namespaces(found)
        self._tell(found)

    def _namespaces(self, found: dict[str, str]) -> None:
        before = self._wanted()
        seen = {nqn: self._nsids(nqn) for nqn in self._subsystems(before)}
        wanted = self._wanted()
        for nqn, nsids in before.items():
            wanted.setdefault(nqn, set()).update(nsids)
        names = unknown_namespaces(wanted, seen)
        found["namespaces"] = _sentence("Namespaces are exported that are not on record", names)

    def _wanted(self) -> dict[str, set[int]]:
        wanted: dict[str, set[int]] = {}
        for record in self.ctx.spec.data.exports.values():
            wanted.setdefault(self.ctx.subsystem(record), set()).add(record.nsid)
        return wanted

    def _subsystems(self, wanted: Collection[str]) -> list[str]:
        return [
            nqn
            for nqn in self.configfs.names("subsystems")
            if nqn in wanted or self._model(nqn) == MODEL
        ]

    def _model(self, nqn: str) -> str:
        try:
            return self.configfs.read("subsystems", nqn, "attr_model")
        except OSError:
            # It went away meanwhile.
            return ""

    def _nsids(self, nqn: str) -> list[int]:
        return [int(name) for name in self.configfs.names("subsystems", nqn, "namespaces")]

    def _tell(self, found: dict[str, str]) -> None:
        new = {key: text for key, text in found.items() if text}
        for key, text in new.items():
            if self._problems.get(key) != text:
                LOG.warning("%s", text)
        self._problems = new


def _sentence(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SOME} more" if len(names) > _SOME else ""
    return f"{what}: {', '.join(names[:_SOME])}{more}"
