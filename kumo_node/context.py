# SPDX-License-Identifier: Apache-2.0
"""What the verbs share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kumo_client import errors, naming
from kumo_node.conf import NodePortal
from kumo_node.kernel import Kernel
from kumo_node.locks import Locks
from kumo_node.lvm import Lvm, replica_name
from kumo_node.nvmet import Namespace, Nvmet
from kumo_node.pool import Pool
from kumo_node.pools import Pools
from kumo_node.spec import (
    ADOPTING,
    COPY_RUNNING,
    READY,
    RELEASING,
    ExportRecord,
    ReplicaRecord,
    SnapshotRecord,
    Spec,
)
from kumo_node.throttle import Throttle


@dataclasses.dataclass(frozen=True)
class Context:
    """The parts of a node; one for each process.

    :ivar erase: how deleted volumes are erased, "" for not at all.
    """

    name: str
    spec: Spec
    pools: Pools
    nvmet: Nvmet
    kernel: Kernel
    locks: Locks
    portals: Sequence[NodePortal]
    throttle: Throttle
    erase: str = ""

    @property
    def persistent_id(self) -> str:
        return self.spec.data.persistent_id

    def subsystem(self, record: ExportRecord) -> str:
        """NQN of the subsystem of an export."""
        return naming.subsystem_nqn(self.persistent_id, record.host_nqn, record.io_class)

    def namespace(self, record: ExportRecord) -> Namespace:
        """An export as the kernel needs it."""
        replica = self.spec.data.replicas.get(record.replica)
        device = self.lvm_of(replica).device(replica_name(record.replica)) if replica else ""
        return Namespace(
            subsystem=self.subsystem(record),
            host_nqn=record.host_nqn,
            nsid=record.nsid,
            uuid=record.replica,
            device=device,
        )

    def lvm_of(self, record: ReplicaRecord | SnapshotRecord) -> Lvm:
        """The volume group in which the volume of a record is."""
        return self.pools.of(record).lvm

    def pool_of(self, record: ReplicaRecord | SnapshotRecord) -> Pool:
        """The pool in which the volume of a record is."""
        return self.pools.of(record)

    def replica(self, uuid: str) -> ReplicaRecord:
        """The record of a replica that was answered as done.

        :raises NotExistsError: there is none, or it is being made or deleted.
        """
        record = self.spec.data.replicas.get(uuid)
        if record is None or record.state != READY:
            raise errors.NotExistsError(f"Replica {uuid} does not exist", node=self.persistent_id)
        return record

    def settled(self, uuid: str) -> ReplicaRecord:
        """The record of a replica on which nothing else is under way.

        :raises NotExistsError: there is none, or it is being made or deleted.
        :raises BusyError: something was cut off and is not finished yet.
        :raises InUseError: it is being filled by a copy.
        """
        record = self.replica(uuid)
        self.refuse_unsettled(uuid, record)
        return record

    def refuse_exported(self, uuid: str, record: ReplicaRecord) -> None:
        """:raises InUseError: a host may use the replica."""
        exports = self.spec.data.exports_of(uuid)
        if exports:
            raise errors.InUseError(
                f"Replica {uuid} is exported to {exports[0].host_nqn}",
                volume=record.volume_id,
                way_out="Detach the volume first",
            )

    def refuse_unsettled(self, uuid: str, record: ReplicaRecord) -> None:
        """See that nothing is under way on a replica.

        :raises BusyError: something was cut off and is not finished yet.
        :raises InUseError: it is being filled by a copy.
        """
        if record.revert is not None:
            raise errors.BusyError(
                f"Replica {uuid} is being reverted", way_out="Repeat the call in a few seconds"
            )
        if record.state in (ADOPTING, RELEASING):
            raise errors.BusyError(f"Replica {uuid} is {record.state}")
        copy = self.spec.data.copies.get(uuid)
        if copy is not None and copy.state == COPY_RUNNING:
            raise errors.InUseError(
                f"Replica {uuid} is being filled from {copy.source_replica}",
                volume=record.volume_id,
                way_out="Let the copy end, or stop it",
            )


def replica_lock(uuid: str) -> str:
    return f"replica {uuid}"


def snapshot_lock(uuid: str) -> str:
    return f"snapshot {uuid}"


def host_lock(host_nqn: str) -> str:
    return f"host {host_nqn}"
