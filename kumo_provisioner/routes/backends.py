# SPDX-License-Identifier: Apache-2.0
"""Storage nodes."""

from typing import Any

from kumo_client.schemas import backend as wire
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.node import Heartbeat
from kumo_provisioner.edge import success
from kumo_provisioner.routes.common import CoreArg, IdPath, dump, router
from kumo_provisioner.services import backends, probing

routes = router("backends")


@routes.post("/backends", response_model=None)
def add(core: CoreArg, body: wire.BackendCreate) -> Any:
    """Register a storage node; the answer carries the backend besides status and description."""
    return success(**dump([backends.add(core, body)])[0])


@routes.get("/backends", response_model=list[wire.Backend])
def list_all(core: CoreArg) -> Any:
    """All storage nodes."""
    return dump(backends.list_all(core))


@routes.get("/backends/{persistentID}", response_model=list[wire.Backend])
def show(core: CoreArg, persistentID: IdPath) -> Any:  # noqa: N803 - the name on the wire
    """One storage node, as a list of length 1."""
    return dump(backends.list_all(core, persistentID))


@routes.put("/backends/{persistentID}", response_model=StatusAnswer)
def update(
    core: CoreArg,
    persistentID: IdPath,  # noqa: N803 - the name on the wire
    body: wire.BackendUpdate,
) -> Any:
    """Change rack, zone or region, declare what it delivers, cordon it, put it into maintenance."""
    backends.update(core, persistentID, body)
    return success()


@routes.post("/heartbeat", response_model=StatusAnswer)
def heartbeat(core: CoreArg, body: Heartbeat) -> Any:
    """A storage node tells how it is."""
    probing.heartbeat(core, body)
    return success()


@routes.delete("/backends/{persistentID}", response_model=StatusAnswer)
def delete(core: CoreArg, persistentID: IdPath) -> Any:  # noqa: N803 - the name on the wire
    """Forget a storage node that holds nothing."""
    backends.delete(core, persistentID)
    return success()
