# SPDX-License-Identifier: Apache-2.0
"""Hosts, publications and targets."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kumo_client.schemas.backend import BackendRef
from kumo_client.schemas.common import Portal, StatusAnswer, Text, WireModel
from kumo_client.schemas.volume import Volume

HostId = Annotated[Text, Field(min_length=1, max_length=255)]
# NVMe Base Specification 2.0, section 4.5: an NQN has at most 223 bytes.
HostNqn = Annotated[Text, Field(min_length=11, max_length=223, pattern=r"^nqn\.")]


class HostProbe(WireModel):
    """POST /host_probe. ``duration``: seconds between two probes of this host."""

    host_nqn: HostNqn = Field(alias="hostNqn")
    host_id: HostId = Field(alias="hostId")
    name: Text = Field("", max_length=255)
    client_type: Text = Field("Agent", alias="clientType", max_length=255)
    version: Text = Field("", max_length=255)
    duration: int = Field(30, ge=0, le=86400 * 365)
    multipath: bool = False


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


class PublishRequest(WireModel):
    """POST /publish, our extension included.

    With ``host`` given, the host is registered in the same call and no host_probe is needed.
    """

    host_id: HostId = Field(alias="hostId")
    vol_id: Text = Field(alias="volId", min_length=1, max_length=255)
    host: HostProbe | None = None


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
    """One leg as a host needs it to connect."""

    uuid: str
    target_nqn: str = Field(alias="targetNqn")
    portals: list[Portal]
    replica_state: str = Field(alias="replicaState")
    backend_id: str = Field(alias="persistentID")


class PublishAnswer(StatusAnswer):
    """Answer of publish: with capability ``publish-attach`` it has all that an attach needs."""

    volume: Volume | None = None
    replicas: list[PublishedReplica] = []
