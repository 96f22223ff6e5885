# SPDX-License-Identifier: Apache-2.0
"""A compute machine that attaches volumes with nvme-cli alone, without OpenStack."""

from __future__ import annotations

import time
import uuid

from kumo_client.schemas.host import HostProbe, PublishRequest, UnpublishRequest
from lab.controlplane import Client
from lab.errors import LabError
from lab.machine import Machine

_DEVICE_SECONDS = 60.0


class PlainHost:
    """One compute machine; ``client`` is for the provisioner."""

    def __init__(self, machine: Machine, client: Client) -> None:
        self.machine = machine
        self._client = client
        self._id = str(uuid.uuid5(uuid.NAMESPACE_DNS, machine.name))
        self.nqn = f"nqn.2014-08.org.nvmexpress:uuid:{self._id}"

    def attach(self, volume: str) -> str:
        """Publish a volume of one replica and connect to it; gives its device.

        :raises LabError: the device does not appear.
        """
        probe = HostProbe(host_nqn=self.nqn, host_id=self._id, name=self.machine.name)
        answer = self._client.publish(PublishRequest(host_id=self._id, vol_id=volume, host=probe))
        (leg,) = answer.replicas
        device = f"/dev/disk/by-id/nvme-uuid.{leg.uuid}"
        connected = "/sys/class/nvme-fabrics/ctl/*/subsysnqn"
        self.machine.run("modprobe nvme-tcp")
        if self.machine.run(f"grep -qx {leg.target_nqn} {connected}", check=False).returncode:
            portal = leg.portals[0]
            self.machine.run(
                f"nvme connect -t tcp -a {portal.ip} -s {portal.port} -n {leg.target_nqn}"
                f" -q {self.nqn} -I {self._id}"
            )
        deadline = time.monotonic() + _DEVICE_SECONDS
        while self.machine.run(["test", "-b", device], check=False).returncode:
            if time.monotonic() > deadline:
                raise LabError(f"{device} does not appear on {self.machine.name}")
            time.sleep(0.2)
        return device

    def detach(self, volume: str) -> None:
        """Take a volume away; the connection stays for others."""
        self._client.unpublish(UnpublishRequest(host_id=self._id, vol_id=volume))

    def disconnect(self) -> None:
        """End all connections."""
        self.machine.run("nvme disconnect-all", check=False)
