# SPDX-License-Identifier: Apache-2.0
"""Making a volume what its snapshot is.

Each leg that has a part of the snapshot is reverted on its node; one operation id makes that
repeatable. Until all of them are, legs differ, so the volume cannot be attached: the intent is in
the record, and a reconcile goes on with it. Legs without a part hold what was discarded, under an
array identity that is still valid, so they are not kept: they are removed, and new empty ones take
their place. Only when all legs with a part are reverted is anything given up.
"""

from __future__ import annotations

import dataclasses
import uuid as uuidlib
from collections.abc import Callable
from typing import Any

from oslo_log import log
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.api.node import Node
from kumo_client.schemas import volume as wire
from kumo_client.schemas.event import WARN
from kumo_client.schemas.node import RevertSpec
from kumo_client.schemas.volume import REPLICA_AVAILABLE, REPLICA_TERMINATING
from kumo_provisioner import settling
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address, Call, Outcome
from kumo_provisioner.services import (
    arrays,
    building,
    capture,
    copies,
    due,
    events,
    guards,
    removals,
    restored,
    snapshots,
    volumes,
)

LOG = log.getLogger(__name__)
KIND = settling.REVERT


@dataclasses.dataclass(frozen=True)
class Wish:
    """What :attr:`models.Volume.wish` has of a revert."""

    snapshot: str
    operation: str

    @classmethod
    def of(cls, row: models.Volume) -> Wish | None:
        """The revert that is unsettled on a volume."""
        return cls(**row.wish[KIND]) if KIND in settling.kinds(row) else None

    def write(self, row: models.Volume) -> None:
        row.wish = row.wish | {KIND: dataclasses.asdict(self)}
        settling.add(row, KIND)
        row.generation += 1

    @staticmethod
    def drop(row: models.Volume) -> None:
        row.wish = {key: value for key, value in row.wish.items() if key != KIND}
        settling.drop(row, KIND)
        row.generation += 1


def revert(core: Core, tenant: str, request: wire.Revert) -> None:
    """Make a volume what its snapshot is; what was written since is discarded.

    A volume that has grown since keeps its size. Later snapshots stay as they are.

    :raises NotExistsError: there is no such volume or snapshot.
    :raises ConflictError: the snapshot is of another volume, or no replica has a part of it.
    :raises InUseError: the volume is published.
    :raises BusyError: something else on it is unfinished.
    :raises BackendUnavailableError: a node could not be asked; when that was found out only after
        the beginning, the volume cannot be published until a reconcile has finished it.
    :raises OutdatedRecordError: the database is an old copy that nobody has accepted.
    """
    uuid = request.volume_id
    restored.refuse(core, f"volume {uuid} is not reverted")
    with core.locks.hold(uuid, request.snapshot_id):
        core.db.run(lambda session: _intend(session, tenant, request))
        finish(core, uuid)


def _intend(session: Session, tenant: str, request: wire.Revert) -> None:
    row = volumes.find(session, tenant, request.volume_id)
    snapshot = session.get(models.Snapshot, request.snapshot_id)
    if snapshot is None or snapshot.status != models.AVAILABLE or snapshot.tenant_id != tenant:
        raise snapshots.missing(request.snapshot_id)
    if snapshot.volume_id != row.uuid:
        raise errors.ConflictError(
            f"snapshot {snapshot.uuid} is of volume {snapshot.volume_id}, not {row.uuid}",
            volume=row.uuid,
            way_out="make a volume from it instead",
        )
    known = Wish.of(row)
    if known is not None and known.snapshot == snapshot.uuid:
        return
    guards.unpublished(row)
    settling.refuse(row, settling.EXTEND, settling.REVERT, settling.REPLICAS)
    guards.no_migration(session, row)
    legs = _legs(row, snapshot)
    if not legs:
        raise errors.ConflictError(
            f"no replica of volume {row.uuid} has a part of snapshot {snapshot.uuid} any more",
            volume=row.uuid,
            way_out="make a volume from the snapshot instead",
        )
    for leg, _ in legs:
        building.need_available(leg.backend)
    Wish(snapshot.uuid, str(uuidlib.uuid4())).write(row)


