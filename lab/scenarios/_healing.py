# SPDX-License-Identifier: Apache-2.0
"""What the scenarios of healing have in common: a volume under load, its agent, and what it did."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lab import brick_site, guest_brick, guest_fio, guest_log
from lab.agent import UNIT, Agent, section
from lab.compute import Attachment, BrickError
from lab.guest_fio import Load
from lab.machine import Machine
from lab.scenario import Context
from lab.scenarios._connector import GIB, Trial
from os_brick_nvmeof.conf import GROUP

# KB/s: beside I/O of others md would copy 1 MB a second.
RESYNC_MIN = 50000
# Seconds between two keep-alives.
PATIENCE = 10
_BRICK = f"kumo-brick-{brick_site.OURS}"
_GOOD_SECONDS = 400.0
_TOLD_SECONDS = 120.0
_LEGS_SECONDS = 180.0
_ATTACH_TRIES = 3
_BACK_SECONDS = 480.0
_HASH_SECONDS = 600.0
MISSING = "Missing"
AVAILABLE = "Available"


class Ward(Trial):
    """A compute machine with an agent.

    :param patient: have a keep-alive of :data:`PATIENCE` instead of the default. A machine on
        processors that are emulated and shared may be silent for seconds, and one that loses both
        legs at once has lost its array for good.
    :param options: of the agent, besides what it has by default.
    """

    def __init__(self, ctx: Context, patient: bool = True, **options: Any) -> None:
        # What a failed run has left would keep the processor busy.
        machine = ctx.lab.compute[0]
        machine.run(f"systemctl stop {UNIT} {guest_fio.UNIT} {_BRICK} 2>/dev/null; true")
        chosen = {"replicated_keep_alive": PATIENCE} if patient else {}
        machine.run(f"mkdir -p {Path(guest_brick.CONFIG).parent}")
        machine.put(guest_brick.CONFIG, section(GROUP, chosen).encode())
        super().__init__(ctx, brick_site.OURS)
        self.client = self._client
        self.agent = Agent(self.machine, self.plane)
        self.agent.forget()
        self.agent.install(chosen, **{"resync_min": RESYNC_MIN, **options})

    def close(self) -> None:
        """Stop the agent, delete all volumes; nothing may be left anywhere."""
        self.agent.forget()
        super().close()
        self.machine.run(f"systemctl stop {_BRICK}; rm {guest_brick.CONFIG}")

    def admit(self, gib: int = 1, down_time: int = 0, replicas: int = 2) -> tuple[str, Attachment]:
        """Make a volume and attach it."""
        volume = self.create(replicas, gib, down_time)
        return volume, self._attached(volume)

    def admit_on(self, *nodes: Machine, down_time: int = 0) -> tuple[str, Attachment]:
        """Make a volume with a leg on each of these nodes and attach it."""
        with self.plane.only(*(node.name for node in nodes)):
            volume = self.create(len(nodes), 1, down_time)
        return volume, self._attached(volume)

    def _attached(self, volume: str) -> Attachment:
        """Attach as somebody does who tries again: on processors that are emulated and shared, a
        machine may be silent for longer than the keep-alive of its connections."""
        for _ in range(_ATTACH_TRIES - 1):
            try:
                return self.compute.attach(volume)
            except BrickError as error:
                self.ctx.note(f"attached once more: {error}")
        return self.compute.attach(volume)

    def leg_on(self, volume: str, node: Machine) -> str:
        """The leg of a volume that is on a node."""
        legs = self.volumes.nodes(volume)
        return next(leg for leg, address in legs.items() if address == node.address)

    def load(self, attachment: Attachment) -> Load:  # type: ignore[override]
        """fio with verification on an attached volume, begun."""
        made = Load(self.machine, attachment.path)
        made.fill()
        made.start()
        return made

    def end_load(self, load: Load) -> float:
        """Stop the load: no job may have failed. The longest wait of all, in seconds."""
        self.ctx.check(load.running(), "fio has ended by itself")
        jobs = load.stop()
        text = ", ".join(f"{job.name} {job.longest:.1f} s of {job.count}" for job in jobs)
        self.ctx.note(f"longest I/O of fio's jobs: {text}")
        bad = [job for job in jobs if job.error]
        self.ctx.check(not bad, f"fio failed: {bad}")
        return max(job.longest for job in jobs)

    # What the provisioner has

    def states(self, volume: str) -> dict[str, str]:
        """State of each leg, by its uuid."""
        found = self.client.volume(volume).location
        return {leg.uuid: leg.replica_state for leg in found}

    def told(self, volume: str, leg: str, state: str, since: int) -> float:
        """When the provisioner took a leg for being in a state, in seconds since the epoch.

        :param since: number of the event before.
        :raises ScenarioFailedError: it does not.
        """
        deadline = time.monotonic() + _TOLD_SECONDS
        while True:
            page = self.client.events(since, volume_id=volume)
            for event in page.events:
                mine = event.type == "replica.state" and event.replica_id == leg
                if mine and f"is {state} " in event.message:
                    return float(event.time) / 1000
            self.ctx.check(
                time.monotonic() < deadline,
                f"leg {leg} is not {state} for the provisioner: {self.states(volume)}",
            )
            time.sleep(0.5)

    def wait_legs(self, volume: str, count: int) -> dict[str, str]:
        """Wait until a volume has so many legs, all of them Available; these with their states.

        :raises ScenarioFailedError: it does not come to that.
        """
        deadline = time.monotonic() + _LEGS_SECONDS
        while list((states := self.states(volume)).values()) != [AVAILABLE] * count:
            self.ctx.check(time.monotonic() < deadline, f"the volume's legs are {states}")
            time.sleep(1)
        return states

    # The end

    def back(self, node: Machine) -> float:
        """Power a machine on; the seconds until it was up."""
        begin = time.monotonic()
        node.start()
        node.wait_ready(_BACK_SECONDS)
        return time.monotonic() - begin

    def good(self, volume: str, timeout: float = _GOOD_SECONDS) -> float:
        """Wait until the agent shows a volume as good and md agrees."""
        seconds = self.agent.wait(volume, "good", timeout)
        self.wait_whole()
        return seconds

    def all_good(self, volumes: list[str], timeout: float = _GOOD_SECONDS) -> None:
        """Wait until the agent shows all of these as good and md agrees.

        :raises LabError: one is not. :raises ScenarioFailedError: md does not agree.
        """
        deadline = time.monotonic() + timeout
        for volume in volumes:
            self.agent.wait(volume, "good", max(0.0, deadline - time.monotonic()))
        found = self.arrays()
        whole = [one["degraded"] == "0" for one in found.values()]
        self.ctx.check(whole == [True] * len(volumes), f"arrays: {found}")

    def kernel(self) -> list[guest_log.Line]:
        """The kernel's log of the compute machine."""
        return guest_log.read(self.machine)

    def same_legs(self, volume: str, gib: int = 1) -> str:
        """Digest of the data of all legs of a detached volume, which must be the same.

        :raises ScenarioFailedError: it is not.
        """
        legs = list(self.volumes.nodes(volume))
        with ThreadPoolExecutor(len(legs)) as pool:
            digests = pool.map(lambda leg: self._leg_digest(volume, leg, gib), legs)
            found = dict(zip(legs, digests, strict=True))
        self.ctx.check(len(set(found.values())) == 1, f"legs differ: {found}")
        return next(iter(found.values()))

    def _leg_digest(self, volume: str, leg: str, gib: int) -> str:
        node, device = self.node(volume, leg), self.leg_device(volume, leg)
        shown = node.run(f"mdadm --examine {device} | grep 'Data Offset'").stdout
        offset = int(shown.split(":")[1].split()[0]) * 512
        words = f"iflag=direct,skip_bytes,count_bytes skip={offset} count={gib * GIB}"
        read = f"dd if={device} bs=4M {words} status=none"
        return node.run(f"{read} | md5sum", timeout=_HASH_SECONDS).stdout.split()[0]
