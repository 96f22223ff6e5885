# SPDX-License-Identifier: Apache-2.0
"""The application: routes, edge and background work put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI

from kumo_provisioner import auth, edge, permissions
from kumo_provisioner.core import Core
from kumo_provisioner.metrics import record
from kumo_provisioner.observer import Observer
from kumo_provisioner.routes import (
    backends,
    common,
    events,
    garbage,
    health,
    hosts,
    info,
    legacy,
    live,
    metrics,
    publish,
    reconcile,
    replicas,
    restored,
    snapshots,
    targets,
    tasks,
    tenants,
    tokens,
    volumes,
)
from kumo_provisioner.services.info import version
from kumo_provisioner.worker import Worker

# A request is compared with one router after the other, so the busiest ones come first.
ROUTES = (
    health,
    volumes,
    publish,
    events,
    replicas,
    metrics,
    info,
    backends,
    tenants,
    live,
    snapshots,
    hosts,
    targets,
    tasks,
    legacy,
    reconcile,
    garbage,
    restored,
    tokens,
)


def make(core: Core, accepted: auth.Tokens, *, background: bool = True) -> FastAPI:
    """Make the application.

    :param background: probe nodes and reconcile while it runs.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        limiter = anyio.to_thread.current_default_thread_limiter()
        limiter.total_tokens = core.conf.server.workers
        worker = Worker(core)
        if background:
            worker.start()
            app.state.worker = worker
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(worker.stop)

    app = describe()
    app.router.lifespan_context = lifespan
    app.state.core = core
    app.state.worker = None
    app.state.tokens = accepted
    app.state.record = record.Record(core)
    opened = frozenset({"metrics"}) if core.conf.metrics.without_token else frozenset()
    edge.install(app, accepted, opened)
    app.add_middleware(Observer, metrics=core.metrics, log_access=core.conf.logging.access)
    return app


def describe() -> FastAPI:
    """The routes alone; enough for the OpenAPI document."""
    app = FastAPI(
        title="Kumo provisioner",
        version=version(),
        description="Volumes on NVMe-oF storage nodes. Calls need a bearer token, those "
        "of /healthz, /readyz and /info excepted.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    for module in ROUTES:
        app.include_router(module.routes)
    app.include_router(common.prefixed_router())
    firsts = common.first_segments(module.routes for module in ROUTES)
    app.state.resources = firsts | {"openapi.json"}
    make_document = app.openapi

    def document() -> dict[str, Any]:
        return _corrected(make_document())

    app.openapi = document  # type: ignore[method-assign]
    return app


TENANT_PARAMETER = {
    "name": "tenantId",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


def _corrected(document: dict[str, Any]) -> dict[str, Any]:
    """Without what the web framework announces and the edge never answers; with the tokens, and
    the tenants, whom no handler takes as a parameter."""
    if "securitySchemes" in document["components"]:
        return document
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if "{tenantId}" in path:
                operation.setdefault("parameters", []).insert(0, TENANT_PARAMETER)
            if path.strip("/") in permissions.OPEN:
                operation["security"] = []
    parts = document["components"]
    for name in ("HTTPValidationError", "ValidationError"):
        parts["schemas"].pop(name, None)
    parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}]
    return document
