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

Bodies are objects, errors are those of :mod:`kumo_client.errors`, a bearer token is needed.
A repeated PUT with other values than the first is ``Conflict`` and changes nothing.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from kumo_client.naming import ARRAY_NAME_MAX_BYTES
from kumo_client.schemas.common import Name, Portal, Text, UuidText, WireModel
from kumo_client.schemas.host import HostNqn

CLASS_PLAIN = "plain"
CLASS_REPLICATED = "replicated"

Bytes = Annotated[int, Field(ge=1 << 20, le=1 << 60)]


class Ssd(WireModel):
    """One disk given to the node. ``path`` is what the operator wrote in the configuration."""

    path: str
    serial: str = ""
    bytes: int = 0
    block_size: int = Field(512, alias="blockSize")


class Pool(WireModel):
    """A thin pool. Sizes in bytes; ``used_bytes`` is what is really mapped,
    ``provisioned_bytes`` the sum of the virtual sizes of its volumes."""

    name: str
    total_bytes: int = Field(alias="totalBytes")
    used_bytes: int = Field(alias="usedBytes")
    provisioned_bytes: int = Field(0, alias="provisionedBytes")
    metadata_percent: float = Field(0.0, alias="metadataPercent")
    ssds: list[Ssd] = []


class NodeInfo(WireModel):
    """``boot_id`` is /proc/sys/kernel/random/boot_id: it changes when the node reboots."""

    persistent_id: str = Field(alias="persistentID")
    name: str
    version: str
    boot_id: str = Field("", alias="bootId")
    kernel: str = ""
    portals: list[Portal]
    pools: list[Pool]


class ReplicaSource(WireModel):
    """The replica begins as a copy-on-write image of this snapshot or replica of the same node."""

    snapshot: UuidText | None = None
    replica: UuidText | None = None


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


class ReplicaSpec(WireModel):
    """PUT /v1/replicas/{uuid}. ``bytes`` is the exact size of the namespace, in whole 4 MiB."""

    volume_id: UuidText = Field(alias="volumeId")
    bytes: Bytes
    pool: Name | None = None
    source: ReplicaSource | None = None
    array: ArrayIdentity | None = None


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
    replicas: list[Replica] = []
    snapshots: list[NodeSnapshot] = []
