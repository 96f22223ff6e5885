# SPDX-License-Identifier: Apache-2.0
"""Looking at the host: sysfs, and superblocks where sysfs does not tell.

Everything is read anew at each look, but for what a superblock told of an array whose members are
the same. What cannot be read is None. Superblocks are read at once and for a bounded time: what
does not answer by then is as if it could not be read, in this look.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TypeVar

from oslo_log import log

from os_brick_nvmeof import arrays, superblock, sysfs, waiting
from os_brick_nvmeof.agent.model import (
    ARRAY,
    LIVE,
    NOTHING,
    OTHER,
    Array,
    Controller,
    Member,
    Namespace,
    Place,
    Seen,
    Superblock,
    Wanted,
)
from os_brick_nvmeof.agent.reads import Reads
from os_brick_nvmeof.conf import TimeOuts
from os_brick_nvmeof.context import Context

LOG = log.getLogger(__name__)
T = TypeVar("T")
MULTIPATH = "sys/module/nvme_core/parameters/multipath"
# Seconds for which what a superblock says of its array is good while no member changes.
KEPT = 60.0
# Seconds for all superblocks of one look, and for those that are asked first.
READ_SECONDS = 6.0
_FIRST_SECONDS = 3.0
_NEVER = "off"
# As md/sync_action says it.
_IDLE = "idle"


@dataclasses.dataclass(frozen=True)
class _Told:
    """What a superblock told of an array."""

    time: float
    members: frozenset[tuple[str, str, Place]]
    state: str
    uuid: str
    alias: str
    events: int


class Observer:
    """Looks at the host of a context. Used by several threads."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._root = ctx.host.root
        self._told: dict[str, _Told] = {}
        self._reads = Reads(ctx)

    def states(self) -> dict[str, str]:
        """States of all controllers: a glance that costs little."""
        return _attempt(lambda: sysfs.states(self._root), "controllers") or {}

    def io(self, names: Iterable[str]) -> tuple[frozenset[str], int, int] | None:
        """Those controllers that are live, and their I/O: completed ever, and under way.

        None: could not be told. Fields 1, 5, 9, 12 and 16 of Documentation/block/stat.rst.
        """
        done = waiting = 0
        live = set()
        try:
            for name in names:
                path = self._root / sysfs.CONTROLLERS / name
                if sysfs.read(path / "state") != LIVE:
                    continue
                live.add(name)
                for entry in filter(sysfs.device_name, sysfs.names(path)):
                    fields = [int(one) for one in (sysfs.read(path / entry / "stat") or "").split()]
                    done += sum(fields[0:1] + fields[4:5] + fields[11:12] + fields[15:16])
                    waiting += sum(fields[8:9])
        except (OSError, ValueError) as error:
            LOG.warning("The I/O of controllers could not be told: %s", error)
            return None
        return frozenset(live), done, waiting

    def look(self, wanted: Wanted, *, reading: bool = True) -> Seen:
        """The host now, as far as it matters to what is wanted.

        :param reading: False: read no device, so that a node that is silent delays nothing. What
            only superblocks tell is then as it was told last, or missing.
        """
        nqns = {leg.nqn for volume in wanted.volumes for leg in volume.legs if leg.nqn}
        controllers = _attempt(lambda: self._controllers(nqns), "controllers")
        namespaces = _attempt(lambda: self._namespaces(nqns, controllers), "namespaces")
        live = {one.nqn for one in controllers or () if one.state == LIVE}
        reached = {one.name for one in namespaces or () if one.nqn in live and reading}
        shown = _attempt(self._arrays, "arrays")
        free = [] if shown is None else self._free_legs(wanted, namespaces or (), shown, reached)
        contents = _attempt(lambda: self._tell(shown or (), free, reached), "superblocks") or {}
        blocks = {one.uuid: _superblock(contents.get(one.name)) for one in free}
        return Seen(
            controllers=controllers,
            namespaces=namespaces,
            arrays=None if shown is None else tuple(self._named(one) for one in shown),
            superblocks={leg: told for leg, told in blocks.items() if told is not None},
            host_nqn=self._ctx.host_nqn,
            multipath=(_attempt(self._multipath, "multipath") or "N") == "Y",
        )

    def _multipath(self) -> str:
        return sysfs.read(self._root / MULTIPATH) or "N"

    # -- NVMe -------------------------------------------------------------------------------------

    def _controllers(self, nqns: set[str]) -> tuple[Controller, ...]:
        return tuple(
            Controller(
                name=one.name,
                nqn=one.nqn,
                transport=one.transport,
                address=one.address,
                port=one.port,
                state=one.state,
                host_nqn=one.host_nqn,
                time_outs=self._time_outs(one.name) if one.nqn in nqns else None,
            )
            for one in sysfs.controllers(self._root)
        )

    def _time_outs(self, name: str) -> TimeOuts | None:
        """None on kernels that do not show all of them (before 5.11)."""
        path = f"{self._root}/{sysfs.CONTROLLERS}/{name}"
        names = ("reconnect_delay", "fast_io_fail_tmo", "ctrl_loss_tmo")
        texts = [sysfs.read(f"{path}/{attribute}") for attribute in names]
        try:
            delay, fail, loss = (-1 if text == _NEVER else int(text or "") for text in texts)
        except ValueError:
            return None
        # The keep-alive cannot be changed and is not compared.
        return TimeOuts(keep_alive=0, reconnect_delay=delay, fast_io_fail=fail, ctrl_loss=loss)

    def _namespaces(
        self, nqns: Iterable[str], controllers: Iterable[Controller] | None
    ) -> tuple[Namespace, ...]:
        """:param controllers: those that were seen just now; None: look at all."""
        found = []
        for nqn in sorted(nqns):
            names = [one.name for one in controllers or () if one.nqn == nqn]
            if controllers is None or names:
                seen = sysfs.subsystem(self._root, nqn, names)
                for device, uuid in sorted(seen.uuids.items()):
                    size = sysfs.size(self._root, device)
                    if size is not None:
                        found.append(Namespace(device, uuid, nqn, size, self._written(device)))
        return tuple(found)

    def _written(self, name: str) -> int:
        """Bytes written to a device since it is there (Documentation/block/stat.rst, field 7)."""
        fields = (sysfs.read(f"{self._root}/{sysfs.BLOCK}/{name}/stat") or "").split()
        return int(fields[6]) * sysfs.SECTOR if len(fields) > 6 else 0

    # -- md ---------------------------------------------------------------------------------------

    def _arrays(self) -> tuple[Array, ...]:
        """What sysfs shows of them."""
        found = []
        names = arrays.names(self._root)
        for name in names:
            one = arrays.look(self._root, name)
            if one is not None and self._md(name, "level") == "raid1":
                found.append(self._array(one))
        for name in set(self._told).difference(names):
            self._told.pop(name, None)
        return tuple(found)

    def _md(self, name: str, attribute: str) -> str:
        return sysfs.read(f"{self._root}/{sysfs.BLOCK}/{name}/md/{attribute}") or ""

    def _array(self, one: arrays.Array) -> Array:
        members = tuple(
            Member(each.name, self._uuid(one.name, each.name), _place(each)) for each in one.members
        )
        action = self._md(one.name, "sync_action")
        # An idle array has nothing to say of it, and there are many.
        idle = action == _IDLE
        done, _, total = ("" if idle else self._md(one.name, "sync_completed")).partition("/")
        running = total.strip().isdigit() and done.strip().isdigit()
        return Array(
            name=one.name,
            uuid=one.uuid,
            alias="",
            state=one.state,
            slots=one.places,
            members=members,
            action=action,
            done=int(done) if running else 0,
            total=int(total) if running else 0,
            speed=0 if idle else _number(self._md(one.name, "sync_speed")) or 0,
            speed_min=_number(self._md(one.name, "sync_speed_min")),
            speed_max=_number(self._md(one.name, "sync_speed_max")),
        )

    def _uuid(self, array: str, device: str) -> str:
        """UUID of the namespace of a member. The name alone may be another device's by now, so the
        link that md has is followed; it leads nowhere when the device is gone."""
        path = f"{self._root}/{sysfs.BLOCK}/{array}/md/dev-{device}/block"
        return (sysfs.read(f"{path}/uuid") or "").lower()

    def _named(self, one: Array) -> Array:
        """With name, UUID and event counter, as superblocks told them."""
        told = self._told.get(one.name)
        if told is None:
            return one
        if not self._fresh(one, told):
            # What it is called does not change; what was counted does.
            before = {device for device, *_ in told.members}
            if not any(each.device in before for each in one.members or ()):
                return one
            told = dataclasses.replace(told, events=0)
        return dataclasses.replace(
            one, uuid=one.uuid or told.uuid, alias=told.alias, events=told.events
        )

    def _fresh(self, one: Array, told: _Told | None) -> bool:
        """Whether what was told of an array holds: nothing changed, and it is not long ago."""
        now = self._ctx.clock()
        return told is not None and (
            (told.members, told.state) == (_key(one), one.state) and now - told.time < KEPT
        )

    # -- superblocks ------------------------------------------------------------------------------

    def _tell(
        self, shown: Iterable[Array], free: Iterable[Namespace], reached: set[str]
    ) -> dict[str, superblock.Content]:
        """Read superblocks: of each array that is not known one member, and the next one when that
        does not tell; and of the legs that are free. Gives what was read, by device."""
        whole = waiting.Deadline(self._ctx.clock, READ_SECONDS)
        deadline = waiting.Deadline(self._ctx.clock, _FIRST_SECONDS)
        asked = {
            one.name: (one, [each.device for each in one.members or () if _tells(each, reached)])
            for one in shown
            if not self._fresh(one, self._told.get(one.name))
        }
        contents: dict[str, superblock.Content] = {}
        told: set[str] = set()
        names = {each.name for each in free}
        while not whole.passed:
            now = {
                name: devices.pop(0)
                for name, (_, devices) in asked.items()
                if devices and name not in told
            }
            names.update(now.values())
            if not names:
                break
            contents.update(self._reads.of(sorted(names), deadline))
            for name, device in now.items():
                if self._take(asked[name][0], contents.get(device)):
                    told.add(name)
            names, deadline = set(), whole
        return contents

    def _take(self, one: Array, content: superblock.Content | None) -> bool:
        """Keep what the superblock of a member says of its array; False when it says nothing."""
        if not isinstance(content, superblock.Superblock):
            return False
        alias, now = content.name.rpartition(":")[2], self._ctx.clock()
        self._told[one.name] = _Told(
            now, _key(one), one.state, content.array_uuid, alias, content.events
        )
        return True

    def _free_legs(
        self,
        wanted: Wanted,
        namespaces: Iterable[Namespace],
        found: Iterable[Array],
        reached: set[str],
    ) -> list[Namespace]:
        """Legs that are in no array: they may be put in."""
        legs = {leg.uuid for volume in wanted.volumes if volume.replicated for leg in volume.legs}
        inside = {
            member.uuid
            for array in found
            for member in array.members or ()
            if array.running and member.place is not Place.FAULTY
        }
        return [
            one
            for one in namespaces
            if one.uuid in legs - inside and one.name in reached and self._free(one.name)
        ]

    def _free(self, device: str) -> bool:
        """Whether nothing but an array is made of a device."""
        return all(name.startswith("md") for name in sysfs.holders(self._root, device))


