# SPDX-License-Identifier: Apache-2.0
"""The node API: what the provisioner asks of ``kumo_node``.

* ``GET /v1/info`` -> :class:`NodeInfo`
* ``GET /v1/inventory`` -> :class:`Inventory`: all replicas, snapshots and exports
* ``PUT /v1/replicas/{uuid}`` :class:`ReplicaSpec` -> :class:`Replica`; idempotent
* ``PATCH /v1/replicas/{uuid}`` :class:`ReplicaResize` -> :class:`Replica`; grows only
* ``GET /v1/replicas/{uuid}`` -> :class:`Replica`
* ``DELETE /v1/replicas/{uuid}`` -> :class:`StatusAnswer`; absent is Success, exported is InUse
* ``PUT /v1/snapshots/{uuid}`` :class:`SnapshotSpec` -> :class:`NodeSnapshot`; idempotent
* ``DELETE /v1/snapshots/{uuid}`` -> :class:`StatusAnswer`; absent is Success
* ``PUT /v1/replicas/{uuid}/exports`` :class:`ExportSpec` -> :class:`Export`; idempotent
* ``DELETE /v1/replicas/{uuid}/exports?hostNqn=`` -> :class:`StatusAnswer`; without ``hostNqn``
  from every host, absent is Success
* ``PUT /v1/replicas/{uuid}/limits`` :class:`Limits` -> :class:`Replica`; idempotent
* ``PUT /v1/replicas/{uuid}/revert`` :class:`RevertSpec` -> :class:`Replica`; idempotent by its
  ``operation``, exported is InUse
* ``GET /v1/adoptable`` -> :class:`Adoptables`: thin volumes of our pools that are nobody's record
* ``PUT /v1/replicas/{uuid}/adopt`` :class:`AdoptSpec` -> :class:`Replica`; idempotent
* ``PUT /v1/replicas/{uuid}/release`` :class:`ReleaseSpec` -> :class:`StatusAnswer`: give the volume
  up without deleting it; absent is Success, exported is InUse
* ``PUT /v1/copies/{uuid}`` :class:`CopySpec` -> :class:`Copy`; ``uuid`` is that of the replica on
  this node that is written; idempotent, goes on in the background, survives a restart
* ``GET /v1/copies/{uuid}`` -> :class:`Copy`
* ``DELETE /v1/copies/{uuid}`` -> :class:`StatusAnswer`: stop it; absent is Success
* ``PUT /v1/stamp`` :class:`StampSpec` -> :class:`Stamp`: remember another state
* ``GET /metrics``: Prometheus text; needs a token like everything else

A request may tell which state of the provisioner's database is behind it
(:mod:`kumo_client.stamp`). What takes something away is ``OutdatedRecord`` when that does not come
from the state that the node remembers.

Bodies are objects, errors are those of :mod:`kumo_client.errors`, a bearer token is needed.
A repeated PUT with other values than the first is ``Conflict`` and changes nothing.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from kumo_client import stamp as stamps
from kumo_client.naming import ARRAY_NAME_MAX_BYTES
from kumo_client.schemas.common import HostNqn, Name, Portal, Text, UuidText, WireModel
from kumo_client.stamp import NUMBER_MAX

CLASS_PLAIN = "plain"
CLASS_REPLICATED = "replicated"

Bytes = Annotated[int, Field(ge=1 << 20, le=1 << 60)]


STATE_OK = "ok"
STATE_FAILED = "failed"
STATE_READ_ONLY = "readonly"
STATE_FULL = "full"

# What NodeInfo.abilities may list.
ABILITY_LIMITS = "limits"
ABILITY_COPY = "copy"
ABILITY_REVERT = "revert"
ABILITY_ADOPT = "adopt"


class Ssd(WireModel):
    """One disk given to the node. ``path`` is what the operator wrote in the configuration.

    ``wear_percent``, ``media_errors`` and ``temperature`` (degrees Celsius) are those of the SMART
    log of an NVMe disk (NVM Express Base Specification 2.0, section 5.16.1.3) and absent for
    others. ``state``: ``ok`` or ``failed``; ``io_errors`` counts since boot.
    """

    path: str
    serial: str = ""
    bytes: int = 0
    block_size: int = Field(512, alias="blockSize")
    state: str = STATE_OK
    wear_percent: int | None = Field(None, alias="wearPercent")
    media_errors: int | None = Field(None, alias="mediaErrors")
    temperature: int | None = None
    critical_warning: int | None = Field(None, alias="criticalWarning")
    io_errors: int = Field(0, alias="ioErrors")


class Pool(WireModel):
    """A thin pool. Sizes in bytes; ``used_bytes`` is what is really mapped,
    ``provisioned_bytes`` the sum of the virtual sizes of its volumes.

    ``spans``: it lies on more than one disk. ``state``: ``ok``, ``full`` (above the threshold where
    nothing new is begun), ``readonly`` or ``failed``. ``max_iops`` and ``max_bw`` (KB/s) were
    measured by ``kumo-node calibrate`` or given in the configuration; 0 is not known. ``iops`` and
    ``bw`` (KB/s) are the mean use over ``window`` seconds.
    """

    name: str
    total_bytes: int = Field(alias="totalBytes")
    used_bytes: int = Field(alias="usedBytes")
    provisioned_bytes: int = Field(0, alias="provisionedBytes")
    metadata_percent: float = Field(0.0, alias="metadataPercent")
    data_percent: float = Field(0.0, alias="dataPercent")
    ssds: list[Ssd] = []
    spans: bool = False
    state: str = STATE_OK
    max_iops: int = Field(0, alias="maxIOPS")
    max_bw: int = Field(0, alias="maxBW")
    iops: int = 0
    bw: int = 0
    window: int = 0


class Stamp(WireModel):
    """A state of the provisioner's database; see :mod:`kumo_client.stamp`."""

    database: UuidText
    branch: UuidText
    number: int = Field(ge=0, le=NUMBER_MAX)

    @classmethod
    def of(cls, stamp: stamps.Stamp) -> Stamp:
        return cls(database=stamp.database, branch=stamp.branch, number=stamp.number)

    @property
    def plain(self) -> stamps.Stamp:
        return stamps.Stamp(self.database, self.branch, self.number)


