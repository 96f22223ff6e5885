# SPDX-License-Identifier: Apache-2.0
"""Long lists: page by page for clients that ask so, in chunks for those that want all.

Pages come in the order of uuids: so the next one can be found from the last uuid seen even when
that object is gone meanwhile, and nothing that existed all the time is missed or told twice. The
whole list comes oldest first. Neither holds more than a chunk in memory besides the uuids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm.interfaces import ORMOption

from kumo_provisioner.core import Core
from kumo_provisioner.db import models

R = TypeVar("R", models.Volume, models.Snapshot)
W = TypeVar("W")
CHUNK = 500
LIMIT_MAX = 10_000


def page(
    core: Core,
    table: type[R],
    view: Callable[[R], W],
    options: Sequence[ORMOption],
    *,
    tenant: str,
    limit: int,
    after: str = "",
) -> Iterator[list[W]]:
    """One page of what exists of a tenant, in the order of uuids, as an iterator of chunks.

    :param limit: at most so many.
    :param after: the last uuid of the page before; empty for the first page.
    """
    query = (
        select(table.uuid)
        .where(table.tenant_id == tenant, table.status == models.AVAILABLE, table.uuid > after)
        .order_by(table.uuid)
        .limit(limit)
    )
    return _chunks(core, table, query, view, options)


def everything(
    core: Core,
    table: type[R],
    view: Callable[[R], W],
    options: Sequence[ORMOption],
    *,
    tenant: str,
) -> Iterator[list[W]]:
    """All that exists of a tenant, oldest first, as an iterator of chunks."""
    query = (
        select(table.uuid)
        .where(table.tenant_id == tenant, table.status == models.AVAILABLE)
        .order_by(table.created, table.uuid)
    )
    return _chunks(core, table, query, view, options)


def _chunks(
    core: Core,
    table: type[R],
    query: Any,
    view: Callable[[R], W],
    options: Sequence[ORMOption],
) -> Iterator[list[W]]:
    with core.db.read() as session:
        uuids = list(session.connection().execute(query).scalars())
    for start in range(0, len(uuids), CHUNK):
        some = uuids[start : start + CHUNK]
        # One transaction for each chunk: a slow reader must not keep one open.
        with core.db.read() as session:
            rows = session.scalars(
                select(table)
                .options(*options)
                .where(table.uuid.in_(some), table.status == models.AVAILABLE)
            )
            found = {row.uuid: view(row) for row in rows}
        yield [found[uuid] for uuid in some if uuid in found]
