# SPDX-License-Identifier: Apache-2.0
"""GET /info."""

from typing import Any

from kumo_client.schemas import info as wire
from kumo_provisioner.routes.common import CoreArg, dump, router
from kumo_provisioner.services import info

routes = router("info")


@routes.get("/info", response_model=wire.Info)
def show(core: CoreArg) -> Any:
    """What this server is, and the extensions it offers."""
    return dump([info.get(core)])[0]
