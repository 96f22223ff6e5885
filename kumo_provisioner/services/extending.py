# SPDX-License-Identifier: Apache-2.0
"""Extending a volume: the wish is recorded, all replicas grow, then the size is.

A replica cannot shrink, so an extension is never undone but finished: at once, or by a reconcile
when a node could not be asked. Only a definite refusal ends it.

The array on a replicated volume is grown by the host that uses it. While no host does, the nodes
do that, when all legs have grown: legs that give different sizes cannot be assembled together
(mdadm, super1.c, compare_super1). So all legs get one size, and an extension of which some arrays
know is not given up any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oslo_log import log
from sqlalchemy.orm import Session

from kumo_client import errors, naming
from kumo_client.api.node import Node
from kumo_client.schemas.volume import StorageClass
from kumo_provisioner import settling
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address, Call, Outcome
from kumo_provisioner.services import building, capacity, caps, due, events, placing, tenants
from kumo_provisioner.services.placing import Growth

LOG = log.getLogger(__name__)


def intend(core: Core, session: Session, row: models.Volume, gib: int) -> None:
    """Record the wish for ``gib`` GiB and charge the nodes with it.

    :raises InvalidInputError: when the volume would become smaller.
    :raises ConflictError: when a larger extension is under way.
    :raises NoSpaceError: when a node has no room.
    """
    if gib < row.capacity:
        raise errors.InvalidInputError(
            f"volume {row.uuid} has {row.capacity} GiB and cannot shrink to {gib} GiB",
            volume=row.uuid,
        )
    if gib == row.wanted_capacity:
        return
    settling.refuse(row, settling.REVERT)
    if gib < row.wanted_capacity:
        raise errors.ConflictError(
            f"an extension of volume {row.uuid} to {row.wanted_capacity} GiB is under way",
            volume=row.uuid,
        )
    size = leg_bytes(row, gib)
    charge = capacity.replica_charge(core.conf, size, row.provisioning_type)
    placing.refuse_growth(
        session,
        [
            Growth(
                one.backend,
                one.pool,
                charge - one.reserved_bytes,
                iops - one.sold_iops,
                bw - one.sold_bw,
            )
            for one, iops, bw in _guarantees(row, gib)
        ],
    )
    for replica, iops, bw in _guarantees(row, gib):
        capacity.change(
            session,
            replica,
            reserved_bytes=max(charge, replica.reserved_bytes),
            sold_iops=iops,
            sold_bw=bw,
        )
    tenants.exchange(session, row.tenant_id, tenants.use(row), tenants.use(row, gib))
    row.wanted_capacity = gib
    settling.add(row, settling.EXTEND)


def _guarantees(row: models.Volume, gib: int) -> list[tuple[models.Replica, int, int]]:
    """What each replica is to be guaranteed at that size; nothing where nothing was so far."""
    iops, bw = capacity.guarantee(StorageClass.model_validate(row.storage_class), gib)
    replicas = sorted(row.replicas, key=lambda one: one.backend_id)
    return [(one, iops if one.sold_iops else 0, bw if one.sold_bw else 0) for one in replicas]


def leg_bytes(row: models.Volume, gib: int) -> int:
    """Size in bytes of every replica of a volume extended to ``gib`` GiB.

    No replica becomes smaller, and the legs of an array are alike.
    """
    return max(naming.replica_bytes(gib, row.num_replicas), *(one.bytes for one in row.replicas))


def finish(core: Core, uuid: str) -> None:
    """Grow all replicas to the wanted size. The caller holds the lock of the volume.

    :raises KumoError: the first error; unless it was a definite refusal, the wish stands.
    """
    _, failed = attempt(core, uuid)
    if failed is not None:
        raise failed
    caps.apply_now_or_later(core, uuid)


def settle(core: Core, uuid: str) -> None:
    """Finish an extension that was cut off, when all its nodes are there.

    :raises KumoError: see :func:`finish`.
    """
    with core.db.read() as session:
        row = session.get_one(models.Volume, uuid)
        for replica in row.replicas:
            building.need_available(replica.backend)
    finish(core, uuid)


def attempt(
    core: Core, uuid: str, *, partly: bool = False
) -> tuple[set[str], errors.KumoError | None]:
    """Try to finish an extension. The caller holds the lock of the volume.

    :param partly: grow the arrays that can be grown although a node cannot be asked.
    :returns: uuids of the replicas that are certain to have grown, with their array when no host
        uses it; and the error, unless all have.
    """
    with core.db.read() as session:
        row = session.get_one(models.Volume, uuid)
        wanted, size = row.wanted_capacity, leg_bytes(row, row.wanted_capacity)
        if wanted == row.capacity:
            return {replica.uuid for replica in row.replicas}, None
        arrays = row.replicated and not in_use(row)
        addresses = {replica.uuid: Address.of(replica.backend) for replica in row.replicas}
    outcomes = core.nodes.call_all(_calls(addresses, size, grow_array=False))
    resized = _succeeded(outcomes)
    if arrays and (len(resized) == len(addresses) or (partly and _may_succeed(outcomes))):
        legs = {one: addresses[one] for one in resized}
        outcomes |= core.nodes.call_all(_calls(legs, size, grow_array=True))
    grown, failed = _succeeded(outcomes), building.first_error(outcomes)
    # Larger legs do no harm; arrays of which only some have grown could not be assembled.
    hopeless = not _may_succeed(outcomes) and not (arrays and grown and resized == set(addresses))
    with core.db.write() as session:
        row = session.get_one(models.Volume, uuid)
        for replica in row.replicas:
            if replica.uuid in resized:
                replica.bytes = max(size, replica.bytes)
        if failed is None:
            row.capacity = wanted
            settling.drop(row, settling.EXTEND)
            if caps.capped(row):
                settling.add(row, settling.LIMITS)
            events.record(
                session,
                "volume.extended",
                f"volume {row.alias} was extended to {wanted} GiB",
                volume=uuid,
                tenant=row.tenant_id,
            )
        elif hopeless:
            _give_up(core, session, row)
    _tell(f"Extension of volume {uuid} to {wanted} GiB", failed)
    if isinstance(failed, errors.InUseError):
        # An export was left behind.
        due.ask(core, [address.backend_id for address in addresses.values()])
    return grown, failed


def _tell(what: str, failed: errors.KumoError | None) -> None:
    if failed is None:
        LOG.info("%s: done", what)
        return
    LOG.warning("%s: %s", what, failed)


def in_use(row: models.Volume) -> bool:
    """Whether a host may be using the volume."""
    return any(one.status == models.PUBLISHED for one in row.publications)


def _calls(addresses: dict[str, Address], size: int, *, grow_array: bool) -> dict[str, Call[Any]]:
    return {uuid: (address, _grow(uuid, size, grow_array)) for uuid, address in addresses.items()}


def _grow(uuid: str, size: int, grow_array: bool) -> Callable[[Node], object]:
    def call(node: Node) -> object:
        return node.resize_replica(uuid, size, grow_array=grow_array)

    return call


def _succeeded(outcomes: dict[str, Outcome[Any]]) -> set[str]:
    return {uuid for uuid, outcome in outcomes.items() if outcome.error is None}


def _may_succeed(outcomes: dict[str, Outcome[Any]]) -> bool:
    return any(_may_still_succeed(outcome) for outcome in outcomes.values())


def _may_still_succeed(outcome: Outcome[Any]) -> bool:
    if outcome.error is None:
        return False
    # In use is a leg whose export was left behind; a reconcile takes it away.
    leftover = isinstance(outcome.error, errors.InUseError)
    return outcome.unknown or outcome.error.transient or leftover


def _give_up(core: Core, session: Session, row: models.Volume) -> None:
    """Drop the wish; a replica that has grown keeps its size and its charge."""
    after = tenants.use(row, row.capacity)
    tenants.exchange(session, row.tenant_id, tenants.use(row), after)
    row.wanted_capacity = row.capacity
    settling.drop(row, settling.EXTEND)
    for replica, iops, bw in _guarantees(row, row.capacity):
        charge = capacity.replica_charge(core.conf, replica.bytes, row.provisioning_type)
        capacity.change(session, replica, reserved_bytes=charge, sold_iops=iops, sold_bw=bw)
