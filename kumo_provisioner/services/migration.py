# SPDX-License-Identifier: Apache-2.0
"""Moving a leg to another node.

While a host has the volume, its agent does it: it adds a leg, lets md synchronise it and lets the
old one go. While no host has it, the nodes do: the node of the new leg copies the old one, which
is exported to it, and then the one takes the place of the other in one transaction. What is to be
done follows from the row of the task, so any process can go on with it.

A publish does not wait for a copy: the copy gives way, and is begun again by whoever wanted it.
"""

from __future__ import annotations

import contextvars
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

from oslo_log import log
from sqlalchemy import select
from sqlalchemy.orm import Session

from kumo_client import errors, naming
from kumo_client.schemas import task as wire
from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.volume import (
    REPLICA_AVAILABLE,
    REPLICA_SYNCHRONIZING,
    REPLICA_TERMINATING,
    MigrateVolume,
    ReplicaAdd,
)
from kumo_provisioner import settling
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.duties import Duty
from kumo_provisioner.services import (
    building,
    capacity,
    copying,
    legs,
    newleg,
    removals,
    replicas,
    restored,
    tasks,
    view,
    volumes,
)

LOG = log.getLogger(__name__)
PARALLEL = 8


def migrate(core: Core, tenant: str, request: MigrateVolume) -> str:
    """Begin to move a leg; gives the id of the task.

    :raises NotExistsError: there is no such volume, or no such leg.
    :raises InvalidInputError: the volume has several legs and none was named.
    :raises ConflictError: a host has the volume and it has one replica only, or several hosts do.
    :raises KumoError: see :func:`start`.
    """
    uuid = request.vol_id
    with core.db.read() as session:
        volume = volumes.find(session, tenant, uuid)
        if request.rep_id is None and len(volume.replicas) > 1:
            raise errors.InvalidInputError(
                f"volume {uuid} has {len(volume.replicas)} replicas; repId is needed"
            )
        leg = replicas.find(volume, request.rep_id or volume.replicas[0].uuid)
    return start(core, tenant, uuid, leg.uuid, request.destination_backend_id)


def start(
    core: Core, tenant: str, uuid: str, replica: str, destination: str = "", parent: str = ""
) -> str:
    """Begin to move a leg; gives the id of the task. Repeated, it is the same task.

    :param destination: the node it is to move to; empty: placement chooses.
    :param parent: the task that this one is a part of.
    :raises BusyError: something else is under way on the volume.
    :raises TooManyReplicasError: it has as many legs as it may have, or one is not in sync.
    :raises NoSpaceError: no node can take it, with the reason of each node.
    :raises BackendUnavailableError: the node of the leg cannot be read.
    """
    ask = ReplicaAdd(backend_id=destination)
    with core.locks.hold(uuid):
        task, blank = capacity.retried(
            core, lambda session: _begin(core, session, (tenant, uuid, replica), ask, parent)
        )
        return _swap_blank(core, tenant, task) if blank else task


def _begin(
    core: Core, session: Session, what: tuple[str, str, str], ask: ReplicaAdd, parent: str
) -> tuple[str, bool]:
    """Record a migration; gives its task, and whether an empty leg takes the place at once."""
    tenant, uuid, replica = what
    volume = volumes.find(session, tenant, uuid)
    leg = replicas.find(volume, replica)
    moving = _moving(session, volume)
    if moving is not None and _is_asked(moving, leg, ask, parent):
        return moving.uuid, False
    _refuse(volume, leg, moving)
    if volume.publications:
        return _ask_host(core, session, volume, leg, ask, parent), False
    if leg.freshness == models.FRESH:
        return _begin_copy(core, session, volume, leg, ask, parent), False
    task = _task(session, volume, leg, parent)
    new = _replacement(volume, leg) or replicas.begin(core, session, volume, ask, leg)
    task.new_replica_id = new.uuid
    return task.uuid, True


