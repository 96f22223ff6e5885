# SPDX-License-Identifier: Apache-2.0
"""Undo what was begun, and finish what was wished for, when nobody is at work on it any more."""

from __future__ import annotations

from typing import Any

from oslo_log import log
from sqlalchemy import select

from kumo_client import errors
from kumo_provisioner import settling
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.reconcile.counts import Counts
from kumo_provisioner.reconcile.settlers import SETTLERS
from kumo_provisioner.services import due, removals, restored

LOG = log.getLogger(__name__)
AT_ONCE = 1000


def undo_unfinished(core: Core, counts: Counts, *, min_age_ms: int = 0, timeout: float = 0) -> None:
    """Take back, in the record, what was begun and has nobody working on it any more.

    :param min_age_ms: leave alone what is younger; it is probably at work.
    :param timeout: seconds to wait for whoever is at work on one.
    """
    if restored.looking_only(core):
        return
    oldest = now_ms() - min_age_ms
    volume, snapshot, publication = models.Volume, models.Snapshot, models.Publication
    with core.db.read() as session:
        made = [
            (table, uuid, uuid)
            for table in (volume, snapshot)
            for uuid in session.scalars(
                select(table.uuid)
                .where(table.status == models.CREATING, table.created <= oldest)
                .limit(AT_ONCE)
            )
        ]
        query = select(publication.volume_id, publication.host_id).where(
            publication.status == models.PUBLISHING, publication.since <= oldest
        )
        published = [
            (publication, (volume_id, host_id), volume_id)
            for volume_id, host_id in session.execute(query.limit(AT_ONCE))
        ]
    for table, key, lock in [*made, *published]:
        _undo_one(core, counts, table, key, lock, timeout)


def _undo_one(
    core: Core,
    counts: Counts,
    table: type[models.Base],
    key: object,
    lock: str,
    timeout: float,
) -> None:
    try:
        with core.locks.hold(lock, timeout=timeout), core.db.write() as session:
            row: Any = session.get(table, key)
            if row is None or row.status not in (models.CREATING, models.PUBLISHING):
                return
            if isinstance(row, models.Volume):
                due.mark(session, [one.backend_id for one in row.replicas])
                removals.retire_volume(session, row)
            elif isinstance(row, models.Snapshot):
                due.mark(session, [one.backend_id for one in row.parts])
                removals.retire_snapshot(session, row)
            else:
                due.mark(session, [one.backend_id for one in row.volume.replicas])
                session.delete(row)
        counts.undone += 1
        LOG.info("Undid an unfinished %s of %s", table.__name__.lower(), key)
    except errors.BusyError:
        counts.skipped += 1


def finish_unsettled(core: Core, counts: Counts, *, timeout: float = 0) -> None:
    """Do what is still to be done on volumes after their wishes were recorded.

    :param timeout: seconds to wait for whoever is at work on one.
    """
    if restored.looking_only(core):
        return
    with core.db.read() as session:
        query = select(models.Volume.uuid).where(
            models.Volume.unsettled != "", models.Volume.status != models.CREATING
        )
        uuids = session.scalars(query.limit(AT_ONCE)).all()
    for uuid in uuids:
        try:
            with core.locks.hold(uuid, timeout=timeout):
                _finish_one(core, uuid, counts)
        except errors.BusyError:
            counts.skipped += 1


def _finish_one(core: Core, uuid: str, counts: Counts) -> None:
    with core.db.read() as session:
        row = session.get(models.Volume, uuid)
        # What a newer version recorded is left to it.
        kinds = [one for one in settling.kinds(row) if one in SETTLERS] if row else []
    for kind in kinds:
        try:
            SETTLERS[kind](core, uuid)
            counts.settled += 1
        except errors.KumoError as exc:
            counts.waiting += 1
            LOG.warning("%s of volume %s is left for the next round: %s", kind, uuid, exc)
