# SPDX-License-Identifier: Apache-2.0
"""Volumes, their replicas ("locations" on the wire) and storage classes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator

from kumo_client.schemas.backend import BackendRef
from kumo_client.schemas.common import (
    CapacityGib,
    Name,
    StatusAnswer,
    Text,
    TextList,
    UuidText,
    WireModel,
)

# What can be asked for; one more may exist while a leg is replaced.
MAX_REPLICAS = 3
MAX_LEGS = 4

REPLICA_AVAILABLE = "Available"
REPLICA_SYNCHRONIZING = "Synchronizing"
REPLICA_MISSING = "Missing"
REPLICA_TERMINATING = "Terminating"
REPLICA_UNKNOWN = "Unknown"
REPLICA_STATES = (
    REPLICA_AVAILABLE,
    REPLICA_SYNCHRONIZING,
    REPLICA_MISSING,
    REPLICA_TERMINATING,
    REPLICA_UNKNOWN,
)


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


class StorageClass(WireModel):
    """What is asked of a volume besides its size.

    ``*_per_gb``: operations per second, or KB/s, for each GiB; 0 means not set.
    ``max_replica_down_time``: minutes; 0 means never heal.
    """

    num_replicas: int = Field(1, alias="numReplicas", ge=1, le=MAX_REPLICAS)
    racks: TextList = []
    regions: TextList = []
    zones: TextList = []
    block_size: int = Field(4096, alias="blockSize")
    max_iops_per_gb: int = Field(0, alias="maxIOPSPerGB", ge=0, le=1 << 31)
    desired_iops_per_gb: int = Field(0, alias="desiredIOPSPerGB", ge=0, le=1 << 31)
    max_bw_per_gb: int = Field(0, alias="maxBWPerGB", ge=0, le=1 << 31)
    desired_bw_per_gb: int = Field(0, alias="desiredBWPerGB", ge=0, le=1 << 31)
    same_rack_allowed: bool = Field(False, alias="sameRackAllowed")
    max_replica_down_time: int = Field(0, alias="maxReplicaDownTime", ge=0, le=1 << 31)
    host_id: Text = Field("", alias="hostId")
    allow_span: bool = Field(True, alias="allowSpan")
    name: Text = ""
    share_ssd_between_volumes: bool = Field(True, alias="shareSSDBetweenVolumes")

    @field_validator("block_size")
    @classmethod
    def _block_size(cls, value: int) -> int:
        if value not in (512, 4096):
            raise ValueError("must be 512 or 4096")
        return value


class VolumeCreate(WireModel):
    """POST /volumes. ``capacity`` in GiB; ``reserved_space_percentage`` of the volume's size."""

    uuid: UuidText | None = None
    alias: Name
    capacity: CapacityGib
    provisioning_type: Annotated[Text, BeforeValidator(_upper)] = Field(
        "THICK", alias="provisioningType", pattern="^(THICK|THIN)$"
    )
    reserved_space_percentage: int = Field(0, alias="reservedSpacePercentage", ge=0, le=1000)
    protocol: Text = Field("NVMeoF", pattern="^(NVMeoF|Local)$")
    storage_class: StorageClass = Field(default_factory=StorageClass, alias="storageClass")
    writable: bool = True


class VolumeUpdate(WireModel):
    """PATCH /volumes/{uuid}. Old clients send the number as text."""

    new_capacity: CapacityGib = Field(alias="newCapacity")


class StorageClassUpdate(WireModel):
    """What can change on a live volume; absent stays as it is. Units as in StorageClass."""

    num_replicas: int | None = Field(None, alias="numReplicas", ge=1, le=MAX_REPLICAS)
    max_iops_per_gb: int | None = Field(None, alias="maxIOPSPerGB", ge=0, le=1 << 31)
    desired_iops_per_gb: int | None = Field(None, alias="desiredIOPSPerGB", ge=0, le=1 << 31)
    max_bw_per_gb: int | None = Field(None, alias="maxBWPerGB", ge=0, le=1 << 31)
    desired_bw_per_gb: int | None = Field(None, alias="desiredBWPerGB", ge=0, le=1 << 31)
    max_replica_down_time: int | None = Field(None, alias="maxReplicaDownTime", ge=0, le=1 << 31)
    allow_span: bool | None = Field(None, alias="allowSpan")
    name: Text | None = None


class VolumeModify(WireModel):
    """PUT /volumes/{uuid}: change the storage class of a volume, attached or not, or its alias.

    Old clients send ``allowSpan`` beside the storage class.
    """

    storage_class: StorageClassUpdate = Field(
        default_factory=StorageClassUpdate, alias="storageClass"
    )
    allow_span: bool | None = Field(None, alias="allowSpan")
    alias: Name | None = None


