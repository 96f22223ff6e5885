# SPDX-License-Identifier: Apache-2.0
"""Hosts that attach volumes."""

from __future__ import annotations

from oslo_log import log
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.schemas import host as wire
from kumo_client.schemas.event import WARN
from kumo_client.schemas.volume import Volume
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.services import events, view

LOG = log.getLogger(__name__)
# A host that probes again and again with a wrong identity is told of once in this time.
CONFLICT_MEMORY_MS = 3_600_000


def list_all(core: Core, name: str | None = None) -> list[wire.Host]:
    """All hosts, or those of a name."""
    query = select(models.Host).order_by(models.Host.name, models.Host.uuid)
    if name is not None:
        query = query.filter_by(name=name.strip())
    having = select(models.Publication.host_id, func.count()).group_by(models.Publication.host_id)
    with core.db.read() as session:
        rows = session.scalars(query).all()
        if name is not None:
            having = having.where(models.Publication.host_id.in_([row.uuid for row in rows]))
        counts = {host_id: int(count) for host_id, count in session.execute(having)}
    return [_shown(row, counts.get(row.uuid, 0)) for row in rows]


def volumes(core: Core, uuid: str) -> list[Volume]:
    """The volumes that are published to a host, of all tenants; oldest first."""
    mine = select(models.Publication.volume_id).filter_by(
        host_id=uuid.strip(), status=models.PUBLISHED
    )
    query = (
        select(models.Volume)
        .options(*view.WHOLE_VOLUME)
        .where(models.Volume.uuid.in_(mine))
        .order_by(models.Volume.created, models.Volume.uuid)
    )
    with core.db.read() as session:
        return [view.volume(row) for row in session.scalars(query)]


def _shown(row: models.Host, volumes: int) -> wire.Host:
    found = view.host(row)
    found.volumes = volumes
    found.abilities = sorted(abilities(row))
    return found


def abilities(row: models.Host) -> set[str]:
    """What a host has announced, unless that was too long ago to rely on."""
    silent = now_ms() - row.abilities_since > view.HOST_MISSED_PROBES * 1000 * row.duration
    return set() if row.duration > 0 and silent else {str(one) for one in row.abilities}


def probe(core: Core, request: wire.HostProbe) -> None:
    """Register a host, or note that it is alive.

    :raises ConflictError: see :func:`register`.
    """
    try:
        with core.db.write() as session:
            register(session, request)
    except errors.ConflictError as exc:
        tell_conflict(core, request, exc)
        raise


def tell_conflict(core: Core, request: wire.HostProbe, error: errors.ConflictError) -> None:
    """Write down that two hosts have one identity."""
    query = select(models.Event.id).where(
        models.Event.type == "host.conflict",
        models.Event.host_id == request.host_id,
        models.Event.time > now_ms() - CONFLICT_MEMORY_MS,
    )
    with core.db.write() as session:
        if session.scalar(query.limit(1)) is None:
            events.record(
                session,
                "host.conflict",
                error.message,
                level=WARN,
                host=request.host_id,
                nqn=request.host_nqn,
            )


def register(session: Session, request: wire.HostProbe, *, probing: bool = True) -> models.Host:
    """Write a host down.

    :param probing: the host itself calls, not somebody who attaches a volume for it. Existing
        drivers probe in the name of hosts too, but announce no abilities.

    Hosts cloned from one image show one id with different NQNs, or one NQN with different ids.
    The record of a host that has no volumes gives way; one that has volumes is kept, because its
    exports are bound to its NQN.

    :raises ConflictError: when id or NQN belongs to another host that has volumes published.
    """
    row = session.get(models.Host, request.host_id)
    if row is not None and row.nqn != request.host_nqn:
        _refuse_published(session, row, request)
        LOG.info("Host %s has a new NQN: %s instead of %s", row.uuid, request.host_nqn, row.nqn)
    other = None
    if row is None or row.nqn != request.host_nqn:
        other = session.scalar(select(models.Host).filter_by(nqn=request.host_nqn))
    if other is not None:
        _refuse_published(session, other, request)
        LOG.info("Host %s takes the place of %s, which had its NQN", request.host_id, other.uuid)
        session.delete(other)
        session.flush()
    if row is None:
        row = models.Host(uuid=request.host_id, abilities=[], abilities_since=0)
        session.add(row)
        events.record(
            session,
            "host.added",
            f"host {request.host_id} ({request.name}) is known now",
            host=request.host_id,
            nqn=request.host_nqn,
        )
    row.nqn = request.host_nqn
    row.name = request.name
    row.client_type = request.client_type
    row.version = request.version
    row.duration = request.duration
    row.last_probe = now_ms()
    if "multipath" in request.model_fields_set:
        row.multipath = request.multipath
    if "abilities" in request.model_fields_set:
        known = set() if probing else abilities(row)
        row.abilities = sorted(known | set(request.abilities))
        row.abilities_since = now_ms()
    session.flush()
    return row


def _published(session: Session, row: models.Host) -> bool:
    query = select(models.Publication.volume_id).filter_by(host_id=row.uuid).limit(1)
    return session.scalar(query) is not None


def _refuse_published(session: Session, row: models.Host, request: wire.HostProbe) -> None:
    if _published(session, row):
        raise errors.ConflictError(
            f"host {row.uuid} with NQN {row.nqn} has volumes published; a host with id "
            f"{request.host_id} and NQN {request.host_nqn} cannot take its place",
            way_out="give each host an id and an NQN of its own (hosts cloned from one image share "
            "them), or unpublish its volumes",
        )


def delete(core: Core, uuid: str) -> None:
    """Forget a host.

    :raises NotExistsError: when there is none.
    :raises InUseError: while volumes are published to it.
    """
    uuid = uuid.strip()
    with core.db.write() as session:
        row = session.get(models.Host, uuid)
        if row is None:
            raise errors.NotExistsError(f"there is no host {uuid}")
        if _published(session, row):
            raise errors.InUseError(
                f"volumes are published to host {uuid}", way_out="unpublish them first"
            )
        session.delete(row)