def _legs(
    row: models.Volume, snapshot: models.Snapshot
) -> list[tuple[models.Replica, models.SnapshotPart]]:
    """The legs that can be reverted, each with its part."""
    parts = {part.replica_id: part for part in snapshots.sources(snapshot)}
    return [
        (leg, parts[leg.uuid])
        for leg in row.replicas
        if leg.uuid in parts and leg.state != REPLICA_TERMINATING
    ]


def finish(core: Core, uuid: str) -> None:
    """Carry out a revert that is recorded. The caller holds the lock of the volume.

    :raises KumoError: it has to be tried again later, or was refused and is given up.
    """
    with core.db.read() as session:
        row = session.get_one(models.Volume, uuid)
        wish = Wish.of(row)
        if wish is None:
            return
        legs = _legs(row, session.get_one(models.Snapshot, wish.snapshot))
        array = copies.identity(row)
        calls: dict[str, Call[Any]] = {
            leg.uuid: (
                Address.of(leg.backend),
                _call(
                    leg.uuid,
                    RevertSpec(snapshot=part.uuid, operation=wish.operation, array=array),
                ),
            )
            for leg, part in legs
        }
    outcomes = core.nodes.call_all(calls)
    failed = building.first_error(outcomes)
    if any(guards.may_still_succeed(outcome) for outcome in outcomes.values()):
        # A replica that is in use has an export that was left behind.
        due.ask(core, [address.backend_id for address, _ in calls.values()])
        raise failed or errors.InternalError("a call that failed has no error", volume=uuid)
    done = [leg for leg, outcome in outcomes.items() if outcome.error is None]
    if not done:
        core.db.run(lambda session: _give_up(session, uuid, outcomes))
        raise failed or errors.ConflictError(
            f"no replica of volume {uuid} has a part of the snapshot any more", volume=uuid
        )
    gone = core.db.run(lambda session: _commit(session, uuid, wish, done))
    removals.carry_out(core, gone)


def _call(uuid: str, spec: RevertSpec) -> Callable[[Node], object]:
    def call(node: Node) -> object:
        return node.revert_replica(uuid, spec)

    return call


def _give_up(session: Session, uuid: str, outcomes: dict[str, Outcome[Any]]) -> None:
    """Drop the wish: every node has refused, and so nothing was changed."""
    row = session.get_one(models.Volume, uuid)
    Wish.drop(row)
    refusals = {leg: str(outcome.error) for leg, outcome in outcomes.items()}
    events.record(
        session,
        "volume.modified",
        f"volume {uuid} was not reverted, its nodes refused",
        level=WARN,
        tenant=row.tenant_id,
        volume=uuid,
        refusals=refusals,
    )


def _commit(session: Session, uuid: str, wish: Wish, done: list[str]) -> list[str]:
    """Record that the legs ``done`` are what the snapshot is; gives what goes from the nodes."""
    row = session.get_one(models.Volume, uuid)
    snapshot = session.get_one(models.Snapshot, wish.snapshot)
    left = [leg for leg in row.replicas if leg.uuid not in done]
    left.sort(key=lambda leg: leg.backend_id)
    gone = [removals.retire_replica(session, leg) for leg in left]
    now = now_ms()
    for leg in row.replicas:
        if leg.state != REPLICA_AVAILABLE:
            leg.state, leg.state_since = REPLICA_AVAILABLE, now
        leg.freshness, leg.events, leg.replaces = models.FRESH, 0, ""
    arrays.forget(row)
    row.array_state = capture.inherited(snapshot.array_state)
    Wish.drop(row)
    if len(row.replicas) < row.num_replicas:
        settling.add(row, settling.REPLICAS)
    events.record(
        session,
        "volume.reverted",
        f"volume {uuid} is what snapshot {wish.snapshot} was",
        tenant=row.tenant_id,
        volume=uuid,
        snapshot=wish.snapshot,
        removed=gone,
    )
    return gone
