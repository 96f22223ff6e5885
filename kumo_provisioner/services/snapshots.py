# SPDX-License-Identifier: Apache-2.0
"""Snapshots, and volumes made from a snapshot or from another volume.

A snapshot has one part on the node of each replica. The legs of a replicated volume are alike only
while nobody writes, so such a volume must not be published. The volume made from it lives on the
same nodes, each replica a copy-on-write image of the part there.
"""

from __future__ import annotations

import uuid as uuidlib
from typing import Any, NamedTuple

from oslo_log import log
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from kumo_client import errors, naming
from kumo_client.schemas import snapshot as wire
from kumo_client.schemas.node import ArrayIdentity, ReplicaSource, SnapshotSpec
from kumo_client.schemas.volume import REPLICA_AVAILABLE, CloneCreate
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Call
from kumo_provisioner.services import building, capacity, placing, removals, view, volumes
from kumo_provisioner.services.placing import Growth

LOG = log.getLogger(__name__)


class Source(NamedTuple):
    """What a replica of a copy is made from: ``size`` bytes on a pool of a node."""

    backend: models.Backend
    pool: str
    size: int
    origin: ReplicaSource


def missing(text: str) -> errors.NotExistsError:
    return errors.NotExistsError(f"there is no snapshot {text}")


def _rows(session: Session, tenant: str, **where: str) -> list[models.Snapshot]:
    query = (
        select(models.Snapshot)
        .options(selectinload(models.Snapshot.parts))
        .filter_by(tenant_id=tenant, status=models.AVAILABLE, **where)
        .order_by(models.Snapshot.created, models.Snapshot.uuid)
    )
    return list(session.scalars(query))


def list_all(core: Core, tenant: str, **where: str) -> list[wire.Snapshot]:
    """All snapshots of a tenant, oldest first; ``where`` gives columns that must be equal."""
    with core.db.read() as session:
        return [view.snapshot(row) for row in _rows(session, tenant, **where)]


def get(core: Core, tenant: str, uuid: str) -> list[wire.Snapshot]:
    """One snapshot, as a list of length 1.

    :raises NotExistsError: when there is none.
    """
    found = list_all(core, tenant, uuid=view.normal_uuid(uuid) or "")
    if not found:
        raise missing(uuid)
    return found


def by_alias(core: Core, tenant: str, alias: str) -> list[wire.Snapshot]:
    """The snapshot of that alias, as a list of length 1.

    :raises NotExistsError: when there is none.
    """
    found = list_all(core, tenant, alias=alias.strip())
    if not found:
        raise errors.NotExistsError(f"there is no snapshot with alias {alias}")
    return found


def of_volume(core: Core, tenant: str, uuid: str) -> list[wire.Snapshot]:
    """The snapshots of a volume; none is an empty list.

    :raises NotExistsError: when there is no such volume.
    """
    volumes.get(core, tenant, uuid)
    return list_all(core, tenant, volume_id=view.normal_uuid(uuid) or "")


def _refuse_incoherent(volume: models.Volume) -> None:
    """Refuse a source whose legs may differ in size or content."""
    if volume.wanted_capacity != volume.capacity:
        raise errors.BusyError(
            f"an extension of volume {volume.uuid} to {volume.wanted_capacity} GiB is under way",
            volume=volume.uuid,
            way_out="repeat the call later",
        )
    if not volume.replicated:
        return
    hosts = sorted(one.host_id for one in volume.publications)
    if hosts:
        raise errors.NotCoherentError(
            f"the legs of volume {volume.uuid} cannot be captured at one moment while it is "
            f"published to {', '.join(hosts[:4])}",
            volume=volume.uuid,
            way_out="detach the volume first",
        )
    for replica in volume.replicas:
        if replica.state != REPLICA_AVAILABLE:
            raise errors.NotCoherentError(
                f"replica {replica.uuid} of volume {volume.uuid} is {replica.state}",
                volume=volume.uuid,
                node=replica.backend_id,
                way_out="let the volume heal first",
            )


def create(core: Core, tenant: str, request: wire.SnapshotCreate) -> str:
    """Take a snapshot of a volume; gives its uuid.

    :raises NotExistsError: when there is no such volume.
    :raises AlreadyExistsError: when uuid or alias is taken.
    :raises NotCoherentError: when the volume is replicated and published.
    :raises BusyError: while an extension of the volume is unfinished.
    :raises BackendUnavailableError: when a node could not be asked; nothing is left of it.
    """
    uuid = request.snapshot_id or str(uuidlib.uuid4())
    with core.locks.hold(uuid, request.volume_id):
        calls = capacity.retried(
            core, lambda session: _intend(core, session, tenant, uuid, request)
        )
        building.build(
            core,
            calls,
            commit=lambda: building.commit_row(core, models.Snapshot, uuid),
            retire=building.retire_snapshot(uuid),
            name=f"snapshot {uuid} of volume {request.volume_id}",
        )
    return uuid


