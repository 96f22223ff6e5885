# SPDX-License-Identifier: Apache-2.0
"""What all routes share."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import AfterValidator, TypeAdapter
from starlette.concurrency import run_in_threadpool

from kumo_client.schemas.common import StatusAnswer, WireModel
from kumo_client.schemas.tenant import DEFAULT_TENANT
from kumo_provisioner import auth
from kumo_provisioner.core import Core
from kumo_provisioner.services import paging, tenants

W = TypeVar("W", bound=WireModel)

ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    code: {"model": StatusAnswer, "description": text}
    for code, text in {
        400: "InvalidInput",
        401: "Unauthorized",
        403: "Forbidden",
        404: "NotExists",
        409: "AlreadyExists, InUse, Conflict, Busy, NoSpace, NotCoherent",
        503: "BackendUnavailable",
    }.items()
}


# What only looks at the request is a coroutine: a function would be run by another thread.
async def _core(request: Request) -> Core:
    core: Core = request.app.state.core
    return core


async def _identity(request: Request) -> auth.Identity:
    identity: auth.Identity = request.state.identity
    return identity


async def _tenant(request: Request) -> str:
    """The tenant of the path; without one that of the token, or the default one."""
    mine = (await _identity(request)).tenant
    asked = request.path_params.get("tenantId") or mine or DEFAULT_TENANT
    if mine and asked != mine:
        # That others exist is none of a tenant's business.
        raise tenants.missing(asked)
    if asked == DEFAULT_TENANT:
        return asked
    return await run_in_threadpool(tenants.check, await _core(request), asked)


def first_segments(routers: Iterable[APIRouter]) -> frozenset[str]:
    """What the paths of routers begin with; no tenant can have such an id."""
    paths = [str(getattr(route, "path", "")) for one in routers for route in one.routes]
    firsts = {path.strip("/").partition("/")[0] for path in paths}
    return frozenset(first for first in firsts if first and not first.startswith("{"))


async def _reader(request: Request) -> str | None:
    return (await _identity(request)).tenant or None


CoreArg = Annotated[Core, Depends(_core)]
IdentityArg = Annotated[auth.Identity, Depends(_identity)]
TenantArg = Annotated[str, Depends(_tenant)]
# The tenant whose objects the caller may see; None for all.
ReaderArg = Annotated[str | None, Depends(_reader)]
IdPath = Annotated[str, Path(max_length=512)]
LimitArg = Annotated[int | None, Query(ge=1, le=paging.LIMIT_MAX)]
AfterArg = Annotated[
    str,
    Query(max_length=36, pattern="^([0-9A-Fa-f-]{36})?$"),
    AfterValidator(str.lower),
]


def dump(items: Sequence[WireModel]) -> list[dict[str, Any]]:
    """Objects with every field: existing clients read an absent one as the text "N/A"."""
    return [item.model_dump(by_alias=True, mode="json") for item in items]


def streamed(cls: type[W], chunks: Iterator[list[W]]) -> Response:
    """A list of objects as an answer that is made while it is sent, so that a long one needs
    little memory. What fails in the first chunk is an error answer; later it cuts the answer off.
    """
    adapter = TypeAdapter(list[cls])  # type: ignore[valid-type]

    def text(chunk: list[W]) -> bytes:
        return adapter.dump_json(chunk, by_alias=True)[1:-1]

    first, second = next(chunks, []), next(chunks, None)
    if second is None:
        return Response(b"[" + text(first) + b"]", media_type="application/json")
    more = itertools.chain([second], chunks)

    def parts() -> Iterator[bytes]:
        told = text(first)
        yield b"[" + told
        for chunk in more:
            # A chunk may be empty when all of it was deleted meanwhile.
            if chunk:
                yield (b"," if told else b"") + text(chunk)
                told = b"some"
        yield b"]"

    return StreamingResponse(parts(), media_type="application/json")


def router(tag: str) -> APIRouter:
    return APIRouter(tags=[tag], responses=ERROR_ANSWERS)


def both(
    routes: APIRouter, method: str, path: str, **options: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a handler under ``path`` and under ``/{tenantId}`` before it."""

    def register(plain: Callable[..., Any]) -> Callable[..., Any]:
        handler = _answering(plain)
        routes.add_api_route(path, handler, methods=[method], **options)
        name = f"{handler.__name__}_of_tenant"
        prefixed.append((routes.tags, f"/{{tenantId}}{path}", handler, method, name, options))
        return plain

    return register


def _answering(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Make what a handler gives an answer at once. It is as the schema says already: the web
    framework would make objects of it again, and check them."""
    if inspect.iscoroutinefunction(handler):
        return handler

    @functools.wraps(handler)
    def answer(*args: Any, **options: Any) -> Response:
        found = handler(*args, **options)
        return found if isinstance(found, Response) else JSONResponse(found)

    return answer


# Added after all plain paths, so that a tenant never hides a resource.
prefixed: list[tuple[Any, str, Callable[..., Any], str, str, dict[str, Any]]] = []


def prefixed_router() -> APIRouter:
    """All routes with the tenant in front."""
    routes = APIRouter(responses=ERROR_ANSWERS)
    for tags, path, handler, method, name, options in prefixed:
        routes.add_api_route(path, handler, methods=[method], name=name, tags=tags, **options)
    return routes
