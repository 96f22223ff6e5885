# SPDX-License-Identifier: Apache-2.0
"""Snapshots, and volumes made from a snapshot or from another volume.

A snapshot has one part on the node of each leg that was in sync (:mod:`.capture`). When nobody
wrote while they were taken, or the agent of the host held the writes (:mod:`.holding`), the parts
are alike and the snapshot is coherent: a volume made from it is complete on all of them. Otherwise
it has one part, and the other legs of such a volume are filled by its host (:mod:`.copies`).
"""

from __future__ import annotations

import uuid as uuidlib
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from kumo_client import errors
from kumo_client.schemas import snapshot as wire
from kumo_client.schemas.node import SnapshotSpec
from kumo_client.schemas.volume import CloneCreate
from kumo_provisioner import settling
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Call
from kumo_provisioner.services import (
    building,
    capacity,
    capture,
    copies,
    events,
    holding,
    paging,
    placing,
    removals,
    restored,
    view,
    volumes,
)
from kumo_provisioner.services.placing import Growth


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


def listed(
    core: Core, tenant: str, limit: int | None = None, after: str = ""
) -> Iterator[list[wire.Snapshot]]:
    """Snapshots of a tenant in chunks: all, or one page (see :mod:`.paging`)."""
    parts = [selectinload(models.Snapshot.parts)]
    if limit is None:
        return paging.everything(core, models.Snapshot, view.snapshot, parts, tenant=tenant)
    return paging.page(
        core, models.Snapshot, view.snapshot, parts, tenant=tenant, limit=limit, after=after
    )


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


def create(core: Core, tenant: str, request: wire.SnapshotCreate) -> str:
    """Take a snapshot of a volume; gives its uuid.

    :raises NotExistsError: when there is no such volume.
    :raises AlreadyExistsError: when uuid or alias is taken.
    :raises BusyError: while an extension or a revert of the volume is unfinished.
    :raises StaleError: when no leg of the volume is in sync.
    :raises NoSpaceError: when a node has no room for its part.
    :raises BackendUnavailableError: when a node could not be asked; nothing is left of it.
    """
    uuid = request.snapshot_id or str(uuidlib.uuid4())
    restored.hear(core)
    with core.locks.hold(uuid, request.volume_id):
        calls, task = capacity.retried(
            core, lambda session: _intend(core, session, tenant, uuid, request)
        )
        if task:
            _take_held(core, uuid, calls, task)
        else:
            building.build(
                core,
                calls,
                commit=lambda: _commit(core, uuid),
                retire=building.retire_snapshot(uuid),
                name=f"snapshot {uuid} of volume {request.volume_id}",
            )
    return uuid


def _intend(
    core: Core, session: Session, tenant: str, uuid: str, request: wire.SnapshotCreate
) -> tuple[dict[str, Call[Any]], str]:
    """Record a snapshot; gives the calls that make its parts, and the task that holds writes."""
    volume = volumes.find(session, tenant, request.volume_id)
    restored.refuse_capture(core, volume)
    _make_room(session, tenant, uuid, request.alias)
    captured = capture.plan(volume)
    row = _row(tenant, uuid, request, volume)
    legs = captured.legs if captured.alike or captured.host else captured.legs[:1]
    calls = _add_parts(core, session, row, legs)
    if not captured.alike:
        row.coherent, row.source_replica = False, captured.source.uuid
    if captured.host is None:
        return calls, ""
    return calls, holding.ask(core, session, volume, captured.host, uuid, legs)


def _make_room(session: Session, tenant: str, uuid: str, alias: str) -> None:
    row = session.get(models.Snapshot, uuid)
    if row is not None and row.status == models.CREATING:
        removals.retire_snapshot(session, row)
    elif row is not None:
        raise errors.AlreadyExistsError(f"snapshot {uuid} exists already")
    taken = session.scalar(select(models.Snapshot.uuid).filter_by(tenant_id=tenant, alias=alias))
    if taken is not None:
        raise errors.AlreadyExistsError(f"the alias {alias} is that of snapshot {taken}")


