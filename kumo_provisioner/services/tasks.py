# SPDX-License-Identifier: Apache-2.0
"""Tasks: long work of a host's agent or of the provisioner itself.

The agent of a host looks for its tasks every second and tells how they go. What the provisioner
does itself goes on from the row, whichever process began it. A task that has ended stays as it
ended.
"""

from __future__ import annotations

import uuid as uuidlib
from collections.abc import Mapping

from oslo_log import log
from sqlalchemy import delete as sql_delete
from sqlalchemy import select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.schemas import task as wire
from kumo_client.schemas.common import SUCCESS
from kumo_client.schemas.event import INFO, WARN
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.duties import Duty
from kumo_provisioner.services import events, view, volumes

LOG = log.getLogger(__name__)
OPEN = (wire.IDLE, wire.RUNNING)
DAY_MS = 86_400_000
AT_ONCE = 500


def add(
    session: Session,
    kind: str,
    *,
    tags: Mapping[str, str] | None = None,
    state: str = wire.IDLE,
    host: str = "",
    volume: models.Volume | None = None,
    replica: str = "",
    backend: str = "",
    parent: str = "",
) -> models.Task:
    """Record a task in the transaction of the caller.

    :param host: whose agent is to do it; empty: the provisioner does it.
    """
    row = models.Task(
        uuid=str(uuidlib.uuid4()),
        type=kind,
        state=state,
        host_id=host,
        tenant_id=volume.tenant_id if volume is not None else "0",
        volume_id=volume.uuid if volume is not None else "",
        replica_id=replica,
        new_replica_id="",
        backend_id=backend,
        parent=parent,
        progress=0.0,
        task_status="",
        status_description="",
        configuration=[{"name": name, "value": value} for name, value in (tags or {}).items()],
        created=now_ms(),
        updated=now_ms(),
    )
    session.add(row)
    session.flush()
    _tell(session, row, "task.created", f"task {row.uuid} ({kind}) was made")
    return row


def finish(session: Session, row: models.Task, description: str = "") -> None:
    """Record that a task is done."""
    row.progress = 100.0
    _end(session, row, wire.FINISHED, SUCCESS, description)


def fail(session: Session, row: models.Task, status: str, reason: str) -> None:
    """Record that a task has failed, and why."""
    _end(session, row, wire.FAILED, status, reason)


def _end(session: Session, row: models.Task, state: str, status: str, description: str) -> None:
    row.state, row.task_status = state, status[:64]
    row.status_description, row.updated = events.plain(description), now_ms()
    good = state == wire.FINISHED
    message = f"task {row.uuid} ({row.type}) {'is finished' if good else 'failed'}"
    _tell(
        session,
        row,
        "task.finished" if good else "task.failed",
        f"{message}: {description}" if description else message,
        level=INFO if good else WARN,
    )


def _tell(
    session: Session, row: models.Task, what: str, message: str, *, level: str = INFO
) -> None:
    events.record(
        session,
        what,
        message,
        level=level,
        tenant=row.tenant_id,
        volume=row.volume_id,
        replica=row.replica_id,
        backend=row.backend_id,
        host=row.host_id,
        task=row.uuid,
        task_type=row.type,
    )


def tags(row: models.Task) -> dict[str, str]:
    """The configuration of a task by name."""
    return {tag["name"]: tag["value"] for tag in row.configuration}


def set_tags(row: models.Task, **values: str) -> None:
    """Change some entries of the configuration of a task."""
    merged = tags(row) | values
    row.configuration = [{"name": name, "value": value} for name, value in merged.items()]


def shown(row: models.Task) -> wire.Task:
    """A task on the wire."""
    return wire.Task(
        task_id=row.uuid,
        host_id=row.host_id,
        type=row.type,
        state=row.state,
        progress=row.progress,
        task_status=row.task_status,
        status_description=row.status_description,
        task_configuration=[wire.Tag.model_validate(tag) for tag in row.configuration],
        volume_id=row.volume_id,
        backend_id=row.backend_id,
        parent=row.parent,
        created=row.created,
        updated=row.updated,
    )


def missing(text: str) -> errors.NotExistsError:
    return errors.NotExistsError(f"there is no task {text}")


def list_all(
    core: Core, tenant: str | None, *, task_id: str | None = None, host_id: str | None = None
) -> list[wire.Task]:
    """All tasks, one as a list of length 1, or those of a host; oldest first.

    :param tenant: only those of this tenant; None for all.
    :raises NotExistsError: when there is no task of that id.
    """
    query = select(models.Task).order_by(models.Task.created, models.Task.uuid)
    if tenant is not None:
        query = query.filter_by(tenant_id=tenant)
    if task_id:
        query = query.filter_by(uuid=view.normal_uuid(task_id) or "")
    if host_id:
        query = query.filter_by(host_id=host_id.strip())
    with core.db.read() as session:
        found = [shown(row) for row in session.scalars(query)]
    if task_id and not found:
        raise missing(task_id)
    return found


