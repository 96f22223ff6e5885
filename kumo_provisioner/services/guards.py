# SPDX-License-Identifier: Apache-2.0
"""What must not happen to a volume while something else depends on it."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.schemas import task as wire
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Outcome

TOLD = 4
_MIGRATIONS = (wire.OFFLINE_MIGRATION, wire.REMOTE_MIGRATION)


def unpublished(row: models.Volume) -> None:
    """:raises InUseError: hosts have the volume."""
    hosts = sorted(one.host_id for one in row.publications)
    if hosts:
        raise errors.InUseError(
            f"volume {row.uuid} is published to {', '.join(hosts[:TOLD])}",
            volume=row.uuid,
            way_out="unpublish it first",
        )


def no_snapshots(session: Session, row: models.Volume) -> None:
    """:raises InUseError: the volume has snapshots."""
    query = select(models.Snapshot.uuid).filter_by(volume_id=row.uuid)
    snapshots = session.scalars(query.limit(TOLD)).all()
    if snapshots:
        raise errors.InUseError(
            f"volume {row.uuid} has snapshots: {', '.join(snapshots)}",
            volume=row.uuid,
            way_out="delete its snapshots first",
        )


def no_migration(session: Session, row: models.Volume) -> None:
    """:raises BusyError: a replica of the volume is being moved."""
    query = select(models.Task.uuid).where(
        models.Task.volume_id == row.uuid,
        models.Task.type.in_(_MIGRATIONS),
        models.Task.state.in_((wire.IDLE, wire.RUNNING)),
    )
    task = session.scalar(query.limit(1))
    if task is not None:
        raise errors.BusyError(
            f"a replica of volume {row.uuid} is being migrated by task {task}",
            volume=row.uuid,
            way_out="repeat the call when the task has ended",
        )


def may_still_succeed(outcome: Outcome[object]) -> bool:
    """Whether a failed call is worth repeating.

    In use is a replica whose export was left behind; a reconcile takes it away.
    """
    if outcome.error is None:
        return False
    leftover = isinstance(outcome.error, errors.InUseError)
    return outcome.unknown or outcome.error.transient or leftover
