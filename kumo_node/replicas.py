# SPDX-License-Identifier: Apache-2.0
"""Verbs on replicas. Each is repeatable: intent in the record, act, outcome in the record."""

from __future__ import annotations

from collections.abc import Callable

from oslo_log import log

from kumo_client import errors
from kumo_client.naming import EXTENT
from kumo_client.schemas.node import (
    STATE_FAILED,
    STATE_OK,
    Limits,
    Replica,
    ReplicaSpec,
)
from kumo_node import md_superblock
from kumo_node.context import Context, replica_lock, snapshot_lock
from kumo_node.exports import Exports
from kumo_node.lvm import TAG, made_tag, replica_name, snapshot_name
from kumo_node.spec import (
    CREATING,
    DELETING,
    READY,
    ReplicaRecord,
    SnapshotRecord,
    new_token,
)

LOG = log.getLogger(__name__)
# What a repeated PUT must have in common with the first. Caps have a verb of their own.
_WISHES = (
    "volume_id", "bytes", "pool", "source_snapshot", "source_replica", "array_uuid", "array_name",
)  # fmt: skip


def record_of(spec: ReplicaSpec, pool: str) -> ReplicaRecord:
    """What is recorded of a wish, before a token is given."""
    source, array = spec.source, spec.array
    return ReplicaRecord(
        volume_id=spec.volume_id,
        bytes=spec.bytes,
        pool=pool,
        token="",
        source_snapshot=source.snapshot if source else None,
        source_replica=source.replica if source else None,
        array_uuid=array.uuid if array else None,
        array_name=array.name if array else None,
        max_iops=spec.limits.max_iops if spec.limits else 0,
        max_bw=spec.limits.max_bw if spec.limits else 0,
    )


