# SPDX-License-Identifier: Apache-2.0
"""A storage node without storage: the node API of kumo_client/schemas/node.py over dicts.

It has the methods of kumo_client.api.node.Node, so tests can also call it in place of a client.
"""

from __future__ import annotations

import copy
import threading
import uuid as uuidlib
from dataclasses import dataclass, field
from typing import Any

from kumo_client import errors, naming
from kumo_client.naming import EXTENT, GIB
from kumo_client.schemas.common import Portal, StatusAnswer
from kumo_client.schemas.node import (
    Export,
    ExportSpec,
    Inventory,
    NodeInfo,
    NodeSnapshot,
    Pool,
    Replica,
    ReplicaSpec,
    SnapshotSpec,
)


@dataclass
class FakeReplica:
    """A replica. ``array_bytes``: the leg's size when its array was last grown by the node."""

    spec: ReplicaSpec
    bytes: int
    exports: dict[str, Export] = field(default_factory=dict)
    array_bytes: int = 0


@dataclass
class FakeSnapshot:
    spec: SnapshotSpec
    bytes: int


@dataclass
class State:
    """What the node holds."""

    replicas: dict[str, FakeReplica] = field(default_factory=dict)
    snapshots: dict[str, FakeSnapshot] = field(default_factory=dict)

    @property
    def exports(self) -> set[tuple[str, str]]:
        """(replica uuid, host NQN) of each export."""
        return {(uuid, nqn) for uuid, one in self.replicas.items() for nqn in one.exports}


