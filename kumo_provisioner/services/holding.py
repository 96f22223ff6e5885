# SPDX-License-Identifier: Apache-2.0
"""Writes held by the agent of a host, so that the legs of an array are alike for a moment.

The provisioner makes a task ``HoldWrites`` for the host that has the volume. The agent holds the
writes and reports ``RUNNING``; the parts of the snapshot are taken; the task's ``taskStatus``
becomes ``Taken``; the agent lets go and reports ``FINISHED`` with ``Success`` only when its hold
had not ended before it saw that. Nothing else makes a snapshot coherent. The agent never holds
for longer than ``holdSeconds``, whatever becomes of the provisioner; the guide for authors of
agents has the whole protocol.
"""

from __future__ import annotations

import time
import uuid as uuidlib
from collections.abc import Callable, Collection

from oslo_log import log
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from kumo_client.schemas import task as wire
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.duties import Duty
from kumo_provisioner.services import events

LOG = log.getLogger(__name__)

TAKEN = "Taken"
SUCCESS = "Success"
GIVEN_UP = "GivenUp"
UNENDED = (wire.IDLE, wire.RUNNING)
POLL_SECONDS = 0.05
# What is unended for so long after its hold has nobody waiting for it.
ABANDONED_MS = 60_000


def ask(
    core: Core,
    session: Session,
    volume: models.Volume,
    host: models.Host,
    snapshot_id: str,
    legs: Collection[models.Replica],
) -> str:
    """Write the task down; gives its uuid."""
    tags = {
        "volId": volume.uuid,
        "snapshotId": snapshot_id,
        "holdSeconds": f"{core.conf.snapshots.hold_seconds:g}",
        "legs": ",".join(leg.uuid for leg in legs),
    }
    now = now_ms()
    row = models.Task(
        uuid=str(uuidlib.uuid4()),
        type=wire.HOLD_WRITES,
        state=wire.IDLE,
        host_id=host.uuid,
        tenant_id=volume.tenant_id,
        volume_id=volume.uuid,
        configuration=[{"name": key, "value": value} for key, value in tags.items()],
        created=now,
        updated=now,
    )
    session.add(row)
    events.record(
        session,
        "task.created",
        f"host {host.uuid} is asked to hold the writes to volume {volume.uuid}",
        tenant=volume.tenant_id,
        volume=volume.uuid,
        host=host.uuid,
        task=row.uuid,
        taskType=row.type,
    )
    return row.uuid


def wait_held(core: Core, task: str) -> bool:
    """Wait until the agent holds the writes; False when it does not, in time."""
    state, _ = _wait(core, task, core.conf.snapshots.hold_wait, lambda state: state != wire.IDLE)
    return state == wire.RUNNING


def confirm(core: Core, task: str) -> bool:
    """Tell the agent that all parts are taken; whether its hold lasted until then."""
    if not _set(core, task, (wire.RUNNING,), task_status=TAKEN):
        return False
    state, status = _wait(
        core, task, core.conf.snapshots.hold_wait, lambda state: state not in UNENDED
    )
    return state == wire.FINISHED and status == SUCCESS


def end(core: Core, task: str, why: str) -> None:
    """Give a hold up; the agent that sees it lets go at once. An ended task stays as it is."""
    ended = _set(
        core,
        task,
        UNENDED,
        state=wire.FAILED,
        task_status=GIVEN_UP,
        status_description=why,
    )
    if ended:
        LOG.warning("Hold of writes %s is given up: %s", task, why)


def _wait(core: Core, task: str, seconds: float, enough: Callable[[str], bool]) -> tuple[str, str]:
    """State and status of a task, at the latest after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        with core.db.read() as session:
            query = select(models.Task.state, models.Task.task_status).filter_by(uuid=task)
            found = session.execute(query).one_or_none()
        # Somebody may have deleted it.
        state, status = (found[0], found[1]) if found is not None else (wire.FAILED, "")
        if enough(state) or time.monotonic() >= deadline:
            return state, status
        time.sleep(POLL_SECONDS)


def _set(core: Core, task: str, states: Collection[str], **values: str) -> bool:
    """Change a task that is in one of these states; False when it is in another."""

    def change(session: Session) -> bool:
        query = update(models.Task).where(models.Task.uuid == task, models.Task.state.in_(states))
        outcome = session.execute(query.values(updated=now_ms(), **values))
        return bool(getattr(outcome, "rowcount", 0))

    return core.db.run(change)


def end_abandoned(core: Core) -> None:
    """End holds whose provisioner died, so that no agent holds writes for nothing."""
    oldest = now_ms() - ABANDONED_MS - int(core.conf.snapshots.hold_seconds * 1000)
    with core.db.read() as session:
        query = select(models.Task.uuid).where(
            models.Task.type == wire.HOLD_WRITES,
            models.Task.state.in_(UNENDED),
            models.Task.created < oldest,
        )
        tasks = session.scalars(query).all()
    for task in tasks:
        end(core, task, "nobody waits for it any more")


DUTIES = (Duty("holds", end_abandoned, lambda core: core.conf.reconcile.interval),)
