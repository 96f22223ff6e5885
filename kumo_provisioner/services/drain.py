# SPDX-License-Identifier: Apache-2.0
"""Emptying a node: every replica on it moves away, some at a time.

A drain is a task with a migration for each replica as its parts. What cannot move is named in its
description and tried again from time to time: an attached volume with one replica moves when it is
detached. When no replica is left, parts of snapshots go of which another node has a part that is
as good; the others hold the drain up until their snapshots are deleted.
"""

from __future__ import annotations

import json

from oslo_log import log
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.schemas import task as wire
from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.event import WARN
from kumo_client.schemas.volume import REPLICA_TERMINATING
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.duties import Duty
from kumo_provisioner.services import backends, events, migration, removals, restored, tasks

LOG = log.getLogger(__name__)
# Replicas looked at in one round, and reasons that are kept.
TRIES = 50
TOLD = 20
DONE, AFTER, STUCK = "done", "after", "stuck"


def start(core: Core, backend_id: str) -> str:
    """Begin to empty a node; gives the id of the task. Repeated, it is the same task.

    :raises NotExistsError: there is no such backend.
    """
    _need(core, backend_id)
    with core.locks.hold(f"drain:{backend_id}"), core.db.write() as session:
        row = session.get_one(models.Backend, backend_id)
        known = _task(session, backend_id)
        if known is not None:
            return known.uuid
        row.mode = models.DRAINING
        task = tasks.add(
            session,
            wire.DRAIN,
            state=wire.RUNNING,
            backend=backend_id,
            tags={"backendId": backend_id, DONE: "0"},
        )
        events.record(
            session,
            "backend.draining",
            f"backend {row.name or backend_id} is being emptied",
            backend=backend_id,
            task=task.uuid,
        )
        return task.uuid


def stop(core: Core, backend_id: str) -> None:
    """End a drain, or the state after it; what has moved stays where it is.

    Migrations that are under way go on.

    :raises NotExistsError: there is no such backend.
    :raises ConflictError: it is not being drained.
    """
    _need(core, backend_id)
    with core.locks.hold(f"drain:{backend_id}"), core.db.write() as session:
        row = session.get_one(models.Backend, backend_id)
        task = _task(session, backend_id)
        if row.mode != models.DRAINING and task is None:
            raise errors.ConflictError(f"backend {backend_id} is not being drained")
        if row.mode == models.DRAINING:
            row.mode = ""
        if task is not None:
            tasks.fail(session, task, "Stopped", "an operator stopped it")
        events.record(
            session,
            "backend.available",
            f"backend {row.name or backend_id} is no longer being emptied",
            backend=backend_id,
        )


def _need(core: Core, backend_id: str) -> None:
    with core.db.read() as session:
        if session.get(models.Backend, backend_id) is None:
            raise backends.missing(backend_id)


def _task(session: Session, backend_id: str) -> models.Task | None:
    query = select(models.Task).filter_by(type=wire.DRAIN, backend_id=backend_id)
    return session.scalar(query.where(models.Task.state.in_(tasks.OPEN)).limit(1))


def run(core: Core) -> None:
    """Take every drain a step further."""
    if restored.looking_only(core):
        return
    query = select(models.Task.uuid).filter_by(type=wire.DRAIN, state=wire.RUNNING)
    with core.db.read() as session:
        found = session.execute(query.add_columns(models.Task.backend_id)).all()
    for task_id, backend_id in found:
        try:
            with core.locks.hold(f"drain:{backend_id}", timeout=0):
                _step(core, task_id, backend_id)
        except errors.BusyError as exc:
            LOG.info("Drain %s is looked at later: %s", task_id, exc)


def _step(core: Core, task_id: str, backend_id: str) -> None:
    with core.db.read() as session:
        task = session.get_one(models.Task, task_id)
        if task.state != wire.RUNNING:
            return
        moving = _moving(session, backend_id)
        room = core.conf.tasks.drain_parallel - len(moving)
        tags = tasks.tags(task)
        candidates = _next(session, backend_id, tags.get(AFTER, "")) if room > 0 else []
        stuck = json.loads(tags.get(STUCK, "{}"))
    tried = ""
    for replica, volume, tenant in candidates:
        if room <= 0:
            break
        tried = replica
        if replica in moving:
            continue
        reason = _try(core, task_id, replica, volume, tenant)
        if reason:
            stuck[replica] = reason
        else:
            room -= 1
            stuck.pop(replica, None)
    if tried and tried == candidates[-1][0]:
        tried = ""
    _note(core, task_id, backend_id, tried, stuck)


def _moving(session: Session, backend_id: str) -> set[str]:
    query = select(models.Task.replica_id).where(
        models.Task.backend_id == backend_id,
        models.Task.type.in_((wire.REMOTE_MIGRATION, wire.OFFLINE_MIGRATION)),
        models.Task.state.in_(tasks.OPEN),
    )
    return set(session.scalars(query))


