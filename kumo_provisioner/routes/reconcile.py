# SPDX-License-Identifier: Apache-2.0
"""POST /reconcile."""

from typing import Any

from kumo_provisioner import reconcile
from kumo_provisioner.edge import success
from kumo_provisioner.routes.common import CoreArg, router

routes = router("reconcile")


@routes.post("/reconcile", response_model=None)
def run(core: CoreArg) -> Any:
    """Compare record and nodes now; answers when done, with the number of things done."""
    return success(**reconcile.run(core).wire())
