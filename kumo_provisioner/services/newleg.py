# SPDX-License-Identifier: Apache-2.0
"""One more leg for a volume: where it goes, and what its node is told."""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy.orm import Session

from kumo_client.schemas.node import ReplicaSpec
from kumo_client.schemas.volume import REPLICA_UNKNOWN, ReplicaAdd, StorageClass
from kumo_provisioner import placement
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Call
from kumo_provisioner.services import building, capacity, volumes


def where(
    core: Core,
    session: Session,
    volume: models.Volume,
    request: ReplicaAdd,
    old: models.Replica | None,
) -> str:
    """The node for one more leg.

    :param request: empty lists mean the storage class of the volume.
    :param old: the leg that goes; another leg may be in its rack.
    :raises NoSpaceError: no node can take it, with the reason of each node.
    """
    asked = StorageClass.model_validate(volume.storage_class)
    same_rack = asked.same_rack_allowed or request.same_rack_allowed
    ask = placement.Ask(
        replicas=1,
        charge=_charge(core, volume),
        zones=request.zones or asked.zones,
        racks=request.racks or asked.racks,
        regions=request.regions or asked.regions,
        same_rack_allowed=same_rack,
    )
    stay = [leg for leg in volume.replicas if leg is not old]
    racks = {leg.backend.rack for leg in stay if leg.backend.rack and not same_rack}
    taken = {leg.backend_id for leg in volume.replicas}
    wanted = request.backend_id
    candidates = [
        dataclasses.replace(one, state="the node of another replica")
        if one.backend_id in taken
        else dataclasses.replace(one, state="in the rack of another replica")
        if one.rack in racks
        else one
        for one in capacity.candidates(session)
        if not wanted or one.backend_id == wanted
    ]
    return placement.place(candidates, ask)[0]


def _charge(core: Core, volume: models.Volume) -> int:
    return capacity.replica_charge(core.conf, volume.replicas[0].bytes, volume.provisioning_type)


def add(
    core: Core,
    session: Session,
    volume: models.Volume,
    request: ReplicaAdd,
    old: models.Replica | None,
) -> models.Replica:
    """Add the row of a leg that was never in sync; see :func:`where`."""
    backend = session.get_one(models.Backend, where(core, session, volume, request, old))
    size = volume.replicas[0].bytes
    leg = volumes.add_replica(volume, backend, size, _charge(core, volume))
    leg.position = 1 + max(one.position for one in volume.replicas if one is not leg)
    leg.state, leg.freshness = REPLICA_UNKNOWN, models.BLANK
    leg.replaces = old.uuid if old is not None else ""
    leg.backend = backend
    return leg


def put_call(leg: models.Replica) -> Call[Any]:
    """The call that makes a leg; repeated, it says the same."""
    spec = ReplicaSpec(volume_id=leg.volume_id, bytes=leg.bytes)
    return building.put_replica(leg.backend, leg.uuid, spec)
