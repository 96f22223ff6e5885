# SPDX-License-Identifier: Apache-2.0
"""Volumes: create, show, extend, delete."""

from __future__ import annotations

import uuid as uuidlib
from collections.abc import Iterator
from typing import Any, cast

from sqlalchemy import Table, bindparam, select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.interfaces import ORMOption

from kumo_client import errors, naming
from kumo_client.schemas import volume as wire
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Call
from kumo_provisioner.services import (
    building,
    capacity,
    events,
    extending,
    guards,
    paging,
    placing,
    removals,
    restored,
    tenants,
    view,
)

_VOLUMES = cast(Table, models.Volume.__table__)
_KNOWN = (
    select(_VOLUMES.c.uuid, _VOLUMES.c.status)
    .where(_VOLUMES.c.uuid == bindparam("known"))
    .union_all(
        select(_VOLUMES.c.uuid, _VOLUMES.c.status).where(
            _VOLUMES.c.tenant_id == bindparam("tenant"), _VOLUMES.c.alias == bindparam("alias")
        )
    )
)
_CREATED = (
    update(_VOLUMES)
    .where(_VOLUMES.c.uuid == bindparam("known"), _VOLUMES.c.status == models.CREATING)
    .values(status=models.AVAILABLE, generation=_VOLUMES.c.generation + 1)
)


def missing(text: str) -> errors.NotExistsError:
    return errors.NotExistsError(f"there is no volume {text}")


def find(session: Session, tenant: str, uuid: str, *also: ORMOption) -> models.Volume:
    """The row of an existing volume; one that is being made does not exist yet.

    :param also: what to read with it.
    :raises NotExistsError: when there is none.
    """
    row = session.get(models.Volume, uuid, options=also)
    if row is None or row.status != models.AVAILABLE or row.tenant_id != tenant:
        raise missing(uuid)
    return row


def list_all(core: Core, tenant: str, **where: str) -> list[wire.Volume]:
    """All volumes of a tenant, oldest first; ``where`` gives columns that must be equal."""
    query = (
        select(models.Volume)
        .options(*view.WHOLE_VOLUME)
        .filter_by(tenant_id=tenant, status=models.AVAILABLE, **where)
        .order_by(models.Volume.created, models.Volume.uuid)
    )
    with core.db.read() as session:
        return [view.volume(row) for row in session.scalars(query)]


def listed(
    core: Core, tenant: str, limit: int | None = None, after: str = ""
) -> Iterator[list[wire.Volume]]:
    """Volumes of a tenant in chunks: all, or one page (see :mod:`.paging`)."""
    if limit is None:
        return paging.everything(core, models.Volume, view.volume, view.WHOLE_VOLUME, tenant=tenant)
    return paging.page(
        core,
        models.Volume,
        view.volume,
        view.WHOLE_VOLUME,
        tenant=tenant,
        limit=limit,
        after=after,
    )


def get(core: Core, tenant: str, uuid: str) -> list[wire.Volume]:
    """One volume, as a list of length 1.

    :raises NotExistsError: when there is none.
    """
    found = list_all(core, tenant, uuid=view.normal_uuid(uuid) or "")
    if not found:
        raise missing(uuid)
    return found


def by_alias(core: Core, tenant: str, alias: str) -> list[wire.Volume]:
    """The volume of that alias, as a list of length 1.

    :raises NotExistsError: when there is none.
    """
    found = list_all(core, tenant, alias=alias.strip())
    if not found:
        raise errors.NotExistsError(f"there is no volume with alias {alias}")
    return found


def create(core: Core, tenant: str, request: wire.VolumeCreate) -> str:
    """Create a volume on the nodes that placement chooses; gives its uuid.

    :raises AlreadyExistsError: when the uuid or the alias is taken.
    :raises NoSpaceError: when no set of nodes can take it, with the reason of each node.
    :raises BackendUnavailableError: when a chosen node could not be asked; nothing is left of it.
    """
    uuid = request.uuid or str(uuidlib.uuid4())
    with core.locks.hold(uuid):
        volume, calls = capacity.retried(
            core, lambda session: _intend(core, session, tenant, uuid, request)
        )
        finish(core, volume, calls)
    return uuid


def plan(core: Core, tenant: str, request: wire.VolumeCreate) -> wire.PlacementAnswer:
    """Where a volume would go, and why. Nothing is recorded.

    :raises AlreadyExistsError: when the uuid or the alias is taken.
    :raises OverBudgetError: when the budget of its tenant has not that much left.
    """
    volume = _row(tenant, request.uuid or str(uuidlib.uuid4()), request)
    with core.db.read() as session:
        _refuse_known(session, tenant, volume.uuid, volume.alias)
        tenants.refuse(session, volume)
        ask = placing.ask_for(core, volume)
        found = placing.verdicts(core, session, ask)
        answer = wire.PlacementAnswer(nodes=[view.verdict(one) for one in found])
        try:
            placing.choose(core, session, ask)
        except errors.NoSpaceError as exc:
            answer.status, answer.description = exc.code, exc.description
    return answer


