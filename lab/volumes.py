# SPDX-License-Identifier: Apache-2.0
"""Volumes and attachments without OpenStack, for scenarios that are about the connector.

Volumes are made at the provisioner, and connection information is what the Cinder driver makes of
the provisioner's answer.
"""

from __future__ import annotations

import uuid
from typing import Any

from cinder_kumo import attach
from kumo_client.schemas.host import ArrayReport, LegReport
from kumo_client.schemas.volume import REPLICA_AVAILABLE, StorageClass, VolumeCreate
from lab.controlplane import Client
from lab.errors import LabError

_VERSION = "lab"


class Volumes:
    """What Cinder does for :class:`lab.compute.Compute`.

    :param client: of the provisioner.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        # Attachments: volume and connector by identifier.
        self.attachments: dict[str, tuple[str, dict[str, Any]]] = {}
        self._cleared: set[str] = set()

    def create(self, replicas: int, gib: int = 1, down_time: int = 0) -> str:
        """Make a volume of so many replicas; the answer is its uuid.

        :param down_time: minutes after which a lost replica is replaced; 0: never.
        """
        made = str(uuid.uuid4())
        self._client.create_volume(
            VolumeCreate(
                uuid=made,
                alias=f"volume-{made}",
                capacity=gib,
                storage_class=StorageClass(num_replicas=replicas, max_replica_down_time=down_time),
            )
        )
        return made

    def extend(self, volume: str, gib: int) -> None:
        """Make a volume larger, on its nodes."""
        self._client.extend_volume(volume, gib)

    def delete(self, volume: str) -> None:
        """Delete a volume that is not attached."""
        self._client.delete_volume(volume)

    def nodes(self, volume: str) -> dict[str, str]:
        """Address of the node of each leg, by the leg's uuid."""
        found = self._client.volume(volume).location
        return {leg.uuid: leg.backend.mgmt_ips[0] for leg in found}

    def report_clean(self, attachment: str, events: dict[str, int]) -> None:
        """Tell the provisioner that the array of an attachment was stopped in order.

        On a host of a cloud its agent does that.

        :param events: md event counter of each leg that is in sync, by the leg's uuid.
        """
        volume, connector = self.attachments[attachment]
        legs = [
            LegReport(replica=leg, state=REPLICA_AVAILABLE, events=count)
            for leg, count in events.items()
        ]
        self._client.report_array(
            ArrayReport(host_id=connector["uuid"], vol_id=volume, state="clean", legs=legs)
        )

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """The calls of Cinder's attachment API that :class:`lab.compute.Compute` makes.

        :raises kumo_client.errors.KumoError: as the provisioner answers.
        :raises LabError: it is another call, or there is no such attachment.
        """
        match method, path.strip("/").split("/"):
            case "POST", ["attachments"]:
                wanted = body["attachment"]
                return {"attachment": self._attach(wanted["volume_uuid"], wanted["connector"])}
            case "POST", ["attachments", identifier, "action"] if identifier in self.attachments:
                return None
            case "DELETE", ["attachments", identifier] if identifier in self.attachments:
                self._detach(identifier)
                return None
            case "DELETE", ["attachments", identifier] if identifier in self._cleared:
                return None
        raise LabError(f"no attachment takes {method} {path}")

    def clear(self) -> None:
        """Delete all attachments; whoever deletes one of them later is told that it is done."""
        for identifier in list(self.attachments):
            self._cleared.add(identifier)
            self._detach(identifier)

    def _attach(self, volume: str, connector: dict[str, Any]) -> dict[str, Any]:
        attach.check_connector(connector)
        # Scenarios watch stock os-brick with a part of the legs, which the driver refuses it.
        asker = attach.Asker(attach.host_probe(connector, _VERSION))
        publication = attach.publish(self._client, asker, volume)
        info = attach.connection_info(publication, volume, asker)
        identifier = str(uuid.uuid4())
        self.attachments[identifier] = (volume, connector)
        # As Cinder's API gives it: one level, with what the volume manager adds.
        data = {**info["data"], "driver_volume_type": info["driver_volume_type"]}
        data |= {"access_mode": "rw", "encrypted": False, "qos_specs": None, "cacheable": False}
        return {"id": identifier, "connection_info": data | {"attachment_id": identifier}}

    def _detach(self, identifier: str) -> None:
        volume, connector = self.attachments.pop(identifier)
        hosts = [(v, c["uuid"]) for v, c in self.attachments.values()]
        if (volume, connector["uuid"]) not in hosts:
            attach.unpublish(self._client, volume, connector["uuid"])
