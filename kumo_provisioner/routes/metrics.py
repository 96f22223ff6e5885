# SPDX-License-Identifier: Apache-2.0
"""GET /metrics."""

from typing import Any

from fastapi import Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from kumo_provisioner.routes.common import CoreArg, router

routes = router("metrics")
PLAIN = {"text/plain": {"schema": {"type": "string"}}}


# Errors are JSON, which a response class of plain text would deny in the API document.
@routes.get("/metrics", response_class=Response, responses={200: {"content": PLAIN}})
def show(core: CoreArg, request: Request) -> Any:
    """Metrics in the text format of Prometheus. Not for tokens that are bound to a tenant."""
    text: bytes = core.metrics.text() + request.app.state.record.text()
    return Response(text, media_type=CONTENT_TYPE_LATEST)
