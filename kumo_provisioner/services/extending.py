# SPDX-License-Identifier: Apache-2.0
"""Extending a volume: the wish is recorded, all replicas grow, then the size is.

A replica cannot shrink, so an extension is never undone but finished: at once, or by a reconcile
when a node could not be asked. Only a definite refusal ends it.
"""

from __future__ import annotations

from oslo_log import log
from sqlalchemy.orm import Session

from kumo_client import errors, naming
from kumo_client.api.node import Node
from kumo_provisioner import placement
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address, Call, Outcome
from kumo_provisioner.services import building, capacity

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
    if gib < row.wanted_capacity:
        raise errors.ConflictError(
            f"an extension of volume {row.uuid} to {row.wanted_capacity} GiB is under way",
            volume=row.uuid,
        )
    size = naming.replica_bytes(gib, row.num_replicas)
    charge = capacity.replica_charge(core.conf, size, row.provisioning_type)
    used = capacity.charged(session)
    for replica in row.replicas:
        building.need_available(replica.backend)
        ask = placement.Ask(replicas=1, charge=charge - replica.reserved_bytes)
        reason = placement.refusal(capacity.candidate(replica.backend, used), ask)
        if reason is not None:
            raise errors.NoSpaceError(
                f"volume {row.uuid} cannot grow on node "
                f"{replica.backend.name or replica.backend_id}: {reason}",
                volume=row.uuid,
                node=replica.backend_id,
            )
    for replica in row.replicas:
        replica.reserved_bytes = max(charge, replica.reserved_bytes)
    row.wanted_capacity = gib


def finish(core: Core, uuid: str) -> None:
    """Grow all replicas to the wanted size. The caller holds the lock of the volume.

    :raises KumoError: the first error; unless it was a definite refusal, the wish stands.
    """
    with core.db.read() as session:
        row = session.get_one(models.Volume, uuid)
        if row.wanted_capacity == row.capacity:
            return
        wanted = row.wanted_capacity
        size = naming.replica_bytes(wanted, row.num_replicas)
        calls = {replica.uuid: _grow(replica, size) for replica in row.replicas}
    outcomes = core.nodes.call_all(calls)
    failed = building.first_error(outcomes)
    with core.db.write() as session:
        row = session.get_one(models.Volume, uuid)
        for replica in row.replicas:
            if outcomes[replica.uuid].error is None:
                replica.bytes = max(size, replica.bytes)
        if failed is None:
            row.capacity = wanted
        elif not any(_may_still_succeed(outcome) for outcome in outcomes.values()):
            _give_up(core, row)
    if failed is not None:
        LOG.warning("Extension of volume %s to %s GiB: %s", uuid, wanted, failed)
        raise failed
    LOG.info("Extended volume %s to %s GiB", uuid, wanted)


def _grow(replica: models.Replica, size: int) -> Call[object]:
    uuid, target = replica.uuid, max(size, replica.bytes)

    def call(node: Node) -> object:
        return node.resize_replica(uuid, target)

    return Address.of(replica.backend), call


def _may_still_succeed(outcome: Outcome[object]) -> bool:
    return outcome.error is not None and (outcome.unknown or outcome.error.transient)


def _give_up(core: Core, row: models.Volume) -> None:
    """Drop the wish; a replica that has grown keeps its size and its charge."""
    row.wanted_capacity = row.capacity
    for replica in row.replicas:
        replica.reserved_bytes = capacity.replica_charge(
            core.conf, replica.bytes, row.provisioning_type
        )
