# SPDX-License-Identifier: Apache-2.0
"""The record of one node, as plan needs it: nothing here grows with the fleet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from oslo_log import log
from sqlalchemy import select
from sqlalchemy.orm import Session

from kumo_client.schemas.node import Inventory
from kumo_client.schemas.volume import StorageClass
from kumo_provisioner.db import models
from kumo_provisioner.reconcile.plan import Wanted, WantedReplica, as_pair, objects
from kumo_provisioner.services import capacity, migration

LOG = log.getLogger(__name__)
# Databases limit the number of values in one statement.
VALUES_AT_ONCE = 500
# Removals that one look at a node begins at most; the rest is for the next one.
REMOVALS_AT_ONCE = 500


def read(session: Session, backend_id: str, inventory: Inventory) -> Wanted:
    """What the record has for a backend.

    :param inventory: what the node showed before; decides which old removals are looked up.
    """
    hosts = _hosts(session, backend_id)
    replicas = {one.uuid: one for one in _replicas(session, backend_id, hosts)}
    parts = frozenset(
        session.scalars(select(models.SnapshotPart.uuid).filter_by(backend_id=backend_id))
    )
    query = select(models.Removal.uuid, models.Removal.kind).filter_by(
        backend_id=backend_id, done=None
    )
    pending = {uuid: kind for uuid, kind in session.execute(query.limit(REMOVALS_AT_ONCE))}
    unknown = sorted(objects(inventory) - replicas.keys() - parts - pending.keys())
    gone = frozenset(_removed(session, backend_id, unknown))
    elsewhere = frozenset(_elsewhere(session, sorted({*unknown} - gone)))
    if elsewhere:
        LOG.warning(
            "Backend %s shows what the record has on other nodes; it is not touched: %s",
            backend_id,
            ", ".join(sorted(elsewhere)[:8]),
        )
    return Wanted(replicas, parts, pending, gone, elsewhere)


def _hosts(session: Session, backend_id: str) -> dict[str, set[str]]:
    """Host NQNs by uuid of the replica; an unfinished publication keeps its exports."""
    query = (
        select(models.Replica.uuid, models.Host.nqn)
        .join(models.Publication, models.Publication.volume_id == models.Replica.volume_id)
        .join(models.Host, models.Host.uuid == models.Publication.host_id)
        .where(models.Replica.backend_id == backend_id)
    )
    hosts: dict[str, set[str]] = defaultdict(set)
    for uuid, nqn in session.execute(query):
        hosts[uuid].add(nqn)
    for uuid, nqns in migration.extra_exports(session, backend_id).items():
        hosts[uuid] |= nqns
    return hosts


def _replicas(
    session: Session, backend_id: str, hosts: dict[str, set[str]]
) -> Iterator[WantedReplica]:
    volume = models.Volume
    query = (
        select(
            models.Replica.uuid,
            models.Replica.volume_id,
            models.Replica.absent,
            volume.status,
            volume.unsettled,
            volume.capacity,
            volume.storage_class,
        )
        .join(volume, volume.uuid == models.Replica.volume_id)
        .where(models.Replica.backend_id == backend_id)
    )
    for uuid, volume_id, absent, status, unsettled, gib, asked in session.execute(query):
        caps = capacity.limits(StorageClass.model_validate(asked), gib)
        yield WantedReplica(
            uuid=uuid,
            volume_id=volume_id,
            settled=status == models.AVAILABLE,
            hosts=frozenset(hosts.get(uuid, ())),
            absent=absent,
            # What is unsettled is settled by others, who may change the caps.
            limits=None if unsettled else as_pair(caps),
        )


def _removed(session: Session, backend_id: str, uuids: list[str]) -> Iterator[str]:
    for some in chunks(uuids):
        query = select(models.Removal.uuid).where(
            models.Removal.uuid.in_(some), models.Removal.backend_id == backend_id
        )
        yield from session.scalars(query)


def _elsewhere(session: Session, uuids: list[str]) -> Iterator[str]:
    for some in chunks(uuids):
        for table in (models.Replica, models.SnapshotPart):
            yield from session.scalars(select(table.uuid).where(table.uuid.in_(some)))


def chunks(values: list[str]) -> Iterator[list[str]]:
    """Parts of a list that fit in one statement."""
    for start in range(0, len(values), VALUES_AT_ONCE):
        yield values[start : start + VALUES_AT_ONCE]