class StampSpec(WireModel):
    """PUT /v1/stamp: remember ``stamp`` from now on.

    ``replaces`` is what the node remembers now; something else is Conflict.
    """

    stamp: Stamp
    replaces: Stamp


class NodeInfo(WireModel):
    """``boot_id`` is /proc/sys/kernel/random/boot_id: it changes when the node reboots.

    ``generation`` is that of the node's record: it rises with each change of what the node holds or
    exports. ``problems``: one sentence each, for people. ``stamp``: what it remembers of the
    provisioner's database; absent when it was sent none yet.
    """

    persistent_id: str = Field(alias="persistentID")
    name: str
    version: str
    boot_id: str = Field("", alias="bootId")
    kernel: str = ""
    portals: list[Portal]
    pools: list[Pool]
    generation: int = 0
    abilities: list[str] = []
    problems: list[str] = []
    stamp: Stamp | None = None


class Heartbeat(NodeInfo):
    """POST /heartbeat of the provisioner: a node tells how it is, on a timer and at once when a
    threshold is crossed, a disk fails or it has begun to serve."""


class ArrayIdentity(WireModel):
    """The identity that the md superblock of a copied leg is given.

    A copy carries the superblock of its origin; two arrays of one UUID cannot run on one host.
    ``name`` has at most 32 bytes (md superblock 1.x, ``set_name``, include/uapi/linux/raid/md_p.h).
    """

    uuid: UuidText
    name: Text = Field(min_length=1, max_length=32)

    @field_validator("name")
    @classmethod
    def _fits_in_superblock(cls, value: str) -> str:
        if len(value.encode()) > ARRAY_NAME_MAX_BYTES:
            raise ValueError(f"must not be longer than {ARRAY_NAME_MAX_BYTES} bytes")
        return value


class Limits(WireModel):
    """Caps of a replica: operations per second and KB/s; 0 is no cap."""

    max_iops: int = Field(0, alias="maxIOPS", ge=0, le=1 << 40)
    max_bw: int = Field(0, alias="maxBW", ge=0, le=1 << 40)


class RevertSpec(WireModel):
    """PUT /v1/replicas/{uuid}/revert: the replica becomes what the snapshot is.

    ``operation`` names the attempt: a repetition with the same one changes nothing.
    The replica keeps its size when it has grown since; what lies behind reads as zeros.
    """

    snapshot: UuidText
    operation: UuidText
    array: ArrayIdentity | None = None


