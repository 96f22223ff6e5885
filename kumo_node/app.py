# SPDX-License-Identifier: Apache-2.0
"""The node API: routes, and the edge where errors become answers.

The routes and bodies are listed in :mod:`kumo_client.schemas.node`. Every answer is a JSON object;
an error has ``status``, ``description`` and ``transient``. All paths need a bearer token.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from oslo_log import log
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from kumo_client import errors
from kumo_client.schemas.common import StatusAnswer, UuidText
from kumo_client.schemas.node import (
    Adoptables,
    AdoptSpec,
    Copy,
    CopySpec,
    Export,
    ExportSpec,
    Inventory,
    Limits,
    NodeInfo,
    NodeSnapshot,
    ReleaseSpec,
    Replica,
    ReplicaResize,
    ReplicaSpec,
    RevertSpec,
    SnapshotSpec,
    Stamp,
    StampSpec,
)
from kumo_client.stamp import HEADER as STAMP
from kumo_node import following
from kumo_node.auth import Tokens
from kumo_node.metrics import OTHER, Metrics
from kumo_node.service import Node

LOG = log.getLogger(__name__)
MAX_BODY = 1 << 20
REQUEST_ID = "X-Openstack-Request-Id"
_REQUEST_ID = re.compile(r"^req-[0-9a-fA-F-]{36}$")
Uuid = Annotated[UuidText, Path()]


def make(node: Node, tokens: Tokens) -> FastAPI:
    """The application of one node."""
    app = FastAPI(title="Kumo storage node", version=node.version, docs_url=None, redoc_url=None)
    _add_looks(app, node)
    _add_replicas(app, node)
    _add_snapshots(app, node)
    _add_adoption(app, node)
    _add_copies(app, node)
    metrics = Metrics(node)
    _add_metrics(app, metrics)
    _add_errors(app)
    _add_edge(app, node, tokens, metrics)
    return app


def _add_looks(app: FastAPI, node: Node) -> None:
    @app.get("/v1/info", summary="Identity, portals and pools")
    def info() -> NodeInfo:
        return node.info()

    @app.get("/v1/inventory", summary="All replicas, snapshots and exports")
    def inventory() -> Inventory:
        return node.inventory()

    @app.put("/v1/stamp", summary="Remember another state of the provisioner's database")
    def put_stamp(body: StampSpec) -> Stamp:
        return node.following.put(body)


def _add_replicas(app: FastAPI, node: Node) -> None:
    @app.put("/v1/replicas/{uuid}", summary="Make a replica, empty or as a copy")
    def put_replica(uuid: Uuid, body: ReplicaSpec) -> Replica:
        return node.replicas.put(uuid, body)

    @app.patch("/v1/replicas/{uuid}", summary="Grow a replica")
    def resize_replica(uuid: Uuid, body: ReplicaResize) -> Replica:
        return node.replicas.resize(uuid, body.bytes, grow_array=body.grow_array)

    @app.get("/v1/replicas/{uuid}", summary="State of a replica")
    def get_replica(uuid: Uuid) -> Replica:
        return node.replicas.get(uuid)

    @app.delete("/v1/replicas/{uuid}", summary="Remove a replica that is not exported")
    def delete_replica(uuid: Uuid) -> StatusAnswer:
        node.replicas.delete(uuid)
        return StatusAnswer()

    @app.put("/v1/replicas/{uuid}/limits", summary="Cap a replica")
    def put_limits(uuid: Uuid, body: Limits) -> Replica:
        return node.caps.put(uuid, body)

    @app.put("/v1/replicas/{uuid}/revert", summary="Make a replica what a snapshot is")
    def revert(uuid: Uuid, body: RevertSpec) -> Replica:
        return node.revert.put(uuid, body)

    @app.put("/v1/replicas/{uuid}/exports", summary="Export a replica to one host")
    def put_export(uuid: Uuid, body: ExportSpec) -> Export:
        return node.exports.put(uuid, body)

    @app.delete("/v1/replicas/{uuid}/exports", summary="Take a replica away from one host or all")
    def delete_export(
        uuid: Uuid, host_nqn: Annotated[str | None, Query(alias="hostNqn", max_length=223)] = None
    ) -> StatusAnswer:
        node.exports.delete(uuid, host_nqn)
        return StatusAnswer()


def _add_adoption(app: FastAPI, node: Node) -> None:
    @app.get("/v1/adoptable", summary="Thin volumes that could become replicas")
    def adoptable() -> Adoptables:
        return node.adoption.adoptable()

    @app.put("/v1/replicas/{uuid}/adopt", summary="Make a thin volume a replica")
    def adopt(uuid: Uuid, body: AdoptSpec) -> Replica:
        return node.adoption.adopt(uuid, body)

    @app.put("/v1/replicas/{uuid}/release", summary="Give a replica up without deleting it")
    def release(uuid: Uuid, body: ReleaseSpec) -> StatusAnswer:
        node.adoption.release(uuid, body)
        return StatusAnswer()


def _add_copies(app: FastAPI, node: Node) -> None:
    @app.put("/v1/copies/{uuid}", summary="Fill a replica from one of another node")
    def put_copy(uuid: Uuid, body: CopySpec) -> Copy:
        return node.copies.put(uuid, body)

    @app.get("/v1/copies/{uuid}", summary="How far a copy is")
    def get_copy(uuid: Uuid) -> Copy:
        return node.copies.get(uuid)

    @app.delete("/v1/copies/{uuid}", summary="Stop a copy and forget it")
    def delete_copy(uuid: Uuid) -> StatusAnswer:
        node.copies.delete(uuid)
        return StatusAnswer()


def _add_snapshots(app: FastAPI, node: Node) -> None:
    @app.put("/v1/snapshots/{uuid}", summary="Take a snapshot of a replica")
    def put_snapshot(uuid: Uuid, body: SnapshotSpec) -> NodeSnapshot:
        return node.snapshots.put(uuid, body)

    @app.delete("/v1/snapshots/{uuid}", summary="Remove a snapshot")
    def delete_snapshot(uuid: Uuid) -> StatusAnswer:
        node.snapshots.delete(uuid)
        return StatusAnswer()


def _add_metrics(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
    def show() -> Any:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)


# The edge.


def _answer(error: errors.KumoError, request: Request) -> JSONResponse:
    error.request_id = request_id(request)
    level = LOG.error if error.http_status >= 500 else LOG.info
    level("%s %s %s: %s", error.request_id, request.method, request.url.path, error)
    return JSONResponse(error.to_wire(), status_code=error.http_status)


def request_id(request: Request) -> str:
    """The caller's request id, or one of our own when it sent none that can be logged."""
    known = getattr(request.state, "request_id", None)
    if known is None:
        sent = request.headers.get(REQUEST_ID, "")
        known = sent if _REQUEST_ID.match(sent) else f"req-{uuid.uuid4()}"
        request.state.request_id = known
    return str(known)


