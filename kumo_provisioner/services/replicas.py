# SPDX-License-Identifier: Apache-2.0
"""The life of replicas: added, reported, terminated, gone.

What may be done is decided by :mod:`kumo_provisioner.services.legs`. A host that has the volume
takes a Terminating leg out of its array and confirms; while no host has it, the provisioner does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from oslo_log import log
from sqlalchemy import select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.schemas import host as host_wire
from kumo_client.schemas import volume as wire
from kumo_client.schemas.event import INFO, WARN
from kumo_client.schemas.task import REMOTE_MIGRATION
from kumo_client.schemas.volume import (
    REPLICA_AVAILABLE,
    REPLICA_MISSING,
    REPLICA_SYNCHRONIZING,
    REPLICA_TERMINATING,
    REPLICA_UNKNOWN,
)
from kumo_provisioner import settling
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address
from kumo_provisioner.services import (
    arrays,
    building,
    capacity,
    events,
    hosts,
    legs,
    network,
    newleg,
    removals,
    restored,
    tasks,
    view,
    volumes,
)

LOG = log.getLogger(__name__)


def find(volume: models.Volume, text: str) -> models.Replica:
    """A leg of a volume.

    :raises NotExistsError: when the volume has no such leg (any more).
    """
    uuid = view.normal_uuid(text)
    for leg in volume.replicas:
        if leg.uuid == uuid:
            return leg
    raise errors.NotExistsError(f"volume {volume.uuid} has no replica {text}", volume=volume.uuid)


def lock_of(text: str) -> str:
    """The name of the lock of a volume.

    :raises NotExistsError: when the text is no uuid.
    """
    uuid = view.normal_uuid(text)
    if uuid is None:
        raise volumes.missing(text)
    return uuid


def published(volume: models.Volume) -> list[models.Publication]:
    """Publications of hosts that may have the array."""
    return [one for one in volume.publications if one.status == models.PUBLISHED]


def tell(
    session: Session, leg: models.Replica, what: str, message: str, *, level: str = INFO
) -> None:
    """Write down an event of a leg."""
    events.record(
        session,
        what,
        message,
        level=level,
        tenant=leg.volume.tenant_id,
        volume=leg.volume_id,
        replica=leg.uuid,
        backend=leg.backend_id,
        state=leg.state,
        freshness=leg.freshness,
    )


# -- add ----------------------------------------------------------------------------------------


def add(core: Core, tenant: str, text: str, request: wire.ReplicaAdd) -> str:
    """Give a volume one more leg, which its host is to synchronise; gives its uuid.

    :raises NotExistsError: there is no such volume.
    :raises ConflictError: it has one replica only, and so no array; or the legs that are missing
        are on nodes in maintenance.
    :raises TooManyReplicasError: there are four, or one is not in sync yet.
    :raises StaleError: no leg is in sync.
    :raises NoSpaceError: no node can take it, with the reason of each node.
    :raises BackendUnavailableError: the node could not be asked, and nothing is left of it; or so
        many nodes are away that it is the network.
    """
    uuid = lock_of(text)
    with core.locks.hold(uuid):
        with core.db.read() as session:
            _refuse_replacing(session, volumes.find(session, tenant, uuid), request)
        _drop_dead_spare(core, tenant, uuid)
        leg = capacity.retried(
            core,
            lambda session: begin(core, session, volumes.find(session, tenant, uuid), request),
        )
        make(core, uuid, leg.uuid)
    return leg.uuid


def _refuse_replacing(session: Session, volume: models.Volume, request: wire.ReplicaAdd) -> None:
    """Replace nothing because of the network, or of a node that is expected to be away.

    Whoever names the node for the new leg has decided for himself.
    """
    lost = [leg for leg in volume.replicas if leg.state == REPLICA_MISSING]
    if not lost or request.backend_id or migration_task(session, volume.uuid) is not None:
        return
    if network.suspected(session):
        raise errors.BackendUnavailableError(
            f"a third of the storage nodes or more are away, so it is the network; nothing is "
            f"replaced in volume {volume.uuid}",
            volume=volume.uuid,
            node=lost[0].backend_id,
            way_out="bring the network back, or name the node for the new replica",
        )
    if all(leg.backend.mode == models.MAINTENANCE for leg in lost):
        raise errors.ConflictError(
            f"the missing replicas of volume {volume.uuid} are on nodes in maintenance, which are "
            f"expected back",
            volume=volume.uuid,
            node=lost[0].backend_id,
            way_out="end the maintenance, or name the node for the new replica",
        )


def begin(
    core: Core,
    session: Session,
    volume: models.Volume,
    request: wire.ReplicaAdd,
    old: models.Replica | None = None,
) -> models.Replica:
    """Record one more leg; :func:`finish` makes it when this process cannot.

    :param old: the leg that it replaces, when that is known already.
    """
    if not volume.replicated:
        raise errors.ConflictError(
            f"volume {volume.uuid} was made with one replica; it has no array that could take "
            f"another one",
            volume=volume.uuid,
            way_out="make a replicated volume and copy the data, or migrate the volume",
        )
    settling.refuse(volume, settling.REVERT)
    legs.check_add(volume.uuid, volume.replicas, old)
    task = migration_task(session, volume.uuid)
    old = old or _replaced(volume, task)
    if task is not None and not request.backend_id:
        wanted = tasks.tags(task).get("destinationBackendId", "")
        request = request.model_copy(update={"backend_id": wanted})
    leg = newleg.add(core, session, volume, request, old)
    settling.add(volume, settling.REPLICAS)
    if task is not None:
        task.new_replica_id = leg.uuid
        tasks.set_tags(task, newReplicaId=leg.uuid)
    session.flush()
    tell(session, leg, "replica.added", f"replica {leg.uuid} is added to volume {volume.uuid}")
    return leg


def migration_task(session: Session, volume_id: str) -> models.Task | None:
    """The migration that the host of a volume is to carry out."""
    query = select(models.Task).where(
        models.Task.volume_id == volume_id,
        models.Task.type == REMOTE_MIGRATION,
        models.Task.state.in_(tasks.OPEN),
    )
    return session.scalar(query.limit(1))


def _replaced(volume: models.Volume, task: models.Task | None) -> models.Replica | None:
    """The leg that goes when the new one is in sync: that of the migration, or the one that has
    been missing for longest."""
    wanted = task.replica_id if task is not None else ""
    for leg in volume.replicas:
        if leg.uuid == wanted:
            return leg
    lost = [leg for leg in volume.replicas if leg.state == REPLICA_MISSING]
    return min(lost, key=lambda leg: leg.state_since, default=None)


def _drop_dead_spare(core: Core, tenant: str, uuid: str) -> None:
    """Let go of a new leg that its host could not connect.

    Existing agents know no way to give it up, and while it is there no other is added.
    """
    with core.db.read() as session:
        volume = volumes.find(session, tenant, uuid)
        spare = legs.spare(volume.replicas)
        dead = (
            spare is not None
            and spare.freshness == models.BLANK
            and spare.state == REPLICA_MISSING
            and legs.terminating(volume.replicas) is None
        )
    if spare is None or not dead:
        return
    terminate_held(core, tenant, uuid, spare.uuid)
    with core.db.read() as session:
        gone = session.get(models.Replica, spare.uuid) is None
    if not gone:
        raise errors.TooManyReplicasError(
            f"replica {spare.uuid} of volume {uuid} could not be used and is "
            f"{REPLICA_TERMINATING} now",
            volume=uuid,
            way_out="take it out of the array, confirm, and repeat the call",
        )


def make(core: Core, volume_id: str, uuid: str) -> None:
    """Make a recorded leg on its node, or take it back. The caller holds the lock of the volume.

    :raises KumoError: it could not be made.
    """
    with core.db.read() as session:
        leg = session.get_one(models.Replica, uuid)
        call = newleg.put_call(leg)
    building.build(
        core,
        {uuid: call},
        commit=lambda: _settled(core, volume_id),
        retire=_retire(volume_id, uuid),
        name=f"replica {uuid} of volume {volume_id}",
    )


def _settled(core: Core, volume_id: str) -> None:
    with core.db.write() as session:
        settling.drop(session.get_one(models.Volume, volume_id), settling.REPLICAS)


def _retire(volume_id: str, uuid: str) -> Callable[[Session], list[str]]:
    def retire(session: Session) -> list[str]:
        volume = session.get_one(models.Volume, volume_id)
        settling.drop(volume, settling.REPLICAS)
        return [
            removals.retire_replica(session, leg) for leg in volume.replicas if leg.uuid == uuid
        ]

    return retire


# -- report -------------------------------------------------------------------------------------


def report(core: Core, tenant: str, text: str, replica: str, state: str) -> None:
    """Take over what the agent of a host reports of one leg.

    The call does not tell which host it is: it counts as one of those that have the volume.

    :raises NotExistsError: there is no such volume, or no such leg (any more).
    :raises VolumeNotPublishedError: no host has the volume.
    :raises ConflictError: the leg is to go.
    :raises InvalidInputError: that state cannot be reported.
    """
    uuid = lock_of(text)
    with core.locks.hold(uuid), core.db.write() as session:
        volume = volumes.find(session, tenant, uuid)
        leg = find(volume, replica)
        having = published(volume)
        if not having:
            raise errors.VolumeNotPublishedError(
                f"volume {uuid} is published to no host that could report", volume=uuid
            )
        proven = all(host_wire.ABILITY_ARRAY_REPORT in hosts.abilities(one.host) for one in having)
        before = _states(volume)
        legs.note(leg, state, now_ms(), proven=proven, replicated=volume.replicated)
        legs.settle(volume.replicas)
        _tell_changes(session, volume, before)
        _confirm_array(session, volume, having[0].host_id)


def report_array(core: Core, tenant: str, request: host_wire.ArrayReport) -> list[str]:
    """Take over what a host sees of an array; gives the legs that the volume does not have.

    :raises NotExistsError: there is no such volume.
    :raises VolumeNotPublishedError: it is not published to that host.
    :raises BusyError, ConflictError: see :func:`arrays.check`.
    """
    uuid = request.vol_id
    with core.locks.hold(uuid), core.db.write() as session:
        volume = volumes.find(session, tenant, uuid)
        if request.publication and request.state == models.ARRAY_CLEAN:
            return _last_word(session, volume, request)
        having = published(volume)
        if request.host_id not in [one.host_id for one in having]:
            raise errors.VolumeNotPublishedError(
                f"volume {uuid} is not published to host {request.host_id}", volume=uuid
            )
        before, unknown = _states(volume), _note_legs(volume, request)
        _tell_changes(session, volume, before)
        _confirm_array(session, volume, request.host_id)
        if request.state == models.ARRAY_CLEAN and len(having) == 1:
            arrays.enter(session, volume, models.ARRAY_CLEAN, request.host_id)
    return unknown


def _last_word(
    session: Session, volume: models.Volume, request: host_wire.ArrayReport
) -> list[str]:
    arrays.check(volume, request)
    before, unknown = _states(volume), _note_legs(volume, arrays.without_spares(volume, request))
    arrays.accept(volume, request)
    _tell_changes(session, volume, before)
    arrays.enter(session, volume, models.ARRAY_CLEAN, request.host_id)
    return unknown


def _note_legs(volume: models.Volume, request: host_wire.ArrayReport) -> list[str]:
    known = {leg.uuid: leg for leg in volume.replicas}
    seen: dict[str, int] = {}
    for one in request.legs:
        leg = known.get(one.replica)
        if leg is None or leg.state == REPLICA_TERMINATING:
            continue
        legs.note(leg, one.state, now_ms(), proven=True, replicated=volume.replicated)
        leg.events = one.events or leg.events
        seen[leg.uuid] = one.events
    legs.judge(volume.replicas, seen)
    return [one.replica for one in request.legs if one.replica not in known]


def note_node(session: Session, leg: models.Replica, *, present: bool) -> bool:
    """Record whether the node of a leg has it; gives whether that is new.

    A leg that comes back has what it had. Whether it has missed writes meanwhile is known of a
    volume that no host has; otherwise its host tells.

    While a host has the volume, a leg that goes away counts as stale at once. The connector may
    have refused the volume, so that nobody writes; but an agent that tells nothing may just be
    dead, and the leg must not be taken for a source when the host has left.
    """
    making = leg.freshness == models.BLANK and leg.state == REPLICA_UNKNOWN
    if leg.absent is not present or (making and not present):
        return False
    leg.absent = not present
    before = _states(leg.volume)
    if leg.state != REPLICA_TERMINATING:
        usable = leg.freshness == models.FRESH and not published(leg.volume)
        if not present:
            legs.enter(leg, REPLICA_MISSING, now_ms())
        elif leg.state == REPLICA_MISSING and (usable or not leg.volume.replicated):
            legs.enter(leg, REPLICA_AVAILABLE, now_ms())
    if published(leg.volume):
        legs.settle(leg.volume.replicas)
    _tell_changes(session, leg.volume, before)
    return True


def lost(session: Session, volume: models.Volume, absent: list[models.Replica]) -> None:
    """Record legs that no host reaches while one writes."""
    before = _states(volume)
    here = [leg for leg in volume.replicas if leg not in absent]
    if any(leg.in_sync for leg in here):
        for leg in absent:
            if leg.state in (REPLICA_AVAILABLE, REPLICA_SYNCHRONIZING):
                legs.enter(leg, REPLICA_MISSING, now_ms())
        legs.settle(volume.replicas)
    _tell_changes(session, volume, before)


def after_unpublish(
    session: Session, volume: models.Volume, last: models.Publication | None
) -> list[str]:
    """Record that hosts have left a volume; gives what to remove from nodes.

    :param last: of the host that was named, so it has stopped its array.
    """
    if volume.publications:
        return []
    if last is not None:
        arrays.left(session, volume, last)
    return finish_terminating(session, volume)


def _states(volume: models.Volume) -> dict[str, tuple[str, str]]:
    return {leg.uuid: (leg.state, leg.freshness) for leg in volume.replicas}


def _tell_changes(
    session: Session, volume: models.Volume, before: dict[str, tuple[str, str]]
) -> None:
    for leg in volume.replicas:
        if before.get(leg.uuid) == (leg.state, leg.freshness):
            continue
        message = (
            f"replica {leg.uuid} of volume {volume.uuid} on {leg.backend.name or leg.backend_id} "
            f"is {leg.state} ({leg.freshness})"
        )
        level = INFO if leg.in_sync else WARN
        tell(session, leg, "replica.state", message, level=level)


def _confirm_array(session: Session, volume: models.Volume, host_id: str) -> None:
    """A host that reports has made the array."""
    if volume.replicated and volume.array_state != models.ARRAY_OPEN:
        arrays.enter(session, volume, models.ARRAY_OPEN, host_id)


# -- terminate ----------------------------------------------------------------------------------


def terminate(core: Core, tenant: str, text: str, replica: str) -> None:
    """Ask for a leg to go. Repeated, it is a success.

    :raises NotExistsError: there is no such volume, or no such leg (any more).
    :raises ConflictError: another one is on its way out, or its replacement is not in sync.
    :raises LastReplicaError: nothing would be left that has all writes.
    :raises OutdatedRecordError: the database is an old copy that nobody has accepted.
    """
    uuid = lock_of(text)
    restored.refuse(core, f"replica {replica} is not deleted")
    with core.locks.hold(uuid):
        terminate_held(core, tenant, uuid, replica)


def terminate_held(core: Core, tenant: str, uuid: str, replica: str) -> None:
    """:func:`terminate` for a caller who holds the lock of the volume."""
    with core.db.write() as session:
        volume = volumes.find(session, tenant, uuid)
        leg = find(volume, replica)
        if leg.state != REPLICA_TERMINATING:
            legs.check_terminate(leg, volume.replicas)
            legs.enter(leg, REPLICA_TERMINATING, now_ms())
            legs.settle(volume.replicas)
            tell(
                session,
                leg,
                "replica.terminating",
                f"replica {leg.uuid} of volume {uuid} is to go",
            )
        gone = finish_terminating(session, volume)
    removals.carry_out(core, gone)


def finish_terminating(session: Session, volume: models.Volume) -> list[str]:
    """Let a Terminating leg go when no host could confirm; gives what to remove from nodes."""
    if volume.publications:
        return []
    going = [leg for leg in volume.replicas if leg.state == REPLICA_TERMINATING]
    return [gone_leg(session, leg) for leg in going]


def gone_leg(session: Session, leg: models.Replica) -> str:
    """Take a leg out of the record; gives its uuid for the removal from its node."""
    tell(
        session,
        leg,
        "replica.removed",
        f"replica {leg.uuid} is no longer one of volume {leg.volume_id}",
    )
    return removals.retire_replica(session, leg)


def confirm(core: Core, tenant: str, text: str, replica: str) -> None:
    """Record that a Terminating leg is out of the array, and free its space.

    :raises NotExistsError: there is no such volume, or no such leg (any more).
    :raises ConflictError: nobody has asked for it to go.
    :raises OutdatedRecordError: the database is an old copy that nobody has accepted.
    """
    uuid = lock_of(text)
    restored.refuse(core, f"replica {replica} is not deleted")
    with core.locks.hold(uuid):
        with core.db.write() as session:
            volume = volumes.find(session, tenant, uuid)
            leg = find(volume, replica)
            if leg.state != REPLICA_TERMINATING:
                raise errors.ConflictError(
                    f"replica {leg.uuid} is {leg.state}, not {REPLICA_TERMINATING}",
                    volume=uuid,
                    way_out="ask for its deletion first",
                )
            gone = [gone_leg(session, leg)]
        removals.carry_out(core, gone)


# -- finish -------------------------------------------------------------------------------------


def finish(core: Core, uuid: str) -> None:
    """Finish what is unsettled about the legs of a volume. The caller holds its lock.

    Legs that were recorded are made on their nodes; then legs are added, or let go one by one,
    until there are as many as are wanted. A leg that another one replaces does not count.

    :raises KumoError: when it has to be tried again later.
    """
    with core.db.read() as session:
        volume = session.get(models.Volume, uuid)
        if volume is None:
            return
        # Whatever its host reports of it: one that cannot connect it says Missing.
        begun = [
            leg.uuid
            for leg in volume.replicas
            if leg.freshness == models.BLANK and leg.state != REPLICA_TERMINATING
        ]
    for leg in begun:
        if _lacks(core, leg):
            make(core, uuid, leg)
    while True:
        with core.db.write() as session:
            volume = session.get_one(models.Volume, uuid)
            gone = finish_terminating(session, volume)
            added = _towards_wanted(core, session, volume, gone)
            if not gone and added is None and _enough(volume):
                settling.drop(volume, settling.REPLICAS)
                return
        removals.carry_out(core, gone)
        if added is not None:
            make(core, uuid, added)
        elif not gone:
            return


def _lacks(core: Core, uuid: str) -> bool:
    """Whether the node of a leg does not have it. It may have been made from a source.

    :raises KumoError: the node could not be asked.
    """
    with core.db.read() as session:
        address = Address.of(session.get_one(models.Replica, uuid).backend)
    outcome = core.nodes.call((address, lambda node: node.replica(uuid)))
    if outcome.error is not None and not isinstance(outcome.error, errors.NotExistsError):
        raise outcome.error
    return outcome.error is not None


def _present(volume: models.Volume) -> list[models.Replica]:
    return [leg for leg in volume.replicas if leg.state != REPLICA_TERMINATING]


def _enough(volume: models.Volume) -> bool:
    here = _present(volume)
    replaced = {leg.replaces for leg in here} & {leg.uuid for leg in here}
    return len(here) - len(replaced) == volume.num_replicas


def _towards_wanted(
    core: Core, session: Session, volume: models.Volume, gone: list[str]
) -> str | None:
    """Take one step towards the wanted number of legs; gives the uuid of a leg to make."""
    here = _present(volume)
    replaced = {leg.replaces for leg in here} & {leg.uuid for leg in here}
    missing = volume.num_replicas - (len(here) - len(replaced))
    if missing > 0 and not gone:
        return begin(core, session, volume, wire.ReplicaAdd()).uuid
    if missing < 0 and legs.terminating(volume.replicas) is None:
        leg = max(here, key=_expendable)
        # Which is refused now may be possible when other legs are in sync.
        with contextlib.suppress(errors.LastReplicaError, errors.ConflictError):
            legs.check_terminate(leg, volume.replicas)
            legs.enter(leg, REPLICA_TERMINATING, now_ms())
            legs.settle(volume.replicas)
            tell(
                session,
                leg,
                "replica.terminating",
                f"volume {volume.uuid} is to have fewer replicas: {leg.uuid} is to go",
            )
            gone += finish_terminating(session, volume)
    return None


def _expendable(leg: models.Replica) -> tuple[bool, bool, bool, int]:
    return (
        leg.freshness == models.BLANK,
        not leg.in_sync,
        leg.state == REPLICA_MISSING,
        leg.position,
    )
