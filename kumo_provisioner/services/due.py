# SPDX-License-Identifier: Apache-2.0
"""Ask that a node be compared with the record soon."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import update
from sqlalchemy.orm import Session

from kumo_provisioner.core import Core
from kumo_provisioner.db import models


def mark(session: Session, backend_ids: Iterable[str] | None = None) -> None:
    """Have these backends, or all, compared as soon as this transaction is committed."""
    statement = update(models.Backend).values(next_reconcile=0)
    if backend_ids is not None:
        wanted = sorted(set(backend_ids))
        if not wanted:
            return
        statement = statement.where(models.Backend.persistent_id.in_(wanted))
    session.execute(statement, execution_options={"synchronize_session": False})


def ask(core: Core, backend_ids: Iterable[str]) -> None:
    """Have these backends compared now."""
    wanted = sorted(set(backend_ids))
    if wanted:
        core.db.run(lambda session: mark(session, wanted))
        core.wake.set()
