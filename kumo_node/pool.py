# SPDX-License-Identifier: Apache-2.0
"""One thin pool in its volume group: made, grown, watched."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence

from oslo_log import log

from kumo_client import errors
from kumo_client.schemas.node import STATE_FAILED, STATE_FULL, STATE_OK, STATE_READ_ONLY, Ssd
from kumo_client.schemas.node import Pool as WirePool
from kumo_node.disks import Disk, identity
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
from kumo_node.spec import Data, Spec

LOG = log.getLogger(__name__)
# Less than this left in the group is not worth a command.
_WORTH_EXTENDING = 64 << 20
# Seconds for which a look at the pool is good enough for GET /v1/info; the health loop looks more
# often and far more cheaply.
_FRESH = 30.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a pool may promise and how it is made.

    :ivar chunk_kib: wished allocation unit.
    :ivar max_overprovision: largest sum of virtual sizes as a multiple of the pool's size.
    :ivar full_percent: fill level above which nothing new is begun.
    :ivar reserve_percent: part of the group that a new or grown pool leaves free.
    """

    chunk_kib: int = 64
    max_overprovision: float = 20.0
    full_percent: float = 95.0
    reserve_percent: float = 0.0


@dataclasses.dataclass(frozen=True)
class Condition:
    """Whether a pool can be used: a state of the wire, and why when it is not ``ok``."""

    state: str = STATE_OK
    reason: str = ""


