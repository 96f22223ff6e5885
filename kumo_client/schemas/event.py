# SPDX-License-Identifier: Apache-2.0
"""Events and forwarded log records."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from kumo_client.schemas.common import Text, WireModel

INFO = "INFO"
WARN = "WARN"
FATAL = "FATAL"


def _object(value: Any) -> Any:
    return value if isinstance(value, dict) else {"value": value}


class Event(WireModel):
    """Something that happened. ``seq`` rises by at least 1; ``time`` in ms since the epoch.

    ``type`` is ``<object>.<what>``, for example ``replica.state`` or ``backend.unavailable``.
    """

    seq: int
    time: int
    type: str
    level: str = INFO
    tenant_id: str = Field("0", alias="tenantId")
    volume_id: str = Field("", alias="volumeId")
    replica_id: str = Field("", alias="replicaId")
    backend_id: str = Field("", alias="backendId")
    host_id: str = Field("", alias="hostId")
    message: str = ""
    details: dict[str, Any] = {}


class EventPage(WireModel):
    """GET /events?since=&wait=&limit=&hostId=&volumeId=&level=.

    ``since``: the last sequence number known; ``wait``: seconds to wait for a first event (at most
    50). ``last`` is what to send as ``since`` next time, also when no event matched. ``lost``:
    events after ``since`` have been forgotten already, so the reader must look at everything.
    """

    events: list[Event] = []
    last: int = 0
    lost: bool = False


class ForwardLog(WireModel):
    """POST /forward_log. In spite of its name ``parametersList`` is an object."""

    logging_type: Text = Field("EVENT", alias="loggingType", max_length=64)
    level: Text = Field(INFO, max_length=16)
    host: Text = Field("", max_length=255)
    app_name: Text = Field("", alias="appName", max_length=255)
    message: Annotated[str, Field(max_length=4096)] = ""
    parameters_list: Annotated[dict[str, Any], BeforeValidator(_object)] = Field(
        {}, alias="parametersList"
    )
