# SPDX-License-Identifier: Apache-2.0
"""A database that is an old copy."""

from __future__ import annotations

from typing import Any

from kumo_client.schemas.restored import Accept, Accepted, Restored
from kumo_provisioner.reconcile import accept, differences
from kumo_provisioner.routes.common import CoreArg, dump, router

routes = router("restored")


@routes.get("/restored", response_model=Restored)
def show(core: CoreArg) -> Any:
    """Whether the database is an old copy, and how nodes and record differ; nothing is changed."""
    return dump([differences.look(core).shown])[0]


@routes.post("/restored/accept", response_model=Accepted)
def accept_it(core: CoreArg, request: Accept) -> Any:
    """Let the record count again: what it does not know is taken away from nodes from now on."""
    return dump([accept.accept(core, request)])[0]