def _intend(
    core: Core, session: Session, tenant: str, uuid: str, request: wire.SnapshotCreate
) -> dict[str, Call[Any]]:
    volume = volumes.find(session, tenant, request.volume_id)
    _make_room(session, tenant, uuid, request.alias)
    _refuse_incoherent(volume)
    row = _row(tenant, uuid, request, volume.capacity)
    return _parts(core, session, row, volume)


def _make_room(session: Session, tenant: str, uuid: str, alias: str) -> None:
    row = session.get(models.Snapshot, uuid)
    if row is not None and row.status == models.CREATING:
        removals.retire_snapshot(session, row)
    elif row is not None:
        raise errors.AlreadyExistsError(f"snapshot {uuid} exists already")
    taken = session.scalar(select(models.Snapshot.uuid).filter_by(tenant_id=tenant, alias=alias))
    if taken is not None:
        raise errors.AlreadyExistsError(f"the alias {alias} is that of snapshot {taken}")


def _row(tenant: str, uuid: str, request: wire.SnapshotCreate, gib: int) -> models.Snapshot:
    return models.Snapshot(
        uuid=uuid,
        tenant_id=tenant,
        alias=request.alias,
        volume_id=request.volume_id,
        status=models.CREATING,
        created=now_ms(),
        capacity=gib,
        reserved_space_percentage=request.reserved_space_percentage,
    )


def _parts(
    core: Core, session: Session, row: models.Snapshot, volume: models.Volume
) -> dict[str, Call[Any]]:
    charges = {
        replica.uuid: capacity.snapshot_charge(
            core.conf, replica.reserved_bytes, row.reserved_space_percentage
        )
        for replica in volume.replicas
    }
    placing.refuse_growth(
        session, [Growth(one.backend, one.pool, charges[one.uuid]) for one in volume.replicas]
    )
    calls = {}
    for position, replica in enumerate(volume.replicas):
        part = models.SnapshotPart(
            uuid=str(uuidlib.uuid4()),
            replica_id=replica.uuid,
            backend_id=replica.backend_id,
            pool=replica.pool,
            position=position,
            bytes=replica.bytes,
            reserved_bytes=charges[replica.uuid],
        )
        row.parts.append(part)
        spec = SnapshotSpec(replica=replica.uuid, snapshot_id=row.uuid)
        calls[part.uuid] = building.put_snapshot(replica.backend, part.uuid, spec)
    capacity.take_all(session, row.parts)
    session.add(row)
    return calls


def delete(core: Core, tenant: str, text: str) -> None:
    """Delete a snapshot. Volumes made from it do not depend on it.

    :raises NotExistsError: when there is none.
    """
    uuid = view.normal_uuid(text)
    if uuid is None:
        raise missing(text)
    with core.locks.hold(uuid):
        with core.db.write() as session:
            rows = _rows(session, tenant, uuid=uuid)
            if not rows:
                raise missing(text)
            parts = removals.retire_snapshot(session, rows[0])
        LOG.info("Deleted snapshot %s", uuid)
        removals.carry_out(core, parts)


def create_volume(core: Core, tenant: str, request: wire.SnapshotVolumeCreate) -> str:
    """Make a volume from a snapshot; gives its uuid.

    :raises NotExistsError: when there is no such snapshot.
    :raises AlreadyExistsError: when uuid or alias is taken.
    :raises InvalidInputError: when it would be smaller than the snapshot.
    :raises NoSpaceError: when a node of the snapshot has no room.
    """
    uuid = request.volume_id or str(uuidlib.uuid4())
    with core.locks.hold(uuid, request.snapshot_id):
        row, calls = capacity.retried(
            core, lambda session: _intend_volume(core, session, tenant, uuid, request)
        )
        volumes.finish(core, row, calls)
    return uuid


