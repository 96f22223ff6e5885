# SPDX-License-Identifier: Apache-2.0
"""Taking over logical volumes that exist on nodes, and giving volumes up without deleting them.

Data that was not made here is never deleted: a volume that is being adopted, or released, is never
listed for removal. Both are finished forward, by a reconcile when a node could not be asked; only
when a node definitely refuses is the record taken back.
"""

from __future__ import annotations

import re
import uuid as uuidlib
from collections.abc import Callable
from typing import Any

from oslo_log import log
from sqlalchemy import select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.api.node import Node
from kumo_client.naming import GIB
from kumo_client.schemas import volume as wire
from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.node import Adoptable, Adoptables, AdoptSpec, ReleaseSpec
from kumo_provisioner import settling
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address, Call, Outcome
from kumo_provisioner.services import (
    building,
    capacity,
    caps,
    due,
    events,
    guards,
    placing,
    restored,
    tenants,
    view,
    volumes,
)
from kumo_provisioner.services.placing import Growth

LOG = log.getLogger(__name__)
# Kept for the name of a released volume; LVM allows 127 in all.
ALIAS_PART = 64


def _missing(text: str) -> errors.NotExistsError:
    return errors.NotExistsError(f"there is no backend {text}")


def _ask(node: Node) -> Adoptables:
    return node.adoptable()


# -- list ---------------------------------------------------------------------------------------


def list_adoptable(core: Core, backend_id: str | None = None) -> list[wire.AdoptableVolume]:
    """Logical volumes of the pools that are nobody's record, by node, pool and name.

    Without ``backend_id`` nodes that cannot be asked are left out, with a warning in the log.

    :raises NotExistsError: there is no such node.
    :raises BackendUnavailableError: that node, or every node, could not be asked.
    """
    query = select(models.Backend)
    if backend_id is not None:
        query = query.filter_by(persistent_id=backend_id.strip())
    with core.db.read() as session:
        rows = {row.persistent_id: row for row in session.scalars(query)}
    if backend_id is not None:
        if not rows:
            raise _missing(backend_id)
        for row in rows.values():
            building.need_available(row)
    calls = {uuid: (Address.of(row), _ask) for uuid, row in rows.items() if row.state == AVAILABLE}
    outcomes = core.nodes.call_all(calls)
    failed = [outcome.error for outcome in outcomes.values() if outcome.error is not None]
    if failed and len(failed) == len(outcomes):
        raise failed[0]
    for error in failed:
        LOG.warning("Adoptable volumes of one node are not known: %s", error)
    found = [
        _shown(rows[uuid], one)
        for uuid, outcome in outcomes.items()
        if outcome.value is not None
        for one in outcome.value.volumes
    ]
    return sorted(found, key=lambda one: (one.backend_name, one.backend_id, one.pool, one.name))


def _shown(backend: models.Backend, one: Adoptable) -> wire.AdoptableVolume:
    return wire.AdoptableVolume(
        backend_id=backend.persistent_id,
        backend_name=backend.name,
        pool=one.pool,
        name=one.name,
        bytes=one.bytes,
        reason=_refusal(one),
    )


def _refusal(one: Adoptable) -> str:
    """Why it cannot be adopted; empty when it can."""
    if one.in_use:
        return one.reason or "it is in use"
    return one.reason or ("" if one.bytes % GIB == 0 else "its size is not whole GiB")


# -- adopt --------------------------------------------------------------------------------------


def adopt(core: Core, tenant: str, request: wire.AdoptVolume) -> str:
    """Make a volume of one replica of a logical volume; gives its uuid.

    The data stays where it is. The volume is charged like one that is created.

    :raises InvalidInputError: more than one replica is asked for.
    :raises NotExistsError: there is no such node, pool or logical volume.
    :raises AlreadyExistsError: uuid or alias is taken.
    :raises InUseError: something on the node uses it.
    :raises ConflictError: it cannot be a volume, for instance because of its size.
    :raises NoSpaceError: it, or what is to be guaranteed, does not fit in its pool.
    :raises OverBudgetError: the tenant would use more than its budget.
    :raises BackendUnavailableError: the node could not be asked; when that was found out only after
        the beginning, a repetition with the same uuid, or a reconcile, finishes it.
    """
    if request.storage_class.num_replicas != 1:
        raise errors.InvalidInputError(
            "an adopted volume has one replica", way_out="copy its data into a replicated volume"
        )
    uuid = request.uuid or str(uuidlib.uuid4())
    with core.locks.hold(uuid):
        if not _begun(core, tenant, uuid, request):
            size = _examine(core, request)
            capacity.retried(
                core, lambda session: _intend(core, session, tenant, uuid, request, size)
            )
        finish_adoption(core, uuid)
    return uuid


