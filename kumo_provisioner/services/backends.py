# SPDX-License-Identifier: Apache-2.0
"""Storage nodes: register, show, change, forget."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from kumo_client import errors
from kumo_client.schemas import backend as wire
from kumo_client.schemas.node import NodeInfo
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address
from kumo_provisioner.services import capacity, events, reports, view
from kumo_provisioner.services.probing import ask_info
from kumo_provisioner.services.probing import probe as probe

LOCATION_MAX = 255


def missing(text: str) -> errors.NotExistsError:
    return errors.NotExistsError(f"there is no backend {text}")


def list_all(core: Core, persistent_id: str | None = None) -> list[wire.Backend]:
    """All backends, or one as a list of length 1.

    :raises NotExistsError: when there is no backend of that id.
    """
    query = (
        select(models.Backend)
        .options(selectinload(models.Backend.pools))
        .order_by(models.Backend.name, models.Backend.persistent_id)
    )
    if persistent_id is not None:
        query = query.filter_by(persistent_id=persistent_id)
    interval = core.conf.reconcile.probe_interval
    with core.db.read() as session:
        found = [view.backend(row, interval) for row in session.scalars(query)]
    if persistent_id is not None and not found:
        raise missing(persistent_id)
    return found


def _check_location(**values: str | None) -> None:
    for name, value in values.items():
        if value is not None and len(value) > LOCATION_MAX:
            raise errors.InvalidLocationValueError(
                f"{name} has more than {LOCATION_MAX} characters"
            )


def add(core: Core, request: wire.BackendCreate) -> wire.Backend:
    """Register a storage node. Its id, capacity and portals come from the node.

    :raises AlreadyExistsError: when a backend of that id or address is registered.
    :raises NoGroupsError: when the node has no pool.
    :raises NotAvailableError: when it gave no id, or is not a node we understand.
    :raises BackendUnavailableError: when it does not answer.
    """
    _check_location(rack=request.rack, zone=request.zone, region=request.region)
    ips = list(dict.fromkeys(request.mgmt_ips))
    with core.db.read() as session:
        _refuse_known(session, ips, request.mgmt_port)
    address = Address("", tuple(ips), request.mgmt_port)
    outcome = core.nodes.call((address, ask_info))
    if outcome.error is not None:
        raise outcome.error
    info = outcome.value
    assert info is not None  # noqa: S101 - no error means a value
    _check_info(info, address)

    def write(session: Session) -> str:
        _refuse_known(session, ips, request.mgmt_port, info.persistent_id)
        row = models.Backend(
            persistent_id=info.persistent_id,
            mgmt_ips=ips,
            mgmt_port=request.mgmt_port,
            rack=request.rack,
            zone=request.zone,
            region=request.region,
            host_id=request.host_id,
            state=wire.AVAILABLE,
            last_probe=now_ms(),
            seen_generation=info.generation,
            portals=[],
            problems=[],
            abilities=[],
        )
        session.add(row)
        session.flush()
        reports.take_over(session, row, info)
        message = f"backend {row.persistent_id} ({row.name}) was added"
        events.record(session, "backend.added", message, backend=row.persistent_id)
        # What has yet to go from it was recorded before it was removed.
        capacity.recount(session, row.persistent_id)
        return row.persistent_id

    persistent_id = core.db.run(write)
    core.wake.set()
    return list_all(core, persistent_id)[0]


def _check_info(info: NodeInfo, address: Address) -> None:
    identity = info.persistent_id
    if not identity or len(identity) > LOCATION_MAX or "/" in identity:
        raise errors.NotAvailableError(
            f"the storage node at {address} gave no usable persistent id", node=str(address)
        )
    if not info.pools:
        raise errors.NoGroupsError(
            f"the storage node at {address} has no pool",
            node=str(address),
            way_out="give it disks in its configuration",
        )
    if not info.portals:
        raise errors.NotAvailableError(
            f"the storage node at {address} has no portals", node=str(address)
        )


def _refuse_known(
    session: Session, ips: list[str], port: int, persistent_id: str | None = None
) -> None:
    for row in session.scalars(select(models.Backend)):
        same_address = row.mgmt_port == port and set(row.mgmt_ips) & set(ips)
        if same_address or row.persistent_id == persistent_id:
            raise errors.AlreadyExistsError(
                f"backend {row.persistent_id} ({row.name}) is registered with "
                f"{', '.join(row.mgmt_ips)}",
                node=row.persistent_id,
            )


def update(core: Core, persistent_id: str, request: wire.BackendUpdate) -> None:
    """Change where a backend stands, what it is declared to deliver, or what is wanted of it.
    Replicas that are there stay.

    :raises NotExistsError: when there is none.
    :raises InvalidInputError: when it has no pool of a name that is given.
    :raises ConflictError: when more is guaranteed already than it is to deliver, or when it is
        being drained and maintenance is asked for.
    """
    _check_location(rack=request.rack, zone=request.zone, region=request.region)

    def write(session: Session) -> None:
        # Whoever charges the node has to wait: what is sold must not grow meanwhile.
        row = session.get(models.Backend, persistent_id, with_for_update=True)
        if row is None:
            raise missing(persistent_id)
        for name in ("rack", "zone", "region"):
            value = getattr(request, name)
            if value is not None:
                setattr(row, name, value)
        _declare(row, request)
        _set_modes(session, row, request)

    core.db.run(write)


def _declare(row: models.Backend, request: wire.BackendUpdate) -> None:
    if request.max_iops is not None:
        _refuse_oversold(row, "", request.max_iops, row.sold_iops, "IOPS")
        row.max_iops = request.max_iops
    if request.max_bw is not None:
        _refuse_oversold(row, "", request.max_bw, row.sold_bw, "KB/s")
        row.max_bw = request.max_bw
    pools = {pool.name: pool for pool in row.pools}
    for told in request.pools:
        pool = pools.get(told.name)
        if pool is None:
            raise errors.InvalidInputError(
                f"backend {row.persistent_id} has no pool {told.name}",
                node=row.persistent_id,
                way_out=f"its pools are {', '.join(sorted(pools))}",
            )
        where = f" on pool {pool.name}"
        _refuse_oversold(row, where, told.max_iops or pool.measured_iops, pool.sold_iops, "IOPS")
        _refuse_oversold(row, where, told.max_bw or pool.measured_bw, pool.sold_bw, "KB/s")
        pool.declared_iops, pool.declared_bw = told.max_iops, told.max_bw


def _refuse_oversold(row: models.Backend, where: str, limit: int, sold: int, unit: str) -> None:
    unlimited = not where and not limit
    if sold > limit and not unlimited:
        raise errors.ConflictError(
            f"{sold} {unit} are guaranteed{where} of backend {row.persistent_id}, "
            f"more than {limit}",
            node=row.persistent_id,
            way_out="move volumes away first",
        )


def _set_modes(session: Session, row: models.Backend, request: wire.BackendUpdate) -> None:
    if request.cordoned is not None and request.cordoned != row.cordoned:
        row.cordoned = request.cordoned
        _tell(session, row, "backend.cordoned", "cordoned", on=request.cordoned)
    if request.maintenance is None:
        return
    if request.maintenance and row.mode not in ("", models.MAINTENANCE):
        raise errors.ConflictError(
            f"backend {row.persistent_id} is {row.mode}",
            node=row.persistent_id,
            way_out="end that first",
        )
    if request.maintenance != (row.mode == models.MAINTENANCE):
        row.mode = models.MAINTENANCE if request.maintenance else ""
        _tell(session, row, "backend.maintenance", "in maintenance", on=request.maintenance)


def _tell(session: Session, row: models.Backend, what: str, text: str, *, on: bool) -> None:
    message = f"backend {row.persistent_id} ({row.name}) is {'' if on else 'no longer '}{text}"
    events.record(session, what, message, backend=row.persistent_id, on=on)


def delete(core: Core, persistent_id: str) -> None:
    """Forget a backend.

    What still has to be removed from a node that is down stays recorded, and is removed should
    the node be registered again.

    :raises NotExistsError: when there is none.
    :raises InUseError: while it holds replicas or snapshots.
    :raises BusyError: while objects are being removed from it.
    """
    with core.db.write() as session:
        row = session.get(models.Backend, persistent_id)
        if row is None:
            raise missing(persistent_id)
        for table, what in ((models.Replica, "replicas"), (models.SnapshotPart, "snapshots")):
            if session.scalar(select(table.uuid).filter_by(backend_id=persistent_id).limit(1)):
                raise errors.InUseError(
                    f"backend {persistent_id} holds {what}",
                    node=persistent_id,
                    way_out="delete or move them first",
                )
        pending = select(models.Removal.uuid).filter_by(backend_id=persistent_id, done=None)
        if row.state == wire.AVAILABLE and session.scalar(pending.limit(1)):
            core.wake.set()
            raise errors.BusyError(
                f"objects are being removed from backend {persistent_id}",
                node=persistent_id,
                way_out="repeat the call later",
            )
        session.delete(row)
        message = f"backend {persistent_id} ({row.name}) was removed"
        events.record(session, "backend.removed", message, backend=persistent_id)
