# SPDX-License-Identifier: Apache-2.0
"""Who makes volumes redundant again in the healing benchmark: by hand, in rounds, our agent.

A subject is told what happens, in this order: ``begin``; ``dropped``, when md has dropped a leg of
each volume; then ``live``, the moment that the lost node is connected again, or ``replace``, the
moment that a replacement is allowed; and ``end``.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bench.guest_floor import wait_device
from bench.guest_site import Attached, Site
from bench.guest_targets import run
from bench.guest_vendor import Provisioner

# Public behaviour of the agents of KumoScale: a round, then 30 s until the next; a repair ends it.
ROUND_SECONDS = 30.0
LOST, SPARE = 1, 2
# For so long the agent does not end the connections to the same node again (``Limits.cut_pause``).
_CUT_PAUSE = 35.0


class Healer(Protocol):
    """A subject."""

    def begin(self, volumes: Sequence[Attached], down_time: float) -> None:
        """These volumes are attached and used; after ``down_time`` seconds a lost leg may be
        replaced, 0: never."""

    def dropped(self) -> None:
        """md has dropped a leg of each."""

    def live(self) -> None:
        """The node is connected again."""

    def replace(self) -> None:
        """The lost legs may be replaced now."""

    def end(self) -> None:
        """Nothing is to be done any more."""


class ByHand:
    """mdadm at the very moment: what nobody can be faster than."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._volumes: Sequence[Attached] = ()

    def begin(self, volumes: Sequence[Attached], down_time: float) -> None:
        self._volumes = volumes

    def dropped(self) -> None:
        for one in self._volumes:
            remove(one)

    def live(self) -> None:
        for one in self._volumes:
            run("mdadm", "--manage", one.path, "--re-add", f"/dev/{one.devices[LOST]}")

    def replace(self) -> None:
        for one in self._volumes:
            spare(self._site, one)

    def end(self) -> None:
        self._volumes = ()


class Rounds:
    """One repair in each round of 30 s, of the first volume that needs one.

    The first round comes at a random moment after ``begin``. Time-outs are ours.
    """

    def __init__(self, site: Site, dice: random.Random) -> None:
        self._site, self._dice = site, dice
        self._volumes: Sequence[Attached] = ()
        self._down_time = 0.0
        self._lost = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, volumes: Sequence[Attached], down_time: float) -> None:
        self._volumes, self._down_time, self._lost = list(volumes), down_time, 0.0
        self._stop.clear()
        first = self._dice.uniform(0.0, ROUND_SECONDS)
        self._thread = threading.Thread(target=self._run, args=(first,), daemon=True)
        self._thread.start()

    def dropped(self) -> None:
        self._lost = time.monotonic()

    def live(self) -> None:
        return

    def replace(self) -> None:
        return

    def end(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _run(self, first: float) -> None:
        pause = first
        while not self._stop.wait(pause):
            self._round()
            pause = ROUND_SECONDS

    def _round(self) -> None:
        for one in self._volumes:
            if not degraded(one):
                continue
            if alive(self._site.nodes[LOST].nqn):
                remove(one)
                run("mdadm", "--manage", one.path, "--add", f"/dev/{one.devices[LOST]}")
                return
            if self._down_time and self._lost and self._waited() >= self._down_time:
                remove(one)
                spare(self._site, one)
                return

    def _waited(self) -> float:
        return time.monotonic() - self._lost


class Ours:
    """kumo-agent, which runs in this process."""

    def __init__(self, provisioner: Provisioner) -> None:
        self._provisioner = provisioner
        self._quiet = 0.0

    def begin(self, volumes: Sequence[Attached], down_time: float) -> None:
        time.sleep(max(0.0, self._quiet - time.monotonic()))
        self._provisioner.publish([one.volume for one in volumes], down_time)

    def dropped(self) -> None:
        self._quiet = time.monotonic() + _CUT_PAUSE

    def live(self) -> None:
        return

    def replace(self) -> None:
        return

    def end(self) -> None:
        self._provisioner.publish([], 0.0)


def alive(nqn: str) -> bool:
    """Whether a subsystem is connected."""
    for path in Path("/sys/class/nvme-fabrics/ctl").glob("nvme*"):
        with contextlib.suppress(OSError):  # it may go at this moment
            if (path / "subsysnqn").read_text().strip() == nqn:
                return (path / "state").read_text().strip() == "live"
    return False


def degraded(one: Attached) -> bool:
    """Whether a leg is missing and none is being filled."""
    return one.attribute("degraded") != "0" and one.attribute("sync_action") == "idle"


def remove(one: Attached) -> None:
    """Take the leg that md has dropped out of the array, unless that was done."""
    argv = ["mdadm", "--manage", one.path, "--remove", "failed"]
    subprocess.run(argv, check=False, capture_output=True)


def spare(site: Site, one: Attached) -> None:
    """Put a new leg on a third node in."""
    node, leg = site.nodes[SPARE], str(uuid.uuid4())
    node.add(leg, site.leg_size)
    if not alive(node.nqn):
        at = ("-a", node.address, "-s", node.portal.port)
        run("nvme", "connect", "-t", "tcp", *at, "-n", node.nqn)
    device = wait_device(leg)
    remove(one)
    run("mdadm", "--manage", one.path, "--add", device)
