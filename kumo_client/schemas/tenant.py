# SPDX-License-Identifier: Apache-2.0
"""GET /tenants."""

from __future__ import annotations

from pydantic import Field

from kumo_client.schemas.common import WireModel

DEFAULT_TENANT = "0"


class Tenant(WireModel):
    """Capacities in GiB. The budget of the default tenant is the sum of the nodes."""

    tenant_id: str = Field(DEFAULT_TENANT, alias="tenantId")
    name: str = ""
    capacity: int = 0
    consumed_capacity: int = Field(0, alias="consumedCapacity")
    total_iops: int = Field(0, alias="totalIOPS")
    total_bw: int = Field(0, alias="totalBW")