class Adoptable(WireModel):
    """A thin volume that could become a replica. ``name`` is that of the logical volume."""

    name: str
    pool: str
    bytes: int
    in_use: bool = Field(False, alias="inUse")
    reason: str = ""


class Adoptables(WireModel):
    volumes: list[Adoptable] = []


class AdoptSpec(WireModel):
    """PUT /v1/replicas/{uuid}/adopt: make the logical volume ``name`` that replica.

    Its size must be whole GiB unless it is the leg of an array; it is renamed, not copied.
    """

    name: Name
    pool: Name
    volume_id: UuidText = Field(alias="volumeId")


class ReleaseSpec(WireModel):
    """PUT /v1/replicas/{uuid}/release: rename the logical volume to ``name`` and forget it."""

    name: Name


class CopySpec(WireModel):
    """PUT /v1/copies/{uuid}: fill the replica with what is in a replica of another node.

    The source is exported read-only in effect: nobody else writes to it meanwhile. ``host_nqn`` is
    this node's own, as given in the export that was made for it. Blocks of zeros are skipped.
    """

    source_replica: UuidText = Field(alias="sourceReplica")
    subsystem_nqn: Name = Field(alias="subsystemNqn")
    host_nqn: HostNqn = Field(alias="hostNqn")
    portals: list[Portal]
    bytes: Bytes


class Copy(WireModel):
    """``state``: ``running``, ``done`` or ``failed`` with ``reason``; ``copied`` in bytes."""

    replica: str
    state: str
    copied: int = 0
    bytes: int = 0
    reason: str = ""


class ReplicaSource(WireModel):
    """The replica begins as a copy-on-write image of this snapshot or replica of the same node."""

    snapshot: UuidText | None = None
    replica: UuidText | None = None


class ReplicaSpec(WireModel):
    """PUT /v1/replicas/{uuid}. ``bytes`` is the exact size of the namespace, in whole 4 MiB."""

    volume_id: UuidText = Field(alias="volumeId")
    bytes: Bytes
    pool: Name | None = None
    source: ReplicaSource | None = None
    array: ArrayIdentity | None = None
    limits: Limits | None = None


class ReplicaResize(WireModel):
    """PATCH /v1/replicas/{uuid}. Smaller than now is Conflict, equal is Success.

    ``grow_array``: also grow the component size in the md superblock of the leg, when it has one.
    For a leg that no host uses: InUse when it is exported. An array that is not in order is
    Conflict.
    """

    bytes: Bytes
    grow_array: bool = Field(False, alias="growArray")


class ExportSpec(WireModel):
    """PUT /v1/replicas/{uuid}/exports. ``io_class`` is ``plain`` or ``replicated``."""

    host_nqn: HostNqn = Field(alias="hostNqn")
    io_class: str = Field(CLASS_PLAIN, alias="class", pattern="^(plain|replicated)$")


class Export(WireModel):
    """One namespace of one subsystem. The NQN is :func:`kumo_client.naming.subsystem_nqn`."""

    replica: str
    host_nqn: str = Field(alias="hostNqn")
    io_class: str = Field(alias="class")
    subsystem_nqn: str = Field(alias="subsystemNqn")
    nsid: int
    portals: list[Portal] = []


class Replica(WireModel):
    """State of a replica. ``bytes`` is the size of the device, ``block_size`` its logical block."""

    uuid: str
    volume_id: str = Field(alias="volumeId")
    bytes: int
    block_size: int = Field(512, alias="blockSize")
    pool: str
    exports: list[Export] = []
    state: str = STATE_OK
    limits: Limits = Field(default_factory=Limits)


class SnapshotSpec(WireModel):
    """PUT /v1/snapshots/{uuid}. ``uuid`` is that of this node's part of the snapshot."""

    replica: UuidText
    snapshot_id: UuidText = Field(alias="snapshotId")


class NodeSnapshot(WireModel):
    """State of a snapshot on a node."""

    uuid: str
    replica: str
    snapshot_id: str = Field(alias="snapshotId")
    bytes: int
    pool: str


class Inventory(WireModel):
    """Everything this node holds for us, from its own record joined with what LVM shows."""

    persistent_id: str = Field(alias="persistentID")
    boot_id: str = Field("", alias="bootId")
    generation: int = 0
    stamp: Stamp | None = None
    replicas: list[Replica] = []
    snapshots: list[NodeSnapshot] = []
