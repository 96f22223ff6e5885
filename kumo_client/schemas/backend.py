# SPDX-License-Identifier: Apache-2.0
"""Storage nodes as the provisioner shows them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from kumo_client.schemas.common import Name, Portal, Text, WireModel

AVAILABLE = "Available"
UNAVAILABLE = "Unavailable"
DEFAULT_MGMT_PORT = 443


def _as_list(value: Any) -> Any:
    # One version of the reference gives mgmtIPs as one text.
    return [value] if isinstance(value, str) else value


class BackendCreate(WireModel):
    """POST /backends. Everything else comes from the node itself."""

    mgmt_ips: Annotated[list[Name], BeforeValidator(_as_list)] = Field(
        alias="mgmtIPs", min_length=1, max_length=16
    )
    mgmt_port: int = Field(DEFAULT_MGMT_PORT, alias="mgmtPort", ge=1, le=65535)
    rack: Text = ""
    zone: Text = ""
    region: Text = ""
    host_id: Text = Field("", alias="hostId", max_length=255)


class BackendUpdate(WireModel):
    """PUT /backends/{persistentID}."""

    rack: Text | None = None
    zone: Text | None = None
    region: Text | None = None


class BackendRef(WireModel):
    """A backend inside a location or target."""

    persistent_id: str = Field("", alias="persistentID")
    mgmt_ips: list[str] = Field([], alias="mgmtIPs")
    mgmt_port: int = Field(DEFAULT_MGMT_PORT, alias="mgmtPort")
    state: str = UNAVAILABLE
    portals: list[Portal] = []
    rack: str = ""
    zone: str = ""
    region: str = ""
    host_id: str = Field("", alias="hostId")
    name: str = ""


class Backend(BackendRef):
    """GET /backends. Capacities in GiB (rounded down), times in ms since the epoch."""

    in_use: bool = Field(False, alias="inUse")
    total_capacity: int = Field(0, alias="totalCapacity")
    available_capacity: int = Field(0, alias="availableCapacity")
    total_bw: int = Field(0, alias="totalBW")
    available_bw: int = Field(0, alias="availableBW")
    total_iops: int = Field(0, alias="totalIOPS")
    available_iops: int = Field(0, alias="availableIOPS")
    # The spelling without the e is the one on the wire.
    last_probe_time: int = Field(0, alias="lastProbTime")
    probe_interval: int = Field(0, alias="probeInterval")
    version: str = ""
