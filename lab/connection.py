# SPDX-License-Identifier: Apache-2.0
"""Connection information as the Cinder driver makes it, from legs that somebody describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cinder_kumo import attach
from kumo_client.schemas.common import Portal
from kumo_client.schemas.host import HostProbe, PublishAnswer, PublishedReplica, PublishRequest
from kumo_client.schemas.volume import REPLICA_AVAILABLE, Location, Volume

_HOST = HostProbe(host_nqn="nqn.2014-08.org.nvmexpress:uuid:lab", host_id="lab")
_ASKER = attach.Asker(_HOST)


@dataclass(frozen=True)
class Leg:
    """A leg. ``addresses``: of its portals, all with ``port`` and ``transport`` (of the wire)."""

    uuid: str
    nqn: str
    addresses: Sequence[str]
    port: int
    node: str
    transport: str = "TCP"


class _Provisioner:
    """Answers a publish with what it was told."""

    def __init__(self, answer: PublishAnswer) -> None:
        self._answer = answer

    def supports(self, _capability: str) -> bool:
        return True

    def publish(self, _request: PublishRequest) -> PublishAnswer:
        return self._answer


def connection_info(
    volume: str, alias: str, capacity: int, legs: Sequence[Leg], array_state: str = ""
) -> dict[str, Any]:
    """What the driver would tell a host about a volume.

    :param capacity: GiB.
    :param array_state: as in :class:`kumo_client.schemas.host.PublishAnswer`.
    """
    answer = PublishAnswer(
        status="Success",
        volume=Volume(
            uuid=volume,
            alias=alias,
            capacity=capacity,
            num_replicas=len(legs),
            location=[Location(uuid=leg.uuid, replica_state=REPLICA_AVAILABLE) for leg in legs],
        ),
        replicas=[
            PublishedReplica(
                uuid=leg.uuid,
                target_nqn=leg.nqn,
                portals=[
                    Portal(ip=ip, port=leg.port, transport=leg.transport) for ip in leg.addresses
                ],
                replica_state=REPLICA_AVAILABLE,
                backend_id=leg.node,
            )
            for leg in legs
        ],
        array_state=array_state,
    )
    publication = attach.publish(_Provisioner(answer), _ASKER, volume)
    info = attach.connection_info(publication, volume, _ASKER)
    # Whoever attaches is who it is.
    del info["data"]["kumo"]["host_nqn"]
    return info