class Revert(WireModel):
    """POST /revert_volume: a volume becomes what its snapshot is. It must not be published."""

    volume_id: UuidText = Field(alias="volumeID")
    snapshot_id: UuidText = Field(alias="snapshotID")


class ReplicaAdd(WireModel):
    """POST /replica/{volId}. Empty lists: the volume's own storage class."""

    same_rack_allowed: bool = Field(False, alias="sameRackAllowed")
    racks: TextList = []
    regions: TextList = []
    zones: TextList = []
    backend_id: Text = Field("", alias="backendId", max_length=255)


class MigrateVolume(WireModel):
    """POST /migrate_volume. Without ``destinationBackendId`` placement chooses."""

    vol_id: UuidText = Field(alias="volId")
    rep_id: UuidText | None = Field(None, alias="repId")
    destination_backend_id: Text = Field("", alias="destinationBackendId", max_length=255)


class AdoptVolume(WireModel):
    """POST /adopt_volume: make a volume of a logical volume that exists on a node.

    ``name``: of the logical volume; ``pool``: where it is.
    """

    alias: Name
    backend_id: Name = Field(alias="backendId")
    pool: Name
    name: Name
    uuid: UuidText | None = None
    storage_class: StorageClass = Field(default_factory=StorageClass, alias="storageClass")


class UnmanageVolume(WireModel):
    """POST /unmanage_volume: forget a volume and leave its data where it is."""

    volume_id: UuidText = Field(alias="volumeId")


class AdoptableVolume(WireModel):
    """GET /adoptable_volumes[?backendId=]. ``bytes`` is the exact size; ``reason`` says why it
    cannot be adopted, empty when it can."""

    backend_id: str = Field(alias="backendId")
    backend_name: str = Field("", alias="backendName")
    pool: str
    name: str
    bytes: int
    reason: str = ""


class NodeVerdict(WireModel):
    """What placement says of one pool of a node. ``reason`` is empty when it can take a replica."""

    backend_id: str = Field(alias="backendId")
    backend_name: str = Field("", alias="backendName")
    pool: str = ""
    refused_by: str = Field("", alias="refusedBy")
    reason: str = ""
    weight: float = 0.0
    chosen: bool = False


class PlacementAnswer(StatusAnswer):
    """Answer of ``POST /volumes?dryRun=true``: where a volume would go, and why."""

    nodes: list[NodeVerdict] = []


class CloneCreate(WireModel):
    """POST /clone_volume. ``capacity`` in GiB, at least that of the source."""

    source_volume_id: UuidText = Field(alias="sourceVolumeId")
    alias: Name
    volume_id: UuidText | None = Field(None, alias="volumeId")
    capacity: CapacityGib | None = None
    reserved_space_percentage: int = Field(0, alias="reservedSpacePercentage", ge=0, le=1000)


class Location(WireModel):
    """A replica. ``current_state_time``: milliseconds spent in the present state."""

    uuid: str
    backend: BackendRef = Field(default_factory=BackendRef)
    replica_state: str = Field(REPLICA_UNKNOWN, alias="replicaState")
    current_state_time: int = Field(0, alias="currentStateTime")
    freshness: str = "fresh"
    events: int = 0
    pool: str = ""
    replaces: str = ""


class Volume(WireModel):
    """GET /volumes. ``capacity`` in GiB; ``max_iops`` and so on absolute, bandwidth in KB/s."""

    uuid: str
    alias: str
    capacity: int
    num_replicas: int = Field(1, alias="numReplicas")
    max_replica_down_time: int = Field(0, alias="maxReplicaDownTime")
    writable: bool = True
    location: list[Location] = []
    replicable: bool = True
    protocol: str = "NVMeoF"
    snapshot_id: str = Field("", alias="snapshotID")
    max_iops: int = Field(0, alias="maxIOPS")
    desired_iops: int = Field(0, alias="desiredIOPS")
    max_bw: int = Field(0, alias="maxBW")
    desired_bw: int = Field(0, alias="desiredBW")
    block_size: int = Field(4096, alias="blockSize")
    reserved_space_percentage: int = Field(0, alias="reservedSpacePercentage")
    provisioning_type: str = Field("THICK", alias="provisioningType")
    tenant_id: str = Field("0", alias="tenantId")
    source_volume_id: str = Field("", alias="sourceVolumeId")
    published_hosts: list[str] = Field([], alias="publishedHosts")
    wanted_replicas: int = Field(1, alias="wantedReplicas")
    array_state: str = Field("", alias="arrayState")
    unsettled: str = ""
    storage_class: StorageClass = Field(default_factory=StorageClass, alias="storageClass")
