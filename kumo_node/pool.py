# SPDX-License-Identifier: Apache-2.0
"""The volume group and thin pool on this node's disks: made, grown, watched."""

from __future__ import annotations

import threading
import time

from oslo_log import log

from kumo_client import errors
from kumo_client.schemas.node import Pool as WirePool
from kumo_client.schemas.node import Ssd
from kumo_node.disks import Disk, Disks, Plan, plan
from kumo_node.lvm import (
    MAX_METADATA,
    TAG,
    Group,
    Lvm,
    PoolState,
    metadata_size,
    owner_tag,
    pool_layout,
)
from kumo_node.spec import Data, DiskRecord, Spec

LOG = log.getLogger(__name__)
# Less than this left in the group is not worth a command.
_WORTH_EXTENDING = 64 << 20
# Seconds for which a look at the pool is good enough for GET /v1/info.
_FRESH = 2.0
_WARN_PERCENT = 80.0


class Pool:
    """The pool of this node.

    :param max_overprovision: largest sum of virtual sizes as a multiple of the pool's size.
    :param full_percent: fill level above which nothing new is begun.
    """

    def __init__(
        self,
        lvm: Lvm,
        spec: Spec,
        *,
        chunk_kib: int = 64,
        max_overprovision: float = 20.0,
        full_percent: float = 95.0,
    ) -> None:
        self.lvm = lvm
        self.spec = spec
        self.chunk_kib = chunk_kib
        self.max_overprovision = max_overprovision
        self.full_percent = full_percent
        self.name = lvm.pool_name
        self.disks: list[Disk] = []
        self._mutex = threading.Lock()
        self._state: PoolState | None = None
        self._seen_at = float("-inf")

    # Making.

    def look(self, disks: Disks, paths: list[str], wipe: list[str]) -> tuple[Group | None, Plan]:
        """Observe group and disks, and plan; changes nothing.

        :raises ConfigError: the group is not ours or not whole, or no disk is given.
        """
        if not paths:
            raise errors.ConfigError(
                "Option disks is empty", way_out="Name the disks that Kumo may use"
            )
        unknown = sorted(set(wipe) - set(paths))
        if unknown:
            raise errors.ConfigError(f"Option wipe_disks: {', '.join(unknown)} is not in disks")
        group = self.lvm.groups(everywhere=True).get(self.lvm.vg)
        if group is not None:
            self._check_group(group)
        found = disks.inspect(paths, self.lvm.physical(), self.lvm.vg)
        return group, plan(found, wipe, self.spec.data.disks)

    def _check_group(self, group: Group) -> None:
        if owner_tag(self.spec.data.persistent_id) not in group.tags:
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

    def prepare(self, disks: Disks, paths: list[str], wipe: list[str]) -> None:
        """Take the disks, and make or grow group and pool. Repeatable after a crash anywhere.

        :raises UnsafeDiskError: a disk may not be taken; then nothing at all was changed.
        """
        group, todo = self.look(disks, paths, wipe)
        if todo.problems:
            raise errors.UnsafeDiskError(
                "; ".join(todo.problems),
                way_out="Remove it from disks, or empty it, or name it in wipe_disks to destroy "
                "what is on it",
            )
        new = [*todo.add, *todo.wipe]
        self._record(new, ready=False)
        for disk in todo.wipe:
            LOG.warning("Wiping %s (%s), as wipe_disks says", disk.path, disk.reason)
            disks.wipe(disk)
        self.disks = [*todo.keep, *new]
        self.lvm.devices = [disk.device for disk in self.disks]
        if new:
            self._take([disk.device for disk in new], group)
        self._make_pool()
        self._record(self.disks, ready=True)

    def _record(self, disks: list[Disk], *, ready: bool) -> None:
        wanted = {disk.path: DiskRecord(serial=disk.serial, ready=ready) for disk in disks}
        if any(self.spec.data.disks.get(path) != record for path, record in wanted.items()):
            with self.spec.edit() as data:
                data.disks.update(wanted)

    def _take(self, devices: list[str], group: Group | None) -> None:
        if group is None:
            self.lvm.create_group(devices, [TAG, owner_tag(self.spec.data.persistent_id)])
        else:
            self.lvm.extend_group(devices)

    def _make_pool(self) -> None:
        group = self.lvm.groups()[self.lvm.vg]
        state = self.lvm.pool()
        if state is None:
            extents, metadata, chunk = pool_layout(group.free, group.extent, self.chunk_kib)
            LOG.info("Making pool %s/%s of %d extents", self.lvm.vg, self.name, extents)
            self.lvm.create_pool(extents, metadata, chunk)
        elif not state.zeroes:
            raise errors.ConfigError(
                f"Thin pool {self.lvm.vg}/{self.name} does not zero new blocks: volumes would show "
                "what others wrote",
                way_out=f"lvchange -Zy {self.lvm.vg}/{self.name}, if no volume was used yet",
            )
        else:
            if state.queues:
                self.lvm.fail_when_full()
            if group.free >= _WORTH_EXTENDING:
                self._grow(state, group)

    def _grow(self, state: PoolState, group: Group) -> None:
        wanted = metadata_size(state.bytes + group.free, group.extent, state.chunk)
        more = max(0, min(wanted, MAX_METADATA) - state.metadata) // group.extent * group.extent
        # The spare of the metadata grows with it.
        extents = (group.free - 2 * more) // group.extent
        if more and extents > 0:
            self.lvm.extend_metadata(more)
        if extents > 0:
            LOG.info("Growing pool %s/%s by %d extents", self.lvm.vg, self.name, extents)
            self.lvm.extend_pool(extents)

    # Watching.

    def state(self, max_age: float = _FRESH) -> PoolState | None:
        """The pool as seen at most ``max_age`` seconds ago; None when there is none."""
        with self._mutex:
            if time.monotonic() - self._seen_at > max_age:
                self._state = self.lvm.pool()
                self._seen_at = time.monotonic()
                self._warn(self._state)
            return self._state

    def _warn(self, state: PoolState | None) -> None:
        for what in ("data", "metadata"):
            percent = getattr(state, f"{what}_percent", None)
            if percent is not None and percent > _WARN_PERCENT:
                LOG.warning(
                    "Pool %s/%s: %.1f %% of its %s space is used; add disks or delete volumes",
                    self.lvm.vg, self.name, percent, what,
                )  # fmt: skip

    def check_room(self, data: Data, more: int) -> None:
        """Refuse what the pool cannot promise.

        :param more: bytes by which the sum of virtual sizes would grow.
        :raises NoGroupsError: there is no pool.
        :raises NoSpaceError: it would promise too much or is nearly full.
        """
        state = self.state(max_age=3600)
        if state is None:
            raise errors.NoGroupsError("The node has no pool")
        limit = int(state.bytes * self.max_overprovision)
        if provisioned(data) + more > limit:
            raise errors.NoSpaceError(
                f"{more} more bytes would exceed what pool {self.name} may promise "
                f"({limit} bytes, {provisioned(data)} are)",
                way_out="Use another node, add disks, or raise max_overprovision",
            )
        for what in ("data", "metadata"):
            percent = getattr(state, f"{what}_percent")
            if percent is not None and percent > self.full_percent:
                raise errors.NoSpaceError(
                    f"{percent:.1f} % of the {what} space of pool {self.name} is used",
                    way_out="Add disks or delete volumes",
                )

    def wire(self) -> WirePool | None:
        """The pool as the API shows it."""
        state = self.state()
        if state is None:
            return None
        return WirePool(
            name=self.name,
            total_bytes=state.bytes,
            used_bytes=int(state.bytes * (state.data_percent or 0.0) / 100),
            provisioned_bytes=provisioned(self.spec.data),
            metadata_percent=state.metadata_percent or 0.0,
            ssds=[
                Ssd(path=d.path, serial=d.serial, bytes=d.bytes, block_size=d.block_size)
                for d in self.disks
            ],
        )


def provisioned(data: Data) -> int:
    """Sum of the virtual sizes of replicas and snapshots, in bytes."""
    replicas = sum(max(r.bytes, r.target_bytes or 0) for r in data.replicas.values())
    return replicas + sum(snapshot.bytes for snapshot in data.snapshots.values())
