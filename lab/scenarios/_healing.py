# SPDX-License-Identifier: Apache-2.0
"""What the scenarios of healing have in common: a volume under load, its agent, and what it did."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lab import brick_site, guest_fio, guest_log
from lab.agent import UNIT, Agent
from lab.compute import Attachment
from lab.guest_fio import Load
from lab.machine import Machine
from lab.scenario import Context
from lab.scenarios._connector import GIB, Trial

# KB/s: beside I/O of others md would copy 1 MB a second.
RESYNC_MIN = 50000
_GOOD_SECONDS = 400.0
_TOLD_SECONDS = 120.0
_BACK_SECONDS = 480.0
_HASH_SECONDS = 600.0
MISSING = "Missing"
AVAILABLE = "Available"


class Ward(Trial):
    """A compute machine with an agent.

    :param options: of the agent, besides what it has by default.
    """

    def __init__(self, ctx: Context, **options: Any) -> None:
        # What a failed run has left would keep the processor busy.
        ctx.lab.compute[0].run(f"systemctl stop {UNIT} {guest_fio.UNIT} 2>/dev/null; true")
        super().__init__(ctx, brick_site.OURS)
        self.client = self._client
        self.agent = Agent(self.machine, self.plane)
        self.agent.forget()
        self.agent.install(resync_min=RESYNC_MIN, **options)

    def close(self) -> None:
        """Stop the agent, delete all volumes; nothing may be left anywhere."""
        self.agent.forget()
        super().close()

    def admit(self, gib: int = 1, down_time: int = 0, replicas: int = 2) -> tuple[str, Attachment]:
        """Make a volume and attach it."""
        volume = self.create(replicas, gib, down_time)
        return volume, self.compute.attach(volume)

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
