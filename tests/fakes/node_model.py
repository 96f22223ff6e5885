# SPDX-License-Identifier: Apache-2.0
"""A storage node without storage: the node API of kumo_client/schemas/node.py over dicts.

It has the methods of kumo_client.api.node.Node, so tests can also call it in place of a client.
"""

from __future__ import annotations

import copy
import threading
import uuid as uuidlib
from collections.abc import Mapping
from typing import Any

from kumo_client import errors, naming
from kumo_client.naming import EXTENT, GIB
from kumo_client.schemas.common import Portal, StatusAnswer
from kumo_client.schemas.node import (
    ABILITY_ADOPT,
    ABILITY_COPY,
    ABILITY_LIMITS,
    ABILITY_REVERT,
    STATE_OK,
    Export,
    ExportSpec,
    Inventory,
    Limits,
    NodeInfo,
    NodeSnapshot,
    Replica,
    ReplicaSpec,
    SnapshotSpec,
)
from tests.fakes.node_live import FABRIC, LiveVerbs, restamped
from tests.fakes.node_stamp import Remembering
from tests.fakes.node_state import RUNNING, ZEROS, FakePool, FakeReplica, FakeSnapshot, State

ABILITIES = [ABILITY_LIMITS, ABILITY_COPY, ABILITY_REVERT, ABILITY_ADOPT]


