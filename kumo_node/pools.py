# SPDX-License-Identifier: Apache-2.0
"""The pools of this node: which there are, on which disks, and taking the disks.

Layout ``disk``: each disk has a volume group and a thin pool of its own. LVM refuses to change a
group that misses a disk, so with one group over all disks a failed disk would stop them all.
Layout ``group``: one volume group and one thin pool over all disks. The layout of a node that has
taken disks is never changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from oslo_log import log

from kumo_client import errors
from kumo_client.schemas.node import STATE_FAILED, STATE_OK
from kumo_node.disks import Disk, Disks, Plan, State, plan
from kumo_node.lvm import Group, Lvm, owner_tag
from kumo_node.pool import Condition, Limits, Pool, provisioned
from kumo_node.spec import (
    CREATING,
    DELETING,
    LAYOUT_DISK,
    LAYOUT_GROUP,
    RELEASING,
    Data,
    DiskRecord,
    PoolRecord,
    ReplicaRecord,
    SnapshotRecord,
    Spec,
)

LOG = log.getLogger(__name__)
_DIGITS = 8
_PREFIX = "ssd-"
_WAY_OUT = (
    "Remove it from disks, or empty it, or name it in wipe_disks to destroy what is on it; "
    "each disk must be a whole one that is there"
)


@dataclasses.dataclass(frozen=True)
class Naming:
    """Names of groups and pools.

    :ivar vg: option ``volume_group``.
    :ivar pool: option ``pool``.
    """

    vg: str
    pool: str

    def group(self, name: str) -> str:
        """Volume group of a pool on one disk. Neither part has a hyphen, which device mapper would
        double in the names of its devices."""
        return f"{self.vg}_{name.removeprefix(_PREFIX)}"

    def pool_in(self, group: str) -> str | None:
        """The pool that a volume group of one disk holds; None for a group of another name."""
        match = re.fullmatch(rf"{re.escape(self.vg)}_([0-9a-f]{{{_DIGITS}}})", group)
        return f"{_PREFIX}{match[1]}" if match else None

    def pattern(self) -> str:
        """All our groups, as a pattern of udev(7)."""
        return f"{self.vg}|{self.vg}_{'[0-9a-f]' * _DIGITS}"


def new_name(disk: Disk, pools: Mapping[str, PoolRecord]) -> str:
    """Name of the pool on a disk: the same whenever it is asked, and no other disk's; pure.

    From the serial number, so that it follows the disk. Disks that share one (two namespaces of a
    controller) are told apart by their paths.
    """
    mine = (disk.path, disk.serial)
    for text in (disk.serial or disk.path, f"{disk.serial} {disk.path}"):
        name = _PREFIX + hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
        record = pools.get(name)
        if record is None or (record.path, record.serial) == mine:
            return name
    raise errors.ConfigError(f"No pool can be named for {disk.path}: the names are taken")


class Pools(Mapping[str, Pool]):
    """The pools by name, filled by :meth:`prepare`.

    :param lvm: makes the LVM of a group, given its name.
    :param layout: for a node that has taken no disk yet.
    :ivar problems: what is wrong with disks that was no reason not to start.
    """

    def __init__(
        self,
        spec: Spec,
        lvm: Callable[[str], Lvm],
        naming: Naming,
        limits: Limits,
        *,
        layout: str = LAYOUT_DISK,
    ) -> None:
        self.spec = spec
        self.naming = naming
        self.limits = limits
        self.problems: list[str] = []
        self._lvm = lvm
        self._wish = layout
        self._pools: dict[str, Pool] = {}

    def __getitem__(self, name: str) -> Pool:
        return self._pools[name]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._pools))

    def __len__(self) -> int:
        return len(self._pools)

    def of(self, record: ReplicaRecord | SnapshotRecord) -> Pool:
        """The pool that a record names."""
        return self._pools[record.pool]

    def emptiest(self) -> Pool:
        """The pool with the most room for what names none.

        :raises NoGroupsError: there is no usable pool.
        """
        data = self.spec.data
        usable = [pool for pool in self.values() if pool.condition.state == STATE_OK]
        if not usable:
            raise errors.NoGroupsError("The node has no usable pool", node=data.persistent_id)
        return max(usable, key=lambda pool: _room(pool, data))

    # Looking.

    def layout(self, groups: Mapping[str, Group]) -> str:
        """The layout of this node, from its record and the groups that are there."""
        data = self.spec.data
        if data.layout:
            return data.layout
        group = groups.get(self.naming.vg)
        # Nodes of the first release have no layout on record and one group.
        if data.disks or (group is not None and self._is_ours(group)):
            return LAYOUT_GROUP
        return self._wish

    def look(self, disks: Disks, paths: Sequence[str], wipe: Sequence[str]) -> Look:
        """Observe groups and disks, and plan; changes nothing.

        :raises ConfigError: a group is not ours or not whole, or no disk is given.
        """
        if not paths:
            raise errors.ConfigError(
                "Option disks is empty", way_out="Name the disks that Kumo may use"
            )
        unknown = sorted(set(wipe) - set(paths))
        if unknown:
            raise errors.ConfigError(f"Option wipe_disks: {', '.join(unknown)} is not in disks")
        every = self._lvm(self.naming.vg)
        groups = every.groups(everywhere=True)
        layout = self.layout(groups)
        if layout == LAYOUT_GROUP and self.naming.vg in groups:
            self._check_group(groups[self.naming.vg])
        ours = [name for name, group in groups.items() if self._belongs(layout, name, group)]
        found = disks.inspect(paths, every.physical(), ours)
        todo = plan(found, wipe, self.spec.data.disks)
        in_service = layout == LAYOUT_DISK and bool(self.spec.data.pools)
        return Look(layout, groups, todo, in_service)

    def _belongs(self, layout: str, name: str, group: Group) -> bool:
        if layout == LAYOUT_GROUP:
            return name == self.naming.vg
        return self._is_ours(group) and self.naming.pool_in(name) is not None

    def _is_ours(self, group: Group) -> bool:
        return owner_tag(self.spec.data.persistent_id) in group.tags

    def _check_group(self, group: Group) -> None:
        if not self._is_ours(group):
            raise errors.ConfigError(
                f"Volume group {group.name} was not made by this node (its tags are "
                f"{', '.join(sorted(group.tags)) or 'none'})",
                way_out="Choose another name with option volume_group, or bring back the "
                f"record in {self.spec.path} that belongs to this group",
            )
        if group.missing:
            raise errors.ConfigError(
                f"Volume group {group.name} misses {group.missing} of its disks",
                way_out="Bring the disk back; lvs and pvs show what is affected",
            )

    # Taking disks.

    def prepare(self, disks: Disks, paths: Sequence[str], wipe: Sequence[str]) -> None:
        """Take the disks, and make or grow groups and pools. Repeatable after a crash anywhere.

        A node that holds nothing yet refuses to start when anything is wrong with a disk. With a
        pool on each disk, one that holds something starts with whatever it has: the rest is told in
        ``problems``.

        :raises UnsafeDiskError: a disk may not be taken; then nothing at all was changed.
        """
        seen = self.look(disks, paths, wipe)
        self.problems = list(seen.plan.problems)
        if self.problems and not seen.in_service:
            raise errors.UnsafeDiskError("; ".join(self.problems), way_out=_WAY_OUT)
        self._record_layout(seen.layout)
        if seen.layout == LAYOUT_GROUP:
            self._prepare_group(disks, seen)
        else:
            self._prepare_each(disks, seen)
            self._add_absent(seen.plan, paths)
        self._add_unknown()

    def _record_layout(self, layout: str) -> None:
        if layout != self._wish:
            LOG.info("This node has the layout %s, whatever option pool_layout says", layout)
        if self.spec.data.layout != layout:
            with self.spec.edit() as data:
                data.layout = layout

    def _prepare_group(self, disks: Disks, seen: Look) -> None:
        pool = self._add(self.naming.pool, self.naming.vg)
        new = [*seen.plan.add, *seen.plan.wipe]
        self._record(new, ready=False)
        self._wipe(disks, seen.plan.wipe)
        pool.use([*seen.plan.keep, *new])
        pool.take(new, seen.groups.get(self.naming.vg))
        pool.open()
        self._activate(pool)
        self._record(pool.disks, ready=True)

    def _prepare_each(self, disks: Disks, seen: Look) -> None:
        for disk in (*seen.plan.keep, *seen.plan.add, *seen.plan.wipe):
            try:
                self._prepare_one(disks, seen, disk)
            except errors.KumoError as error:
                if not seen.in_service:
                    raise
                self.problems.append(f"{disk.path} cannot be used: {error.description}")

    def _prepare_one(self, disks: Disks, seen: Look, disk: Disk) -> None:
        known = self.naming.pool_in(disk.group) if disk in seen.plan.keep else None
        name = known or new_name(disk, self.spec.data.pools)
        pool = self._add(name, self.naming.group(name))
        pool.use([disk])
        # Before the first command: a crash in between leaves a pool that is on record.
        self._record_pool(pool, disk)
        if disk not in seen.plan.keep:
            self._record([disk], ready=False)
            if disk in seen.plan.wipe:
                self._wipe(disks, [disk])
        try:
            if disk not in seen.plan.keep:
                pool.take([disk], None)
            pool.open()
        except errors.KumoError as error:
            if not error.transient:
                pool.condition = Condition(STATE_FAILED, error.description)
            raise
        self._activate(pool)
        self._record([disk], ready=True)
        self._record_pool(pool, disk)

    def _activate(self, pool: Pool) -> None:
        try:
            pool.activate()
        except errors.KumoError as error:
            if not error.transient:
                pool.condition = Condition(STATE_FAILED, error.description)
            self.problems.append(f"Pool {pool.name} cannot be activated: {error.description}")

    def reopen(self, disks: Disks, pool: Pool, *, clean: bool) -> None:
        """Open a pool whose disk is back.

        :param clean: deactivate first what is still active; nothing may hold it open.
        :raises UnsafeDiskError: a disk is not what it was.
        """
        every = self._lvm(self.naming.vg)
        group = every.groups(everywhere=True).get(pool.lvm.vg)
        ours = [pool.lvm.vg] if group is not None and self._is_ours(group) else []
        found = disks.inspect(pool.paths(), every.physical(), ours)
        for disk in found:
            if disk.state is not State.OURS:
                raise errors.UnsafeDiskError(f"{disk.path} is {disk.state.value}: {disk.reason}")
        pool.use(found)
        if clean:
            pool.lvm.deactivate()
        pool.open(make=False)
        pool.activate()
        pool.condition = Condition()
        names = (f"Pool {pool.name} ", *(f"{path} " for path in pool.paths()))
        self.problems = [text for text in self.problems if not text.startswith(names)]

    def _wipe(self, disks: Disks, wipe: Sequence[Disk]) -> None:
        for disk in wipe:
            LOG.warning("Wiping %s (%s), as wipe_disks says", disk.path, disk.reason)
            disks.wipe(disk)

    def _record(self, disks: Sequence[Disk], *, ready: bool) -> None:
        wanted = {disk.path: DiskRecord(serial=disk.serial, ready=ready) for disk in disks}
        if any(self.spec.data.disks.get(path) != record for path, record in wanted.items()):
            with self.spec.edit() as data:
                data.disks.update(wanted)

    def _record_pool(self, pool: Pool, disk: Disk) -> None:
        state = pool.known()
        before = self.spec.data.pools.get(pool.name)
        size = state.bytes if state else before.bytes if before else 0
        record = PoolRecord(vg=pool.lvm.vg, path=disk.path, serial=disk.serial, bytes=size)
        if before != record:
            with self.spec.edit() as data:
                data.pools[pool.name] = record

    def _add(self, name: str, vg: str) -> Pool:
        self._pools[name] = Pool(name, self._lvm(vg), self.spec, self.limits)
        return self._pools[name]

    def _add_absent(self, todo: Plan, paths: Sequence[str]) -> None:
        """Pools that the record names and whose disk was not found.

        One whose disk was replaced, or taken out of the configuration, is forgotten when it holds
        nothing; what it held is for the provisioner to give up.
        """
        there = {disk.path: disk.serial for disk in (*todo.keep, *todo.add, *todo.wipe)}
        for name, record in list(self.spec.data.pools.items()):
            if name in self._pools:
                continue
            which = f"its disk {record.path} (serial {record.serial or 'unknown'})"
            reason, given_up = f"{which} is missing", True
            if record.path not in paths:
                reason = f"{which} is not in option disks"
            elif there.get(record.path, record.serial) != record.serial:
                reason = f"{which} was replaced"
            else:
                given_up = False
            if given_up and not _holds_something(self.spec.data, name):
                LOG.info("Pool %s is forgotten: %s", name, reason)
                with self.spec.edit() as data:
                    _forget(data, name)
                continue
            pool = self._add(name, record.vg)
            pool.condition, pool.given_up = Condition(STATE_FAILED, reason), given_up

    def _add_unknown(self) -> None:
        """Pools that a replica names and nothing else."""
        data = self.spec.data
        named = {record.pool for record in data.replicas.values()}
        named |= {record.pool for record in data.snapshots.values()}
        for name in sorted(named - set(self._pools)):
            pool = self._add(name, self.naming.vg)
            pool.given_up = True
            pool.condition = Condition(STATE_FAILED, "no disk of this node is on record for it")


@dataclasses.dataclass(frozen=True)
class Look:
    """Layout, the groups that are there, and what is to be done with the disks.

    :ivar in_service: the node starts with whatever disks it has.
    """

    layout: str
    groups: Mapping[str, Group]
    plan: Plan
    in_service: bool = False


def _holds_something(data: Data, pool: str) -> bool:
    """True when something on a pool was answered as done and not deleted since."""
    given_up = (CREATING, DELETING, RELEASING)
    return any(r.pool == pool and r.state not in given_up for r in data.replicas.values()) or any(
        s.pool == pool and s.state not in given_up for s in data.snapshots.values()
    )


def _forget(data: Data, pool: str) -> None:
    data.replicas = {u: r for u, r in data.replicas.items() if r.pool != pool}
    data.snapshots = {u: s for u, s in data.snapshots.items() if s.pool != pool}
    record = data.pools.pop(pool)
    known = data.disks.get(record.path)
    if known is not None and known.serial == record.serial:
        del data.disks[record.path]


def _room(pool: Pool, data: Data) -> float:
    """Bytes that a pool could still promise; less than nothing when nothing is known of it."""
    state = pool.state(max_age=3600)
    if state is None:
        return -1.0
    return state.bytes * pool.limits.max_overprovision - provisioned(data, pool.name)
