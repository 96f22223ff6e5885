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
from kumo_client.schemas.host import ABILITY_FRESHNESS, HostProbe, PublishRequest, UnpublishRequest
from kumo_client.schemas.info import CAPABILITY_PUBLISH_ATTACH, CAPABILITY_PUBLISH_COMPLETE
from kumo_client.schemas.node import CLASS_PLAIN, CLASS_REPLICATED
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
FRESH = "fresh"
BLANK = "blank"


@dataclasses.dataclass(frozen=True)
class Leg:
    """One replica and how to reach it."""

    uuid: str
    backend_id: str
    state: str
    target_nqn: str
    portals: list[Portal]
    # What only our provisioner tells.
    node: str = ""
    freshness: str = ""
    events: int = 0

    @property
    def whole(self) -> bool:
        """Whether a host can use it that asks no questions."""
        return self.state not in NOT_HANDED_OUT and self.freshness in ("", FRESH)

    def __str__(self) -> str:
        known = f" ({self.freshness})" if self.freshness else ""
        return f"{self.uuid} on {self.node or self.backend_id} is {self.state}{known}"


@dataclasses.dataclass(frozen=True)
class Publication:
    """A published volume with its legs.

    ``array_state``, ``shared`` and ``number`` as in
    :class:`kumo_client.schemas.host.PublishAnswer`, where the last one is ``publication``.
    """

    volume: Volume
    legs: list[Leg]
    array_state: str = ""
    shared: bool = False
    number: int = 0

    @property
    def replicated(self) -> bool:
        """Whether hosts have an array of it; it may have one leg left.

        Existing servers do not tell more than the legs.
        """
        return len(self.volume.location) > 1 or bool(self.volume.array_state)


@dataclasses.dataclass(frozen=True)
class Asker:
    """The host that is to get a volume, and what holds for it.

    ``complete``: it must get every leg of an array in sync, or nothing. ``accept_stale``: an
    operator has allowed old data for this volume.
    """

    probe: HostProbe
    complete: bool = False
    accept_stale: bool = False

    @property
    def careful(self) -> bool:
        """Whether it tells legs that missed writes from others."""
        return ABILITY_FRESHNESS in self.probe.abilities

    def gets(self, leg: Leg) -> bool:
        """Whether it may connect to a leg.

        os-brick's own connector does not assemble an array when one leg has no superblock; such a
        leg has nothing that another one lacks.
        """
        return leg.state not in NOT_HANDED_OUT and (self.careful or leg.freshness != BLANK)


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
        abilities=abilities(connector),
    )


def abilities(connector: Mapping[str, Any]) -> list[str]:
    """What our connector on that host says it can do; nothing when os-brick's own is there."""
    told = connector.get("kumo")
    listed = told.get("abilities") if isinstance(told, Mapping) else None
    return [str(one) for one in listed] if isinstance(listed, list | tuple) else []


def asker(connector: Mapping[str, Any], version: str, *, accept_stale: bool) -> Asker:
    """The host of a connector, and how careful one has to be with it."""
    known = Asker(host_probe(connector, version), accept_stale=accept_stale)
    return dataclasses.replace(known, complete=not (known.careful or accept_stale))


def publish(client: Any, asker: Asker, volume_id: str) -> Publication:
    """Give the host access to the volume; repeatable.

    :raises kumo_client.errors.StaleError: it has to get every leg in sync, and cannot.
    :raises kumo_client.errors.KumoError: as the provisioner answers.
    """
    if client.supports(CAPABILITY_PUBLISH_ATTACH):
        found = _publish_in_one_call(client, asker, volume_id)
    else:
        found = _publish_in_steps(client, asker.probe, volume_id)
    if asker.complete:
        _check_complete(found, volume_id)
    return found