def _begun(core: Core, tenant: str, uuid: str, request: wire.AdoptVolume) -> bool:
    """Whether this very adoption is recorded already.

    :raises AlreadyExistsError: another volume has the uuid.
    """
    with core.db.read() as session:
        row = session.get(models.Volume, uuid)
        if row is None or row.status == models.CREATING:
            return False
        same = (
            row.status == models.ADOPTING
            and (row.tenant_id, row.alias) == (tenant, request.alias)
            and row.wish.get(settling.ADOPT) == {"name": request.name, "pool": request.pool}
        )
    if not same:
        raise errors.AlreadyExistsError(f"volume {uuid} exists already", volume=uuid)
    return True


def _examine(core: Core, request: wire.AdoptVolume) -> int:
    """The size in bytes of a logical volume that can be adopted."""
    with core.db.read() as session:
        backend = session.get(models.Backend, request.backend_id)
    if backend is None:
        raise _missing(request.backend_id)
    building.need_available(backend)
    outcome = core.nodes.call((Address.of(backend), _ask))
    if outcome.value is None:
        raise outcome.error or errors.InternalError("a call gave neither a value nor an error")
    for one in outcome.value.volumes:
        if (one.name, one.pool) == (request.name, request.pool):
            reason = _refusal(one)
            if reason:
                kind = errors.InUseError if one.in_use else errors.ConflictError
                raise kind(
                    f"logical volume {one.name} cannot be adopted: {reason}",
                    node=request.backend_id,
                )
            return one.bytes
    raise errors.NotExistsError(
        f"node {backend.name or backend.persistent_id} has no logical volume {request.name} in "
        f"pool {request.pool} that could be adopted",
        node=request.backend_id,
        way_out="see the volumes that can be: 'kumo volume adoptable'",
    )


def _intend(
    core: Core,
    session: Session,
    tenant: str,
    uuid: str,
    request: wire.AdoptVolume,
    size: int,
) -> None:
    volumes.make_room(session, tenant, uuid, request.alias)
    gib = size // GIB
    row = models.Volume(
        uuid=uuid,
        tenant_id=tenant,
        alias=request.alias,
        status=models.ADOPTING,
        created=now_ms(),
        capacity=gib,
        wanted_capacity=gib,
        num_replicas=1,
        provisioning_type=models.THICK,
        unsettled=settling.ADOPT,
        storage_class=request.storage_class.wire(),
        wish={settling.ADOPT: {"name": request.name, "pool": request.pool}},
    )
    backend = session.get_one(models.Backend, request.backend_id)
    pool = next((one for one in backend.pools if one.name == request.pool), None)
    if pool is not None and pool.spans and not request.storage_class.allow_span:
        raise errors.ConflictError(
            f"pool {request.pool} lies on several disks", node=request.backend_id
        )
    ask = placing.ask_for(core, row, size=size)
    growth = Growth(backend, request.pool, ask.charge, ask.iops, ask.bw)
    placing.refuse_growth(session, [growth])
    placing.add_replica(session, row, backend.persistent_id, request.pool, size, ask)
    tenants.take(session, row)
    session.add(row)


def finish_adoption(core: Core, uuid: str) -> None:
    """Carry out an adoption that is recorded. The caller holds the lock of the volume.

    :raises KumoError: it has to be tried again later, or was refused and is forgotten.
    """
    with core.db.read() as session:
        row = session.get_one(models.Volume, uuid)
        if row.status != models.ADOPTING:
            return
        replica = row.replicas[0]
        spec = AdoptSpec(volume_id=uuid, **row.wish[settling.ADOPT])
        call: Call[Any] = (Address.of(replica.backend), _adopt_call(replica.uuid, spec))
    outcome = core.nodes.call(call)
    if outcome.error is None:
        core.db.run(lambda session: _adopted(session, uuid, spec.name))
        caps.apply_now_or_later(core, uuid)
        return
    if not guards.may_still_succeed(outcome):
        core.db.run(lambda session: _forget(session, uuid))
    raise building.first_error({uuid: outcome}) or outcome.error


def _adopt_call(uuid: str, spec: AdoptSpec) -> Callable[[Node], object]:
    def call(node: Node) -> object:
        return node.adopt_replica(uuid, spec)

    return call


def _adopted(session: Session, uuid: str, name: str) -> None:
    row = session.get_one(models.Volume, uuid)
    row.status = models.AVAILABLE
    row.wish = {}
    settling.drop(row, settling.ADOPT)
    if caps.capped(row):
        settling.add(row, settling.LIMITS)
    backend = row.replicas[0].backend
    events.record(
        session,
        "volume.adopted",
        f"logical volume {name} of {backend.name or backend.persistent_id} is volume {uuid}",
        tenant=row.tenant_id,
        volume=uuid,
        backend=backend.persistent_id,
        name=name,
    )