def _task(
    session: Session,
    volume: models.Volume,
    leg: models.Replica,
    parent: str,
    *,
    host: str = "",
    tags: dict[str, str] | None = None,
) -> models.Task:
    """The task that moves a leg: by the agent of a host, or, without one, by the provisioner."""
    return tasks.add(
        session,
        wire.REMOTE_MIGRATION if host else wire.OFFLINE_MIGRATION,
        state=wire.IDLE if host else wire.RUNNING,
        host=host,
        volume=volume,
        replica=leg.uuid,
        backend=leg.backend_id,
        parent=parent,
        tags=tags,
    )


def _moving(session: Session, volume: models.Volume) -> models.Task | None:
    query = select(models.Task).where(
        models.Task.volume_id == volume.uuid,
        models.Task.type.in_((wire.REMOTE_MIGRATION, wire.OFFLINE_MIGRATION)),
        models.Task.state.in_(tasks.OPEN),
    )
    return session.scalar(query.limit(1))


def _is_asked(task: models.Task, leg: models.Replica, ask: ReplicaAdd, parent: str) -> bool:
    """Whether an open task is what is asked for, whose first answer may have been lost."""
    to = tasks.tags(task).get("destinationBackendId", "")
    return (task.replica_id, task.parent) == (leg.uuid, parent) and ask.backend_id in ("", to)


def _refuse(volume: models.Volume, leg: models.Replica, moving: models.Task | None) -> None:
    """Refuse what is not possible whoever does it."""
    if leg.state == REPLICA_TERMINATING:
        raise errors.ConflictError(f"replica {leg.uuid} is {leg.state}", volume=volume.uuid)
    settling.refuse(volume, settling.EXTEND, settling.REVERT, settling.ADOPT, settling.RELEASE)
    if moving is not None:
        raise errors.BusyError(
            f"a replica of volume {volume.uuid} is moving already (task {moving.uuid})",
            volume=volume.uuid,
            way_out="wait for the end of that task",
        )


def _replacement(volume: models.Volume, leg: models.Replica) -> models.Replica | None:
    return next((one for one in volume.replicas if one.replaces == leg.uuid), None)


# -- by the agent of the host -------------------------------------------------------------------


def _ask_host(
    core: Core,
    session: Session,
    volume: models.Volume,
    leg: models.Replica,
    request: ReplicaAdd,
    parent: str,
) -> str:
    host = _one_host(volume)
    new = _replacement(volume, leg)
    if new is None:
        legs.check_add(volume.uuid, volume.replicas)
        newleg.where(core, session, volume, request, leg)
    elif not new.in_sync:
        raise errors.BusyError(
            f"replica {new.uuid}, which replaces {leg.uuid}, is not in sync yet",
            volume=volume.uuid,
            way_out="wait until it is",
        )
    tags = {
        "volId": volume.uuid,
        "replicaId": leg.uuid,
        "volumeAlias": volume.alias,
        "destinationBackendId": request.backend_id,
        "newReplicaId": new.uuid if new is not None else "",
    }
    task = _task(session, volume, leg, parent, host=host.uuid, tags=tags)
    if new is not None:
        # It is in sync: what remains is that the host lets go of the old one.
        task.new_replica_id, task.state = new.uuid, wire.RUNNING
        legs.check_terminate(leg, volume.replicas)
        legs.enter(leg, REPLICA_TERMINATING, now_ms())
        legs.settle(volume.replicas)
    return task.uuid