def _check_complete(found: Publication, volume_id: str) -> None:
    lacking = [
        leg
        for leg in found.legs
        if leg.state != REPLICA_TERMINATING and leg.freshness != BLANK and not leg.whole
    ]
    offered = {leg.uuid for leg in found.legs}
    absent = [
        f"{place.uuid} on {place.backend.persistent_id} is not offered"
        for place in found.volume.location
        if place.uuid not in offered and place.replica_state != REPLICA_TERMINATING
    ]
    if found.replicated and (lacking or absent):
        raise errors.StaleError(
            "the host has os-brick's own connector, which cannot tell a leg that missed writes, "
            f"and not every leg is in sync: {', '.join([*map(str, lacking), *absent])}",
            volume=volume_id,
            way_out="Install cinder-kumo on that host, let the volume heal, or name the volume in "
            "kumo_accept_stale",
        )


def unpublish(client: Any, volume_id: str, host_id: str | None) -> None:
    """Take the access of one host, or of every host, away; repeatable."""
    try:
        client.unpublish(UnpublishRequest(host_id=host_id, vol_id=volume_id))
    except errors.NotExistsError as error:
        LOG.info("Nothing to unpublish from %s: %s", host_id or "any host", error)


def _publish_in_one_call(client: Any, asker: Asker, volume_id: str) -> Publication:
    # Refused there, nothing is recorded of legs that are away.
    complete = asker.complete and client.supports(CAPABILITY_PUBLISH_COMPLETE)
    host = asker.probe
    answer = client.publish(
        PublishRequest(host_id=host.host_id, vol_id=volume_id, host=host, complete=complete or None)
    )
    if answer.volume is None:
        raise errors.ProtocolError("the answer of publish has no volume", volume=volume_id)
    legs = [
        Leg(
            leg.uuid,
            leg.backend_id,
            leg.replica_state,
            leg.target_nqn,
            leg.portals,
            leg.node_name,
            leg.freshness,
            leg.events,
        )
        for leg in answer.replicas
    ]
    return Publication(answer.volume, legs, answer.array_state, answer.shared, answer.publication)


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


def connection_info(publication: Publication, volume_id: str, asker: Asker) -> dict[str, Any]:
    """What os-brick's nvmeof connector expects, in the shape that the KumoScale driver made.

    See ``NVMeOFConnProps`` in os_brick/initiator/connectors/nvmeof.py, case 1 and 2. Its
    ``alias`` names the md array. The key ``kumo`` is ours; connectors that do not know it skip it.

    :raises kumo_client.errors.NotAvailableError: when no leg may be handed out.
    """
    volume = publication.volume
    legs = [leg for leg in publication.legs if asker.gets(leg)]
    if not legs:
        states = ", ".join(str(leg) for leg in publication.legs)
        raise errors.NotAvailableError(
            f"no replica can be attached ({states or 'none has a target'})",
            volume=volume_id,
            way_out="Bring the storage nodes of the volume back",
        )
    name = naming.array_name(volume.alias) if publication.replicated else volume.alias
    return {
        "driver_volume_type": "nvmeof",
        "data": {
            "vol_uuid": volume_id,
            "alias": name,
            "writable": volume.writable,
            "volume_replicas": [_replica(leg) for leg in legs],
            "replica_count": len(volume.location),
            "kumo": _ours(publication, asker),
        },
    }


def _ours(publication: Publication, asker: Asker) -> dict[str, Any]:
    """Our part, which our connector reads (``props.parse`` of os_brick_nvmeof)."""
    return {
        "version": KUMO_VERSION,
        "class": CLASS_REPLICATED if publication.replicated else CLASS_PLAIN,
        "capacity": publication.volume.capacity,
        "host_nqn": asker.probe.host_nqn,
        "array_state": publication.array_state,
        "shared": publication.shared,
        "accept_stale": asker.accept_stale,
        "tenant": publication.volume.tenant_id,
        "publication": publication.number,
        "replicas": [
            {
                "uuid": leg.uuid,
                "state": leg.state,
                "backend": leg.backend_id,
                "node": leg.node,
                "freshness": leg.freshness,
                "events": leg.events,
                "target_nqn": leg.target_nqn,
                "portals": _portals(leg),
            }
            for leg in publication.legs
        ],
    }


def _replica(leg: Leg) -> dict[str, Any]:
    return {"vol_uuid": leg.uuid, "target_nqn": leg.target_nqn, "portals": _portals(leg)}


def _portals(leg: Leg) -> list[tuple[str, str, str]]:
    return [(portal.ip, str(portal.port), portal.transport) for portal in leg.portals]