class NodeModel:
    """The behaviour of one node.

    :param overcommit: how often the pool may be sold, as the real node's option.
    """

    def __init__(
        self,
        name: str,
        *,
        total_bytes: int = 100 * GIB,
        overcommit: float = 20.0,
        portals: list[Portal] | None = None,
    ) -> None:
        self.name = name
        self.persistent_id = str(uuidlib.uuid4())
        self.boot_id = str(uuidlib.uuid4())
        self.total_bytes = total_bytes
        self.overcommit = overcommit
        self.portals = portals or [Portal(ip="127.0.0.1", port=4420, transport="TCP")]
        self.has_pool = True
        self.state = State()
        self.lock = threading.RLock()

    def provisioned(self) -> int:
        replicas = sum(one.bytes for one in self.state.replicas.values())
        return replicas + sum(one.bytes for one in self.state.snapshots.values())

    def info(self) -> NodeInfo:
        pool = Pool(
            name="pool",
            total_bytes=self.total_bytes,
            used_bytes=0,
            provisioned_bytes=self.provisioned(),
        )
        return NodeInfo(
            persistent_id=self.persistent_id,
            name=self.name,
            version="1.0",
            boot_id=self.boot_id,
            kernel="6.1.0",
            portals=self.portals,
            pools=[pool] if self.has_pool else [],
        )

    def inventory(self) -> Inventory:
        with self.lock:
            return Inventory(
                persistent_id=self.persistent_id,
                boot_id=self.boot_id,
                replicas=[self.replica(uuid) for uuid in self.state.replicas],
                snapshots=[self._snapshot(uuid) for uuid in self.state.snapshots],
            )

    def _need_room(self, size: int) -> None:
        if self.provisioned() + size > self.total_bytes * self.overcommit:
            raise errors.NoSpaceError(f"the pool of {self.name} is full")

    def put_replica(self, uuid: str, spec: ReplicaSpec) -> Replica:
        with self.lock:
            known = self.state.replicas.get(uuid)
            if known is not None:
                if known.spec != spec:
                    raise errors.ConflictError(f"replica {uuid} exists with other values")
                return self.replica(uuid)
            if spec.bytes % EXTENT:
                raise errors.InvalidInputError("bytes must be a multiple of 4 MiB")
            if spec.source is not None and spec.bytes < self._source_bytes(spec):
                raise errors.ConflictError("the replica is smaller than its source")
            self._need_room(spec.bytes)
            self.state.replicas[uuid] = FakeReplica(copy.deepcopy(spec), spec.bytes)
            return self.replica(uuid)

    def _source_bytes(self, spec: ReplicaSpec) -> int:
        assert spec.source is not None
        held: Any = self.state.snapshots.get(spec.source.snapshot or "")
        held = held or self.state.replicas.get(spec.source.replica or "")
        if held is None:
            raise errors.NotExistsError("the source does not exist here")
        return held.bytes

    def resize_replica(self, uuid: str, size: int, *, grow_array: bool = False) -> Replica:
        with self.lock:
            held = self._held(uuid)
            if grow_array and held.exports:
                raise errors.InUseError(f"replica {uuid} is exported")
            if size < held.bytes:
                raise errors.ConflictError(f"replica {uuid} is larger already")
            self._need_room(size - held.bytes)
            held.bytes = size
            if grow_array:
                held.array_bytes = size
            return self.replica(uuid)

    def _held(self, uuid: str) -> FakeReplica:
        held = self.state.replicas.get(uuid)
        if held is None:
            raise errors.NotExistsError(f"there is no replica {uuid}")
        return held

    def replica(self, uuid: str) -> Replica:
        with self.lock:
            held = self._held(uuid)
            return Replica(
                uuid=uuid,
                volume_id=held.spec.volume_id,
                bytes=held.bytes,
                pool="pool",
                exports=list(held.exports.values()),
            )

    def delete_replica(self, uuid: str) -> StatusAnswer:
        with self.lock:
            held = self.state.replicas.get(uuid)
            if held is not None and held.exports:
                raise errors.InUseError(f"replica {uuid} is exported")
            self.state.replicas.pop(uuid, None)
            return StatusAnswer()

    def put_snapshot(self, uuid: str, spec: SnapshotSpec) -> NodeSnapshot:
        with self.lock:
            known = self.state.snapshots.get(uuid)
            if known is not None and known.spec != spec:
                raise errors.ConflictError(f"snapshot {uuid} exists with other values")
            if known is None:
                size = self._held(spec.replica).bytes
                self.state.snapshots[uuid] = FakeSnapshot(copy.deepcopy(spec), size)
            return self._snapshot(uuid)

    def _snapshot(self, uuid: str) -> NodeSnapshot:
        held = self.state.snapshots[uuid]
        return NodeSnapshot(
            uuid=uuid,
            replica=held.spec.replica,
            snapshot_id=held.spec.snapshot_id,
            bytes=held.bytes,
            pool="pool",
        )

    def delete_snapshot(self, uuid: str) -> StatusAnswer:
        with self.lock:
            self.state.snapshots.pop(uuid, None)
            return StatusAnswer()

    def put_export(self, replica_uuid: str, spec: ExportSpec) -> Export:
        with self.lock:
            held = self._held(replica_uuid)
            known = held.exports.get(spec.host_nqn)
            if known is not None and known.io_class != spec.io_class:
                raise errors.ConflictError("it is exported in another class")
            if known is None:
                nqn = naming.subsystem_nqn(self.persistent_id, spec.host_nqn, spec.io_class)
                used = {
                    export.nsid
                    for one in self.state.replicas.values()
                    for export in one.exports.values()
                    if export.subsystem_nqn == nqn
                }
                held.exports[spec.host_nqn] = Export(
                    replica=replica_uuid,
                    host_nqn=spec.host_nqn,
                    io_class=spec.io_class,
                    subsystem_nqn=nqn,
                    nsid=next(number for number in range(1, 100000) if number not in used),
                    portals=self.portals,
                )
            return held.exports[spec.host_nqn]

    def delete_export(self, replica_uuid: str, host_nqn: str | None = None) -> StatusAnswer:
        with self.lock:
            held = self.state.replicas.get(replica_uuid)
            if held is not None and host_nqn is None:
                held.exports.clear()
            elif held is not None:
                held.exports.pop(host_nqn or "", None)
            return StatusAnswer()