def _one_host(volume: models.Volume) -> models.Host:
    hosts = [one.host for one in volume.publications]
    names = ", ".join(sorted(host.name or host.uuid for host in hosts))
    if not volume.replicated:
        raise errors.ConflictError(
            f"volume {volume.uuid} has one replica and is attached to {names}; its data cannot be "
            "moved under a host that writes",
            volume=volume.uuid,
            way_out="detach the volume, or move it while its server is shut off",
        )
    if len(hosts) > 1:
        raise errors.BusyError(
            f"volume {volume.uuid} is attached to several hosts: {names}",
            volume=volume.uuid,
            way_out="wait until only one has it",
        )
    if view.host(hosts[0]).state != AVAILABLE:
        raise errors.ConflictError(
            f"volume {volume.uuid} is attached to {names}, and no agent of that host has been "
            "heard of lately",
            volume=volume.uuid,
            way_out="start the agent on that host, or detach the volume",
        )
    return hosts[0]


def update_task(core: Core, request: wire.TaskUpdate, tenant: str | None = None) -> None:
    """Take over what an agent tells of its task.

    :param tenant: only one of this tenant; None for any.
    :raises NotExistsError: there is no such task of that host.
    :raises ConflictError: the provisioner does this task itself.
    """
    with core.db.read() as session:
        row = session.get(models.Task, request.task_id)
        if row is None or (tenant is not None and row.tenant_id != tenant):
            raise tasks.missing(request.task_id)
    if row.type != wire.REMOTE_MIGRATION:
        # Whoever waits for the agent of a host may hold the lock of the volume.
        with core.db.write() as session:
            tasks.note(session, _locked(session, request), request)
        return
    with core.locks.hold(row.volume_id):
        with core.db.write() as session:
            row = _locked(session, request)
            begun = row.state in tasks.OPEN
            tasks.note(session, row, request)
            new = session.get(models.Replica, row.new_replica_id)
            if begun and new is not None:
                _note_progress(session, row, new)
        if begun and new is not None and row.state == wire.FAILED:
            _drop_spare(core, row)


def _locked(session: Session, request: wire.TaskUpdate) -> models.Task:
    row = session.get(models.Task, request.task_id, with_for_update=True)
    if row is None:
        raise tasks.missing(request.task_id)
    return row


def _note_progress(session: Session, row: models.Task, new: models.Replica) -> None:
    """An agent that tells of progress synchronises the new leg; old ones do not say so of it."""
    waiting = new.freshness == models.BLANK and new.state != REPLICA_TERMINATING
    if row.state == wire.RUNNING and waiting:
        legs.enter(new, REPLICA_SYNCHRONIZING, now_ms())


def _drop_spare(core: Core, row: models.Task) -> None:
    """Let go of the new leg of a migration that failed. The caller holds the lock of the volume."""
    with core.db.read() as session:
        new = session.get(models.Replica, row.new_replica_id)
        if new is None or new.freshness != models.BLANK:
            return
    try:
        replicas.terminate_held(core, row.tenant_id, row.volume_id, new.uuid)
    except (errors.ConflictError, errors.LastReplicaError) as exc:
        LOG.warning("The spare %s of a migration that failed stays for now: %s", new.uuid, exc)


def host_left(session: Session, volume: models.Volume) -> list[str]:
    """End the migrations of hosts that no longer have a volume; gives what to remove from nodes."""
    here = {one.host_id for one in volume.publications}
    query = select(models.Task).filter_by(volume_id=volume.uuid, type=wire.REMOTE_MIGRATION)
    gone: list[str] = []
    for row in session.scalars(query.where(models.Task.state.in_(tasks.OPEN))):
        if row.host_id in here:
            continue
        leg = session.get(models.Replica, row.replica_id)
        if leg is None or leg.state == REPLICA_TERMINATING:
            tasks.finish(session, row)
            continue
        tasks.fail(session, row, "Detached", f"host {row.host_id} no longer has the volume")
        new = session.get(models.Replica, row.new_replica_id)
        if new is not None and new.freshness == models.BLANK and not here:
            gone.append(replicas.gone_leg(session, new))
    return gone


# -- by the nodes -------------------------------------------------------------------------------


