# SPDX-License-Identifier: Apache-2.0
"""One more leg for a volume: where it goes, and what its node is told."""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy.orm import Session

from kumo_client.schemas.volume import REPLICA_UNKNOWN, ReplicaAdd
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address, Call
from kumo_provisioner.placement import Ask, Candidate
from kumo_provisioner.services import building, placing


def where(
    core: Core,
    session: Session,
    volume: models.Volume,
    request: ReplicaAdd,
    old: models.Replica | None,
) -> tuple[Candidate, Ask]:
    """The pool for one more leg, as large as the others, and what was asked for it.

    :param request: empty lists mean the storage class of the volume.
    :param old: the leg that goes; another leg may be in its rack.
    :raises NoSpaceError: no node can take it, with the reason of each node.
    """
    usual = placing.ask_for(core, volume, replicas=1, size=_size(volume))
    stay = [leg.backend.rack for leg in volume.replicas if leg is not old]
    ask = dataclasses.replace(
        usual,
        zones=request.zones or usual.zones,
        racks=request.racks or usual.racks,
        regions=request.regions or usual.regions,
        same_rack_allowed=request.same_rack_allowed or usual.same_rack_allowed,
        backend_id=request.backend_id,
        taken_racks=frozenset(stay),
    )
    return placing.choose(core, session, ask)[0], ask


def _size(volume: models.Volume) -> int:
    return max(leg.bytes for leg in volume.replicas)


def add(
    core: Core,
    session: Session,
    volume: models.Volume,
    request: ReplicaAdd,
    old: models.Replica | None,
) -> models.Replica:
    """Add the row of a leg that was never in sync; see :func:`where`.

    :raises LostRaceError: when the pool has no room any more.
    """
    spot, ask = where(core, session, volume, request, old)
    leg = placing.add_replica(session, volume, spot.backend_id, spot.pool, _size(volume), ask)
    leg.state, leg.freshness = REPLICA_UNKNOWN, models.BLANK
    leg.replaces = old.uuid if old is not None else ""
    leg.backend = session.get_one(models.Backend, spot.backend_id)
    return leg


def put_call(leg: models.Replica) -> Call[Any]:
    """The call that makes a leg; repeated, it says the same."""
    return building.put_replica(
        Address.of(leg.backend), leg.uuid, placing.replica_spec(leg.volume, leg)
    )
