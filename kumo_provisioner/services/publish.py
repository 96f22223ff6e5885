# SPDX-License-Identifier: Apache-2.0
"""Giving hosts access to volumes, and taking it away.

Publish works with the replicas it can reach: with at least one export made it succeeds, and a
reconcile makes the others when their nodes are back. The legs of an array whose extension is
unfinished may differ in size: it is finished first, or only the legs that have grown are given.

Legs that missed writes are given too, marked, because the host is to synchronise them; but a host
that does not know the marks gets nothing when no leg with all writes can be given. A leg that such
a host was not given at a first publish counts as Missing from then on: nobody else would tell. A
client may ask that such a host gets every leg in sync or nothing (``complete``).

Unpublish always succeeds once recorded, or a volume could not be detached from a dead node; the
export that is left there is removed by the reconcile that follows the node's return.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from oslo_log import log
from sqlalchemy.orm import Session, joinedload, selectinload

from kumo_client import errors, naming
from kumo_client.schemas import host as wire
from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.volume import REPLICA_TERMINATING
from kumo_provisioner import settling
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address, Call, Outcome
from kumo_provisioner.services import (
    arrays,
    building,
    extending,
    hosts,
    migration,
    removals,
    replicas,
    restored,
    view,
    volumes,
)
from kumo_provisioner.services.exports import export_call, unexport_call

LOG = log.getLogger(__name__)
# Read with a volume: one query takes a part of the time of three.
_WITH_LEGS = (joinedload(models.Volume.replicas).joinedload(models.Replica.backend),)
_WITH_HOSTS = selectinload(models.Volume.publications).joinedload(models.Publication.host)


def publish(core: Core, tenant: str, request: wire.PublishRequest) -> wire.PublishAnswer:
    """Give a host access to a volume. It may be called again at any time.

    :raises NotExistsError: when volume or host is not known.
    :raises ConflictError: when the host's id or NQN is that of another host.
    :raises BackendUnavailableError: when no replica could be exported.
    :raises StaleError: when only replicas that missed writes could be exported.
    """
    uuid = view.normal_uuid(request.vol_id)
    if uuid is None:
        raise volumes.missing(request.vol_id)
    try:
        return _publish(core, tenant, uuid, request)
    except errors.ConflictError as exc:
        if request.host is not None and exc.volume is None:
            hosts.tell_conflict(core, request.host, exc)
        raise


def _publish(
    core: Core, tenant: str, uuid: str, request: wire.PublishRequest
) -> wire.PublishAnswer:
    with core.locks.hold(uuid):
        begun = _begin(core, tenant, uuid, request)
        if begun is None:
            migration.give_way(core, uuid, f"the volume is published to host {request.host_id}")
            grown = _alike(core, tenant, uuid)
            begun = _begin(core, tenant, uuid, request, _Prepared(grown))
            assert begun is not None  # noqa: S101 - it is prepared
        volume, host, fresh, calls = begun
        outcomes = core.nodes.call_all(calls)
        if all(outcome.error is not None for outcome in outcomes.values()):
            if fresh:
                _undo(core, uuid, host, outcomes)
            failed = building.first_error(outcomes)
            raise failed or errors.InternalError(f"volume {uuid} has no replica", volume=uuid)
        careful = wire.ABILITY_FRESHNESS in _abilities(host, request)
        if fresh and volume.replicated and not careful:
            _need_fresh(core, uuid, host, outcomes)
        if request.complete and volume.replicated:
            _need_all(core, uuid, host, outcomes, fresh)
        return _commit(core, uuid, host, outcomes, fresh)


class _Prepared(NamedTuple):
    """Nothing is at work on the volume any more. ``grown`` as of :func:`_alike`."""

    grown: set[str] | None


class _Begun(NamedTuple):
    """``fresh``: the host did not have the volume."""

    volume: models.Volume
    host: models.Host
    fresh: bool
    calls: dict[str, Call[Any]]


def _begin(
    core: Core,
    tenant: str,
    uuid: str,
    request: wire.PublishRequest,
    prepared: _Prepared | None = None,
) -> _Begun | None:
    """Record that a host is to have a volume; None when that needs preparation."""
    with core.db.write() as session:
        volume = volumes.find(session, tenant, uuid, *_WITH_LEGS)
        if prepared is None and not _at_rest(session, volume):
            return None
        host = _host(session, request)
        known = session.get(models.Publication, (uuid, host.uuid))
        if known is None:
            since = arrays.number(volume)
            arrays.begun(volume, since)
            session.add(
                models.Publication(
                    volume_id=uuid, host_id=host.uuid, status=models.PUBLISHING, since=since
                )
            )
        fresh = known is None or known.status != models.PUBLISHED
        calls = _calls(volume, host.nqn, prepared.grown if prepared is not None else None)
        return _Begun(volume, host, fresh, calls)


def _at_rest(session: Session, volume: models.Volume) -> bool:
    """Whether nothing is at work on a volume that a publish has to end first."""
    settled = volume.wanted_capacity == volume.capacity and not volume.unsettled
    return settled and not migration.copies(session, volume.uuid)


def _abilities(host: models.Host, request: wire.PublishRequest) -> set[str]:
    asked = request.host.abilities if request.host is not None else []
    return hosts.abilities(host) | set(asked)


def _need_fresh(
    core: Core, uuid: str, host: models.Host, outcomes: dict[str, Outcome[Any]]
) -> None:
    """Refuse a host that cannot tell good legs from others when only the others can be given."""
    with core.db.read() as session:
        volume = session.get_one(models.Volume, uuid)
        fresh = [leg for leg in volume.replicas if leg.freshness == models.FRESH]
        lost = [leg for leg in fresh if not _offered(leg, outcomes)]
        nodes = ", ".join(leg.backend.name or leg.backend_id for leg in lost)
        if not volume.replicated or len(lost) < len(fresh):
            return
        back = _unexports(volume, host, outcomes)
    _undo(core, uuid, host, outcomes | core.nodes.call_all(back))
    names = ", ".join(leg.uuid for leg in lost)
    raise errors.StaleError(
        f"the replicas of volume {uuid} with all writes ({names}) cannot be reached on {nodes}; "
        "the others missed writes",
        volume=uuid,
        node=lost[0].backend_id if lost else None,
        way_out="bring that node back",
    )


def _need_all(
    core: Core, uuid: str, host: models.Host, outcomes: dict[str, Outcome[Any]], fresh: bool
) -> None:
    """Refuse a host that has to get every replica in sync, before anything is recorded of legs."""
    with core.db.read() as session:
        volume = session.get_one(models.Volume, uuid)
        lacking = [
            leg
            for leg in volume.replicas
            # One that never was in sync has nothing that another one lacks.
            if leg.state != REPLICA_TERMINATING and leg.freshness != models.BLANK
            if not (leg.in_sync and _offered(leg, outcomes))
        ]
        names = ", ".join(
            f"{leg.uuid} on {leg.backend.name or leg.backend_id} is {leg.state} ({leg.freshness})"
            for leg in lacking
        )
        if not lacking:
            return
        back = _unexports(volume, host, outcomes)
    if fresh:
        _undo(core, uuid, host, outcomes | core.nodes.call_all(back))
    raise errors.StaleError(
        f"host {host.uuid} needs every replica of volume {uuid} in sync, and cannot have that: "
        f"{names}",
        volume=uuid,
        node=lacking[0].backend_id,
        way_out="bring the nodes back and let the volume heal, or attach it to a host with the "
        "Kumo connector, which tells which replica missed writes",
    )


def _offered(leg: models.Replica, outcomes: dict[str, Outcome[Any]]) -> bool:
    return leg.uuid in outcomes and outcomes[leg.uuid].error is None


def _unexports(
    volume: models.Volume, host: models.Host, outcomes: dict[str, Outcome[Any]]
) -> dict[str, Call[Any]]:
    """Calls that take back what was exported."""
    return {
        leg.uuid: (Address.of(leg.backend), unexport_call(leg.uuid, host.nqn))
        for leg in volume.replicas
        if _offered(leg, outcomes)
    }


def _alike(core: Core, tenant: str, uuid: str) -> set[str] | None:
    """Replicas whose arrays are certain to be of one size; None for all.

    :raises KumoError: an extension cannot be finished, and no leg is known to have grown.
    """
    with core.db.read() as session:
        volume = volumes.find(session, tenant, uuid)
        # Its legs may be of two states.
        settling.refuse(volume, settling.REVERT)
        finished = volume.wanted_capacity == volume.capacity
        if finished or not volume.replicated or extending.in_use(volume):
            return None
    grown, failed = extending.attempt(core, uuid, partly=True)
    with core.db.read() as session:
        volume = session.get_one(models.Volume, uuid)
        if volume.wanted_capacity == volume.capacity:
            return None
    if failed is not None and not grown:
        raise failed
    return grown


def _host(session: Session, request: wire.PublishRequest) -> models.Host:
    if request.host is not None:
        if request.host.host_id != request.host_id:
            raise errors.InvalidInputError("hostId and host.hostId are not the same")
        return hosts.register(session, request.host, probing=False)
    host = session.get(models.Host, request.host_id)
    if host is None:
        raise errors.NotExistsError(
            f"there is no host {request.host_id}", way_out="probe the host first"
        )
    return host


def _calls(volume: models.Volume, host_nqn: str, legs: set[str] | None) -> dict[str, Call[Any]]:
    """Exports to make. A node known to be down is asked only when there is no other.

    :param legs: the replicas that may be exported; None for all.
    """
    usable = [one for one in volume.replicas if legs is None or one.uuid in legs]
    up = [one for one in usable if one.backend.state == AVAILABLE]
    io_class = naming.io_class(volume.num_replicas)
    return {
        replica.uuid: (
            Address.of(replica.backend),
            export_call(replica.uuid, host_nqn, io_class),
        )
        for replica in up or usable
    }


def _undo(core: Core, uuid: str, host: models.Host, outcomes: dict[str, Outcome[Any]]) -> None:
    with core.db.write() as session:
        row = session.get(models.Publication, (uuid, host.uuid))
        if row is not None:
            session.delete(row)
    if any(outcome.unknown for outcome in outcomes.values()):
        core.wake.set()


def _commit(
    core: Core, uuid: str, host: models.Host, outcomes: dict[str, Outcome[Any]], fresh: bool
) -> wire.PublishAnswer:
    with core.db.write() as session:
        volume = session.get_one(models.Volume, uuid, options=(*_WITH_LEGS, _WITH_HOSTS))
        row = next(one for one in volume.publications if one.host_id == host.uuid)
        row.status = models.PUBLISHED
        others = [one for one in replicas.published(volume) if one.host_id != host.uuid]
        state = restored.array_state(core, volume) if volume.replicated else ""
        if fresh:
            _note_absent(session, volume, host, outcomes, shared=bool(others))
        if volume.replicated and volume.array_state == models.ARRAY_CLEAN:
            # The host may assemble the array from now on, and need not tell.
            arrays.enter(session, volume, models.ARRAY_OPEN, host.uuid)
        exported = [one for one in volume.replicas if one.uuid in outcomes]
        absent = [
            one.uuid for one in volume.replicas if one not in exported or outcomes[one.uuid].error
        ]
        answer = wire.PublishAnswer(
            volume=view.volume(volume),
            replicas=[
                view.published_replica(replica, volume.num_replicas, host.nqn)
                for replica in volume.replicas
            ],
            array_state=state,
            shared=bool(others),
            publication=row.since,
        )
    if absent:
        LOG.warning("Volume %s is published to %s without %s", uuid, host.uuid, ", ".join(absent))
        answer.description = f"published without the replicas {', '.join(absent)}"
    if not fresh:
        answer.status = errors.AlreadyPublishedError.code
        answer.description = answer.description or f"volume {uuid} was published to this host"
    else:
        LOG.info("Published volume %s to host %s", uuid, host.uuid)
    return answer


def _note_absent(
    session: Session,
    volume: models.Volume,
    host: models.Host,
    outcomes: dict[str, Outcome[Any]],
    *,
    shared: bool,
) -> None:
    """Legs that a host was not given miss what it writes.

    A host that reports arrays tells so itself. One that checks freshness may refuse what it was
    given, because a leg that is away may have more: then nothing was written, and a wrong mark
    would let the older leg win.
    """
    telling = {wire.ABILITY_ARRAY_REPORT, wire.ABILITY_FRESHNESS} & hosts.abilities(host)
    if shared or not volume.replicated or telling:
        return
    absent = [
        leg for leg in volume.replicas if leg.uuid not in outcomes or outcomes[leg.uuid].error
    ]
    replicas.lost(session, volume, absent)


def unpublish(core: Core, tenant: str, request: wire.UnpublishRequest) -> None:
    """Take the access of a host, or of every host, to a volume away.

    :raises NotExistsError: when there is no such volume.
    :raises VolumeNotPublishedError: when it is not published to that host.
    """
    uuid = view.normal_uuid(request.vol_id)
    if uuid is None:
        raise volumes.missing(request.vol_id)
    with core.locks.hold(uuid):
        calls: dict[tuple[str, str], Call[Any]] = {}
        with core.db.write() as session:
            volume = volumes.find(session, tenant, uuid, *_WITH_LEGS, _WITH_HOSTS)
            gone = [
                one
                for one in volume.publications
                if request.host_id is None or one.host_id == request.host_id
            ]
            if not gone:
                raise errors.VolumeNotPublishedError(
                    f"volume {uuid} is not published to {request.host_id or 'any host'}",
                    volume=uuid,
                )
            for publication in gone:
                calls.update(_removals(volume, publication.host.nqn))
                volume.publications.remove(publication)
            session.flush()
            freed = replicas.after_unpublish(session, volume, gone[0] if request.host_id else None)
            freed += migration.host_left(session, volume)
        _take_away(core, uuid, calls)
        removals.carry_out(core, freed)


def _removals(volume: models.Volume, host_nqn: str) -> dict[tuple[str, str], Call[Any]]:
    return {
        (replica.uuid, host_nqn): (
            Address.of(replica.backend),
            unexport_call(replica.uuid, host_nqn),
        )
        for replica in volume.replicas
        if replica.backend.state == AVAILABLE
    }


def _take_away(core: Core, uuid: str, calls: dict[tuple[str, str], Call[Any]]) -> None:
    for (replica, _), outcome in core.nodes.call_all(calls).items():
        if outcome.error is not None:
            LOG.warning("Export of replica %s is removed later: %s", replica, outcome.error)
            core.wake.set()
    LOG.info("Unpublished volume %s", uuid)