def delete(core: Core, task_id: str, host_id: str | None = None, tenant: str | None = None) -> None:
    """Forget a task that has ended, or that its host has not begun.

    :param tenant: only one of this tenant; None for any.
    :raises NotExistsError: when there is no such task of that host.
    :raises InUseError: while it is worked on.
    """
    with core.db.write() as session:
        row = session.get(models.Task, view.normal_uuid(task_id) or "")
        mine = row is not None and (tenant is None or row.tenant_id == tenant)
        if row is None or not mine or (host_id and row.host_id != host_id.strip()):
            raise missing(task_id)
        if row.state == wire.RUNNING or (row.state == wire.IDLE and not row.host_id):
            raise errors.InUseError(
                f"task {row.uuid} ({row.type}) is {row.state}",
                way_out="wait for its end; a drain is ended with 'kumo backend drain --stop'"
                if row.type == wire.DRAIN
                else "wait for its end",
            )
        session.delete(row)


# -- for the agents of hosts --------------------------------------------------------------------


def ask_host(core: Core, tenant: str, kind: str, request: wire.ConnectRequest) -> str:
    """Ask the agent of a host to connect or disconnect a volume; gives the id of the task.

    Asked again before the agent has begun, it is the same task.

    :raises NotExistsError: when there is no such volume or host.
    """
    with core.locks.hold(request.vol_id), core.db.write() as session:
        volume = volumes.find(session, tenant, request.vol_id)
        if session.get(models.Host, request.host_id) is None:
            raise errors.NotExistsError(
                f"there is no host {request.host_id}", way_out="probe the host first"
            )
        query = select(models.Task).filter_by(
            type=kind, host_id=request.host_id, volume_id=volume.uuid
        )
        row = session.scalar(query.where(models.Task.state.in_(OPEN)).limit(1))
        if row is None:
            tagged = {"volId": volume.uuid, "volumeAlias": volume.alias}
            row = add(session, kind, host=request.host_id, volume=volume, tags=tagged)
        return row.uuid


def note(session: Session, row: models.Task, request: wire.TaskUpdate) -> None:
    """Take over what an agent tells of its task.

    :raises NotExistsError: the task is that of another host.
    :raises ConflictError: the provisioner does this task itself.
    """
    if not row.host_id:
        raise errors.ConflictError(f"task {row.uuid} ({row.type}) is not done by a host")
    if request.host_id and request.host_id != row.host_id:
        raise missing(row.uuid)
    if row.state not in OPEN:
        return
    row.updated = now_ms()
    if request.progress is not None:
        row.progress = request.progress
    if request.task_configuration is not None:
        told = {tag.name: tag.value for tag in request.task_configuration}
        set_tags(row, **(told | _ours(row)))
    if request.task_status is not None:
        row.task_status = request.task_status[:64]
    if request.status_description is not None:
        row.status_description = events.plain(request.status_description)
    if request.state == wire.RUNNING:
        row.state = wire.RUNNING
    elif request.state == wire.FINISHED:
        # Only the agent can say how it went; no word of success is no success.
        row.progress = 100.0
        _end(session, row, wire.FINISHED, row.task_status, row.status_description)
    elif request.state == wire.FAILED:
        fail(session, row, row.task_status or "Failed", row.status_description)


# What a task is about stays as it was given: existing agents fill in a wrong replica.
_FIXED = (
    "volId",
    "replicaId",
    "volumeAlias",
    "destinationBackendId",
    "newReplicaId",
    "snapshotId",
    "holdSeconds",
    "legs",
)


def _ours(row: models.Task) -> dict[str, str]:
    return {name: value for name, value in tags(row).items() if name in _FIXED}


# -- in the background --------------------------------------------------------------------------


def forget(core: Core) -> int:
    """Delete tasks that ended long ago; gives how many."""
    limit = now_ms() - core.conf.tasks.memory_days * DAY_MS
    query = select(models.Task.uuid).where(
        models.Task.state.not_in(OPEN), models.Task.updated < limit
    )
    with core.db.write() as session:
        old = session.scalars(query.limit(AT_ONCE)).all()
        session.execute(sql_delete(models.Task).where(models.Task.uuid.in_(old)))
    return len(old)


DUTIES = (Duty("forget-tasks", forget, lambda _core: 600.0),)