def _forget(session: Session, uuid: str) -> None:
    """Delete the rows of a volume whose data is not ours, and what it was charged with."""
    row = session.get_one(models.Volume, uuid)
    for replica in sorted(row.replicas, key=lambda one: one.backend_id):
        capacity.give_back(session, replica)
    tenants.give_back(session, row)
    session.delete(row)
    session.flush()


# -- unmanage -----------------------------------------------------------------------------------


def unmanage(core: Core, tenant: str, text: str) -> dict[str, str]:
    """Forget a volume and leave its data on its nodes; gives the name of the logical volume by
    node.

    What it occupies is no longer counted here: the pools have to be watched.

    :raises NotExistsError: there is no such volume.
    :raises InUseError: it is published or has snapshots.
    :raises BusyError: something on it is unfinished.
    :raises BackendUnavailableError: a node could not be asked; when that was found out only after
        the beginning, the volume is gone for users, and a reconcile, or a repetition, finishes it.
    :raises OutdatedRecordError: the database is an old copy that nobody has accepted.
    """
    uuid = view.normal_uuid(text)
    if uuid is None:
        raise volumes.missing(text)
    restored.refuse(core, f"volume {uuid} is not given up")
    with core.locks.hold(uuid):
        names = core.db.run(lambda session: _intend_release(session, tenant, uuid))
        finish_release(core, uuid)
    return names


def _intend_release(session: Session, tenant: str, uuid: str) -> dict[str, str]:
    row = session.get(models.Volume, uuid)
    if row is None or row.status != models.RELEASING or row.tenant_id != tenant:
        row = volumes.find(session, tenant, uuid)
        guards.unpublished(row)
        guards.no_snapshots(session, row)
        settling.refuse(row, settling.EXTEND, settling.REVERT, settling.REPLICAS)
        guards.no_migration(session, row)
        for replica in row.replicas:
            building.need_available(replica.backend)
        row.status, row.unsettled = models.RELEASING, settling.RELEASE
        row.wish = {
            settling.RELEASE: {one.uuid: _name(row.alias, one.uuid) for one in row.replicas}
        }
        row.generation += 1
    named: dict[str, str] = row.wish[settling.RELEASE]
    return {one.backend_id: named[one.uuid] for one in row.replicas}


def _name(alias: str, replica: str) -> str:
    """Name of a logical volume that tells what it was. See lvm(8) for what a name may have; an
    underscore could make it one of those that LVM keeps for itself."""
    plain = re.sub(r"[^A-Za-z0-9.+-]", "-", alias)[:ALIAS_PART]
    return f"unmanaged-{plain}-{replica}"


def finish_release(core: Core, uuid: str) -> None:
    """Carry out the release of a volume. The caller holds the lock of the volume.

    :raises KumoError: it has to be tried again later, or was refused by all nodes, and the volume
        is there as before.
    """
    with core.db.read() as session:
        row = session.get_one(models.Volume, uuid)
        if row.status != models.RELEASING:
            return
        names = row.wish[settling.RELEASE]
        calls: dict[str, Call[Any]] = {
            one.uuid: (Address.of(one.backend), _release_call(one.uuid, names[one.uuid]))
            for one in row.replicas
        }
    outcomes = core.nodes.call_all(calls)
    failed = building.first_error(outcomes)
    if failed is None:
        core.db.run(lambda session: _released(session, uuid, names))
        return
    if _all_refused(outcomes):
        core.db.run(lambda session: _keep(session, uuid))
    else:
        due.ask(core, [address.backend_id for address, _ in calls.values()])
    raise failed


def _all_refused(outcomes: dict[str, Outcome[Any]]) -> bool:
    return all(
        outcome.error is not None and not guards.may_still_succeed(outcome)
        for outcome in outcomes.values()
    )


def _release_call(uuid: str, name: str) -> Callable[[Node], object]:
    def call(node: Node) -> object:
        return node.release_replica(uuid, ReleaseSpec(name=name))

    return call


def _keep(session: Session, uuid: str) -> None:
    row = session.get_one(models.Volume, uuid)
    row.status, row.unsettled, row.wish = models.AVAILABLE, "", {}


def _released(session: Session, uuid: str, names: dict[str, str]) -> None:
    row = session.get_one(models.Volume, uuid)
    events.record(
        session,
        "volume.unmanaged",
        f"volume {uuid} ({row.alias}) is no longer managed; its data is in "
        f"{', '.join(names.values())}",
        tenant=row.tenant_id,
        volume=uuid,
        names={one.backend_id: names[one.uuid] for one in row.replicas},
    )
    _forget(session, uuid)
