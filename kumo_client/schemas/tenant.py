# SPDX-License-Identifier: Apache-2.0
"""Tenants and their budgets."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kumo_client.schemas.common import Name, Text, WireModel

DEFAULT_TENANT = "0"
TenantId = Annotated[
    Text, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
]


class TenantWrite(WireModel):
    """POST /tenants and PUT /tenants/{id}. Budgets of 0 have no limit.

    ``capacity`` in GiB, every replica counted; ``total_iops`` and ``total_bw`` (KB/s) bound what
    is guaranteed to the tenant's volumes, counted once for each volume.
    """

    tenant_id: TenantId | None = Field(None, alias="tenantId")
    name: Name
    capacity: int = Field(0, ge=0, le=1 << 40)
    total_iops: int = Field(0, alias="totalIOPS", ge=0, le=1 << 40)
    total_bw: int = Field(0, alias="totalBW", ge=0, le=1 << 40)


class Tenant(WireModel):
    """Capacities in GiB. The budget of the default tenant is the sum of the nodes."""

    tenant_id: str = Field(DEFAULT_TENANT, alias="tenantId")
    name: str = ""
    capacity: int = 0
    consumed_capacity: int = Field(0, alias="consumedCapacity")
    total_iops: int = Field(0, alias="totalIOPS")
    total_bw: int = Field(0, alias="totalBW")
    consumed_iops: int = Field(0, alias="consumedIOPS")
    consumed_bw: int = Field(0, alias="consumedBW")