def _begin_copy(
    core: Core,
    session: Session,
    volume: models.Volume,
    leg: models.Replica,
    request: ReplicaAdd,
    parent: str,
) -> str:
    building.need_available(leg.backend)
    if leg.absent:
        raise errors.BackendUnavailableError(
            f"node {leg.backend.name or leg.backend_id} does not have replica {leg.uuid}",
            volume=volume.uuid,
            node=leg.backend_id,
            way_out="bring its disk back, or let another replica of the volume take its place",
        )
    unused = legs.spare(one for one in volume.replicas if one is not leg)
    if len(volume.replicas) >= legs.MAX_LEGS or unused is not None:
        legs.check_add(volume.uuid, volume.replicas)
    new = newleg.add(core, session, volume, request, leg)
    session.flush()
    tags = {
        "volId": volume.uuid,
        "replicaId": leg.uuid,
        "destinationBackendId": new.backend_id,
        "newReplicaId": new.uuid,
    }
    task = _task(session, volume, leg, parent, tags=tags)
    task.new_replica_id = new.uuid
    return task.uuid


def _swap_blank(core: Core, tenant: str, task_id: str) -> str:
    """Put an empty leg in the place of one that is no source; its host fills it.

    The caller holds the lock of the volume.
    """
    with core.db.read() as session:
        task = session.get_one(models.Task, task_id)
        new = session.get_one(models.Replica, task.new_replica_id)
    try:
        replicas.make(core, task.volume_id, new.uuid)
        replicas.terminate_held(core, tenant, task.volume_id, task.replica_id)
    except errors.KumoError as exc:
        with core.db.write() as session:
            tasks.fail(session, session.get_one(models.Task, task_id), exc.code, exc.description)
        raise
    with core.db.write() as session:
        tasks.finish(
            session,
            session.get_one(models.Task, task_id),
            "the replica had missed writes; its replacement is filled when the volume is attached",
        )
    return task_id


def extra_exports(session: Session, backend_id: str | None = None) -> dict[str, set[str]]:
    """Exports that copies between nodes need: host NQNs by replica.

    :param backend_id: only replicas of this node.
    """
    found: dict[str, set[str]] = defaultdict(set)
    query = select(models.Task).filter_by(type=wire.OFFLINE_MIGRATION, state=wire.RUNNING)
    if backend_id is not None:
        query = query.filter_by(backend_id=backend_id)
    for row in session.scalars(query):
        new = session.get(models.Replica, row.new_replica_id)
        if new is not None:
            found[row.replica_id].add(naming.node_host_nqn(new.backend_id))
    return dict(found)


def run(core: Core) -> None:
    """Go on with all copies."""
    if restored.looking_only(core):
        return
    query = select(models.Task.uuid).filter_by(type=wire.OFFLINE_MIGRATION, state=wire.RUNNING)
    with core.db.read() as session:
        found = session.scalars(query.order_by(models.Task.created)).all()
    if not found:
        return
    with ThreadPoolExecutor(PARALLEL, "migration") as pool:
        futures = [
            pool.submit(contextvars.copy_context().run, advance, core, uuid) for uuid in found
        ]
        for future in futures:
            future.result()


def advance(core: Core, task_id: str) -> None:
    """Take the next step of a copy."""
    with core.db.read() as session:
        task = session.get(models.Task, task_id)
    if task is None:
        return
    try:
        with core.locks.hold(task.volume_id, timeout=0):
            _advance(core, task_id)
    except errors.BusyError as exc:
        LOG.info("Task %s waits: %s", task_id, exc)


def _advance(core: Core, task_id: str) -> None:
    with core.db.read() as session:
        task = session.get_one(models.Task, task_id)
        if task.state != wire.RUNNING:
            return
        ends = copying.ends(session, task)
        if isinstance(ends, str):
            broken = ends
        elif ends.new.freshness != models.BLANK or ends.old.freshness != models.FRESH:
            broken = "the states of the replicas have changed"
        else:
            broken = copying.hopeless(ends)
    if broken or isinstance(ends, str):
        abandon(core, task_id, "NotAvailable", broken)
        return
    step = copying.look(core, ends)
    if step.error is not None and not step.error.transient:
        abandon(core, task_id, step.error.code, step.error.description)
    elif step.done:
        _commit(core, task_id, ends)
    elif step.error is not None:
        LOG.warning("Task %s waits: %s", task_id, step.error)
    else:
        with core.db.write() as session:
            row = session.get_one(models.Task, task_id)
            row.progress, row.updated = step.progress, now_ms()


