# SPDX-License-Identifier: Apache-2.0
"""Making a volume reachable for a host, and what the host's connector is told about it.

A server that lists the capability ``publish-attach`` answers one publish call with all that is
needed. Any other server is a KumoScale, which wants the sequence probe, publish, volume, targets
and one backend for each target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from cinder import exception
from oslo_log import log as logging

from kumo_client import errors, naming
from kumo_client.schemas.common import Portal
from kumo_client.schemas.host import HostProbe, PublishRequest, UnpublishRequest
from kumo_client.schemas.info import CAPABILITY_PUBLISH_ATTACH
from kumo_client.schemas.volume import (
    REPLICA_MISSING,
    REPLICA_TERMINATING,
    Location,
    Volume,
)

LOG = logging.getLogger(__name__)

CONNECTOR_KEYS = ("nqn", "uuid")
# Of our part of the connection information; raised when its meaning changes.
KUMO_VERSION = 1
# As existing clients announce themselves; a KumoScale gives such a host a target per backend.
CLIENT_TYPE = "Agent"
PROBE_SECONDS = 30
# A leg in one of these states must not become part of a host's array again by an attach.
NOT_HANDED_OUT = (REPLICA_MISSING, REPLICA_TERMINATING)


@dataclasses.dataclass(frozen=True)
class Leg:
    """One replica and how to reach it."""

    uuid: str
    backend_id: str
    state: str
    target_nqn: str
    portals: list[Portal]


@dataclasses.dataclass(frozen=True)
class Publication:
    """A published volume with its legs."""

    volume: Volume
    legs: list[Leg]


def check_connector(connector: Mapping[str, Any], keys: tuple[str, ...] = CONNECTOR_KEYS) -> None:
    """Refuse a connector that does not say who the host is.

    os-brick leaves ``nqn`` out when the ``nvme`` command is missing, and ``uuid`` when the root
    file system has none, as in a container (os_brick/initiator/connectors/nvmeof.py,
    ``get_connector_properties``).

    :raises cinder.exception.InvalidConnectorException: naming the missing keys.
    """
    missing = [key for key in keys if not connector.get(key)]
    if missing:
        raise exception.InvalidConnectorException(
            missing=f"{' and '.join(missing)} of host {connector.get('host') or 'unknown'}; is "
            "nvme-cli installed there, and can os-brick see the UUID of its root file system?"
        )


def host_probe(connector: Mapping[str, Any], version: str) -> HostProbe:
    """The host of an os-brick connector as the provisioner knows hosts."""
    return HostProbe(
        host_nqn=connector["nqn"],
        host_id=connector["uuid"],
        name=naming.host_name(connector.get("host") or ""),
        client_type=CLIENT_TYPE,
        version=f"cinder-kumo-{version}",
        duration=PROBE_SECONDS,
        multipath=bool(connector.get("multipath")),
    )


def publish(client: Any, host: HostProbe, volume_id: str) -> Publication:
    """Give the host access to the volume; repeatable.

    :raises kumo_client.errors.KumoError: as the provisioner answers.
    """
    if client.supports(CAPABILITY_PUBLISH_ATTACH):
        return _publish_in_one_call(client, host, volume_id)
    return _publish_in_steps(client, host, volume_id)


def unpublish(client: Any, volume_id: str, host_id: str | None) -> None:
    """Take the access of one host, or of every host, away; repeatable."""
    try:
        client.unpublish(UnpublishRequest(host_id=host_id, vol_id=volume_id))
    except errors.NotExistsError as error:
        LOG.info("Nothing to unpublish from %s: %s", host_id or "any host", error)


def _publish_in_one_call(client: Any, host: HostProbe, volume_id: str) -> Publication:
    answer = client.publish(PublishRequest(host_id=host.host_id, vol_id=volume_id, host=host))
    if answer.volume is None:
        raise errors.ProtocolError("the answer of publish has no volume", volume=volume_id)
    legs = [
        Leg(leg.uuid, leg.backend_id, leg.replica_state, leg.target_nqn, leg.portals)
        for leg in answer.replicas
    ]
    return Publication(answer.volume, legs)


def _publish_in_steps(client: Any, host: HostProbe, volume_id: str) -> Publication:
    client.probe_host(host)
    client.publish(PublishRequest(host_id=host.host_id, vol_id=volume_id))
    volume = client.volume(volume_id)
    locations = {location.backend.persistent_id: location for location in volume.location}
    legs = []
    for target in client.targets(host_id=host.host_id, volume_id=volume_id):
        backend = client.backend(target.backend.persistent_id)
        location = _location(locations, backend.persistent_id, volume_id)
        legs.append(
            Leg(
                location.uuid,
                backend.persistent_id,
                location.replica_state,
                target.target_name,
                backend.portals,
            )
        )
    return Publication(volume, legs)


def _location(locations: dict[str, Location], backend_id: str, volume_id: str) -> Location:
    if backend_id not in locations:
        raise errors.ProtocolError(
            "a target is offered on a node that holds no replica",
            volume=volume_id,
            node=backend_id,
        )
    return locations[backend_id]


def connection_info(publication: Publication, volume_id: str) -> dict[str, Any]:
    """What os-brick's nvmeof connector expects, in the shape that the KumoScale driver made.

    See ``NVMeOFConnProps`` in os_brick/initiator/connectors/nvmeof.py, case 1 and 2. Its
    ``alias`` names the md array. The key ``kumo`` is ours; connectors that do not know it skip it.

    :raises kumo_client.errors.NotAvailableError: when no leg may be handed out.
    """
    volume = publication.volume
    legs = [leg for leg in publication.legs if leg.state not in NOT_HANDED_OUT]
    if not legs:
        states = ", ".join(
            f"{leg.uuid} on {leg.backend_id} is {leg.state}" for leg in publication.legs
        )
        raise errors.NotAvailableError(
            f"no replica can be attached ({states or 'none has a target'})",
            volume=volume_id,
            way_out="Bring the storage nodes of the volume back",
        )
    replicated = len(volume.location) > 1
    return {
        "driver_volume_type": "nvmeof",
        "data": {
            "vol_uuid": volume_id,
            "alias": naming.array_name(volume.alias) if replicated else volume.alias,
            "writable": volume.writable,
            "volume_replicas": [_replica(leg) for leg in legs],
            "replica_count": len(volume.location),
            "kumo": {
                "version": KUMO_VERSION,
                "class": naming.io_class(len(volume.location)),
                "capacity": volume.capacity,
                "replicas": [
                    {"uuid": leg.uuid, "state": leg.state, "backend": leg.backend_id}
                    for leg in publication.legs
                ],
            },
        },
    }


def _replica(leg: Leg) -> dict[str, Any]:
    return {
        "vol_uuid": leg.uuid,
        "target_nqn": leg.target_nqn,
        "portals": [(portal.ip, str(portal.port), portal.transport) for portal in leg.portals],
    }