def _row(
    tenant: str, uuid: str, request: wire.SnapshotCreate, volume: models.Volume
) -> models.Snapshot:
    return models.Snapshot(
        uuid=uuid,
        tenant_id=tenant,
        alias=request.alias,
        volume_id=volume.uuid,
        status=models.CREATING,
        created=now_ms(),
        capacity=volume.capacity,
        reserved_space_percentage=request.reserved_space_percentage,
        array_state=volume.array_state,
    )


def _add_parts(
    core: Core, session: Session, row: models.Snapshot, legs: Sequence[models.Replica]
) -> dict[str, Call[Any]]:
    calls = {}
    for position, leg in enumerate(legs):
        part = models.SnapshotPart(
            uuid=str(uuidlib.uuid4()),
            replica_id=leg.uuid,
            backend_id=leg.backend_id,
            pool=leg.pool,
            position=position,
            bytes=leg.bytes,
            reserved_bytes=capacity.snapshot_charge(
                core.conf, leg.reserved_bytes, row.reserved_space_percentage
            ),
        )
        placing.refuse_growth(session, [Growth(leg.backend, leg.pool, part.reserved_bytes)])
        row.parts.append(part)
        spec = SnapshotSpec(replica=leg.uuid, snapshot_id=row.uuid)
        calls[part.uuid] = building.put_snapshot(leg.backend, part.uuid, spec)
    capacity.take_all(session, row.parts)
    session.add(row)
    return calls


def _take_held(core: Core, uuid: str, calls: dict[str, Call[Any]], task: str) -> None:
    """Take the parts while an agent holds the writes; without its word keep that of one leg.

    :raises KumoError: when no part could be taken; nothing is left of the snapshot then.
    """
    held = holding.wait_held(core, task)
    outcomes = core.nodes.call_all(calls if held else dict(list(calls.items())[:1]))
    taken = [part for part, outcome in outcomes.items() if outcome.error is None]
    coherent = held and len(taken) == len(calls) and holding.confirm(core, task)
    if not coherent:
        holding.end(core, task, "the snapshot is made of one replica")
    failed = building.first_error(outcomes)
    if failed is not None and not taken:
        with core.db.write() as session:
            parts = building.retire_snapshot(uuid)(session)
        removals.carry_out(core, parts)
        raise failed
    dropped = _commit(core, uuid, taken if coherent else taken[:1], coherent=coherent)
    removals.carry_out(core, dropped)


def _commit(
    core: Core, uuid: str, keep: Sequence[str] | None = None, *, coherent: bool | None = None
) -> list[str]:
    """Record that a snapshot is there.

    :param keep: the parts that it consists of; None for all.
    :param coherent: whether these are alike; None for what the row says.
    :returns: uuids of the parts that go.
    """

    def commit(session: Session) -> list[str]:
        row = session.get_one(models.Snapshot, uuid)
        gone = [part for part in row.parts if keep is not None and part.uuid not in keep]
        dropped = [removals.retire_part(session, part) for part in gone]
        if coherent is not None:
            row.coherent = coherent
            row.source_replica = "" if coherent else row.parts[0].replica_id
        row.status = models.AVAILABLE
        events.record(
            session,
            "snapshot.created",
            f"snapshot {uuid} of volume {row.volume_id}"
            + ("" if row.coherent else f" from replica {row.source_replica}"),
            tenant=row.tenant_id,
            volume=row.volume_id,
            snapshot=uuid,
            coherent=row.coherent,
        )
        return dropped

    return core.db.run(commit)


def delete(core: Core, tenant: str, text: str) -> None:
    """Delete a snapshot. Volumes made from it do not depend on it.

    :raises NotExistsError: when there is none.
    :raises BusyError: while a revert of its volume is unfinished.
    :raises OutdatedRecordError: the database is an old copy that nobody has accepted.
    """
    uuid = view.normal_uuid(text)
    if uuid is None:
        raise missing(text)
    restored.refuse(core, f"snapshot {uuid} is not deleted")
    with core.locks.hold(uuid):
        with core.db.write() as session:
            rows = _rows(session, tenant, uuid=uuid)
            if not rows:
                raise missing(text)
            settling.refuse(rows[0].volume, settling.REVERT)
            events.record(
                session,
                "snapshot.deleted",
                f"snapshot {rows[0].alias} was deleted",
                volume=rows[0].volume_id,
                tenant=tenant,
                snapshot=uuid,
            )
            parts = removals.retire_snapshot(session, rows[0])
        removals.carry_out(core, parts)


