# SPDX-License-Identifier: Apache-2.0
"""Objects on nodes that no record knows: reported, and removed after a grace period.

A node shows only what its own record says was made for us. Even so nothing is removed when many
unknown objects turn up on a node: then it is the record that forgot them, because the database was
restored from an old copy, or the node belongs to another provisioner.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from oslo_log import log
from sqlalchemy import select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.schemas import garbage as wire
from kumo_client.schemas.event import WARN
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.services import events, removals, restored

LOG = log.getLogger(__name__)
DAY_MS = 86_400_000
# On one node, of its objects; more is no garbage but a record that forgot.
FEW = 4
FEW_PART = 0.1
LIST_MAX = 10_000


def note(session: Session, backend_id: str, found: Iterable[tuple[str, str, int]]) -> None:
    """Record what a node shows and nobody knows, and forget what it shows no more.

    :param found: kind, uuid and bytes of each.
    """
    query = select(models.Garbage).filter_by(backend_id=backend_id)
    known = {row.uuid: row for row in session.scalars(query)}
    now = now_ms()
    for kind, uuid, size in found:
        row = known.pop(uuid, None)
        if row is not None:
            row.last_seen = now
            continue
        session.add(
            models.Garbage(
                backend_id=backend_id,
                uuid=uuid[:36],
                kind=kind,
                bytes=size,
                first_seen=now,
                last_seen=now,
            )
        )
        events.record(
            session,
            "garbage.found",
            f"backend {backend_id} holds {kind} {uuid}, of which nothing is known here",
            level=WARN,
            backend=backend_id,
            kind=kind,
            uuid=uuid,
        )
    for row in known.values():
        session.delete(row)


def expire(
    core: Core, session: Session, backend_id: str, shown: int, used: Collection[str] = ()
) -> list[str]:
    """List what has been garbage for long enough for removal; gives the uuids.

    :param shown: how many objects the node shows in all.
    :param used: uuids of those that a host has; they are left alone.
    """
    days = core.conf.reconcile.garbage_grace_days
    if not days:
        return []
    session.flush()
    query = select(models.Garbage).filter_by(backend_id=backend_id, acknowledged=False)
    rows = session.scalars(query).all()
    old = [row for row in rows if row.first_seen < now_ms() - days * DAY_MS]
    if old and len(rows) > max(FEW, FEW_PART * shown):
        LOG.warning(
            "Backend %s holds %s unknown objects: too many to remove them without being asked",
            backend_id,
            len(rows),
        )
        return []
    old = [row for row in old if row.uuid not in used]
    for row in old:
        _list(session, row, f"after {days} days")
    return [row.uuid for row in old]


def _list(session: Session, row: models.Garbage, why: str) -> None:
    session.add(
        models.Removal(uuid=row.uuid, kind=row.kind, backend_id=row.backend_id, since=now_ms())
    )
    session.delete(row)
    events.record(
        session,
        "garbage.removed",
        f"{row.kind} {row.uuid} on backend {row.backend_id}, unknown here, is removed {why}",
        level=WARN,
        backend=row.backend_id,
        kind=row.kind,
        uuid=row.uuid,
    )


def list_all(core: Core) -> list[wire.Garbage]:
    """What nodes hold and nobody knows, oldest first."""
    days = core.conf.reconcile.garbage_grace_days
    table = models.Garbage
    query = select(table).order_by(table.first_seen, table.backend_id, table.uuid)
    with core.db.read() as session:
        return [
            wire.Garbage(
                backend_id=row.backend_id,
                uuid=row.uuid,
                kind=row.kind,
                bytes=row.bytes,
                first_seen=row.first_seen,
                last_seen=row.last_seen,
                removal=row.first_seen + days * DAY_MS if days and not row.acknowledged else 0,
                kept=row.acknowledged,
            )
            for row in session.scalars(query.limit(LIST_MAX))
        ]


def _find(session: Session, backend_id: str, uuid: str) -> models.Garbage:
    row = session.get(models.Garbage, (backend_id, uuid))
    if row is None:
        raise errors.NotExistsError(f"there is no garbage {uuid} on backend {backend_id}")
    return row


def keep(core: Core, backend_id: str, uuid: str) -> None:
    """Never remove it.

    :raises NotExistsError: when it is not garbage.
    """
    with core.db.write() as session:
        _find(session, backend_id, uuid).acknowledged = True


def remove(core: Core, backend_id: str, uuid: str) -> None:
    """Remove it now; if the node cannot be asked, as soon as it is back.

    :raises NotExistsError: when it is not garbage.
    :raises OutdatedRecordError: the database is an old copy that nobody has accepted.
    """
    restored.refuse(core, f"{uuid} is not removed")
    with core.locks.hold(uuid, f"backend:{backend_id}"):
        with core.db.write() as session:
            _list(session, _find(session, backend_id, uuid), "because an operator asked for it")
        removals.carry_out(core, [uuid])
