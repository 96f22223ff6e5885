# SPDX-License-Identifier: Apache-2.0
"""Storage nodes as the provisioner shows them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from kumo_client.schemas.common import Name, Portal, Text, WireModel
from kumo_client.schemas.node import Ssd

AVAILABLE = "Available"
UNAVAILABLE = "Unavailable"
DRAINING = "Draining"
MAINTENANCE = "Maintenance"
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


class DeclaredPool(WireModel):
    """What an operator declares that a pool delivers; 0 goes back to what was measured."""

    name: Name
    max_iops: int = Field(0, alias="maxIOPS", ge=0, le=1 << 40)
    max_bw: int = Field(0, alias="maxBW", ge=0, le=1 << 40)


class BackendUpdate(WireModel):
    """PUT /backends/{persistentID}. Bandwidth in KB/s; 0 as a limit of the node is none.

    ``cordoned``: no new replicas. ``maintenance``: the node is expected to go away; nothing is
    replaced because of it, and it gets no new replicas.
    """

    rack: Text | None = None
    zone: Text | None = None
    region: Text | None = None
    cordoned: bool | None = None
    maintenance: bool | None = None
    max_iops: int | None = Field(None, alias="maxIOPS", ge=0, le=1 << 40)
    max_bw: int | None = Field(None, alias="maxBW", ge=0, le=1 << 40)
    pools: list[DeclaredPool] = Field([], max_length=256)


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


class BackendPool(WireModel):
    """A pool of a node: sizes in bytes, bandwidth in KB/s.

    ``charged_bytes``, ``sold_iops`` and ``sold_bw`` are what volumes were promised, ``iops`` and
    ``bw`` the use of the last minutes, ``used_bytes`` what is really occupied.
    """

    name: str
    state: str = "ok"
    spans: bool = False
    total_bytes: int = Field(0, alias="totalBytes")
    used_bytes: int = Field(0, alias="usedBytes")
    charged_bytes: int = Field(0, alias="chargedBytes")
    max_iops: int = Field(0, alias="maxIOPS")
    max_bw: int = Field(0, alias="maxBW")
    sold_iops: int = Field(0, alias="soldIOPS")
    sold_bw: int = Field(0, alias="soldBW")
    iops: int = 0
    bw: int = 0
    ssds: list[Ssd] = []


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
    cordoned: bool = False
    last_heartbeat: int = Field(0, alias="lastHeartbeat")
    replicas: int = 0
    problems: list[str] = []
    # What the node can do besides the basics, such as ``limits``: it keeps caps.
    abilities: list[str] = []
    pools: list[BackendPool] = []
