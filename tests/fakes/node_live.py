# SPDX-License-Identifier: Apache-2.0
"""The verbs of a fake storage node on what exists: limits, revert, adoption and copies."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable
from typing import TYPE_CHECKING

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.node import (
    STATE_FAILED,
    STATE_OK,
    Adoptable,
    Adoptables,
    AdoptSpec,
    ArrayIdentity,
    Copy,
    CopySpec,
    Limits,
    ReleaseSpec,
    Replica,
    ReplicaSpec,
    RevertSpec,
)
from tests.fakes.node_state import (
    DONE,
    FAILED,
    RUNNING,
    FakeCopy,
    FakeForeign,
    FakePool,
    FakeReplica,
    State,
)

if TYPE_CHECKING:
    from tests.fakes.node_model import NodeModel

# All models of this process, for copies between them.
FABRIC: weakref.WeakSet[NodeModel] = weakref.WeakSet()


class LiveVerbs:
    """A part of NodeModel."""

    state: State
    pools: dict[str, FakePool]
    lock: threading.RLock
    # Bytes that a copy gets on with at each look at it; None: half of it, 0: only by
    # :meth:`advance`.
    copy_step: int | None = None

    if TYPE_CHECKING:

        def changed(self) -> None: ...

        def replica(self, uuid: str) -> Replica: ...

    # -- for tests ----------------------------------------------------------------------------

    def write(self, uuid: str, content: Hashable, array: ArrayIdentity | None = None) -> None:
        """As a host does: write to a replica; with ``array`` also its md superblock."""
        with self.lock:
            held = self.state.held(uuid)
            held.content = content
            held.array = array or held.array

    def add_foreign(
        self,
        name: str,
        size: int,
        *,
        pool: str | None = None,
        content: Hashable = "foreign",
        in_use: bool = False,
        reason: str = "",
    ) -> FakeForeign:
        """Put a thin volume into a pool that is nobody's record."""
        pool = pool or next(iter(self.pools))
        made = FakeForeign(name, pool, size, content, None, in_use, reason)
        self.state.foreign[pool, name] = made
        return made

    # -- limits and revert --------------------------------------------------------------------

    def set_limits(self, uuid: str, limits: Limits) -> Replica:
        with self.lock:
            held = self.state.held(uuid)
            if held.limits != limits:
                held.limits = limits.model_copy()
                self.changed()
            return self.replica(uuid)

    def revert_replica(self, uuid: str, spec: RevertSpec) -> Replica:
        with self.lock:
            held = self.state.unused(uuid)
            if held.operation == spec.operation:
                return self.replica(uuid)
            snapshot = self.state.snapshots.get(spec.snapshot)
            if snapshot is None:
                raise errors.NotExistsError(f"there is no snapshot {spec.snapshot}")
            if snapshot.spec.replica != uuid:
                raise errors.ConflictError(f"snapshot {spec.snapshot} is of another replica")
            held.content, held.array = snapshot.content, restamped(snapshot.array, spec.array)
            held.operation = spec.operation
            self.changed()
            return self.replica(uuid)

    # -- adoption -----------------------------------------------------------------------------

    def adoptable(self) -> Adoptables:
        with self.lock:
            return Adoptables(
                volumes=[
                    Adoptable(
                        name=one.name,
                        pool=one.pool,
                        bytes=one.bytes,
                        in_use=one.in_use,
                        reason=one.reason,
                    )
                    for one in self.state.foreign.values()
                ]
            )

    def adopt_replica(self, uuid: str, spec: AdoptSpec) -> Replica:
        with self.lock:
            known = self.state.replicas.get(uuid)
            if known is not None:
                if known.spec.volume_id != spec.volume_id:
                    raise errors.ConflictError(f"replica {uuid} exists and is another")
                return self.replica(uuid)
            found = self.state.foreign.get((spec.pool, spec.name))
            if found is None:
                raise errors.NotExistsError(f"there is no volume {spec.pool}/{spec.name}")
            if found.in_use:
                raise errors.InUseError(f"{spec.name} is in use")
            if found.reason or found.bytes % GIB:
                raise errors.ConflictError(found.reason or "its size is not whole GiB")
            del self.state.foreign[spec.pool, spec.name]
            self.state.replicas[uuid] = FakeReplica(
                spec=ReplicaSpec(volume_id=spec.volume_id, bytes=found.bytes, pool=spec.pool),
                bytes=found.bytes,
                pool=spec.pool,
                content=found.content,
                array=found.array,
            )
            self.changed()
            return self.replica(uuid)

    def release_replica(self, uuid: str, spec: ReleaseSpec) -> StatusAnswer:
        with self.lock:
            if uuid not in self.state.replicas:
                return StatusAnswer()
            held = self.state.unused(uuid)
            if (held.pool, spec.name) in self.state.foreign:
                raise errors.ConflictError(f"there is a volume {spec.name} already")
            del self.state.replicas[uuid]
            self.state.foreign[held.pool, spec.name] = FakeForeign(
                spec.name, held.pool, held.bytes, held.content, held.array
            )
            self.changed()
            return StatusAnswer()

    # -- copies -------------------------------------------------------------------------------

    def put_copy(self, uuid: str, spec: CopySpec) -> Copy:
        with self.lock:
            known = self.state.copies.get(uuid)
            if known is not None and known.spec != spec:
                raise errors.ConflictError(f"a copy into {uuid} from elsewhere exists")
            if known is None:
                held = self.state.unused(uuid)
                if held.bytes < spec.bytes:
                    raise errors.ConflictError(f"replica {uuid} is smaller than its source")
                self.state.copies[uuid] = _begun(spec)
                self.changed()
            return self._copy(uuid)

    def copy(self, uuid: str) -> Copy:
        with self.lock:
            if uuid not in self.state.copies:
                raise errors.NotExistsError(f"there is no copy into {uuid}")
            step = self.copy_step
            self.advance(uuid, self.state.copies[uuid].spec.bytes // 2 if step is None else step)
            return self._copy(uuid)

    def delete_copy(self, uuid: str) -> StatusAnswer:
        with self.lock:
            self.state.copies.pop(uuid, None)
            return StatusAnswer()

    def advance(self, uuid: str, size: int | None = None) -> None:
        """Let a copy get on by ``size`` bytes, or to its end."""
        with self.lock:
            one = self.state.copies[uuid]
            if one.state != RUNNING:
                return
            one.copied = one.spec.bytes if size is None else min(one.spec.bytes, one.copied + size)
            if one.copied == one.spec.bytes:
                held = self.state.held(uuid)
                held.content, held.array = one.content, restamped(one.array, held.spec.array)
                one.state = DONE

    def fail_copy(self, uuid: str, reason: str) -> None:
        """Let a copy fail."""
        self.state.copies[uuid].state, self.state.copies[uuid].reason = FAILED, reason

    def _copy(self, uuid: str) -> Copy:
        one = self.state.copies[uuid]
        return Copy(
            replica=uuid,
            state=one.state,
            copied=one.copied,
            bytes=one.spec.bytes,
            reason=one.reason,
        )

    # -- pools --------------------------------------------------------------------------------

    def state_of(self, pool: str) -> str:
        """State of the replicas in a pool."""
        known = self.pools.get(pool)
        return STATE_FAILED if known is None or known.state == STATE_FAILED else STATE_OK


def restamped(origin: ArrayIdentity | None, wanted: ArrayIdentity | None) -> ArrayIdentity | None:
    """The superblock of a copy: that of its origin, under another identity when one is wanted."""
    return None if origin is None else wanted or origin


def _begun(spec: CopySpec) -> FakeCopy:
    """A copy whose source was found by the export that was made for it."""
    for model in list(FABRIC):
        source = model.state.replicas.get(spec.source_replica)
        export = source.exports.get(spec.host_nqn) if source is not None else None
        if source is not None and export is not None:
            if export.subsystem_nqn != spec.subsystem_nqn:
                break
            return FakeCopy(spec, source.content, source.array)
    return FakeCopy(spec, state=FAILED, reason="the source is not exported to this node")
