# SPDX-License-Identifier: Apache-2.0
"""Counts and, by option, logs every request, whatever became of it."""

from __future__ import annotations

import time

from oslo_log import log
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kumo_client import request_id
from kumo_provisioner.metrics import METHODS, OTHER, Metrics

LOG = log.getLogger(__name__)


class Observer:
    """Outermost middleware.

    :param log_access: write a line for each request.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, log_access: bool = False) -> None:
        self.app = app
        self.metrics = metrics
        self.log_access = log_access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.monotonic()
        # What a request counts as that was given up before it had an answer.
        status, rid = 500, ""

        async def watch(message: Message) -> None:
            nonlocal status, rid
            if message["type"] == "http.response.start":
                status = message["status"]
                rid = Headers(raw=message["headers"]).get(request_id.HEADER, "")
            await send(message)

        self.metrics.requests_at_work.inc()
        try:
            await self.app(scope, receive, watch)
        finally:
            self.metrics.requests_at_work.dec()
            self._tell(scope, status, rid, time.monotonic() - begun)

    def _tell(self, scope: Scope, status: int, rid: str, seconds: float) -> None:
        # Set by the router; a path that a client made up must not become a label.
        route: str = getattr(scope.get("route"), "path", OTHER)
        method: str = scope["method"] if scope["method"] in METHODS else OTHER
        self.metrics.request(method, route, status, seconds)
        if self.log_access:
            self._log(scope, method, route, status, rid, seconds)

    def _log(
        self, scope: Scope, method: str, route: str, status: int, rid: str, seconds: float
    ) -> None:
        identity = scope.get("state", {}).get("identity")
        fields = {
            "method": method,
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 1),
            "identity": identity.name if identity is not None else "",
        }
        with request_id.use(rid):
            LOG.info(
                "%(method)s %(route)s %(status)s %(ms)s ms %(identity)s",
                fields,
                extra={"fields": fields},
            )
