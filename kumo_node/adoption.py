# SPDX-License-Identifier: Apache-2.0
"""Making a replica of an existing thin volume, and giving a replica up without deleting it.

Only the name and the tags of a volume change. A volume that something holds open is not touched,
and one that was being adopted when the daemon ended gets its old name back.
"""

from __future__ import annotations

import re

from oslo_log import log

from kumo_client import errors
from kumo_client.naming import EXTENT, GIB
from kumo_client.schemas.node import Adoptable, Adoptables, AdoptSpec, ReleaseSpec, Replica
from kumo_node import md_superblock
from kumo_node.context import Context, replica_lock
from kumo_node.lvm import TAG, ThinVolume, made_tag, replica_name, snapshot_name
from kumo_node.pool import Pool
from kumo_node.replicas import Replicas
from kumo_node.revert import beside
from kumo_node.spec import ADOPTING, READY, RELEASING, ReplicaRecord, new_token

LOG = log.getLogger(__name__)
# lvm(8): names of logical volumes. The parts after a "_" that LVM keeps for itself are refused.
_NAME = re.compile(r"^(?!\.{1,2}$)[a-zA-Z0-9+_.][a-zA-Z0-9+_.-]{0,126}$")
_RESERVED = re.compile(
    r"^(snapshot|pvmove|[rsv]-[0-9a-f-]{36}$)|_(cdata|cmeta|corig|cpool|cvol|iorig|mimage|mlog|"
    r"rimage|rmeta|tdata|tmeta|vdata|vorigin|wcorig|pmspare|imeta)"
)


def unusable(volume: ThinVolume) -> str:
    """Why a volume cannot become a replica; "" when it can."""
    if volume.is_open is None:
        return "whether something holds it open could not be told"
    if volume.is_open:
        return "something holds it open"
    if not volume.writable:
        return "it is read-only"
    if volume.bytes % EXTENT:
        return f"its size is no multiple of {EXTENT} bytes"
    return ""