def sources(snapshot: models.Snapshot) -> list[models.SnapshotPart]:
    """The parts that are a source of data: all of a coherent snapshot, one of any other."""
    parts = list(snapshot.parts)
    if snapshot.coherent:
        return parts
    return [part for part in parts if part.replica_id == snapshot.source_replica]


def create_volume(core: Core, tenant: str, request: wire.SnapshotVolumeCreate) -> str:
    """Make a volume from a snapshot; gives its uuid.

    :raises NotExistsError: when there is no such snapshot.
    :raises AlreadyExistsError: when uuid or alias is taken.
    :raises InvalidInputError: when it would be smaller than the snapshot.
    :raises NoSpaceError: when no node of the snapshot has room, or there is none for another leg.
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
    row = copies.row_like(snapshot.volume, uuid, request.alias)
    row.capacity = row.wanted_capacity = _larger(request.capacity, snapshot.capacity)
    row.snapshot_id = snapshot.uuid
    row.writable = request.writable
    row.reserved_space_percentage = request.reserved_space_percentage
    row.protocol = request.protocol
    row.storage_class = row.storage_class | _caps(request)
    row.array_state = capture.inherited(snapshot.array_state)
    return row, copies.place(core, session, row, copies.of_parts(sources(snapshot)))


def _caps(request: wire.SnapshotVolumeCreate) -> dict[str, Any]:
    caps = {"maxIOPSPerGB": request.max_iops_per_gb, "maxBWPerGB": request.max_bw_per_gb}
    return {key: value for key, value in caps.items() if value is not None}


def clone(core: Core, tenant: str, request: CloneCreate) -> str:
    """Make a volume from another one, attached or not; gives its uuid.

    The clone of a replicated volume that a host may be writing to has one leg that is complete.

    :raises NotExistsError: when there is no such volume.
    :raises AlreadyExistsError: when uuid or alias is taken.
    :raises InvalidInputError: when it would be smaller than its source.
    :raises BusyError: while an extension or a revert of the source is unfinished.
    :raises StaleError: when no leg of the source is in sync.
    """
    uuid = request.volume_id or str(uuidlib.uuid4())
    if uuid == request.source_volume_id:
        raise errors.AlreadyExistsError(f"volume {uuid} cannot be a clone of itself", volume=uuid)
    restored.hear(core)
    with core.locks.hold(uuid, request.source_volume_id):
        row, calls = capacity.retried(
            core, lambda session: _intend_clone(core, session, tenant, uuid, request)
        )
        volumes.finish(core, row, calls)
    return uuid


def _intend_clone(
    core: Core, session: Session, tenant: str, uuid: str, request: CloneCreate
) -> tuple[models.Volume, dict[str, Call[Any]]]:
    origin = volumes.find(session, tenant, request.source_volume_id)
    restored.refuse_capture(core, origin)
    captured = capture.plan(origin)
    row = copies.row_like(origin, uuid, request.alias)
    row.capacity = row.wanted_capacity = _larger(request.capacity, origin.capacity)
    row.source_volume_id = origin.uuid
    row.reserved_space_percentage = request.reserved_space_percentage
    row.array_state = capture.inherited(origin.array_state)
    legs = captured.legs if captured.alike else [captured.source]
    return row, copies.place(core, session, row, copies.of_replicas(legs))


def _larger(wanted: int | None, source: int) -> int:
    if wanted is not None and wanted < source:
        raise errors.InvalidInputError(
            f"the source has {source} GiB, the new volume cannot have {wanted} GiB"
        )
    return wanted or source
