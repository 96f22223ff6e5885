# SPDX-License-Identifier: Apache-2.0
"""Verbs on snapshots: thin volumes that stay inactive until something is made from them."""

from __future__ import annotations

from kumo_client import errors
from kumo_client.schemas.node import NodeSnapshot, SnapshotSpec
from kumo_node.context import Context, replica_lock, snapshot_lock
from kumo_node.lvm import TAG, made_tag, replica_name, snapshot_name
from kumo_node.spec import CREATING, DELETING, READY, SnapshotRecord, new_token


class Snapshots:
    """Verbs of ``/v1/snapshots``."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    def view(self, uuid: str, record: SnapshotRecord) -> NodeSnapshot:
        return NodeSnapshot(
            uuid=uuid,
            replica=record.replica,
            snapshot_id=record.snapshot_id,
            bytes=record.bytes,
            pool=record.pool,
        )

    def put(self, uuid: str, wish: SnapshotSpec) -> NodeSnapshot:
        """Take a snapshot of a replica as it is at one moment.

        :raises ConflictError: it exists and is another.
        :raises NotExistsError: the replica does not exist.
        :raises NoSpaceError: the pool cannot promise that much.
        """
        with self.ctx.locks.hold(snapshot_lock(uuid), replica_lock(wish.replica)):
            record = self.ctx.spec.data.snapshots.get(uuid) or self._begin(uuid, wish)
            if record.state == DELETING:
                raise errors.BusyError(f"Snapshot {uuid} is being deleted")
            if (record.replica, record.snapshot_id) != (wish.replica, wish.snapshot_id):
                raise errors.ConflictError(
                    f"Snapshot {uuid} exists, of replica {record.replica}", way_out="Use another"
                )
            if record.state == CREATING:
                record = self._make(uuid, record)
            return self.view(uuid, record)

    def _begin(self, uuid: str, wish: SnapshotSpec) -> SnapshotRecord:
        source = self.ctx.settled(wish.replica)
        if source.target_bytes is not None:
            raise errors.BusyError(f"Replica {wish.replica} is being resized")
        with self.ctx.spec.edit() as data:
            self.ctx.pool_of(source).check_room(data, source.bytes)
            record = SnapshotRecord(
                replica=wish.replica,
                snapshot_id=wish.snapshot_id,
                bytes=source.bytes,
                pool=source.pool,
                token=new_token(),
            )
            data.snapshots[uuid] = record
        return record

    def _make(self, uuid: str, record: SnapshotRecord) -> SnapshotRecord:
        try:
            self._create(snapshot_name(uuid), record)
        except errors.KumoError as error:
            if not error.transient:
                self.undo(uuid, record)
            raise
        record = record.model_copy(update={"state": READY})
        with self.ctx.spec.edit() as data:
            data.snapshots[uuid] = record
        return record

    def _create(self, name: str, record: SnapshotRecord) -> None:
        tags = (TAG, made_tag(record.token))
        lvm = self.ctx.lvm_of(record)
        try:
            lvm.copy(name, replica_name(record.replica), tags, active=False)
        except errors.InternalError:
            # An earlier try of the same call may have made it; its moment is as good.
            volume = lvm.find(name)
            if volume is None:
                raise
            if made_tag(record.token) not in volume.tags:
                raise errors.ConflictError(
                    f"Logical volume {lvm.vg}/{name} exists and is not ours",
                    way_out="Rename or remove it on the node",
                ) from None

    def undo(self, uuid: str, record: SnapshotRecord) -> None:
        """Remove what a creation left, and its record; the caller holds the lock."""
        self.ctx.lvm_of(record).remove(snapshot_name(uuid), record.token)
        with self.ctx.spec.edit() as data:
            del data.snapshots[uuid]

    def delete(self, uuid: str) -> None:
        """Remove a snapshot; absent is success. What was made from it is independent of it."""
        with self.ctx.locks.hold(snapshot_lock(uuid)):
            record = self.ctx.spec.data.snapshots.get(uuid)
            if record is None:
                return
            if record.state == READY:
                new = {"state": DELETING, "erase": self.ctx.erase}
                record = record.model_copy(update=new)
                with self.ctx.spec.edit() as data:
                    data.snapshots[uuid] = record
            if record.erase or self.ctx.pool_of(record).failed:
                # Erasing takes its time; a failed pool is tried again when the disk is back.
                return
            self.undo(uuid, record)