class Adoption:
    """The verbs ``adoptable``, ``adopt`` and ``release``."""

    def __init__(self, ctx: Context, replicas: Replicas) -> None:
        self.ctx = ctx
        self.replicas = replicas

    # Looking.

    def adoptable(self) -> Adoptables:
        """Thin volumes of our pools that are in nobody's record."""
        found = []
        for pool in self.ctx.pools.values():
            if not pool.failed:
                found += [self._view(pool, item) for item in self._strangers(pool)]
        return Adoptables(volumes=found)

    def _strangers(self, pool: Pool) -> list[ThinVolume]:
        volumes = pool.lvm.thin_volumes()
        # Read after LVM was asked: what was made meanwhile is in it.
        known = self._known()
        return [volume for name, volume in volumes.items() if (pool.name, name) not in known]

    def _known(self) -> set[tuple[str, str]]:
        data, known = self.ctx.spec.data, set()
        for uuid, record in data.replicas.items():
            names = (replica_name(uuid), beside(uuid), record.other_name)
            wanted = names if record.state != READY else names[:2]
            known |= {(record.pool, name) for name in wanted if name}
        known |= {(record.pool, snapshot_name(u)) for u, record in data.snapshots.items()}
        return known

    def _view(self, pool: Pool, volume: ThinVolume) -> Adoptable:
        return Adoptable(
            name=volume.name,
            pool=pool.name,
            bytes=volume.bytes,
            in_use=volume.is_open is not False,
            reason=unusable(volume),
        )

    # Adopting.

    def adopt(self, uuid: str, wish: AdoptSpec) -> Replica:
        """Make the thin volume ``name`` of a pool this replica.

        :raises NotExistsError: there is no such volume.
        :raises InUseError: something holds it open, or may.
        :raises ConflictError: the replica exists and is another, or the volume is one already.
        :raises InvalidInputError: there is no such pool, or its size cannot be that of a replica.
        """
        with self.ctx.locks.hold(replica_lock(uuid), f"volume {wish.pool}/{wish.name}"):
            record = self.ctx.spec.data.replicas.get(uuid)
            if record is None:
                record = self._begin(uuid, wish)
            self._compare(uuid, record, wish)
            if record.state == ADOPTING:
                record = self._adopt(uuid, record)
            return self.replicas.view(uuid, record)

    def _compare(self, uuid: str, record: ReplicaRecord, wish: AdoptSpec) -> None:
        if record.state not in (READY, ADOPTING):
            raise errors.BusyError(f"Replica {uuid} is {record.state}")
        seen = (record.other_name, record.pool, record.volume_id)
        if seen != (wish.name, wish.pool, wish.volume_id):
            raise errors.ConflictError(
                f"Replica {uuid} exists and was not made from {wish.pool}/{wish.name}",
                volume=record.volume_id,
                way_out="Use another uuid",
            )

    def _begin(self, uuid: str, wish: AdoptSpec) -> ReplicaRecord:
        if wish.pool not in self.ctx.pools:
            raise errors.InvalidInputError(f"The node has no pool {wish.pool!r}")
        pool = self.ctx.pools[wish.pool]
        pool.check_writable()
        if (wish.pool, wish.name) in self._known():
            raise errors.ConflictError(f"Volume {wish.name} of pool {wish.pool} is a replica")
        volume = pool.lvm.find_thin(wish.name)
        if volume is None:
            raise errors.NotExistsError(f"There is no thin volume {wish.name} in pool {wish.pool}")
        _refuse_unusable(volume)
        record = ReplicaRecord(
            state=ADOPTING,
            volume_id=wish.volume_id,
            bytes=volume.bytes,
            pool=wish.pool,
            token=new_token(),
            other_name=wish.name,
        )
        return self._record(uuid, record)

    def _record(self, uuid: str, record: ReplicaRecord) -> ReplicaRecord:
        with self.ctx.spec.edit() as data:
            data.replicas[uuid] = record
        return record

    def _adopt(self, uuid: str, record: ReplicaRecord) -> ReplicaRecord:
        try:
            self._take(uuid, record)
        except errors.KumoError as error:
            if not error.transient:
                self._give_back(uuid, record)
            raise
        return self._record(uuid, record.model_copy(update={"state": READY}))

    def _take(self, uuid: str, record: ReplicaRecord) -> None:
        lvm, name, old = self.ctx.lvm_of(record), replica_name(uuid), record.other_name or ""
        mine = made_tag(record.token)
        taken = lvm.find_thin(name)
        if taken is None or mine not in taken.tags:
            volume = lvm.find_thin(old)
            if volume is None:
                raise errors.NotExistsError(f"Logical volume {lvm.vg}/{old} has gone away")
            _refuse_unusable(volume)
            others = [tag for tag in volume.tags if tag.startswith(made_tag("")) and tag != mine]
            lvm.retag(old, add=[TAG, mine], remove=others)
            if old != name:
                lvm.rename(old, name)
            taken = lvm.find_thin(name)
        if taken is None or mine not in taken.tags:
            raise errors.ConflictError(f"Logical volume {lvm.vg}/{old} has gone away")
        # Opened by somebody since the first look.
        _refuse_unusable(taken)
        lvm.activate([name])
        self._check_size(uuid, record)

    def _check_size(self, uuid: str, record: ReplicaRecord) -> None:
        if record.bytes % GIB == 0:
            return
        device = self.ctx.lvm_of(record).device(replica_name(uuid))
        try:
            is_leg = md_superblock.is_leg(device)
        except OSError as error:
            raise errors.InternalError(f"{device} cannot be read: {error}") from error
        if not is_leg:
            raise errors.InvalidInputError(
                f"{record.other_name} has {record.bytes} bytes: not whole GiB, nor the leg of an "
                "array",
                way_out="Grow it to whole GiB with lvextend first",
            )

    def _give_back(self, uuid: str, record: ReplicaRecord) -> None:
        """Undo an adoption; the caller holds the lock."""
        lvm, old = self.ctx.lvm_of(record), record.other_name or ""
        mine = made_tag(record.token)
        for name in (replica_name(uuid), old):
            volume = lvm.find_thin(name)
            if volume is not None and mine in volume.tags:
                if name != old:
                    lvm.rename(name, old)
                lvm.retag(old, remove=[TAG, mine])
        self._forget(uuid)

    def _forget(self, uuid: str) -> None:
        with self.ctx.spec.edit() as data:
            del data.replicas[uuid]
            data.copies.pop(uuid, None)

    # Releasing.

    def release(self, uuid: str, wish: ReleaseSpec) -> None:
        """Give the volume of a replica another name and forget it; absent is success.

        :raises InUseError: it is exported, or something holds it open.
        :raises ConflictError: there is a volume of that name.
        :raises InvalidInputError: LVM or Kumo need the name for themselves.
        """
        if not _NAME.match(wish.name) or _RESERVED.search(wish.name):
            raise errors.InvalidInputError(f"{wish.name!r} cannot be the name of a logical volume")
        with self.ctx.locks.hold(replica_lock(uuid)):
            record = self.ctx.spec.data.replicas.get(uuid)
            if record is None:
                return
            if record.state != RELEASING:
                record = self._begin_release(uuid, wish.name)
            elif record.other_name != wish.name:
                raise errors.BusyError(f"Replica {uuid} is being released as {record.other_name}")
            self._release(uuid, record)

    def _begin_release(self, uuid: str, name: str) -> ReplicaRecord:
        record = self.ctx.settled(uuid)
        self.ctx.refuse_exported(uuid, record)
        if record.target_bytes is not None:
            raise errors.BusyError(f"Replica {uuid} is being resized")
        pool = self.ctx.pool_of(record)
        pool.check_writable()
        if pool.lvm.find(name) is not None:
            raise errors.ConflictError(
                f"Logical volume {pool.lvm.vg}/{name} exists", way_out="Choose another name"
            )
        volume = pool.lvm.find_thin(replica_name(uuid))
        if volume is not None and volume.is_open is not False:
            raise errors.InUseError(
                f"Replica {uuid} is held open on the node", way_out="Find the holder with lsblk"
            )
        new = {"state": RELEASING, "other_name": name}
        return self._record(uuid, record.model_copy(update=new))

    def _release(self, uuid: str, record: ReplicaRecord) -> None:
        lvm, name, new = self.ctx.lvm_of(record), replica_name(uuid), record.other_name or ""
        mine = made_tag(record.token)
        volume = lvm.find(name)
        if volume is not None and mine in volume.tags:
            lvm.rename(name, new)
        volume = lvm.find(new)
        if volume is not None and mine in volume.tags:
            lvm.retag(new, remove=[TAG, mine])
        LOG.info("Replica %s was given up; its volume is %s/%s", uuid, lvm.vg, new)
        self._forget(uuid)

    # Restoring.

    def pending(self) -> list[str]:
        """Replicas whose adoption or release was cut off."""
        return [
            uuid
            for uuid, record in self.ctx.spec.data.replicas.items()
            if record.state in (ADOPTING, RELEASING) and not self.ctx.pool_of(record).failed
        ]

    def finish(self, what: str) -> None:
        """Undo an adoption that was not answered; finish a release."""
        with self.ctx.locks.hold(replica_lock(what), wait=False):
            record = self.ctx.spec.data.replicas.get(what)
            if record is not None and record.state == ADOPTING:
                LOG.info("Giving %s its old name %s back", what, record.other_name)
                self._give_back(what, record)
            elif record is not None and record.state == RELEASING:
                self._release(what, record)


def _refuse_unusable(volume: ThinVolume) -> None:
    reason = unusable(volume)
    if reason and volume.is_open is not False:
        raise errors.InUseError(
            f"Logical volume {volume.name} cannot be adopted: {reason}",
            way_out="Find the holder with lsblk or fuser",
        )
    if reason:
        raise errors.ConflictError(f"Logical volume {volume.name} cannot be adopted: {reason}")