def _commit(core: Core, task_id: str, ends: copying.Ends) -> None:
    """Put the copy in the place of its source."""
    with core.db.write() as session:
        task = session.get_one(models.Task, task_id)
        volume = session.get_one(models.Volume, task.volume_id)
        old = session.get_one(models.Replica, task.replica_id)
        new = session.get_one(models.Replica, task.new_replica_id)
        new.freshness, new.events, new.position = old.freshness, old.events, old.position
        new.replaces = ""
        legs.enter(new, REPLICA_AVAILABLE, now_ms())
        replicas.tell(
            session,
            new,
            "replica.added",
            f"replica {new.uuid} of volume {volume.uuid} has taken the place of {old.uuid}",
        )
        gone = [replicas.gone_leg(session, old)]
        tasks.finish(session, task)
    copying.clean(core, ends, exported=False)
    removals.carry_out(core, gone)


def abandon(core: Core, task_id: str, status: str, reason: str) -> None:
    """End a copy without a result. The caller holds the lock of the volume."""
    with core.db.write() as session:
        task = session.get_one(models.Task, task_id)
        ends = copying.ends(session, task)
        new = session.get(models.Replica, task.new_replica_id)
        tasks.fail(session, task, status, reason)
        gone = [replicas.gone_leg(session, new)] if new is not None else []
    if not isinstance(ends, str):
        copying.clean(core, ends, exported=True)
    removals.carry_out(core, gone)


def copies(session: Session, uuid: str) -> list[str]:
    """The tasks that copy a replica of a volume now."""
    query = select(models.Task.uuid).filter_by(
        volume_id=uuid, type=wire.OFFLINE_MIGRATION, state=wire.RUNNING
    )
    return list(session.scalars(query))


def give_way(core: Core, uuid: str, why: str) -> None:
    """End the copies of a volume, because something more urgent needs it.

    The caller holds the lock of the volume.
    """
    with core.db.read() as session:
        found = copies(session, uuid)
    for task_id in found:
        abandon(core, task_id, "Busy", f"the copy gave way: {why}")


# -- hosts that say nothing ---------------------------------------------------------------------


def give_up(core: Core) -> None:
    """End the tasks of hosts whose agents have not told of them for long."""
    limit = now_ms() - int(core.conf.tasks.host_timeout * 1000)
    query = select(models.Task.uuid, models.Task.volume_id).where(
        models.Task.host_id != "",
        models.Task.state.in_(tasks.OPEN),
        models.Task.updated < limit,
    )
    with core.db.read() as session:
        found = session.execute(query).all()
    for task_id, volume_id in found:
        try:
            with core.locks.hold(volume_id or task_id, timeout=0):
                _give_up(core, task_id, limit)
        except errors.BusyError as exc:
            LOG.info("Task %s is looked at later: %s", task_id, exc)


def _give_up(core: Core, task_id: str, limit: int) -> None:
    with core.db.write() as session:
        row = session.get(models.Task, task_id)
        if row is None or row.state not in tasks.OPEN or row.updated >= limit:
            return
        tasks.fail(
            session, row, "HostSilent", f"the agent of host {row.host_id} has not told of it"
        )
    if row.type == wire.REMOTE_MIGRATION and row.new_replica_id:
        _drop_spare(core, row)


DUTIES = (
    Duty("migrations", run, lambda core: float(core.conf.tasks.poll_interval)),
    Duty("silent-hosts", give_up, lambda _core: 30.0),
)
