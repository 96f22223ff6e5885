# SPDX-License-Identifier: Apache-2.0
"""The leases under which the present thread works, and the proof that they are still ours.

A process that was stopped for a while, or cut off from the database, may have been declared dead
and its work given to another. So each write transaction locks the rows of its leases for reading:
they are ours until it has ended.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sqlalchemy import Select, and_, bindparam, or_, select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_provisioner.db import models

# Token by name.
HELD: ContextVar[dict[str, str] | None] = ContextVar("kumo_leases", default=None)


# Made once for each number of leases: making it takes longer than running it.
@functools.cache
def _still_ours(count: int) -> Select[str]:
    ours = (
        and_(
            models.Lease.name == bindparam(f"name{number}"),
            models.Lease.token == bindparam(f"token{number}"),
        )
        for number in range(count)
    )
    return select(models.Lease.name).where(or_(*ours)).with_for_update(read=True)


class LeaseLostError(errors.BusyError):
    """Another instance has taken this work over."""


@contextmanager
def unfenced() -> Iterator[None]:
    """For writes that are about the leases themselves."""
    before = HELD.set(None)
    try:
        yield
    finally:
        HELD.reset(before)


def lost(names: str) -> LeaseLostError:
    return LeaseLostError(
        f"this instance lost its lease of {names} to another one", way_out="repeat the call"
    )


def check(session: Session) -> None:
    """Make sure that the leases stay ours until the transaction ends.

    :raises LeaseLostError: when they are not ours any more.
    """
    held = HELD.get()
    if not held:
        return
    values: dict[str, str] = {}
    for number, (name, token) in enumerate(sorted(held.items())):
        values |= {f"name{number}": name, f"token{number}": token}
    rows = session.connection().execute(_still_ours(len(held)), values).all()
    found = {name for (name,) in rows}
    if found != held.keys():
        raise lost(", ".join(sorted(held.keys() - found)))