class NodeModel(LiveVerbs, Remembering):
    """The behaviour of one node.

    :param total_bytes: of the one pool, named ``pool``.
    :param overcommit: how often a pool may be sold, as the real node's option.
    :param pools: several pools instead, bytes by name; ``node.pools`` has the rest of each.
    :param max_iops: what each pool was measured to deliver; ``max_bw`` in KB/s.
    :param spans: each pool lies on several disks.
    """

    def __init__(
        self,
        name: str,
        *,
        total_bytes: int = 100 * GIB,
        overcommit: float = 20.0,
        portals: list[Portal] | None = None,
        pools: Mapping[str, int] | None = None,
        max_iops: int = 0,
        max_bw: int = 0,
        spans: bool = False,
    ) -> None:
        self.name = name
        self.persistent_id = str(uuidlib.uuid4())
        self.boot_id = str(uuidlib.uuid4())
        self.overcommit = overcommit
        self.portals = portals or [Portal(ip="127.0.0.1", port=4420, transport="TCP")]
        self.pools = {
            pool: FakePool(pool, size, spans=spans, max_iops=max_iops, max_bw=max_bw)
            for pool, size in (pools or {"pool": total_bytes}).items()
        }
        self.has_pool = True
        self.state = State()
        self.generation = 1
        self.abilities = list(ABILITIES)
        self.problems: list[str] = []
        self.lock = threading.RLock()
        FABRIC.add(self)

    @property
    def total_bytes(self) -> int:
        return sum(pool.total_bytes for pool in self.pools.values())

    def changed(self) -> None:
        """Count a change of what the node holds or exports."""
        self.generation += 1

    def provisioned(self, pool: str | None = None) -> int:
        """Bytes promised by one pool, or by all."""
        held: list[Any] = [*self.state.replicas.values(), *self.state.snapshots.values()]
        held += self.state.foreign.values()
        return sum(one.bytes for one in held if pool in (None, one.pool))

    def info(self) -> NodeInfo:
        pools = [pool.wire(self.provisioned(pool.name)) for pool in self.pools.values()]
        return NodeInfo(
            persistent_id=self.persistent_id,
            name=self.name,
            version="1.0",
            boot_id=self.boot_id,
            kernel="6.1.0",
            portals=self.portals,
            pools=pools if self.has_pool else [],
            generation=self.generation,
            abilities=self.abilities,
            problems=self.problems,
            stamp=self.memory,
        )

    def inventory(self) -> Inventory:
        with self.lock:
            return Inventory(
                persistent_id=self.persistent_id,
                boot_id=self.boot_id,
                generation=self.generation,
                stamp=self.memory,
                replicas=[self.replica(uuid) for uuid in self.state.replicas],
                snapshots=[self._snapshot(uuid) for uuid in self.state.snapshots],
            )

    def _pool_for(self, spec: ReplicaSpec) -> FakePool:
        if spec.pool is None:
            return min(self.pools.values(), key=lambda one: self.provisioned(one.name))
        if spec.pool not in self.pools:
            raise errors.InvalidInputError(f"the node has no pool {spec.pool}")
        return self.pools[spec.pool]

    def _need_room(self, pool: FakePool, size: int) -> None:
        if pool.state != STATE_OK:
            raise errors.NoSpaceError(f"pool {pool.name} of {self.name} is {pool.state}")
        if self.provisioned(pool.name) + size > pool.total_bytes * self.overcommit:
            raise errors.NoSpaceError(f"pool {pool.name} of {self.name} is full")

    def put_replica(self, uuid: str, spec: ReplicaSpec) -> Replica:
        with self.lock:
            known = self.state.replicas.get(uuid)
            if known is not None:
                if known.spec != spec:
                    raise errors.ConflictError(f"replica {uuid} exists with other values")
                return self.replica(uuid)
            if spec.bytes % EXTENT:
                raise errors.InvalidInputError("bytes must be a multiple of 4 MiB")
            pool, source = self._pool_for(spec), self._source(spec)
            if source is not None and spec.bytes < source.bytes:
                raise errors.ConflictError("the replica is smaller than its source")
            if source is not None and source.pool != pool.name:
                raise errors.ConflictError("the source is in another pool")
            self._need_room(pool, spec.bytes)
            made = FakeReplica(copy.deepcopy(spec), spec.bytes, pool.name)
            made.limits = spec.limits or Limits()
            if source is not None:
                made.content, made.array = source.content, restamped(source.array, spec.array)
            self.state.replicas[uuid] = made
            self.changed()
            return self.replica(uuid)

    def _source(self, spec: ReplicaSpec) -> Any:
        if spec.source is None:
            return None
        held: Any = self.state.snapshots.get(spec.source.snapshot or "")
        held = held or self.state.replicas.get(spec.source.replica or "")
        if held is None:
            raise errors.NotExistsError("the source does not exist here")
        return held

    def resize_replica(self, uuid: str, size: int, *, grow_array: bool = False) -> Replica:
        with self.lock:
            held = self.state.unused(uuid) if grow_array else self.state.held(uuid)
            if size < held.bytes:
                raise errors.ConflictError(f"replica {uuid} is larger already")
            if size > held.bytes:
                self._need_room(self.pools[held.pool], size - held.bytes)
            held.bytes = size
            if grow_array:
                held.array_bytes = size
            self.changed()
            return self.replica(uuid)

    def replica(self, uuid: str) -> Replica:
        with self.lock:
            held = self.state.held(uuid)
            return Replica(
                uuid=uuid,
                volume_id=held.spec.volume_id,
                bytes=held.bytes,
                pool=held.pool,
                exports=list(held.exports.values()),
                state=self.state_of(held.pool),
                limits=held.limits,
            )

    def delete_replica(self, uuid: str) -> StatusAnswer:
        with self.lock:
            if uuid in self.state.replicas:
                self.state.unused(uuid)
                filling = self.state.copies.get(uuid)
                if filling is not None and filling.state == RUNNING:
                    raise errors.InUseError(f"replica {uuid} is being filled")
                del self.state.replicas[uuid]
                self.state.copies.pop(uuid, None)
                self.changed()
            return StatusAnswer()

    def put_snapshot(self, uuid: str, spec: SnapshotSpec) -> NodeSnapshot:
        with self.lock:
            known = self.state.snapshots.get(uuid)
            if known is not None and known.spec != spec:
                raise errors.ConflictError(f"snapshot {uuid} exists with other values")
            if known is None:
                held = self.state.held(spec.replica)
                self.state.snapshots[uuid] = FakeSnapshot(
                    copy.deepcopy(spec), held.bytes, held.pool, held.content, held.array
                )
                self.changed()
            return self._snapshot(uuid)

    def _snapshot(self, uuid: str) -> NodeSnapshot:
        held = self.state.snapshots[uuid]
        return NodeSnapshot(
            uuid=uuid,
            replica=held.spec.replica,
            snapshot_id=held.spec.snapshot_id,
            bytes=held.bytes,
            pool=held.pool,
        )

    def delete_snapshot(self, uuid: str) -> StatusAnswer:
        with self.lock:
            if self.state.snapshots.pop(uuid, None) is not None:
                self.changed()
            return StatusAnswer()

    def put_export(self, replica_uuid: str, spec: ExportSpec) -> Export:
        with self.lock:
            held = self.state.held(replica_uuid)
            known = held.exports.get(spec.host_nqn)
            if known is not None and known.io_class != spec.io_class:
                raise errors.ConflictError("it is exported in another class")
            if known is None:
                held.exports[spec.host_nqn] = self._export(replica_uuid, spec)
                self.changed()
            return held.exports[spec.host_nqn]

    def _export(self, replica_uuid: str, spec: ExportSpec) -> Export:
        nqn = naming.subsystem_nqn(self.persistent_id, spec.host_nqn, spec.io_class)
        used = {
            export.nsid
            for one in self.state.replicas.values()
            for export in one.exports.values()
            if export.subsystem_nqn == nqn
        }
        return Export(
            replica=replica_uuid,
            host_nqn=spec.host_nqn,
            io_class=spec.io_class,
            subsystem_nqn=nqn,
            nsid=next(number for number in range(1, 100000) if number not in used),
            portals=self.portals,
        )

    def delete_export(self, replica_uuid: str, host_nqn: str | None = None) -> StatusAnswer:
        with self.lock:
            held = self.state.replicas.get(replica_uuid)
            if held is not None and held.exports:
                self.changed()
            if held is not None and host_nqn is None:
                held.exports.clear()
            elif held is not None:
                held.exports.pop(host_nqn or "", None)
            return StatusAnswer()


__all__ = ["ABILITIES", "ZEROS", "FakeReplica", "FakeSnapshot", "NodeModel", "State"]
