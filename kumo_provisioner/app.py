# SPDX-License-Identifier: Apache-2.0
"""The application: routes, edge and background work put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI

from kumo_provisioner import auth, edge
from kumo_provisioner.core import Core
from kumo_provisioner.routes import (
    backends,
    common,
    hosts,
    info,
    publish,
    reconcile,
    snapshots,
    targets,
    tenants,
    volumes,
)
from kumo_provisioner.services.info import version
from kumo_provisioner.worker import Worker

ROUTES = (info, backends, tenants, volumes, snapshots, hosts, publish, targets, reconcile)


def make(core: Core, tokens: auth.Tokens, *, background: bool = True) -> FastAPI:
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
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(worker.stop)

    app = describe()
    app.router.lifespan_context = lifespan
    app.state.core = core
    edge.install(app, tokens)
    return app


def describe() -> FastAPI:
    """The routes alone; enough for the OpenAPI document."""
    app = FastAPI(
        title="Kumo provisioner",
        version=version(),
        description="Volumes on NVMe-oF storage nodes. Every call needs a bearer token.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    for module in ROUTES:
        app.include_router(module.routes)
    app.include_router(common.prefixed_router())
    return app
