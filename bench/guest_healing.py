# SPDX-License-Identifier: Apache-2.0
"""Measures healing inside a virtual machine: our agent, rounds of 30 s, and by hand, in turns.

Reads a plan (JSON) from standard input and writes one line of JSON for each measurement. Runs as
root. The agent runs in this process all the time, as ``kumo-agent run`` has it but for its
provisioner (:mod:`bench.guest_vendor`), which has volumes for it only while it is its turn.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from bench import guest_frontier
from bench.guest_healers import LOST, ByHand, Healer, Ours, Rounds
from bench.guest_log import BEGUN, DONE, DROPPED
from bench.guest_site import Attached, Site
from bench.guest_vendor import Provisioner
from lab.guest_brick import LOCKS
from os_brick_nvmeof.agent import conf, main

OURS = "ours"
_CONFIG = Path("/run/kumo-bench.conf")
_WARM = 4.0
_DROP_SECONDS = 120.0
_HEAL_SECONDS = 180.0
_LIMITS = {"min": 50_000, "max": 200_000}


def say(line: dict[str, Any]) -> None:
    """One line for whoever started this."""
    print(json.dumps(line), flush=True)


class Turn:
    """One measurement.

    :param case: ``name``; ``volumes``: how many; ``replace``: whether the node stays away.
    """

    def __init__(self, site: Site, case: dict[str, Any], plan: dict[str, Any]) -> None:
        self._site, self._case, self._plan = site, case, plan
        self.found: dict[str, float] = {}

    def run(self, healer: Healer, phase: float) -> None:
        """Attach, lose a node, wait until all is redundant, detach.

        :param phase: seconds of load more than always, so that the keep-alive is at another point.
        """
        load = None
        down_time = self._plan["down_time"] if self._case["replace"] else 0.0
        try:
            volumes = self._site.attach(self._case["volumes"])
            healer.begin(volumes, down_time)
            load = self._site.load(volumes)
            time.sleep(_WARM + phase)
            load.take()
            cut = time.monotonic()
            self._site.nodes[LOST].cut()
            dropped = self._all(DROPPED, volumes, cut, _DROP_SECONDS)
            self.found["detect"] = dropped - cut
            healer.dropped()
            if self._case["replace"]:
                self._replaced(healer, volumes, dropped + down_time)
            else:
                self._returned(healer, volumes)
            waits = load.take()
            self.found |= {f"longest {name}": one["longest"] for name, one in waits.items()}
            errors = [one["error"] for one in waits.values() if one["error"]]
            if errors:
                raise RuntimeError(f"I/O failed: {errors}")
        finally:
            healer.end()
            self._site.clear(load)

    def _returned(self, healer: Healer, volumes: list[Attached]) -> None:
        time.sleep(self._plan["outage"])
        back = time.monotonic()
        legs = [one.volume.legs[LOST].uuid for one in volumes]
        node = self._site.nodes[LOST]
        node.restore()
        live = self._site.wait_live(back)
        before = sum(map(node.written, legs))
        healer.live()
        self._redundant(volumes, live)
        self.found["reconnect"] = live - back
        self.found["MB written"] = (sum(map(node.written, legs)) - before) / 1e6

    def _replaced(self, healer: Healer, volumes: list[Attached], allowed: float) -> None:
        time.sleep(max(0.0, allowed - time.monotonic()))
        healer.replace()
        self._redundant(volumes, allowed)

    def _redundant(self, volumes: list[Attached], since: float) -> None:
        begun = self._all(BEGUN, volumes, since, _HEAL_SECONDS)
        done = self._all(DONE, volumes, since, _HEAL_SECONDS)
        self.found |= {"begin": begun - since, "redundant": done - since}

    def _all(self, pattern: str, volumes: list[Attached], since: float, seconds: float) -> float:
        """When the last of them had come to that."""
        return max(
            self._site.log.wait(pattern.format(array=one.array), since, seconds) for one in volumes
        )


def heal(site: Site, provisioner: Provisioner, plan: dict[str, Any]) -> None:
    """All cases, subjects and rounds."""
    dice = random.Random(plan["seed"])
    makers: dict[str, Callable[[], Healer]] = {
        "raw": lambda: ByHand(site),
        "rounds": lambda: Rounds(site, dice),
        OURS: lambda: Ours(provisioner),
    }
    healers = {name: makers[name]() for name in plan["subjects"]}
    for case in plan["cases"]:
        for number in range(plan["rounds"]):
            phase = dice.uniform(0.0, 2.0)
            for name, healer in healers.items():
                about = {"case": case["name"], "subject": name, "round": number}
                turn = Turn(site, case, plan)
                try:
                    turn.run(healer, phase)
                except (OSError, RuntimeError) as error:
                    say(about | {"error": f"{type(error).__name__}: {error}"})
                say(about | {"seconds": turn.found})


def _limit_speed() -> None:
    """Resyncs by all subjects get this, in KB/s: beside other I/O md would copy 1 MB a second."""
    for name, value in _LIMITS.items():
        Path(f"/proc/sys/dev/raid/speed_limit_{name}").write_text(str(value))


class Driver(threading.Thread):
    """Does what the plan says, and then ends the agent, which has the main thread."""

    def __init__(self, site: Site, provisioner: Provisioner, plan: dict[str, Any]) -> None:
        super().__init__(name="driver", daemon=True)
        self._arguments = (site, provisioner, plan)
        self.failed = True

    def run(self) -> None:
        site, provisioner, plan = self._arguments
        try:
            if plan["cells"]:
                guest_frontier.measure(site, plan, say)
            else:
                heal(site, provisioner, plan)
            self.failed = False
        except Exception:  # noqa: BLE001 - it is told, and the code says that it failed
            traceback.print_exc()
        finally:
            if OURS in plan["subjects"]:
                os.kill(os.getpid(), signal.SIGTERM)


def start() -> int:
    """Entry point."""
    plan = json.load(sys.stdin)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    _CONFIG.write_text(f"[kumo_agent]\nlock_path = {LOCKS}\nhost_id = bench\n")
    options = conf.load([str(_CONFIG)])
    ctx = main.context(options)
    site = Site(ctx, plan["size_mib"])
    _limit_speed()
    provisioner = Provisioner(site.nodes, site.leg_size)
    driver = Driver(site, provisioner, plan)
    driver.start()
    if OURS in plan["subjects"]:
        with mock.patch.object(main, "_vendor", return_value=provisioner):
            main.run(options, ctx)
    driver.join()
    return int(driver.failed)


if __name__ == "__main__":
    code = start()
    # Threads that wait for the kernel would keep the process from ending.
    sys.stdout.flush()
    os._exit(code)
