# SPDX-License-Identifier: Apache-2.0
"""GET /metrics."""

from typing import Any

from fastapi import Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from kumo_provisioner.routes.common import CoreArg, router

routes = router("metrics")


@routes.get("/metrics", response_class=PlainTextResponse)
def show(core: CoreArg, request: Request) -> Any:
    """Metrics in the text format of Prometheus. Not for tokens that are bound to a tenant."""
    text: bytes = core.metrics.text() + request.app.state.record.text()
    return Response(text, media_type=CONTENT_TYPE_LATEST)