class Pool:
    """A pool.

    :param name: as the provisioner knows it.
    :ivar disks: the disks it lies on, as seen when it was opened.
    :ivar identities: by path, what told these disks from others (:func:`kumo_node.disks.identity`).
    :ivar given_up: its disk is not given to this node any more: it is not looked at.
    :ivar condition: replaced as a whole by whoever observes the pool.
    """

    def __init__(self, name: str, lvm: Lvm, spec: Spec, limits: Limits) -> None:
        self.name = name
        self.lvm = lvm
        self.spec = spec
        self.limits = limits
        self.disks: list[Disk] = []
        self.identities: dict[str, str] = {}
        self.condition = Condition()
        self.given_up = False
        self._mutex = threading.Lock()
        self._state: PoolState | None = None
        self._seen_at = float("-inf")

    @property
    def failed(self) -> bool:
        """True when nothing on it can be reached."""
        return self.condition.state == STATE_FAILED

    @property
    def path(self) -> str:
        """Group and pool as LVM writes them."""
        return f"{self.lvm.vg}/{self.lvm.pool_name}"

    # Making.

    def use(self, disks: Sequence[Disk]) -> None:
        """Let commands see these disks."""
        self.disks = list(disks)
        self.lvm.devices = [disk.device for disk in disks]
        self.identities = {}

    def paths(self) -> list[str]:
        """Paths of its disks, as configured; from the record when they were not found."""
        record = self.spec.data.pools.get(self.name)
        if not self.disks and record is not None:
            return [record.path]
        return [disk.path for disk in self.disks]

    def take(self, new: Sequence[Disk], group: Group | None) -> None:
        """Put empty disks into the group, which is made when there is none."""
        if not new:
            return
        devices = [disk.device for disk in new]
        if group is None:
            self.lvm.create_group(devices, [TAG, owner_tag(self.spec.data.persistent_id)])
        else:
            self.lvm.extend_group(devices)

    def open(self, *, make: bool = True) -> None:
        """Make the pool, or see that it is as it must be and grow it. Repeatable.

        :param make: False when there must be one.
        :raises ConfigError: it does not zero new blocks, or the disks are too small.
        :raises InternalError: LVM does not show the group, or refuses.
        """
        group = self.lvm.groups().get(self.lvm.vg)
        if group is None:
            raise errors.InternalError(f"LVM shows no volume group {self.lvm.vg}")
        state = self.lvm.pool()
        if state is None and not make:
            raise errors.InternalError(f"LVM shows no pool {self.path}")
        if state is None:
            extents, metadata, chunk = pool_layout(
                group.free, group.extent, self.limits.chunk_kib, self._reserve(group.free)
            )
            LOG.info("Making pool %s of %d extents", self.path, extents)
            self.lvm.create_pool(extents, metadata, chunk)
        elif not state.zeroes:
            raise errors.ConfigError(
                f"Thin pool {self.path} does not zero new blocks: volumes would show what others "
                "wrote",
                way_out=f"lvchange -Zy {self.path}, if no volume was used yet",
            )
        else:
            if state.queues:
                self.lvm.fail_when_full()
            self._grow(state, group)
        self.state(max_age=0)

    def activate(self) -> None:
        """Activate the pool, so that its state can be told, and count it as open."""
        if self._state is not None and self._state.data_percent is None:
            self.lvm.activate_pool()
            self.state(max_age=0)
        self.identities = {d.path: identity(d.device, self.lvm.sys_root) for d in self.disks}

    def _reserve(self, size: int) -> int:
        return int(size * self.limits.reserve_percent / 100)

    def grow(self, *, with_reserve: bool) -> bool:
        """Give the pool what is free in its group.

        :param with_reserve: the reserve, too; it is not refilled by itself later.
        :returns: False when there was nothing to give.
        """
        group, state = self.lvm.groups().get(self.lvm.vg), self.lvm.pool()
        if group is None or state is None:
            raise errors.InternalError(f"LVM does not show pool {self.path}")
        if with_reserve:
            grown = self._give_reserve(state, group)
        else:
            grown = self._grow(state, group)
        if grown:
            self.state(max_age=0)
        return grown

    def _grow(self, state: PoolState, group: Group) -> bool:
        free = group.free - self._reserve(state.bytes + group.free)
        if free < _WORTH_EXTENDING:
            return False
        wanted = metadata_size(state.bytes + free, group.extent, state.chunk)
        more = max(0, min(wanted, MAX_METADATA) - state.metadata) // group.extent * group.extent
        # The spare of the metadata grows with it.
        extents = (free - 2 * more) // group.extent
        if extents <= 0:
            return False
        if more:
            self.lvm.extend_metadata(more)
        LOG.info("Growing pool %s by %d extents", self.path, extents)
        self.lvm.extend_pool(extents)
        return True

    def _give_reserve(self, state: PoolState, group: Group) -> bool:
        """Where metadata is what runs out, up to half goes to metadata and its spare."""
        data, metadata = state.data_percent or 0.0, state.metadata_percent or 0.0
        more = 0
        if metadata > self.limits.full_percent:
            room = min(group.free // 4, MAX_METADATA - state.metadata, state.metadata)
            more = max(0, room) // group.extent * group.extent
        extents = (group.free - 2 * more) // group.extent
        if more:
            LOG.warning("Giving pool %s %d bytes of metadata from its reserve", self.path, more)
            self.lvm.extend_metadata(more)
        if extents > 0 and data > self.limits.full_percent:
            LOG.warning("Giving pool %s its reserve of %d extents", self.path, extents)
            self.lvm.extend_pool(extents)
            return True
        return bool(more)

    # Watching.

    def known(self) -> PoolState | None:
        """The pool as it was seen last; None when it never was."""
        return self._state

    def state(self, max_age: float = _FRESH) -> PoolState | None:
        """The pool as seen at most ``max_age`` seconds ago; None when there is none.

        Of a pool that has failed, what was seen last.
        """
        with self._mutex:
            if not self.failed and time.monotonic() - self._seen_at > max_age:
                self._state = self.lvm.pool()
                self._seen_at = time.monotonic()
            return self._state

    def note(self, data_percent: float, metadata_percent: float) -> None:
        """The fill level was seen without asking LVM."""
        with self._mutex:
            if self._state is not None:
                self._state = dataclasses.replace(
                    self._state, data_percent=data_percent, metadata_percent=metadata_percent
                )
                self._seen_at = time.monotonic()

    def check_room(self, data: Data, more: int) -> None:
        """Refuse what the pool cannot promise.

        :param more: bytes by which the sum of virtual sizes would grow.
        :raises NoGroupsError: there is no pool, or it cannot be written to.
        :raises NoSpaceError: it would promise too much or is nearly full.
        """
        self.check_writable()
        state = self.state(max_age=3600)
        if state is None:
            raise errors.NoGroupsError(f"The node has no pool {self.name}")
        limit = int(state.bytes * self.limits.max_overprovision)
        promised = provisioned(data, self.name)
        if promised + more > limit:
            raise errors.NoSpaceError(
                f"{more} more bytes would exceed what pool {self.name} may promise "
                f"({limit} bytes, {promised} are)",
                way_out="Use another node, add disks, or raise max_overprovision",
            )
        for what in ("data", "metadata"):
            percent = getattr(state, f"{what}_percent")
            if percent is not None and percent > self.limits.full_percent:
                raise errors.NoSpaceError(
                    f"{percent:.1f} % of the {what} space of pool {self.name} is used",
                    way_out="Add disks or delete volumes",
                )

    def check_writable(self) -> None:
        """:raises NoGroupsError: the pool has failed or is read-only."""
        if self.condition.state in (STATE_FAILED, STATE_READ_ONLY):
            raise errors.NoGroupsError(
                f"Pool {self.name} is {self.condition.state}: {self.condition.reason}",
                node=self.spec.data.persistent_id,
                way_out="Use another pool; kumo-node's log and NodeInfo tell what is wrong with it",
            )

    def wire(self) -> WirePool | None:
        """The pool as the API shows it; None when there is none and none is on record."""
        record = self.spec.data.pools.get(self.name)
        try:
            state = self.state()
        except errors.KumoError as error:
            LOG.warning("Pool %s as it was seen last: %s", self.path, error.description)
            state = self.known()
        if state is None and record is None and not self.failed:
            return None
        size = state.bytes if state else record.bytes if record else 0
        return WirePool(
            name=self.name,
            total_bytes=size,
            used_bytes=int(size * ((state and state.data_percent) or 0.0) / 100),
            provisioned_bytes=provisioned(self.spec.data, self.name),
            metadata_percent=(state and state.metadata_percent) or 0.0,
            data_percent=(state and state.data_percent) or 0.0,
            spans=len(self.disks) > 1,
            state=self.wire_state(),
            ssds=self.ssds(),
        )

    def wire_state(self) -> str:
        """Its state on the wire, from what was seen last."""
        state = self.known()
        if self.condition.state != STATE_OK or state is None:
            return self.condition.state
        used = max(state.data_percent or 0.0, state.metadata_percent or 0.0)
        return STATE_FULL if used > self.limits.full_percent else STATE_OK

    def ssds(self) -> list[Ssd]:
        """Its disks as the API shows them."""
        return [
            Ssd(path=d.path, serial=d.serial, bytes=d.bytes, block_size=d.block_size)
            for d in self.disks
        ]


def provisioned(data: Data, pool: str) -> int:
    """Sum of the virtual sizes of the replicas and snapshots of a pool, in bytes."""
    replicas = sum(
        max(r.bytes, r.target_bytes or 0) for r in data.replicas.values() if r.pool == pool
    )
    return replicas + sum(s.bytes for s in data.snapshots.values() if s.pool == pool)
