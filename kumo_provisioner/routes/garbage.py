# SPDX-License-Identifier: Apache-2.0
"""What nodes hold and nobody knows."""

from __future__ import annotations

from typing import Any

from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.garbage import Garbage
from kumo_provisioner.edge import success
from kumo_provisioner.routes.common import CoreArg, IdPath, dump, router
from kumo_provisioner.services import garbage

routes = router("garbage")


@routes.get("/garbage", response_model=list[Garbage])
def list_all(core: CoreArg) -> Any:
    """All of it, oldest first, with the time when it will be removed."""
    return dump(garbage.list_all(core))


@routes.post("/garbage/{persistentID}/{uuid}/keep", response_model=StatusAnswer)
def keep(core: CoreArg, persistentID: IdPath, uuid: IdPath) -> Any:  # noqa: N803
    """Never remove it."""
    garbage.keep(core, persistentID, uuid)
    return success()


@routes.delete("/garbage/{persistentID}/{uuid}", response_model=StatusAnswer)
def remove(core: CoreArg, persistentID: IdPath, uuid: IdPath) -> Any:  # noqa: N803
    """Remove it now."""
    garbage.remove(core, persistentID, uuid)
    return success()