def _intend(
    core: Core, session: Session, tenant: str, uuid: str, request: wire.VolumeCreate
) -> tuple[models.Volume, dict[str, Call[Any]]]:
    make_room(session, tenant, uuid, request.alias)
    volume = _row(tenant, uuid, request)
    calls = _place(core, session, volume, request.storage_class)
    placing.record(session, volume)
    tenants.take(session, volume)
    return volume, calls


def make_room(session: Session, tenant: str, uuid: str, alias: str) -> None:
    """Make sure that uuid and alias are free.

    The caller holds the lock of the uuid, so a row of it that is still ``creating`` was left by
    a process that died, and is retired here.

    :raises AlreadyExistsError: when they are not.
    """
    if _refuse_known(session, tenant, uuid, alias):
        removals.retire_volume(session, session.get_one(models.Volume, uuid))


def _refuse_known(session: Session, tenant: str, uuid: str, alias: str) -> bool:
    """:returns: whether there is a row of the uuid that is still ``creating``."""
    values = {"known": uuid, "tenant": tenant, "alias": alias}
    found = dict(iter(session.connection().execute(_KNOWN, values)))
    if found.get(uuid, models.CREATING) != models.CREATING:
        raise errors.AlreadyExistsError(f"volume {uuid} exists already", volume=uuid)
    for taken in found.keys() - {uuid}:
        raise errors.AlreadyExistsError(f"the alias {alias} is that of volume {taken}")
    return uuid in found


def _row(tenant: str, uuid: str, request: wire.VolumeCreate) -> models.Volume:
    return models.Volume(
        uuid=uuid,
        tenant_id=tenant,
        alias=request.alias,
        status=models.CREATING,
        created=now_ms(),
        capacity=request.capacity,
        wanted_capacity=request.capacity,
        num_replicas=request.storage_class.num_replicas,
        provisioning_type=request.provisioning_type,
        reserved_space_percentage=request.reserved_space_percentage,
        protocol=request.protocol,
        writable=request.writable,
        storage_class=request.storage_class.wire(),
    )


def _place(
    core: Core, session: Session, volume: models.Volume, asked: wire.StorageClass
) -> dict[str, Call[Any]]:
    size = naming.replica_bytes(volume.capacity, volume.num_replicas)
    ask = placing.ask_for(core, volume, size=size, asked=asked)
    calls = {}
    spots = placing.choose(core, session, ask)
    for spot in sorted(spots):
        replica = placing.add_replica(session, volume, spot.backend_id, spot.pool, size, ask)
        replica.position = spots.index(spot)
        spec = placing.replica_spec(volume, replica, asked=asked)
        calls[replica.uuid] = building.put_replica(placing.address(spot), replica.uuid, spec)
    return calls


def finish(core: Core, volume: models.Volume, calls: dict[str, Call[Any]]) -> None:
    """Make the replicas of a committed row, or undo it.

    :raises KumoError: when it had to be undone.
    """
    building.build(
        core,
        calls,
        commit=lambda: _commit(core, volume),
        retire=building.retire_volume(volume.uuid),
        name=f"volume {volume.uuid} ({volume.alias})",
    )


def _commit(core: Core, volume: models.Volume) -> None:
    with core.db.write() as session:
        if not session.connection().execute(_CREATED, {"known": volume.uuid}).rowcount:
            raise errors.InternalError(
                f"volume {volume.uuid} is not being made any more",
                volume=volume.uuid,
                way_out="create it again; what was made of it is removed",
            )
        events.record(
            session,
            "volume.created",
            f"volume {volume.alias} of {volume.capacity} GiB was created",
            volume=volume.uuid,
            tenant=volume.tenant_id,
        )


def extend(core: Core, tenant: str, text: str, gib: int) -> None:
    """Extend all replicas of a volume.

    :raises InvalidInputError: when it would become smaller.
    :raises NoSpaceError: when a node has no room.
    :raises BackendUnavailableError: when a node could not be asked; the extension is then
        finished by a reconcile, and the volume keeps its old size until all replicas have grown.
    """
    uuid = view.normal_uuid(text)
    if uuid is None:
        raise missing(text)
    with core.locks.hold(uuid):
        capacity.retried(
            core,
            lambda session: extending.intend(core, session, find(session, tenant, uuid), gib),
        )
        extending.finish(core, uuid)


def delete(core: Core, tenant: str, text: str) -> None:
    """Delete a volume.

    It is gone for users as soon as this is recorded. A node that cannot be asked removes its
    replica when it is back; until then the replica keeps its space.

    :raises NotExistsError: when there is none.
    :raises InUseError: while it is published or has snapshots.
    :raises OutdatedRecordError: the database is an old copy that nobody has accepted.
    """
    uuid = view.normal_uuid(text)
    if uuid is None:
        raise missing(text)
    restored.refuse(core, f"volume {uuid} is not deleted")
    with core.locks.hold(uuid):
        with core.db.write() as session:
            row = find(session, tenant, uuid)
            guards.unpublished(row)
            guards.no_snapshots(session, row)
            parts = removals.retire_volume(session, row)
            events.record(
                session,
                "volume.deleted",
                f"volume {row.alias} was deleted",
                volume=uuid,
                tenant=tenant,
            )
        removals.carry_out(core, parts)
