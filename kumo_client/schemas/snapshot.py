# SPDX-License-Identifier: Apache-2.0
"""Snapshots and volumes made from them. The drift of the field names is that of the wire."""

from __future__ import annotations

from pydantic import Field

from kumo_client.schemas.common import CapacityGib, Name, Text, UuidText, WireModel


class SnapshotCreate(WireModel):
    """POST /snapshots."""

    alias: Name
    volume_id: UuidText = Field(alias="volumeID")
    snapshot_id: UuidText | None = Field(None, alias="snapshotID")
    reserved_space_percentage: int = Field(0, alias="reservedSpacePercentage", ge=0, le=1000)


class Snapshot(WireModel):
    """GET /snapshots. ``capacity`` in GiB; ``timestamp`` in ms since the epoch.

    ``coherent``: all legs were captured at one moment.
    """

    snapshot_id: str = Field(alias="snapshotID")
    alias: str
    volume_id: str = Field(alias="volumeID")
    capacity: int
    reserved_space: int = Field(0, alias="reservedSpace")
    timestamp: int = 0
    coherent: bool = True
    tenant_id: str = Field("0", alias="tenantId")


class SnapshotVolumeCreate(WireModel):
    """POST /snapshot_volumes. ``capacity`` (GiB) is our extension; absent means the parent's.

    ``maxIOPSPerGB`` and ``maxBWPerGB`` absent means those of the parent volume.
    """

    alias: Name
    snapshot_id: UuidText = Field(alias="snapshotID")
    volume_id: UuidText | None = Field(None, alias="volumeID")
    writable: bool = False
    reserved_space_percentage: int = Field(0, alias="reservedSpacePercentage", ge=0, le=1000)
    max_iops_per_gb: int | None = Field(None, alias="maxIOPSPerGB", ge=0, le=1 << 31)
    max_bw_per_gb: int | None = Field(None, alias="maxBWPerGB", ge=0, le=1 << 31)
    protocol: Text = Field("NVMeoF", pattern="^(NVMeoF|Local)$")
    allow_span: bool = Field(True, alias="allowSpan")
    storage_class_name: Text = Field("", alias="storageClassName")
    capacity: CapacityGib | None = None