def _key(one: Array) -> frozenset[tuple[str, str, Place]]:
    return frozenset((each.device, each.uuid, each.place) for each in one.members or ())


def _tells(member: Member, reached: set[str]) -> bool:
    return member.place is Place.IN_SYNC and member.device in reached


def _superblock(content: superblock.Content | None) -> Superblock | None:
    if isinstance(content, superblock.Superblock):
        return Superblock(ARRAY, content.array_uuid, content.events)
    if isinstance(content, superblock.Blank):
        return Superblock(NOTHING)
    if isinstance(content, superblock.Foreign):
        return Superblock(OTHER)
    return None


def _place(member: arrays.Member) -> Place:
    """By the words of ``md/dev-*/state`` (Documentation/admin-guide/md.rst)."""
    if "faulty" in member.flags:
        return Place.FAULTY
    if "in_sync" in member.flags:
        return Place.IN_SYNC
    return Place.SYNCING if "spare" in member.flags else Place.UNKNOWN


def _number(text: str) -> int | None:
    """ "1000 (system)" or "none"."""
    first = text.split()[0] if text else ""
    return int(first) if first.isdigit() else None


def _attempt(look: Callable[[], T], what: str) -> T | None:
    try:
        return look()
    except (OSError, ValueError) as error:
        LOG.warning("The %s of this host could not be told: %s", what, error)
        return None
