# SPDX-License-Identifier: Apache-2.0
"""Events and forwarded log records."""

from typing import Annotated, Any

from fastapi import Query

from kumo_client.schemas import event as wire
from kumo_client.schemas.common import StatusAnswer
from kumo_provisioner.edge import success
from kumo_provisioner.routes.common import CoreArg, ReaderArg, dump, router
from kumo_provisioner.services import events

routes = router("events")
# The largest number that every database can hold.
Number = Annotated[int, Query(ge=0, le=(1 << 63) - 1)]


@routes.get("/events", response_model=wire.EventPage)
async def list_new(
    core: CoreArg,
    reader: ReaderArg,
    since: Number = 0,
    wait: Annotated[float, Query(ge=0, le=events.MAX_WAIT)] = 0.0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    host_id: Annotated[str, Query(alias="hostId", max_length=255)] = "",
    volume_id: Annotated[str, Query(alias="volumeId", max_length=255)] = "",
    level: Annotated[str, Query(max_length=16)] = wire.INFO,
) -> Any:
    """What happened after event ``since``; waits up to ``wait`` seconds for a first event."""
    ask = events.Ask(
        since=since,
        limit=limit,
        host_id=host_id.strip(),
        volume_id=volume_id.strip().lower(),
        level=level.strip().upper(),
        tenant=reader,
    )
    return dump([await events.wait(core, ask, wait)])[0]


@routes.post("/forward_log", response_model=StatusAnswer)
def forward(core: CoreArg, body: wire.ForwardLog) -> Any:
    """Keep and log what the agent of a host sends."""
    events.forward(core, body)
    return success()
