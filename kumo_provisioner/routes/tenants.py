# SPDX-License-Identifier: Apache-2.0
"""GET /tenants."""

from typing import Any

from kumo_client.schemas import tenant as wire
from kumo_provisioner.routes.common import CoreArg, dump, router
from kumo_provisioner.services import tenants

routes = router("tenants")


@routes.get("/tenants", response_model=list[wire.Tenant])
def list_all(core: CoreArg) -> Any:
    """All tenants with their budgets in GiB."""
    return dump(tenants.list_all(core))
