# SPDX-License-Identifier: Apache-2.0
"""Targets: the subsystems at which hosts find their volumes.

Computed from the record alone, so a target is listed also while its node is down.
"""

from __future__ import annotations

from collections import Counter

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from kumo_client import errors
from kumo_client.schemas import host as wire
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.services import view


def list_all(
    core: Core, host_id: str | None, volume_id: str | None, tenant: str = ""
) -> list[wire.Target]:
    """Targets of a host, of a volume, or of a volume at a host, each once.

    ``numNamespaces`` counts all namespaces that the host finds at the target.

    :param tenant: only those of its volumes; empty for all.

    :raises InvalidInputError: when neither is given.
    """
    host_id, volume_id = (host_id or "").strip(), (volume_id or "").strip()
    if not host_id and not volume_id:
        raise errors.InvalidInputError("hostId or volId is needed")
    with core.db.read() as session:
        found: dict[str, wire.Target] = {}
        publications = _publications(session, host_id, volume_id, tenant)
        for publication in publications:
            for target in _of(publication):
                found.setdefault(target.target_name, target)
        counts = _count(session, {publication.host_id for publication in publications})
    for nqn, target in found.items():
        target.num_namespaces = counts[nqn]
        target.alias = target.alias if volume_id else ""
    return list(found.values())


def _publications(
    session: Session, host_id: str, volume_id: str, tenant: str = ""
) -> list[models.Publication]:
    query = (
        select(models.Publication)
        .filter_by(status=models.PUBLISHED)
        .options(
            selectinload(models.Publication.host),
            selectinload(models.Publication.volume)
            .selectinload(models.Volume.replicas)
            .joinedload(models.Replica.backend),
        )
        .order_by(models.Publication.volume_id, models.Publication.host_id)
    )
    if host_id:
        query = query.filter_by(host_id=host_id)
    if tenant:
        query = query.where(models.Publication.volume.has(tenant_id=tenant))
    if volume_id:
        query = query.filter_by(volume_id=view.normal_uuid(volume_id) or "")
    return list(session.scalars(query))


def _nqns(publication: models.Publication) -> list[tuple[models.Replica, str]]:
    volume, host = publication.volume, publication.host
    return [
        (replica, view.subsystem_nqn(replica, volume.num_replicas, host.nqn))
        for replica in volume.replicas
    ]


def _of(publication: models.Publication) -> list[wire.Target]:
    return [
        wire.Target(
            target_name=nqn,
            name=nqn,
            backend=view.backend_ref(replica.backend),
            alias=publication.volume.alias,
        )
        for replica, nqn in _nqns(publication)
    ]


def _count(session: Session, host_ids: set[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for host_id in host_ids:
        for publication in _publications(session, host_id, ""):
            counts.update(nqn for _, nqn in _nqns(publication))
    return counts
