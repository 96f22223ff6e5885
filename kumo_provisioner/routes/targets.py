# SPDX-License-Identifier: Apache-2.0
"""Targets."""

from typing import Annotated, Any

from fastapi import Query

from kumo_client.schemas import host as wire
from kumo_provisioner.routes.common import CoreArg, IdentityArg, dump, router
from kumo_provisioner.services import targets

routes = router("targets")


@routes.get("/targets", response_model=list[wire.Target])
def list_all(
    core: CoreArg,
    identity: IdentityArg,
    host_id: Annotated[str | None, Query(alias="hostId")] = None,
    vol_id: Annotated[str | None, Query(alias="volId")] = None,
) -> Any:
    """The targets of a host, of a volume, or of a volume at a host."""
    return dump(targets.list_all(core, host_id, vol_id, identity.tenant))
