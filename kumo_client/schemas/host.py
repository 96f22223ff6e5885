# SPDX-License-Identifier: Apache-2.0
"""Hosts, publications and targets."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kumo_client.schemas.backend import BackendRef
from kumo_client.schemas.common import (
    HostNqn,
    Portal,
    StatusAnswer,
    Text,
    TextList,
    UuidText,
    WireModel,
)
from kumo_client.schemas.volume import Volume

HostId = Annotated[Text, Field(min_length=1, max_length=255)]

# What a host may announce in ``abilities``.
# It refuses legs that the publish answer marks as stale.
ABILITY_FRESHNESS = "freshness"
# Its agent can hold the writes of an array for the moment of a snapshot.
ABILITY_HOLD_WRITES = "hold-writes"
# Its agent reports array states and event counters.
ABILITY_ARRAY_REPORT = "array-report"


class HostProbe(WireModel):
    """POST /host_probe. ``duration``: seconds between two probes of this host."""

    host_nqn: HostNqn = Field(alias="hostNqn")
    host_id: HostId = Field(alias="hostId")
    name: Text = Field("", max_length=255)
    client_type: Text = Field("Agent", alias="clientType", max_length=255)
    version: Text = Field("", max_length=255)
    duration: int = Field(30, ge=0, le=86400 * 365)
    multipath: bool = False
    abilities: TextList = []


class Host(WireModel):
    """GET /hosts. ``last_probe_time`` in ms since the epoch."""

    uuid: str
    nqn: str
    name: str = ""
    client_type: str = Field("", alias="clientType")
    version: str = ""
    state: str = "Available"
    last_probe_time: int = Field(0, alias="lastProbeTime")
    duration: int = 30
    multipath: bool = False
    abilities: list[str] = []
    volumes: int = 0


class PublishRequest(WireModel):
    """POST /publish, our extension included.

    With ``host`` given, the host is registered in the same call and no host_probe is needed.
    ``complete`` (capability ``publish-complete``): refuse unless every replica but those that are
    blank is in sync and its node offers it. For hosts that cannot tell which leg missed writes.
    """

    host_id: HostId = Field(alias="hostId")
    vol_id: Text = Field(alias="volId", min_length=1, max_length=255)
    host: HostProbe | None = None
    complete: bool | None = None


class UnpublishRequest(WireModel):
    """POST /unpublish. Without ``hostId``: from every host."""

    host_id: HostId | None = Field(None, alias="hostId")
    vol_id: Text = Field(alias="volId", min_length=1, max_length=255)


class Target(WireModel):
    """GET /targets: one subsystem of one node. Both names carry the subsystem NQN."""

    target_name: str = Field(alias="targetName")
    name: str
    backend: BackendRef
    num_namespaces: int = Field(0, alias="numNamespaces")
    alias: str = ""


class PublishedReplica(WireModel):
    """One leg as a host needs it to connect.

    ``freshness``: ``fresh``, ``stale`` (it missed writes: never a source of data) or ``blank``
    (never in sync: to be synchronised). ``events``: md event counter last reported for it.
    ``backend_state``: state of its node. ``node_name``: for messages.
    """

    uuid: str
    target_nqn: str = Field(alias="targetNqn")
    portals: list[Portal]
    replica_state: str = Field(alias="replicaState")
    backend_id: str = Field(alias="persistentID")
    freshness: str = "fresh"
    events: int = 0
    backend_state: str = Field("Available", alias="backendState")
    node_name: str = Field("", alias="nodeName")


class PublishAnswer(StatusAnswer):
    """Answer of publish: with capability ``publish-attach`` it has all that an attach needs.

    ``array_state`` (replicated volumes): ``new``: no host has confirmed yet that it made the
    array; it may be made only if every leg definitely has no superblock. ``clean``: detached in
    order by the last host. ``open``: some host has it, or had it when last heard of.
    ``shared``: another host has the volume published now, so nothing may be written by assembling.
    ``publication`` (capability ``last-word``): number of this publication, for ``ArrayReport``.
    """

    volume: Volume | None = None
    replicas: list[PublishedReplica] = []
    array_state: str = Field("", alias="arrayState")
    shared: bool = False
    publication: int = 0


class LegReport(WireModel):
    """What a host sees of one leg. ``state``: one of the replica states of the wire."""

    replica: UuidText
    state: Text = Field(max_length=16)
    events: int = Field(0, ge=0)


class ArrayReport(WireModel):
    """POST /array_report (capability ``array-report``): what a host sees of an array.

    ``state``: ``open`` when it was made or assembled, ``clean`` when it was stopped in order.
    ``publication`` (capability ``last-word``), with ``clean``: the host has left the volume, and
    this is what its array was at the end of that publication. It is refused, with ``Busy``, before
    the unpublish, and with ``Conflict`` when the volume was published again, or has other legs.
    """

    host_id: HostId = Field(alias="hostId")
    vol_id: UuidText = Field(alias="volId")
    state: Text = Field(pattern="^(open|clean)$")
    legs: list[LegReport] = Field([], max_length=16)
    publication: int = Field(0, ge=0)