class Replicas:
    """Verbs of ``/v1/replicas``."""

    def __init__(self, ctx: Context, exports: Exports) -> None:
        self.ctx = ctx
        self.exports = exports

    # Looking.

    def get(self, uuid: str) -> Replica:
        """:raises NotExistsError: there is no such replica."""
        return self.view(uuid, self.ctx.replica(uuid))

    def view(self, uuid: str, record: ReplicaRecord) -> Replica:
        """A replica as the API shows it, with what the kernel says of its device."""
        try:
            size, block = self.ctx.lvm_of(record).block(replica_name(uuid))
        except errors.BackendUnavailableError:
            # Not active, for instance while the node is still starting: its record still counts.
            size, block = record.bytes, 512
        return Replica(
            uuid=uuid,
            volume_id=record.volume_id,
            bytes=size,
            block_size=block,
            pool=record.pool,
            exports=self.exports.of(uuid),
            state=STATE_FAILED if self.ctx.pool_of(record).failed else STATE_OK,
            limits=Limits(max_iops=record.max_iops, max_bw=record.max_bw),
        )

    # Making.

    def put(self, uuid: str, wish: ReplicaSpec) -> Replica:
        """Make a replica, empty or as a copy.

        :raises InvalidInputError: the size is no multiple of 4 MiB or less than the source's.
        :raises ConflictError: it exists and is another, or the array on the source cannot be
            given another identity or size.
        :raises NotExistsError: the source does not exist.
        :raises NoSpaceError: the pool cannot promise that much.
        """
        wanted = self._checked(uuid, wish)
        names = [replica_lock(uuid)]
        if wanted.source_replica:
            names.append(replica_lock(wanted.source_replica))
        if wanted.source_snapshot:
            names.append(snapshot_lock(wanted.source_snapshot))
        with self.ctx.locks.hold(*names):
            record = self.ctx.spec.data.replicas.get(uuid)
            if record is None:
                record = self._begin(uuid, wanted)
            self._compare(uuid, record, wanted)
            if record.state == CREATING:
                record = self._make(uuid, record)
            return self.view(uuid, record)

    def _checked(self, uuid: str, wish: ReplicaSpec) -> ReplicaRecord:
        if wish.bytes % EXTENT:
            raise errors.InvalidInputError(f"bytes must be a multiple of {EXTENT}")
        wanted = record_of(wish, wish.pool or self._default_pool(uuid, wish))
        if wanted.pool not in self.ctx.pools:
            raise errors.InvalidInputError(f"The node has no pool {wanted.pool!r}")
        if wanted.source_replica and wanted.source_snapshot:
            raise errors.InvalidInputError("source names a snapshot and a replica; give one")
        return wanted

    def _default_pool(self, uuid: str, wish: ReplicaSpec) -> str:
        """The pool of the first try, else of the source, else the emptiest."""
        data = self.ctx.spec.data
        source = wish.source
        known = data.replicas.get(uuid)
        if known is None and source and source.replica:
            known = data.replicas.get(source.replica)
        if known is not None:
            return known.pool
        if source and source.snapshot and source.snapshot in data.snapshots:
            return data.snapshots[source.snapshot].pool
        return self.ctx.pools.emptiest().name

    def _compare(self, uuid: str, record: ReplicaRecord, wanted: ReplicaRecord) -> None:
        if record.state == DELETING:
            raise errors.BusyError(f"Replica {uuid} is being deleted")
        if record.state != READY or record.revert is not None:
            self.ctx.refuse_unsettled(uuid, record)
        if any(getattr(record, name) != getattr(wanted, name) for name in _WISHES):
            raise errors.ConflictError(
                f"Replica {uuid} exists with another size, volume or source",
                volume=record.volume_id,
                node=self.ctx.persistent_id,
                way_out="Use another uuid",
            )

    def _begin(self, uuid: str, wanted: ReplicaRecord) -> ReplicaRecord:
        source = self._source(wanted)
        if source is not None and wanted.bytes < source.bytes:
            raise errors.InvalidInputError(
                f"bytes must be at least {source.bytes}, the source's size"
            )
        if source is not None and wanted.pool != source.pool:
            raise errors.InvalidInputError(
                f"The source is in pool {source.pool}: a copy of it cannot be in {wanted.pool}"
            )
        with self.ctx.spec.edit() as data:
            self.ctx.pool_of(wanted).check_room(data, wanted.bytes)
            record = wanted.model_copy(update={"token": new_token()})
            data.replicas[uuid] = record
        return record

    def _source(self, record: ReplicaRecord) -> ReplicaRecord | SnapshotRecord | None:
        if record.source_replica:
            return self.ctx.settled(record.source_replica)
        if record.source_snapshot:
            snapshot = self.ctx.spec.data.snapshots.get(record.source_snapshot)
            if snapshot is None or snapshot.state != READY:
                raise errors.NotExistsError(
                    f"Snapshot {record.source_snapshot} does not exist",
                    node=self.ctx.persistent_id,
                )
            return snapshot
        return None

    def _make(self, uuid: str, record: ReplicaRecord) -> ReplicaRecord:
        try:
            self._create(uuid, record)
            self._adapt_array(uuid, record)
        except errors.KumoError as error:
            if not error.transient:
                self.undo(uuid, record)
            raise
        return self._commit(uuid, record.model_copy(update={"state": READY}))

    def _create(self, uuid: str, record: ReplicaRecord) -> None:
        name, source = replica_name(uuid), self._source_name(record)
        tags, lvm = (TAG, made_tag(record.token)), self.ctx.lvm_of(record)
        try:
            if source is None:
                lvm.create(name, record.bytes, tags)
            else:
                lvm.copy(name, source, tags, active=True)
        except errors.InternalError as error:
            self._continue(name, record, error)
        origin = self._source(record)
        if origin is not None and record.bytes != origin.bytes:
            lvm.extend(name, record.bytes)

    def _continue(self, name: str, record: ReplicaRecord, error: errors.KumoError) -> None:
        """After a command that failed: go on when an earlier try had made the volume.

        :raises ConflictError: a volume of that name was made by somebody else.
        :raises KumoError: ``error``, when there is no volume.
        """
        lvm = self.ctx.lvm_of(record)
        volume = lvm.find(name)
        if volume is None:
            raise error
        if made_tag(record.token) not in volume.tags:
            raise errors.ConflictError(
                f"Logical volume {lvm.vg}/{name} exists and is not ours",
                way_out="Rename or remove it on the node",
            )
        if not volume.active:
            lvm.activate([name])

    def _source_name(self, record: ReplicaRecord) -> str | None:
        if record.source_replica:
            return replica_name(record.source_replica)
        if record.source_snapshot:
            return snapshot_name(record.source_snapshot)
        return None

    def _adapt_array(self, uuid: str, record: ReplicaRecord) -> None:
        """Give the array on a copied leg its own identity, and the size of the copy."""
        if record.array_uuid is None or self._source_name(record) is None:
            return
        identity, name = record.array_uuid, record.array_name or ""
        volume = replica_name(uuid)
        self.edit_array(volume, record, lambda dev: md_superblock.restamp(dev, identity, name))
        self.edit_array(volume, record, md_superblock.grow)

    def edit_array(
        self, volume: str, record: ReplicaRecord, edit: Callable[[str], md_superblock.Outcome]
    ) -> None:
        """Change the md superblock on a volume in the pool of a replica.

        :raises ConflictError: it is not sound, or cannot be changed like that.
        """
        device = self.ctx.lvm_of(record).device(volume)
        try:
            outcome = edit(device)
        except OSError as error:
            raise errors.InternalError(f"The leg {device} cannot be accessed: {error}") from error
        LOG.info("%s: its md superblock: %s", volume, outcome.value)

    def _commit(self, uuid: str, record: ReplicaRecord) -> ReplicaRecord:
        with self.ctx.spec.edit() as data:
            data.replicas[uuid] = record
        return record

    def undo(self, uuid: str, record: ReplicaRecord) -> None:
        """Remove what a creation left, and its record; the caller holds the lock."""
        self.ctx.lvm_of(record).remove(replica_name(uuid), record.token)
        with self.ctx.spec.edit() as data:
            del data.replicas[uuid]
            data.copies.pop(uuid, None)

    # Growing.

    def resize(self, uuid: str, size: int, *, grow_array: bool = False) -> Replica:
        """Grow a replica, exported or not.

        :param size: bytes, a multiple of 4 MiB.
        :param grow_array: also grow the array of the leg in its superblock. The size of the replica
            is recorded before; a caller that gets no answer repeats the call.
        :raises ConflictError: it is larger already, or its array cannot be grown.
        :raises InUseError: the array is to grow and the replica is exported.
        """
        if size % EXTENT:
            raise errors.InvalidInputError(f"bytes must be a multiple of {EXTENT}")
        with self.ctx.locks.hold(replica_lock(uuid)):
            record = self.ctx.settled(uuid)
            if size < record.bytes or (record.target_bytes or 0) > size:
                raise errors.ConflictError(
                    f"Replica {uuid} has {record.bytes} bytes and cannot shrink",
                    volume=record.volume_id,
                )
            if grow_array:
                self.ctx.refuse_exported(uuid, record)
            if size > record.bytes or record.target_bytes:
                record = self._begin_resize(uuid, record, size)
                record = self.finish_resize(uuid, record)
            if grow_array:
                self.edit_array(replica_name(uuid), record, md_superblock.grow)
            return self.view(uuid, record)

    def _begin_resize(self, uuid: str, record: ReplicaRecord, size: int) -> ReplicaRecord:
        with self.ctx.spec.edit() as data:
            promised = max(record.bytes, record.target_bytes or 0)
            self.ctx.pool_of(record).check_room(data, size - promised)
            record = record.model_copy(update={"target_bytes": size})
            data.replicas[uuid] = record
        return record

    def finish_resize(self, uuid: str, record: ReplicaRecord) -> ReplicaRecord:
        """Do what a resize has begun; the caller holds the lock.

        When LVM definitely refuses, the intent is given up: the size stays as it was.
        """
        if record.target_bytes is None:
            return record
        try:
            self.ctx.lvm_of(record).extend(replica_name(uuid), record.target_bytes)
        except errors.InternalError:
            self._commit(uuid, record.model_copy(update={"target_bytes": None}))
            raise
        self.exports.revalidate(uuid)
        done = {"bytes": record.target_bytes, "target_bytes": None}
        return self._commit(uuid, record.model_copy(update=done))

    # Removing.

    def delete(self, uuid: str) -> None:
        """Remove a replica; absent is success.

        Where deleted volumes are erased, or the pool has failed, it is removed later.

        :raises InUseError: it is exported.
        """
        with self.ctx.locks.hold(replica_lock(uuid)):
            record = self.ctx.spec.data.replicas.get(uuid)
            if record is None:
                return
            self.ctx.refuse_unsettled(uuid, record)
            self.ctx.refuse_exported(uuid, record)
            if record.state == READY:
                new = {"state": DELETING, "erase": self.ctx.erase}
                record = self._commit(uuid, record.model_copy(update=new))
            if record.erase or self.ctx.pool_of(record).failed:
                # Erasing takes its time; a failed pool is tried again when the disk is back.
                LOG.info("Replica %s is removed later", uuid)
                return
            self.undo(uuid, record)
