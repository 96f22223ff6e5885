# SPDX-License-Identifier: Apache-2.0
"""Tenants."""

from typing import Any

from fastapi import Request

from kumo_client.schemas import tenant as wire
from kumo_client.schemas.common import StatusAnswer
from kumo_provisioner.edge import success
from kumo_provisioner.routes.common import CoreArg, IdPath, dump, router
from kumo_provisioner.services import tenants

routes = router("tenants")


@routes.get("/tenants", response_model=list[wire.Tenant])
def list_all(core: CoreArg) -> Any:
    """All tenants with their budgets, capacities in GiB."""
    return dump(tenants.list_all(core))


@routes.get("/tenants/{id}", response_model=list[wire.Tenant])
def show(core: CoreArg, id: IdPath) -> Any:
    """One tenant, as a list of length 1."""
    return dump(tenants.list_all(core, id))


@routes.post("/tenants", response_model=None)
def create(request: Request, core: CoreArg, body: wire.TenantWrite) -> Any:
    """Make a tenant; a budget of 0 has no limit."""
    return success(tenantId=tenants.create(core, body, request.app.state.resources))


@routes.put("/tenants/{id}", response_model=StatusAnswer)
def change(core: CoreArg, id: IdPath, body: wire.TenantWrite) -> Any:
    """Set name and budgets of a tenant."""
    tenants.change(core, id, body)
    return success()


@routes.delete("/tenants/{id}", response_model=StatusAnswer)
def delete(core: CoreArg, id: IdPath) -> Any:
    """Forget a tenant that has no volumes and snapshots."""
    tenants.delete(core, id)
    return success()
