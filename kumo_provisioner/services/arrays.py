# SPDX-License-Identifier: Apache-2.0
"""What the array of a volume is, and the last word of a host that has left it.

A host tells after its unpublish, maybe long after, what its array was when it was stopped. It is
believed as long as nobody can have written since: the volume has been published to nobody, and its
legs are the same. A publication has a number of its own, so that the word of an earlier one is
never taken for that of the last.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.schemas import host as wire
from kumo_client.schemas.volume import REPLICA_AVAILABLE, REPLICA_MISSING, REPLICA_TERMINATING
from kumo_provisioner import settling
from kumo_provisioner.core import now_ms
from kumo_provisioner.db import models
from kumo_provisioner.services import events, legs


def enter(session: Session, volume: models.Volume, state: str, host_id: str) -> None:
    """Record what the array of a volume is."""
    if volume.array_state == state:
        return
    volume.array_state = state
    events.record(
        session,
        "array.state",
        f"the array of volume {volume.uuid} is {state}",
        tenant=volume.tenant_id,
        volume=volume.uuid,
        host=host_id,
        state=state,
    )


def number(volume: models.Volume) -> int:
    """A number for a new publication (ms since the epoch), never that of an earlier one."""
    return max(now_ms(), volume.last_publication + 1)


def begun(volume: models.Volume, publication: int) -> None:
    """From now on a host may write: what one that has left tells is not the last word."""
    volume.last_host, volume.last_publication = "", publication


def forget(volume: models.Volume) -> None:
    """The legs have other data: what a host that has left tells is not true any more."""
    volume.last_host = ""


def left(session: Session, volume: models.Volume, last: models.Publication) -> None:
    """The last host has left and was named, so it has stopped its array; it may tell how.

    Unless it has told already, the counters are forgotten until it does: a leg may have been lost
    that nobody told of, and old counters must not be taken for proof that it was not.
    """
    if volume.array_state == models.ARRAY_CLEAN or not volume.replicated:
        return
    volume.last_host, volume.last_publication = last.host_id, last.since
    volume.last_events = max((leg.events for leg in volume.replicas), default=0)
    for leg in volume.replicas:
        leg.events = 0
    if volume.array_state == models.ARRAY_OPEN:
        enter(session, volume, models.ARRAY_CLEAN, last.host_id)


def check(volume: models.Volume, request: wire.ArrayReport) -> None:
    """Refuse a last word that may not be the last one.

    :raises BusyError: the host is not named in an unpublish yet.
    :raises ConflictError: the volume was published since, or has other legs, or it is older than
        what is known.
    """
    me = (request.host_id, request.publication)
    settling.refuse(volume, settling.REVERT)
    if me in [(one.host_id, one.since) for one in volume.publications]:
        raise errors.BusyError(
            f"volume {volume.uuid} is still published to host {request.host_id}",
            volume=volume.uuid,
            way_out="unpublish it, then repeat the call",
        )
    told = {one.replica: one for one in request.legs}
    newest = _newest(request)
    strange = [
        leg.uuid
        for leg in volume.replicas
        if leg.state != REPLICA_TERMINATING and leg.uuid not in told
    ]
    reason = ""
    if volume.publications or me != (volume.last_host, volume.last_publication):
        reason = "it was published to another host, or again, since"
    elif strange:
        reason = f"it has replica {strange[0]}, of which the host does not know"
    elif not newest:
        reason = "none of its replicas would be in sync"
    # A change back to clean may take the last rise of a counter back (md_update_sb() in md.c).
    elif newest + 1 < volume.last_events:
        reason = f"its event counter was {volume.last_events} before, and would be {newest}"
    if reason:
        raise errors.ConflictError(
            f"what host {request.host_id} tells of the array of volume {volume.uuid} is too old: "
            f"{reason}",
            volume=volume.uuid,
            way_out="drop the report; the next host that detaches the volume tells anew",
        )


def _newest(request: wire.ArrayReport) -> int:
    """The counter of the replicas in sync; 0 when there is none."""
    counts = (one.events for one in request.legs if one.state == REPLICA_AVAILABLE)
    return max(counts, default=0)


def without_spares(volume: models.Volume, request: wire.ArrayReport) -> wire.ArrayReport:
    """Leave out replicas that the host has not begun to fill: they are as they were."""
    blank = {leg.uuid for leg in volume.replicas if leg.freshness == models.BLANK}
    told = [one for one in request.legs if one.state != REPLICA_MISSING or one.replica not in blank]
    return request.model_copy(update={"legs": told})


def accept(volume: models.Volume, request: wire.ArrayReport) -> None:
    """After a last word was taken over: an older one is refused from now on.

    A leg whose node went away meanwhile stays Missing, and has what it had.
    """
    volume.last_events = _newest(request) + 1
    for leg in volume.replicas:
        if leg.absent and leg.state != REPLICA_TERMINATING:
            legs.enter(leg, REPLICA_MISSING, now_ms())
