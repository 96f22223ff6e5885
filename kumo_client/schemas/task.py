# SPDX-License-Identifier: Apache-2.0
"""Tasks: long work of a host's agent or of the provisioner itself."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from kumo_client.schemas.common import StatusAnswer, Text, UuidText, WireModel
from kumo_client.schemas.host import HostId

IDLE = "IDLE"
RUNNING = "RUNNING"
FINISHED = "FINISHED"
FAILED = "FAILED"

# A leg moves to another node; done by the agent of the host that has the volume.
REMOTE_MIGRATION = "RemoteMigration"
# The same for a volume that no host has; done by the provisioner and the nodes.
OFFLINE_MIGRATION = "OfflineMigration"
CONNECT_VOLUME = "ConnectVolume"
DISCONNECT_VOLUME = "DisconnectVolume"
SET_POLLING_RATE = "SetPollingRate"
# All replicas leave a node; has a migration for each as its parts.
DRAIN = "Drain"
# A leg was added and is in sync when a host has synchronised it.
ADD_REPLICA = "AddReplica"
# Writes are held for the moment of a snapshot.
HOLD_WRITES = "HoldWrites"


def _absent(value: Any) -> Any:
    # Old agents send back as "N/A" what they did not find.
    return None if value == "N/A" else value


OldText = Annotated[Text | None, BeforeValidator(_absent)]


class Tag(WireModel):
    """One entry of a task's configuration."""

    name: Text
    value: Text = ""


class Task(WireModel):
    """GET /tasks. ``progress`` in percent; times in ms since the epoch."""

    task_id: str = Field(alias="taskId")
    host_id: str = Field("", alias="hostId")
    type: str
    state: str
    progress: float = 0.0
    task_status: str = Field("", alias="taskStatus")
    status_description: str = Field("", alias="statusDescription")
    task_configuration: list[Tag] = Field([], alias="taskConfiguration")
    volume_id: str = Field("", alias="volumeId")
    backend_id: str = Field("", alias="backendId")
    parent: str = ""
    created: int = 0
    updated: int = 0


class TaskUpdate(WireModel):
    """PUT /tasks: what an agent reports."""

    task_id: UuidText = Field(alias="taskId")
    host_id: OldText = Field(None, alias="hostId")
    state: Annotated[Text | None, BeforeValidator(_absent)] = Field(
        None, pattern="^(IDLE|RUNNING|FINISHED|FAILED)$"
    )
    progress: Annotated[float | None, BeforeValidator(_absent)] = Field(None, ge=0, le=100)
    task_status: OldText = Field(None, alias="taskStatus")
    status_description: OldText = Field(None, alias="statusDescription")
    task_configuration: Annotated[list[Tag] | None, BeforeValidator(_absent)] = Field(
        None, alias="taskConfiguration", max_length=64
    )


class ConnectRequest(WireModel):
    """POST /connect and /disconnect: ask the agent of a host to do it."""

    host_id: HostId = Field(alias="hostId")
    vol_id: UuidText = Field(alias="volId")


class TaskAnswer(StatusAnswer):
    """Answer of what begins a task; KumoScale leaves the id out."""

    task_id: str = Field("", alias="taskId")
