# SPDX-License-Identifier: Apache-2.0
"""The edge: where requests become calls and errors become answers.

Existing clients ignore the HTTP status, need a non-empty JSON body with ``status`` and
``description`` for every error, and take certain texts in any body for a credential failure. So
nothing leaves here in the shape of the web framework.
"""

from __future__ import annotations

import json
import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from oslo_log import log
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kumo_client import errors, request_id
from kumo_client.schemas.common import SUCCESS
from kumo_provisioner import auth, permissions
from kumo_provisioner.services import tokens

LOG = log.getLogger(__name__)
MAX_BODY = 1 << 20
# A smaller body is looked at faster than it is handed to another thread.
INLINE_BODY = 1 << 14
# Seconds after which a token that another provisioner revoked counts no more here.
REVOKED_SECONDS = 5.0


class TooLargeError(errors.InvalidInputError):
    """A body of more than :data:`MAX_BODY` bytes; only the HTTP status is more exact."""

    http_status = 413


def success(**extra: Any) -> dict[str, Any]:
    """Answer of a mutation."""
    base = {
        "status": SUCCESS,
        "description": "",
        "transient": False,
        "requestId": request_id.current() or "",
    }
    return extra | base


def error_body(error: errors.KumoError) -> dict[str, Any]:
    """The body of an error answer; existing clients must not find their key texts in it."""
    error.request_id = request_id.current()
    body = error.to_wire()
    if not isinstance(error, errors.UnauthorizedError | errors.ForbiddenError):
        body = _without_reserved(body)
    return body


def _without_reserved(value: Any) -> Any:
    if isinstance(value, str):
        for text in errors.RESERVED_TEXTS:
            value = value.replace(text, text.replace(" ", "-"))
        return "".join(char if char.isprintable() else "?" for char in value)
    if isinstance(value, dict):
        return {_without_reserved(key): _without_reserved(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_reserved(item) for item in value]
    return value


def answer(error: errors.KumoError) -> JSONResponse:
    """An error as an HTTP answer."""
    if error.http_status >= 500:
        LOG.warning("Answered %s", error)
    else:
        LOG.info("Answered %s", error)
    headers = {"WWW-Authenticate": "Bearer"} if error.http_status == 401 else None
    return JSONResponse(error_body(error), status_code=error.http_status, headers=headers)


def _on_kumo_error(_request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, errors.KumoError)  # noqa: S101 - registered for this class
    return answer(exc)


def _on_validation(_request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, RequestValidationError)  # noqa: S101 - registered for this class
    told = []
    for problem in exc.errors()[:5]:
        where = ".".join(str(part) for part in problem["loc"] if part != "body")
        # A place that a client made up is not repeated at full length.
        told.append(f"{where[:100] or 'body'}: {str(problem['msg'])[:300]}")
    return answer(errors.InvalidInputError("; ".join(told) or "the request is malformed"))


def _on_http(request: Request, exc: Exception) -> JSONResponse:
    assert isinstance(exc, HTTPException)  # noqa: S101 - registered for this class
    if exc.status_code == 404:
        return answer(errors.NotExistsError(f"there is no resource {request.url.path[:200]}"))
    if exc.status_code == 405:
        return answer(
            errors.MethodNotAllowedError(
                f"{request.method} is not possible for {request.url.path[:200]}"
            )
        )
    return answer(errors.InvalidInputError(str(exc.detail)[:300]))


def _on_defect(_request: Request, exc: Exception) -> JSONResponse:
    return answer(
        errors.InternalError(
            f"the provisioner failed on {type(exc).__name__}",
            way_out="find the request id in its log",
        )
    )


def install(app: FastAPI, accepted: auth.Tokens, opened: frozenset[str] = frozenset()) -> None:
    """Put the edge round an application.

    :param opened: what else may be read without a token, as in ``permissions.OPEN``.
    """
    app.add_exception_handler(errors.KumoError, _on_kumo_error)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(Edge, accepted=accepted, opened=opened)


class Edge:
    """Request id, token, size of the body, and the last resort for defects."""

    def __init__(
        self, app: ASGIApp, accepted: auth.Tokens, opened: frozenset[str] = frozenset()
    ) -> None:
        self.app = app
        self.opened = permissions.OPEN | opened
        self.tokens = accepted
        self._refreshed = float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        with request_id.use(headers.get(request_id.HEADER)) as rid:
            sender = _Sender(send, rid)
            try:
                body = await self._admit(scope, headers, receive)
                await self.app(scope, body, sender)
            except errors.KumoError as exc:
                await answer(exc)(scope, receive, sender)
            except Exception as exc:
                LOG.exception("%s %s failed", scope["method"], scope["path"])
                if sender.started:
                    raise
                await _on_defect(Request(scope), exc)(scope, receive, sender)

    async def _admit(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        identity = await self._identify(scope, headers.get("authorization"))
        scope.setdefault("state", {})["identity"] = identity
        body = await _read_body(headers, receive)
        if body and scope["method"] in ("POST", "PUT", "PATCH"):
            if len(body) < INLINE_BODY:
                _check_json(body)
            else:
                await run_in_threadpool(_check_json, body)
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        return replay

    async def _identify(self, scope: Scope, header: str | None) -> auth.Identity:
        method, path = scope["method"], scope["path"]
        if method in permissions.READS and path.removeprefix("/") in self.opened:
            return auth.NOBODY
        if time.monotonic() - self._refreshed > REVOKED_SECONDS:
            # Before the wait, so that one request does it for all.
            self._refreshed = time.monotonic()
            await run_in_threadpool(tokens.refresh, scope["app"].state.core, self.tokens)
        identity = self.tokens.identify(header)
        auth.authorize(identity, method, path, scope["app"].state.resources)
        return identity


def _check_json(body: bytes) -> None:
    """Refuse here what a parser downstream would answer in its own way.

    :raises InvalidInputError: when the body is not JSON in UTF-8.
    """
    try:
        value = json.loads(body, parse_constant=_no_constant)
        # Half a surrogate pair is JSON, but no text that could be stored or sent again.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        reason = "nested too deep" if isinstance(exc, RecursionError) else str(exc)
        raise errors.InvalidInputError(f"the body is not valid JSON: {reason[:200]}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


async def _read_body(headers: Headers, receive: Receive) -> bytes:
    declared = headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > MAX_BODY:
        raise TooLargeError(f"a body may have at most {MAX_BODY} bytes")
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise errors.InvalidInputError("the client went away before its request was complete")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise TooLargeError(f"a body may have at most {MAX_BODY} bytes")
        if not message.get("more_body", False):
            return b"".join(parts)


class _Sender:
    """Adds the request id to the answer and knows whether it has begun."""

    def __init__(self, send: Send, rid: str) -> None:
        self.send = send
        self.rid = rid
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            MutableHeaders(scope=message)[request_id.HEADER] = self.rid
        await self.send(message)
