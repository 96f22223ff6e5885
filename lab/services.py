# SPDX-License-Identifier: Apache-2.0
"""Kumo and OpenStack together in a lab, as scenarios and the main job use them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lab.cluster import Lab
from lab.compute import Compute
from lab.controlplane import ControlPlane
from lab.errors import LabError
from lab.network import CONTROL_ADDRESS
from lab.openstack import config, http, keystone
from lab.openstack.cli import Cli
from lab.openstack.netns import Inside
from lab.openstack.stack import NAMES, Stack
from lab.progress import Progress

BACKEND = "kumo"
DRIVER = "cinder_kumo.driver.KumoVolumeDriver"
# The API version in which every call of the lab exists (cinder, REST API version history).
_MICROVERSION = "volume 3.60"


class Cinder:
    """Cinder's API and the ``openstack`` command, inside the lab's namespace."""

    def __init__(self, stack: Stack, netns: str) -> None:
        self.cli = Cli(stack.exports(), netns)
        self._stack = stack
        self._inside = Inside(netns)
        self._token = ""

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """One call of the volume API, ``path`` below the version.

        :raises OSError: no answer, or an error status.
        """
        settings = self._stack.settings
        if not self._token:
            self._token = self._inside.call(lambda: keystone.token(settings, "admin", "admin"))
        headers = {"X-Auth-Token": self._token, "OpenStack-API-Version": _MICROVERSION}
        url = f"http://{settings.address}:{config.CINDER_PORT}/v3{path}"
        answer = self._inside.call(
            lambda: http.request(method, url, json=body, headers=headers, timeout=120)
        )
        return answer.json() if answer.content else None

    def status(self, kind: str, identifier: str) -> str:
        """Status of a ``volume`` or ``snapshot``; ``gone`` when it does not exist."""
        try:
            answer = self.request("GET", f"/{kind}s/{identifier}")
        except OSError as error:
            response = getattr(error, "response", None)
            if response is not None and response.status_code == 404:
                return "gone"
            raise
        return str(answer[kind]["status"])

    def wait(self, kind: str, identifier: str, wanted: str, timeout: float = 240.0) -> float:
        """Wait for a status.

        :return: the seconds it took.
        :raises LabError: the object went into an error state or the time is over.
        """
        begin = time.monotonic()
        while True:
            status = self.status(kind, identifier)
            seconds = time.monotonic() - begin
            if status == wanted:
                return seconds
            if status.startswith("error") or seconds > timeout:
                raise LabError(f"{kind} {identifier} is {status} after {seconds:.0f} s")
            time.sleep(0.1)

    def close(self) -> None:
        """End the thread that lives in the namespace."""
        self._inside.close()


class Services:
    """Everything that runs besides the machines."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.plane = ControlPlane(lab)
        self.stack = Stack(lab.processes, lab.state_dir / "openstack", CONTROL_ADDRESS)
        self.cinder = Cinder(self.stack, lab.netns)

    def backend(self) -> dict[str, str]:
        """Options of the Cinder backend."""
        return {
            "volume_driver": DRIVER,
            "volume_backend_name": BACKEND,
            "kumo_urls": self.plane.url,
            "kumo_ca_file": str(self.plane.ca_file),
            "kumo_token_file": str(self.plane.token_file),
        }

    def start(self, progress: Progress) -> list[Compute]:
        """Start what does not run yet; the compute hosts are ready to attach.

        :raises LabError: something did not come up.
        """
        computes = [Compute(machine, self.cinder.request) for machine in self.lab.compute]
        with ThreadPoolExecutor(2 + len(computes)) as pool:
            futures = [pool.submit(self._start_stack, progress)]
            futures.append(pool.submit(self.plane.start, progress))
            futures += [pool.submit(_start_compute, item, progress) for item in computes]
            for future in futures:
                future.result()
        with progress.task("cinder-volume with the Kumo driver"):
            self.stack.start_volume({BACKEND: self.backend()}, _quiet)
        return computes

    def _start_stack(self, progress: Progress) -> None:
        if all(self.lab.processes.alive(name) for name in NAMES if name != "cinder-volume"):
            return
        with progress.task("Keystone, Glance, Cinder and RabbitMQ") as task:
            self.stack.start(task.update)

    def exports(self) -> dict[str, str]:
        """Environment for the ``openstack`` and the ``kumo`` command."""
        return {**self.stack.exports(), **self.plane.environment()}

    def close(self) -> None:
        """Let go of the namespace; everything stays running."""
        self.cinder.close()
        self.stack.close()


def _start_compute(compute: Compute, progress: Progress) -> None:
    with progress.task(f"os-brick on {compute.machine.name}"):
        compute.start()


def _quiet(_text: str) -> None:
    """Times of single services are of no interest here."""