def _next(session: Session, backend_id: str, after: str) -> list[tuple[str, str, str]]:
    """The next replicas to try, from the beginning again after the last one."""
    query = (
        select(models.Replica.uuid, models.Replica.volume_id, models.Volume.tenant_id)
        .join(models.Volume)
        .where(
            models.Replica.backend_id == backend_id,
            models.Replica.uuid > after,
            models.Replica.state != REPLICA_TERMINATING,
            models.Volume.status == models.AVAILABLE,
        )
        .order_by(models.Replica.uuid)
        .limit(TRIES)
    )
    return [(uuid, volume, tenant) for uuid, volume, tenant in session.execute(query)]


def _try(core: Core, task_id: str, replica: str, volume: str, tenant: str) -> str:
    """Begin to move a replica; gives why that is not possible now, or the empty text."""
    try:
        migration.start(core, tenant, volume, replica, parent=task_id)
    except errors.KumoError as exc:
        LOG.info("Replica %s cannot leave now: %s", replica, exc)
        return exc.description
    return ""


def _count(session: Session, column: ColumnElement[bool], table: type[models.Base]) -> int:
    return session.scalar(select(func.count()).select_from(table).where(column)) or 0


def _note(core: Core, task_id: str, backend_id: str, after: str, stuck: dict[str, str]) -> None:
    """Write down how far a drain is, and end it when the node is empty."""
    with core.db.read() as session:
        left = _count(session, models.Replica.backend_id == backend_id, models.Replica)
        on_node = models.Replica.backend_id == backend_id
        known = models.Replica.uuid.in_(list(stuck))
        still = set(session.scalars(select(models.Replica.uuid).where(on_node, known)))
        node = session.get_one(models.Backend, backend_id)
        waiting = (models.Removal.backend_id == backend_id) & models.Removal.done.is_(None)
        pending = _count(session, waiting, models.Removal) if node.state == AVAILABLE else 0
    held = _drop_parts(core, backend_id) if left == 0 else []
    if pending:
        core.wake.set()
        held.append(f"{pending} objects are being removed from the node")
    with core.db.write() as session:
        task = session.get_one(models.Task, task_id)
        query = select(func.count()).select_from(models.Task)
        ended = query.filter_by(parent=task_id, state=wire.FINISHED)
        done = session.scalar(ended) or 0
        stuck = {key: stuck[key] for key in sorted(stuck) if key in still}
        kept = dict(list(stuck.items())[:TOLD])
        tasks.set_tags(task, **{DONE: str(done), AFTER: after, STUCK: json.dumps(kept)})
        task.progress = 100.0 * done / (done + left) if done + left else 100.0
        told = [f"replica {key}: {why}" for key, why in kept.items()] + held[:TOLD]
        told += [f"and {len(stuck) - TOLD} more"] if len(stuck) > TOLD else []
        told += [f"{len(held) - TOLD} more snapshots"] if len(held) > TOLD else []
        task.status_description = events.plain("; ".join(told))
        task.updated = now_ms()
        if left == 0 and not held:
            tasks.finish(session, task, "the node is empty")
            row = session.get_one(models.Backend, backend_id)
            events.record(
                session,
                "backend.drained",
                f"backend {row.name or backend_id} is empty",
                backend=backend_id,
                task=task_id,
            )


def _drop_parts(core: Core, backend_id: str) -> list[str]:
    """Let go of parts of snapshots that are not needed; gives what holds the drain up."""
    held: list[str] = []
    query = select(models.SnapshotPart.uuid, models.SnapshotPart.snapshot_id)
    query = query.filter_by(backend_id=backend_id).limit(TRIES)
    with core.db.read() as session:
        parts = session.execute(query).all()
    for part_id, snapshot_id in parts:
        try:
            with core.locks.hold(snapshot_id, timeout=0):
                why = _drop_part(core, part_id)
        except errors.BusyError as exc:
            why = exc.description
        if why:
            held.append(why)
    return held


def _drop_part(core: Core, part_id: str) -> str:
    with core.db.write() as session:
        part = session.get(models.SnapshotPart, part_id)
        if part is None:
            return ""
        snapshot = part.snapshot
        others = [
            one for one in snapshot.parts if one is not part and one.backend.mode != models.DRAINING
        ]
        source = not snapshot.coherent and part.replica_id == snapshot.source_replica
        if snapshot.status != models.AVAILABLE or source or not others:
            return (
                f"snapshot {snapshot.uuid} ({snapshot.alias}) of volume {snapshot.volume_id} has "
                "its only good part on this node; delete it, or copy it into a volume first"
            )
        events.record(
            session,
            "snapshot.part",
            f"the part of snapshot {snapshot.uuid} on {part.backend.name} is given up",
            level=WARN,
            tenant=snapshot.tenant_id,
            volume=snapshot.volume_id,
            backend=part.backend_id,
        )
        gone = [removals.retire_part(session, part)]
    removals.carry_out(core, gone)
    return ""


DUTIES = (Duty("drains", run, lambda core: float(core.conf.tasks.poll_interval)),)
