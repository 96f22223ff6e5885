# SPDX-License-Identifier: Apache-2.0
"""Storage nodes: register, show, change, forget; and the probes that tell their state."""

from __future__ import annotations

from oslo_log import log
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from kumo_client import errors
from kumo_client.api.node import Node
from kumo_client.schemas import backend as wire
from kumo_client.schemas.node import NodeInfo
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.duties import Duty
from kumo_provisioner.nodes import Address, Outcome
from kumo_provisioner.services import capacity, reports, view

LOG = log.getLogger(__name__)
LOCATION_MAX = 255


def missing(text: str) -> errors.NotExistsError:
    return errors.NotExistsError(f"there is no backend {text}")


def ask_info(node: Node) -> NodeInfo:
    return node.info()


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
    with core.db.write() as session:
        _refuse_known(session, ips, request.mgmt_port, info.persistent_id)
        row = models.Backend(
            persistent_id=info.persistent_id,
            mgmt_ips=ips,
            mgmt_port=request.mgmt_port,
            rack=request.rack,
            zone=request.zone,
            region=request.region,
            host_id=request.host_id,
        )
        session.add(row)
        reports.take_over(session, row, info)
        # What has yet to go from it was recorded before it was removed.
        capacity.recount(session, row.persistent_id)
    LOG.info("Registered backend %s (%s)", row.persistent_id, row.name)
    core.wake.set()
    return list_all(core, row.persistent_id)[0]


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
    """Change where a backend stands. Replicas that are there stay.

    :raises NotExistsError: when there is none.
    """
    _check_location(rack=request.rack, zone=request.zone, region=request.region)
    with core.db.write() as session:
        row = session.get(models.Backend, persistent_id)
        if row is None:
            raise missing(persistent_id)
        for name in ("rack", "zone", "region"):
            value = getattr(request, name)
            if value is not None:
                setattr(row, name, value)


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
    LOG.info("Forgot backend %s", persistent_id)


def probe(core: Core) -> bool:
    """Ask every node how it is and record the answers.

    :returns: whether a node came back or rebooted, so that there may be something to reconcile.
    """
    with core.db.read() as session:
        addresses = [Address.of(row) for row in session.scalars(select(models.Backend))]
    outcomes = core.nodes.call_all(
        {address.backend_id: (address, ask_info) for address in addresses}, probing=True
    )
    if not outcomes:
        return False
    returned = False
    with core.db.write() as session:
        for backend_id, outcome in outcomes.items():
            row = session.get(models.Backend, backend_id)
            if row is not None:
                returned |= _note(core, session, row, outcome)
    return returned


def _note(core: Core, session: Session, row: models.Backend, outcome: Outcome[NodeInfo]) -> bool:
    info = outcome.value
    if info is not None and info.persistent_id == row.persistent_id:
        returned = row.state != wire.AVAILABLE or row.boot_id != info.boot_id
        if row.state != wire.AVAILABLE:
            LOG.info("Backend %s (%s) is back", row.persistent_id, row.name)
        reports.take_over(session, row, info)
        return returned
    row.failed_probes += 1
    if info is not None:
        why = f"another node, {info.persistent_id}, answers at its address"
        row.failed_probes = max(row.failed_probes, core.conf.reconcile.probe_failures)
    else:
        why = str(outcome.error)
    # One lost probe is no answer at all; only several in a row tell that the node is away.
    if row.failed_probes >= core.conf.reconcile.probe_failures and row.state == wire.AVAILABLE:
        row.state = wire.UNAVAILABLE
        LOG.warning("Backend %s (%s) is Unavailable: %s", row.persistent_id, row.name, why)
    return False


def _probe_duty(core: Core) -> None:
    if probe(core):
        core.wake.set()


DUTIES = (Duty("probe", _probe_duty, lambda core: float(core.conf.reconcile.probe_interval)),)
