# SPDX-License-Identifier: Apache-2.0
"""Volumes that begin as a copy of what exists.

A leg is a copy-on-write image of its source, in the same pool; so it is complete at once. When
there are fewer sources than the volume has replicas, the other legs are placed on other nodes,
empty: they read as zeros, count as blank, and the host that attaches the volume fills them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from kumo_client import errors, naming
from kumo_client.schemas.node import ArrayIdentity, ReplicaSource
from kumo_client.schemas.volume import REPLICA_UNKNOWN
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address, Call
from kumo_provisioner.placement import Ask
from kumo_provisioner.services import building, placing, tenants, volumes
from kumo_provisioner.services.placing import Growth


@dataclasses.dataclass(frozen=True)
class Source:
    """What a leg is a copy of."""

    backend: models.Backend
    pool: str
    bytes: int
    node_source: ReplicaSource


def of_parts(parts: Sequence[models.SnapshotPart]) -> list[Source]:
    return [
        Source(one.backend, one.pool, one.bytes, ReplicaSource(snapshot=one.uuid)) for one in parts
    ]


def of_replicas(replicas: Sequence[models.Replica]) -> list[Source]:
    return [
        Source(one.backend, one.pool, one.bytes, ReplicaSource(replica=one.uuid))
        for one in replicas
    ]


def row_like(origin: models.Volume, uuid: str, alias: str) -> models.Volume:
    """The row of a volume of the same kind as ``origin``."""
    return models.Volume(
        uuid=uuid,
        tenant_id=origin.tenant_id,
        alias=alias,
        status=models.CREATING,
        created=now_ms(),
        capacity=origin.capacity,
        wanted_capacity=origin.capacity,
        num_replicas=origin.num_replicas,
        provisioning_type=origin.provisioning_type,
        reserved_space_percentage=0,
        protocol=origin.protocol,
        writable=True,
        storage_class=dict(origin.storage_class),
    )


def identity(row: models.Volume) -> ArrayIdentity | None:
    """What the md superblock on each leg of a volume has to say."""
    if not row.replicated:
        return None
    return ArrayIdentity(uuid=row.uuid, name=naming.array_name(row.alias))


def place(
    core: Core, session: Session, row: models.Volume, sources: Sequence[Source]
) -> dict[str, Call[Any]]:
    """Add the replicas of a copy to its row, which is written; gives the calls that make them.

    :param sources: of equal worth, the best first.
    :raises AlreadyExistsError: uuid or alias is taken.
    :raises NoSpaceError: no node of a source can take it, or there is none for another leg.
    :raises BackendUnavailableError: the nodes of all sources are down.
    """
    volumes.make_room(session, row.tenant_id, row.uuid, row.alias)
    # A leg may have grown in an extension that was given up; a copy is never smaller, and the legs
    # of an array are alike.
    wanted = naming.replica_bytes(row.capacity, row.num_replicas)
    size = max(wanted, *(one.bytes for one in sources))
    ask = placing.ask_for(core, row, size=size)
    usable = _usable(session, sources, ask)[: row.num_replicas]
    spots: list[tuple[models.Backend, str, Source | None]] = [
        (one.backend, one.pool, one) for one in usable
    ]
    spots += [(backend, pool, None) for backend, pool in _blank(core, session, usable, ask)]
    calls = {}
    for backend, pool, source in sorted(spots, key=lambda spot: spot[0].persistent_id):
        replica = placing.add_replica(session, row, backend.persistent_id, pool, size, ask)
        replica.position = spots.index((backend, pool, source))
        if source is None:
            replica.state, replica.freshness = REPLICA_UNKNOWN, models.BLANK
            spec = placing.replica_spec(row, replica)
        else:
            spec = placing.replica_spec(
                row, replica, source=source.node_source, array=identity(row)
            )
        calls[replica.uuid] = building.put_replica(Address.of(backend), replica.uuid, spec)
    session.add(row)
    tenants.take(session, row)
    return calls


def _usable(session: Session, sources: Sequence[Source], ask: Ask) -> list[Source]:
    """The sources whose pools can take a copy; those on nodes that are to get nothing new only
    when there are no others.

    :raises KumoError: why the first cannot, when none can.
    """
    usable, refused = [], []
    for one in sources:
        growth = Growth(one.backend, one.pool, ask.charge, ask.iops, ask.bw)
        try:
            placing.refuse_growth(session, [growth])
            usable.append(one)
        except (errors.NoSpaceError, errors.BackendUnavailableError) as exc:
            refused.append(exc)
    if not usable:
        raise refused[0]
    wanted = [one for one in usable if not one.backend.mode and not one.backend.cordoned]
    return wanted or usable


def _blank(
    core: Core, session: Session, usable: Sequence[Source], ask: Ask
) -> list[tuple[models.Backend, str]]:
    """Where the legs go that have no source."""
    if len(usable) == ask.replicas:
        return []
    more = dataclasses.replace(
        ask,
        replicas=ask.replicas - len(usable),
        taken=frozenset(one.backend.persistent_id for one in usable),
        taken_racks=frozenset(one.backend.rack for one in usable),
    )
    return [
        (session.get_one(models.Backend, spot.backend_id), spot.pool)
        for spot in placing.choose(core, session, more)
    ]
