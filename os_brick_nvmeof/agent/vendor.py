# SPDX-License-Identifier: Apache-2.0
"""What the agent needs of the maker of the storage: one abstract class.

An implementation registers under the entry point group ``kumo.agent.vendors`` with a callable that
is given the options and the identity of the host and gives a :class:`Vendor`. Which one is used is
option ``vendor``.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from oslo_config import cfg

from os_brick_nvmeof.agent.model import Leg, Seen, Task, Volume, Wanted
from os_brick_nvmeof.stopped import Stopped

GROUP = "kumo.agent.vendors"
# Ours is found also where the distribution was installed without metadata.
OWN = {"kumo": "os_brick_nvmeof.agent.vendors.kumo:make"}

INFO = "INFO"
WARN = "WARN"
FATAL = "FATAL"


class VendorError(Exception):
    """A call did not succeed.

    :ivar code: stable, for programs.
    :ivar definite: it was refused, so that nothing has come of it; otherwise it may have happened.
    :ivar away: nobody answered, or what was answered makes no sense.
    """

    def __init__(
        self, text: str, *, code: str = "", definite: bool = False, away: bool = False
    ) -> None:
        super().__init__(text)
        self.code = code
        self.definite = definite
        self.away = away


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who this host is.

    :ivar host_id: as the volumes are published to it: what os-brick's connector tells as ``uuid``.
    :ivar nqn: its host NQN. :ivar name: for people.
    :ivar multipath: the kernel has native multipath.
    """

    host_id: str
    nqn: str
    name: str
    multipath: bool = False


@dataclasses.dataclass(frozen=True)
class News:
    """What came of waiting for events.

    :ivar since: what to wait with next time. :ivar look: something happened.
    """

    since: int | None
    look: bool


class Vendor(abc.ABC):
    """The maker's side of one host. Called by several threads at once.

    Every method raises :class:`VendorError`, and nothing else.
    """

    @abc.abstractmethod
    def probe(self, *, seconds: int, abilities: Sequence[str]) -> None:
        """Say that this host is alive and will say so again within ``seconds``."""

    @abc.abstractmethod
    def pull(self, seen: Seen, now: float) -> Wanted:
        """All that is wanted of this host now. Never an old answer.

        :param seen: the arrays that are here, for makers who cannot list a host's volumes.
        :param now: seconds since the epoch, to turn durations into times.
        """

    @abc.abstractmethod
    def report_leg(self, volume: Volume, leg: str, state: str) -> None:
        """Tell the state of one leg."""

    @abc.abstractmethod
    def report_array(self, volume: Volume, legs: Sequence[tuple[str, str, int]]) -> None:
        """Tell uuid, state and event counter of the legs of an open array."""

    @abc.abstractmethod
    def export(self, volume: Volume) -> None:
        """Let this host reach all legs of a volume that is published to it."""

    @abc.abstractmethod
    def request_replacement(self, volume: Volume, lost: str) -> str:
        """Ask for a leg in place of another; gives its uuid, "" when that is not told."""

    @abc.abstractmethod
    def retire(self, volume: Volume, leg: str) -> None:
        """Ask for the deletion of a leg; it is Terminating then."""

    @abc.abstractmethod
    def confirm(self, volume: Volume, leg: Leg) -> None:
        """Say that this host uses a Terminating leg no more. One that is gone is a success."""

    @abc.abstractmethod
    def report_task(self, task: str, *, state: str, status: str, progress: float) -> None:
        """Tell how a task is. ``progress`` in percent."""

    @abc.abstractmethod
    def task(self, uuid: str) -> Task | None:
        """A task as it is now; None: there is none any more."""

    @abc.abstractmethod
    def wait(self, since: int | None, seconds: int) -> News:
        """Wait for events of this host.

        :raises VendorError: with code ``NotAvailable`` when the maker tells of none.
        """

    @abc.abstractmethod
    def tell(self, level: str, message: str, details: Mapping[str, Any]) -> None:
        """Hand on what was done, for people; ``level`` is INFO, WARN or FATAL."""

    def last_word(self, word: Stopped) -> bool:
        """Tell what the array of a volume was at its end; it is published to this host no more.

        :returns: False when it is to be told again later. A maker who keeps no such record has
            nothing to do.
        """
        return True

    def close(self) -> None:
        """End all connections."""
        return


class Maker(Protocol):
    """What an entry point names."""

    def __call__(self, conf: cfg.ConfigOpts, identity: Identity) -> Vendor:
        """:raises VendorError: an option cannot be used."""


def load(name: str) -> Maker:
    """What makes the vendor of that name.

    :raises VendorError: there is none, or it cannot be loaded.
    """
    points = importlib.metadata.entry_points(group=GROUP)
    found = [point for point in points if point.name == name]
    try:
        if found:
            maker: Maker = found[0].load()
            return maker
        if name in OWN:
            module, _, attribute = OWN[name].partition(":")
            own: Maker = getattr(importlib.import_module(module), attribute)
            return own
    except (ImportError, AttributeError) as error:
        raise VendorError(f"vendor {name!r} cannot be loaded: {error}", definite=True) from error
    known = sorted({*OWN, *(point.name for point in points)})
    raise VendorError(
        f"there is no vendor {name!r}; installed are {', '.join(known)}", definite=True
    )