def _input_error(error: RequestValidationError) -> errors.InvalidInputError:
    parts = []
    for item in error.errors()[:5]:
        where = ".".join(str(part) for part in item.get("loc", ())[1:]) or "body"
        parts.append(f"{where}: {item.get('msg', 'is wrong')}")
    return errors.InvalidInputError("; ".join(parts) or "The request is wrong")


def _http_error(error: HTTPException) -> errors.KumoError:
    if error.status_code == 404:
        return errors.NotExistsError("No such path in the node API")
    if error.status_code == 405:
        return errors.MethodNotAllowedError("That method is not allowed on this path")
    return errors.InvalidInputError(f"The request cannot be read: {error.detail}")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(errors.KumoError)
    def ours(request: Request, error: errors.KumoError) -> JSONResponse:
        return _answer(error, request)

    @app.exception_handler(RequestValidationError)
    def wrong_input(request: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(_input_error(error), request)

    @app.exception_handler(HTTPException)
    def wrong_path(request: Request, error: HTTPException) -> JSONResponse:
        return _answer(_http_error(error), request)

    @app.exception_handler(Exception)
    def defect(request: Request, error: Exception) -> JSONResponse:
        LOG.error("%s: a defect", request_id(request), exc_info=error)
        return _answer(
            errors.InternalError(f"A defect of the node: {type(error).__name__}"), request
        )


def _add_edge(app: FastAPI, node: Node, tokens: Tokens, metrics: Metrics) -> None:
    @app.middleware("http")
    async def edge(
        request: Request, call_next: Callable[[Request], Awaitable[Any]]
    ) -> JSONResponse | Any:
        start = time.monotonic()
        try:
            _reload(tokens)
            tokens.check(request.headers.get("Authorization"))
            _check_length(request.headers.get("Content-Length"), request.headers)
            LOG.debug("%s %s %s", request_id(request), request.method, request.url.path)
            await _follow(node, request)
            answer = await call_next(request)
            answer.headers[REQUEST_ID] = request_id(request)
        except errors.KumoError as error:
            answer = _answer(error, request)
        route = getattr(request.scope.get("route"), "path", OTHER)
        metrics.request(request.method, route, answer.status_code, time.monotonic() - start)
        return answer


async def _follow(node: Node, request: Request) -> None:
    """Remember which state of the provisioner's record is behind a request, before it is served."""
    sent = following.parse(request.headers.get(STAMP))
    if sent is not None and node.following.is_news(sent):
        try:
            await run_in_threadpool(node.following.remember, sent)
        except OSError as error:
            # Who only looks is told of a full disk in other ways.
            LOG.error("The state of the database could not be written down: %s", error)
            if request.method != "GET":
                raise errors.InternalError(f"The record cannot be written: {error}") from error
    if following.takes_away(request.method, request.url.path):
        node.following.check(sent)


def _reload(tokens: Tokens) -> None:
    try:
        tokens.reload()
    except errors.ConfigError as error:
        # Somebody is editing it; the tokens known so far stay good.
        LOG.error("%s", error)


def _check_length(length: str | None, headers: Any) -> None:
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        raise errors.InvalidInputError("A body must be sent with Content-Length")
    if length is not None and (not length.isdigit() or int(length) > MAX_BODY):
        raise errors.InvalidInputError(f"A body may have at most {MAX_BODY} bytes")


def openapi(app: FastAPI) -> str:
    """The API's description as JSON text."""
    return json.dumps(app.openapi(), indent=2, sort_keys=True)
