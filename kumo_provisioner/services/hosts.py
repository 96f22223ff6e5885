# SPDX-License-Identifier: Apache-2.0
"""Hosts that attach volumes."""

from __future__ import annotations

from oslo_log import log
from sqlalchemy import select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.schemas import host as wire
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.services import view

LOG = log.getLogger(__name__)


def list_all(core: Core, name: str | None = None) -> list[wire.Host]:
    """All hosts, or those of a name."""
    query = select(models.Host).order_by(models.Host.name, models.Host.uuid)
    if name is not None:
        query = query.filter_by(name=name.strip())
    with core.db.read() as session:
        return [view.host(row) for row in session.scalars(query)]


def probe(core: Core, request: wire.HostProbe) -> None:
    """Register a host, or note that it is alive.

    :raises ConflictError: see :func:`register`.
    """
    with core.db.write() as session:
        register(session, request)


def register(session: Session, request: wire.HostProbe) -> models.Host:
    """Write a host down.

    Hosts cloned from one image show one id with different NQNs, or one NQN with different ids.
    The record of a host that has no volumes gives way; one that has volumes is kept, because its
    exports are bound to its NQN.

    :raises ConflictError: when id or NQN belongs to another host that has volumes published.
    """
    row = session.get(models.Host, request.host_id)
    if row is not None and row.nqn != request.host_nqn:
        _refuse_published(session, row, request)
        LOG.info("Host %s has a new NQN: %s instead of %s", row.uuid, request.host_nqn, row.nqn)
    other = session.scalar(select(models.Host).filter_by(nqn=request.host_nqn))
    if other is not None and other.uuid != request.host_id:
        _refuse_published(session, other, request)
        LOG.info("Host %s takes the place of %s, which had its NQN", request.host_id, other.uuid)
        session.delete(other)
        session.flush()
    if row is None:
        row = models.Host(uuid=request.host_id)
        session.add(row)
    row.nqn = request.host_nqn
    row.name = request.name
    row.client_type = request.client_type
    row.version = request.version
    row.duration = request.duration
    row.multipath = request.multipath
    row.abilities = list(request.abilities)
    row.last_probe = now_ms()
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
