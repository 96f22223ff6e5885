# SPDX-License-Identifier: Apache-2.0
"""What the calls of all subjects share."""

from __future__ import annotations

import time
import uuid as uuidlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from kumo_client import errors
from kumo_client.api.parse import model, models, quoted
from kumo_client.schemas import info as info_schema
from kumo_client.schemas.common import StatusAnswer, WireModel
from kumo_client.schemas.info import Info
from kumo_client.session import Session

# A server may be upgraded under a client that runs for months.
CAPABILITIES_KEPT_SECONDS = 300.0
# Objects asked for at once where the server offers pages.
PAGE = 500

W = TypeVar("W", bound=WireModel)


class Base:
    """Requests to a provisioner, for the default tenant or another one.

    :param tenant: whose volumes, snapshots and replicas are meant; ``None`` is the tenant of the
        token.
    """

    def __init__(
        self,
        session: Session,
        *,
        tenant: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session = session
        self.tenant = tenant
        self._clock = clock
        self._info: Info | None = None
        self._info_time = 0.0

    def info(self) -> Info:
        """Version, free space and capabilities, as they are now."""
        self._info = model(Info, self.session.request("GET", "/info"))
        self._info_time = self._clock()
        return self._info

    def supports(self, capability: str) -> bool:
        """Whether the server offers an extension; asked at most once in five minutes."""
        info = self._info
        if info is None or self._clock() - self._info_time > CAPABILITIES_KEPT_SECONDS:
            info = self.info()
        return info.supports(capability)

    def need(self, capability: str) -> None:
        """:raises NotAvailableError: the server does not offer this extension."""
        if not self.supports(capability):
            raise errors.NotAvailableError(
                f"this provisioner does not offer {capability!r}",
                way_out="upgrade it; `kumo info` shows what it offers",
                details={"capability": capability},
            )

    def _of_tenant(self, path: str) -> str:
        """The path of something that belongs to a tenant."""
        return path if self.tenant is None else f"/{quoted(self.tenant)}{path}"

    def _status(self, method: str, path: str, body: WireModel | None = None) -> StatusAnswer:
        """The answer of a change that may be sent twice."""
        json = None if body is None else body.wire()
        return model(StatusAnswer, self.session.request(method, path, json=json, idempotent=True))

    def _pages(self, cls: type[W], path: str, key: Callable[[W], str]) -> Iterator[W]:
        """All objects of a list, page by page where the server offers that.

        :raises ProtocolError: the server gave the same page again.
        """
        if not self.supports(info_schema.CAPABILITY_PAGING):
            yield from models(cls, self.session.request("GET", path))
            return
        after = ""
        while True:
            params = {"limit": str(PAGE)} | ({"after": after} if after else {})
            page = models(cls, self.session.request("GET", path, params=params))
            if after and page and key(page[-1]) == after:
                raise errors.ProtocolError(f"the server answered the same page of {path} again")
            yield from page
            if len(page) < PAGE:
                return
            after = key(page[-1])

    def _create(
        self,
        path: str,
        create: WireModel,
        difference: Callable[[], str | None],
    ) -> Any:
        """The answer, or ``None`` when an earlier try of this call made what is asked."""
        try:
            return self.session.request("POST", path, json=create.wire(), idempotent=True)
        except errors.AlreadyExistsError as exc:
            if not exc.repeated:
                raise
            try:
                found = difference()
            except errors.NotExistsError:
                # Another object has the alias or the address.
                raise exc from None
            if found:
                raise errors.AlreadyExistsError(
                    f"{exc.message.rstrip('.')}; what exists differs in {found}",
                    volume=exc.volume,
                    node=exc.node,
                    details=exc.details,
                    request_id=exc.request_id,
                ) from exc
            return None

    def _delete(self, path: str, params: dict[str, str] | None = None) -> None:
        try:
            self.session.request("DELETE", path, params=params)
        except errors.NotExistsError as exc:
            if not exc.repeated:
                raise


def with_id(create: W, field: str) -> W:
    """The same request with an id, without which it could not be repeated safely."""
    if getattr(create, field) is not None:
        return create
    return create.model_copy(update={field: str(uuidlib.uuid4())})


def given(**params: str | int | None) -> dict[str, str]:
    """The parameters of a query that are not ``None``."""
    return {name: str(value) for name, value in params.items() if value is not None}
