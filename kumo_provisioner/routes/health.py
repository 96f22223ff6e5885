# SPDX-License-Identifier: Apache-2.0
"""Health of this process, for balancers and supervisors; no token is needed."""

from typing import Any

from fastapi import Request
from fastapi.responses import Response

from kumo_client.schemas.common import StatusAnswer
from kumo_provisioner import health
from kumo_provisioner.edge import success
from kumo_provisioner.routes.common import CoreArg, router

routes = router("health")
ALIVE = b'{"status":"Success","description":"","transient":false}'


# No thread and no database: it tells of this process alone.
@routes.get("/healthz", response_model=StatusAnswer)
async def alive() -> Any:
    """The process lives."""
    return Response(ALIVE, media_type="application/json")


@routes.get("/readyz", response_model=StatusAnswer)
def ready(core: CoreArg, request: Request) -> Any:
    """The provisioner can do its work; NotReady with the reasons otherwise."""
    health.check(core, request.app.state.worker)
    return success() | {"description": health.remark(core)}