def _intend_volume(
    core: Core, session: Session, tenant: str, uuid: str, request: wire.SnapshotVolumeCreate
) -> tuple[models.Volume, dict[str, Call[Any]]]:
    found = _rows(session, tenant, uuid=request.snapshot_id)
    if not found:
        raise missing(request.snapshot_id)
    snapshot = found[0]
    row = _copy_row(snapshot.volume, uuid, request.alias)
    row.capacity = row.wanted_capacity = _larger(request.capacity, snapshot.capacity)
    row.snapshot_id = snapshot.uuid
    row.writable = request.writable
    row.reserved_space_percentage = request.reserved_space_percentage
    row.protocol = request.protocol
    row.storage_class = row.storage_class | _caps(request)
    sources = [
        Source(part.backend, part.pool, part.bytes, ReplicaSource(snapshot=part.uuid))
        for part in snapshot.parts
    ]
    return row, _copy(core, session, row, sources)


def _caps(request: wire.SnapshotVolumeCreate) -> dict[str, Any]:
    caps = {"maxIOPSPerGB": request.max_iops_per_gb, "maxBWPerGB": request.max_bw_per_gb}
    return {key: value for key, value in caps.items() if value is not None}


def clone(core: Core, tenant: str, request: CloneCreate) -> str:
    """Make a volume from another one; gives its uuid.

    :raises NotExistsError: when there is no such volume.
    :raises AlreadyExistsError: when uuid or alias is taken.
    :raises InvalidInputError: when it would be smaller than its source.
    :raises NotCoherentError: when the source is replicated and published.
    :raises BusyError: while an extension of the source is unfinished.
    """
    uuid = request.volume_id or str(uuidlib.uuid4())
    if uuid == request.source_volume_id:
        raise errors.AlreadyExistsError(f"volume {uuid} cannot be a clone of itself", volume=uuid)
    with core.locks.hold(uuid, request.source_volume_id):
        row, calls = capacity.retried(
            core, lambda session: _intend_clone(core, session, tenant, uuid, request)
        )
        volumes.finish(core, row, calls)
    return uuid


def _intend_clone(
    core: Core, session: Session, tenant: str, uuid: str, request: CloneCreate
) -> tuple[models.Volume, dict[str, Call[Any]]]:
    source = volumes.find(session, tenant, request.source_volume_id)
    _refuse_incoherent(source)
    row = _copy_row(source, uuid, request.alias)
    row.capacity = row.wanted_capacity = _larger(request.capacity, source.capacity)
    row.source_volume_id = source.uuid
    row.reserved_space_percentage = request.reserved_space_percentage
    sources = [
        Source(one.backend, one.pool, one.bytes, ReplicaSource(replica=one.uuid))
        for one in source.replicas
    ]
    return row, _copy(core, session, row, sources)


def _larger(wanted: int | None, source: int) -> int:
    if wanted is not None and wanted < source:
        raise errors.InvalidInputError(
            f"the source has {source} GiB, the new volume cannot have {wanted} GiB"
        )
    return wanted or source


def _copy_row(source: models.Volume, uuid: str, alias: str) -> models.Volume:
    """A row like that of ``source``."""
    return models.Volume(
        uuid=uuid,
        tenant_id=source.tenant_id,
        alias=alias,
        status=models.CREATING,
        created=now_ms(),
        capacity=source.capacity,
        wanted_capacity=source.capacity,
        num_replicas=source.num_replicas,
        provisioning_type=source.provisioning_type,
        reserved_space_percentage=0,
        protocol=source.protocol,
        writable=True,
        storage_class=dict(source.storage_class),
    )


def _copy(
    core: Core,
    session: Session,
    row: models.Volume,
    sources: list[Source],
) -> dict[str, Call[Any]]:
    """Add the rows of a copy whose replicas are on the pools of their sources."""
    volumes.make_room(session, row.tenant_id, row.uuid, row.alias)
    wanted = naming.replica_bytes(row.capacity, row.num_replicas)
    array = None
    if row.replicated:
        array = ArrayIdentity(uuid=row.uuid, name=naming.array_name(row.alias))
    # A leg may have grown in an extension that was given up; a copy is never smaller, and the legs
    # of an array are alike.
    size = max(wanted, *(source.size for source in sources))
    ask = placing.ask_for(core, row, size=size)
    placing.refuse_growth(
        session, [Growth(one.backend, one.pool, ask.charge, ask.iops, ask.bw) for one in sources]
    )
    calls = {}
    for position, source in sorted(
        enumerate(sources), key=lambda one: one[1].backend.persistent_id
    ):
        backend_id = source.backend.persistent_id
        replica = placing.add_replica(session, row, backend_id, source.pool, size, ask)
        replica.position = position
        spec = placing.replica_spec(row, replica, source=source.origin, array=array)
        calls[replica.uuid] = building.put_replica(source.backend, replica.uuid, spec)
    session.add(row)
    return calls
