# SPDX-License-Identifier: Apache-2.0
"""Which legs of a volume can be captured at one moment, by a snapshot or a clone. Pure.

The legs of a replicated volume are alike while nobody writes: while no host has the volume, after
a detach in order, or while the agent of the one host that has it holds the writes. Otherwise one
leg is the source of everything. A leg that is not in sync is never captured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kumo_client import errors
from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.host import ABILITY_HOLD_WRITES
from kumo_provisioner import settling
from kumo_provisioner.db import models
from kumo_provisioner.services import building, hosts


@dataclasses.dataclass(frozen=True)
class Capture:
    """What can be captured.

    :ivar legs: those in sync whose nodes are up, the best source first.
    :ivar alike: they hold the same data now, and until the lock of the volume is given back.
    :ivar host: whose agent can make them alike; None when nobody can, or nobody has to.
    """

    legs: Sequence[models.Replica]
    alike: bool
    host: models.Host | None = None

    @property
    def source(self) -> models.Replica:
        return self.legs[0]


def plan(volume: models.Volume) -> Capture:
    """What can be captured of a volume whose lock the caller holds.

    :raises BusyError: while an extension or a revert of it is unfinished.
    :raises StaleError: when no leg is in sync.
    :raises BackendUnavailableError: when the nodes of all legs in sync are down.
    """
    settling.refuse(volume, settling.EXTEND, settling.REVERT)
    if not volume.replicated:
        building.need_available(volume.replicas[0].backend)
        return Capture(list(volume.replicas), alike=True)
    legs = [leg for leg in volume.replicas if leg.in_sync]
    if not legs:
        raise errors.StaleError(
            f"no replica of volume {volume.uuid} is in sync: {_states(volume)}",
            volume=volume.uuid,
            way_out="let the volume heal first",
        )
    up = [leg for leg in legs if leg.backend.state == AVAILABLE]
    if not up:
        building.need_available(legs[0].backend)
    # The highest event counter of md is that of the leg that saw the most.
    up.sort(key=lambda leg: (-leg.events, leg.position))
    at_rest = not volume.publications and volume.array_state != models.ARRAY_OPEN
    if at_rest or len(legs) == 1:
        return Capture(up, alike=True)
    return Capture(up, alike=False, host=_holder(volume) if len(up) > 1 else None)


def _states(volume: models.Volume) -> str:
    return ", ".join(f"{leg.uuid} {leg.state} {leg.freshness}" for leg in volume.replicas)


def _holder(volume: models.Volume) -> models.Host | None:
    """The one host that has the volume, when its agent can hold writes."""
    if len(volume.publications) != 1:
        return None
    publication = volume.publications[0]
    able = ABILITY_HOLD_WRITES in hosts.abilities(publication.host)
    return publication.host if able and publication.status == models.PUBLISHED else None


def inherited(array_state: str) -> str:
    """State of the array on a copy, by that of its origin when it was captured.

    Where no array was ever confirmed, there may be none on the copy. An array that was open is
    whole on the one leg that was captured.
    """
    return models.ARRAY_NEW if array_state == models.ARRAY_NEW else models.ARRAY_CLEAN
