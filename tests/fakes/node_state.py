# SPDX-License-Identifier: Apache-2.0
"""What a fake storage node holds. No bytes: ``content`` is a mark that stands for all data of a
device, 0 for zeros; copies carry it on, so that a test sees where data came from."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from kumo_client import errors
from kumo_client.schemas.node import (
    STATE_FAILED,
    STATE_OK,
    ArrayIdentity,
    CopySpec,
    Export,
    Limits,
    Pool,
    ReplicaSpec,
    SnapshotSpec,
    Ssd,
)

# The content of a device that reads as zeros.
ZEROS = 0
RUNNING, DONE, FAILED = "running", "done", "failed"


@dataclass
class FakeReplica:
    """A replica.

    :ivar array: identity in its md superblock; None without one.
    :ivar array_bytes: the leg's size when its array was last grown by the node.
    :ivar operation: that of the last revert.
    """

    spec: ReplicaSpec
    bytes: int
    pool: str = "pool"
    exports: dict[str, Export] = field(default_factory=dict)
    array_bytes: int = 0
    content: Hashable = ZEROS
    array: ArrayIdentity | None = None
    limits: Limits = field(default_factory=Limits)
    operation: str = ""


@dataclass
class FakeSnapshot:
    spec: SnapshotSpec
    bytes: int
    pool: str = "pool"
    content: Hashable = ZEROS
    array: ArrayIdentity | None = None


@dataclass
class FakeForeign:
    """A thin volume that is nobody's record."""

    name: str
    pool: str
    bytes: int
    content: Hashable = ZEROS
    array: ArrayIdentity | None = None
    in_use: bool = False
    reason: str = ""


@dataclass
class FakeCopy:
    """A copy under way. ``content`` is what the source was when it began."""

    spec: CopySpec
    content: Hashable = ZEROS
    array: ArrayIdentity | None = None
    state: str = RUNNING
    copied: int = 0
    reason: str = ""


@dataclass
class FakePool:
    """A pool. ``used_bytes``, ``iops`` and ``bw`` are what it reports, nothing is computed."""

    name: str
    total_bytes: int
    spans: bool = False
    state: str = STATE_OK
    max_iops: int = 0
    max_bw: int = 0
    used_bytes: int = 0
    iops: int = 0
    bw: int = 0
    window: int = 300
    metadata_percent: float = 0.0

    def wire(self, provisioned: int) -> Pool:
        return Pool(
            name=self.name,
            total_bytes=self.total_bytes,
            used_bytes=self.used_bytes,
            provisioned_bytes=provisioned,
            metadata_percent=self.metadata_percent,
            data_percent=100.0 * self.used_bytes / max(1, self.total_bytes),
            ssds=[
                Ssd(
                    path=f"/dev/fake/{self.name}",
                    serial=self.name,
                    bytes=self.total_bytes,
                    state=STATE_FAILED if self.state == STATE_FAILED else STATE_OK,
                )
            ],
            spans=self.spans,
            state=self.state,
            max_iops=self.max_iops,
            max_bw=self.max_bw,
            iops=self.iops,
            bw=self.bw,
            window=self.window,
        )


@dataclass
class State:
    """What the node holds."""

    replicas: dict[str, FakeReplica] = field(default_factory=dict)
    snapshots: dict[str, FakeSnapshot] = field(default_factory=dict)
    # By pool and name.
    foreign: dict[tuple[str, str], FakeForeign] = field(default_factory=dict)
    copies: dict[str, FakeCopy] = field(default_factory=dict)

    @property
    def exports(self) -> set[tuple[str, str]]:
        """(replica uuid, host NQN) of each export."""
        return {(uuid, nqn) for uuid, one in self.replicas.items() for nqn in one.exports}

    def held(self, uuid: str) -> FakeReplica:
        """:raises NotExistsError: there is no such replica."""
        found = self.replicas.get(uuid)
        if found is None:
            raise errors.NotExistsError(f"there is no replica {uuid}")
        return found

    def unused(self, uuid: str) -> FakeReplica:
        """:raises InUseError: the replica is exported."""
        found = self.held(uuid)
        if found.exports:
            raise errors.InUseError(f"replica {uuid} is exported")
        return found
