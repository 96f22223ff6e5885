# SPDX-License-Identifier: Apache-2.0
"""Making a replica what a snapshot of it is.

A thin volume is made from the snapshot beside the replica, brought to its size, given the identity
of its array, and put in its place: the old volume is removed, the new one takes its name. Until the
old one is gone all can be undone; after that restoring finishes it.
"""

from __future__ import annotations

from oslo_log import log

from kumo_client import errors
from kumo_client.schemas.node import Replica, RevertSpec
from kumo_node import md_superblock
from kumo_node.context import Context, replica_lock, snapshot_lock
from kumo_node.lvm import TAG, made_tag, replica_name, snapshot_name
from kumo_node.replicas import Replicas
from kumo_node.spec import READY, ReplicaRecord, RevertRecord, SnapshotRecord, new_token

LOG = log.getLogger(__name__)


def beside(uuid: str) -> str:
    """Name of the volume that is to become the replica."""
    return f"v-{uuid}"


class Revert:
    """The verb of ``/v1/replicas/{uuid}/revert``."""

    def __init__(self, ctx: Context, replicas: Replicas) -> None:
        self.ctx = ctx
        self.replicas = replicas

    def put(self, uuid: str, wish: RevertSpec) -> Replica:
        """Revert a replica; the same ``operation`` again changes nothing.

        :raises NotExistsError: there is no such replica or snapshot.
        :raises ConflictError: the snapshot is of another replica, or its array is not sound.
        :raises InUseError: the replica is exported, or something holds it open.
        """
        with self.ctx.locks.hold(replica_lock(uuid), snapshot_lock(wish.snapshot)):
            record = self.ctx.replica(uuid)
            if record.reverted != wish.operation:
                record = self._finish(uuid, self._begin(uuid, record, wish))
            return self.replicas.view(uuid, record)

    def _begin(self, uuid: str, record: ReplicaRecord, wish: RevertSpec) -> ReplicaRecord:
        if record.revert is not None and record.revert.operation == wish.operation:
            return record
        self.ctx.settled(uuid)
        self.ctx.refuse_exported(uuid, record)
        if record.target_bytes is not None:
            raise errors.BusyError(f"Replica {uuid} is being resized")
        self._snapshot(uuid, wish.snapshot)
        self.ctx.pool_of(record).check_writable()
        intent = RevertRecord(
            operation=wish.operation,
            snapshot=wish.snapshot,
            token=new_token(),
            array_uuid=wish.array.uuid if wish.array else None,
            array_name=wish.array.name if wish.array else None,
        )
        return self._record(uuid, record.model_copy(update={"revert": intent}))

    def _snapshot(self, uuid: str, name: str) -> SnapshotRecord:
        snapshot = self.ctx.spec.data.snapshots.get(name)
        if snapshot is None or snapshot.state != READY:
            raise errors.NotExistsError(
                f"Snapshot {name} does not exist", node=self.ctx.persistent_id
            )
        if snapshot.replica != uuid:
            raise errors.ConflictError(
                f"Snapshot {name} is of replica {snapshot.replica}", way_out="Use one of this one"
            )
        return snapshot

    def _record(self, uuid: str, record: ReplicaRecord) -> ReplicaRecord:
        with self.ctx.spec.edit() as data:
            data.replicas[uuid] = record
        return record

    def _finish(self, uuid: str, record: ReplicaRecord) -> ReplicaRecord:
        """Do what a revert has begun; the caller holds the locks."""
        intent = record.revert
        if intent is None:
            return record
        try:
            if self._is(uuid, record, replica_name(uuid), record.token):
                self._make(uuid, record, intent)
            self._swap(uuid, record, intent)
        except errors.KumoError as error:
            if not error.transient and self._is(uuid, record, replica_name(uuid), record.token):
                self._undo(uuid, record, intent)
            raise
        LOG.info("Replica %s is now what snapshot %s is", uuid, intent.snapshot)
        new: dict[str, object] = {
            "token": intent.token,
            "revert": None,
            "reverted": intent.operation,
        }
        return self._record(uuid, record.model_copy(update=new))

    def _is(self, uuid: str, record: ReplicaRecord, name: str, token: str) -> bool:
        volume = self.ctx.lvm_of(record).find(name)
        return volume is not None and made_tag(token) in volume.tags

    def _make(self, uuid: str, record: ReplicaRecord, intent: RevertRecord) -> None:
        """The volume beside the replica, complete; what of it is there already stays."""
        snapshot = self._snapshot(uuid, intent.snapshot)
        lvm, name = self.ctx.lvm_of(record), beside(uuid)
        found = lvm.find(name)
        if found is None:
            tags = (TAG, made_tag(intent.token))
            lvm.copy(name, snapshot_name(intent.snapshot), tags, active=True)
        elif made_tag(intent.token) not in found.tags:
            raise errors.ConflictError(
                f"Logical volume {lvm.vg}/{name} exists and is not ours",
                way_out="Rename or remove it on the node",
            )
        elif not found.active:
            lvm.activate([name])
        if record.bytes != snapshot.bytes:
            lvm.extend(name, record.bytes)
        if intent.array_uuid is not None:
            identity, array = intent.array_uuid, intent.array_name or ""
            self.replicas.edit_array(
                name, record, lambda dev: md_superblock.restamp(dev, identity, array)
            )
            self.replicas.edit_array(name, record, md_superblock.grow)

    def _swap(self, uuid: str, record: ReplicaRecord, intent: RevertRecord) -> None:
        lvm = self.ctx.lvm_of(record)
        lvm.remove(replica_name(uuid), record.token)
        if not self._is(uuid, record, replica_name(uuid), intent.token):
            lvm.rename(beside(uuid), replica_name(uuid))

    def _undo(self, uuid: str, record: ReplicaRecord, intent: RevertRecord) -> None:
        self.ctx.lvm_of(record).remove(beside(uuid), intent.token)
        self._record(uuid, record.model_copy(update={"revert": None}))

    # Restoring.

    def pending(self) -> list[str]:
        """Replicas whose revert was cut off."""
        return [
            uuid
            for uuid, record in self.ctx.spec.data.replicas.items()
            if record.revert is not None and not self.ctx.pool_of(record).failed
        ]

    def finish(self, what: str) -> None:
        """Finish a revert, or undo it when that is refused."""
        record = self.ctx.spec.data.replicas.get(what)
        if record is None or record.revert is None:
            return
        locks = (replica_lock(what), snapshot_lock(record.revert.snapshot))
        with self.ctx.locks.hold(*locks, wait=False):
            record = self.ctx.spec.data.replicas.get(what)
            if record is not None and record.revert is not None:
                LOG.info("Finishing the revert of replica %s", what)
                self._finish(what, record)
