# SPDX-License-Identifier: Apache-2.0
"""What the stories of healing in one virtual machine have in common.

Nodes, volumes and the stand-in for the provisioner are those of the benchmark of healing
(:mod:`bench.guest_site`, :mod:`bench.guest_vendor`); the agent is a process of its own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from bench.guest_site import Attached, Site
from bench.guest_targets import run
from bench.guest_vendor import Provisioner
from lab import guest_evidence
from lab.guest_remote import Agent, Desk
from lab.guest_verified import Load

STATUS = Path("/run/kumo-agent/status.json")
HISTORY = Path("/var/lib/kumo-agent/history.json")
_MIB = 1 << 20
_LEGS = Path("/run/legs")
_SECTOR = 512
# The first MiB of them, of which md's bitmap makes one chunk of 64 MiB.
_USED = 32 * _MIB
_POLL = 0.2
_WARM = 2.0
GOOD_SECONDS = 120.0


class WrongError(Exception):
    """Something is not as it must be; the text says what was seen."""


def check(condition: object, text: str) -> None:
    """:raises WrongError: the condition is not true."""
    if not condition:
        raise WrongError(text)


class Stage:
    """Where a story plays.

    :ivar told: what is worth knowing of it.
    """

    def __init__(self, site: Site, agent: Agent, seed: int) -> None:
        self.site, self.agent = site, agent
        self.dice = random.Random(seed)
        self.provisioner = Provisioner(site.nodes, site.leg_size)
        self.desk = Desk(self.provisioner)
        self.desk.start()
        self.told: list[str] = []

    def note(self, text: str) -> None:
        """Something worth knowing."""
        self.told.append(text)

    # -- volumes -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def volumes(
        self,
        places: Sequence[tuple[int, int]],
        down_time: float = 0.0,
        blocks: int = 128,
        jobs: tuple[int, int] = (1, 1),
    ) -> Iterator[tuple[list[Attached], Load]]:
        """Volumes that are attached, healed and used; detached at the end, and compared.

        :param places: the nodes of the legs of each. :param down_time: as ``publish`` has it.
        :param blocks: that the load writes, of each. :param jobs: writers and readers of each.
        """
        load = None
        self.provisioner.size = self.site.leg_size
        try:
            volumes = [one for place in places for one in self.site.attach(1, place)]
            if not self.agent.alive():
                self.agent.start()
            self.provisioner.publish([one.volume for one in volumes], down_time)
            load = self._load(volumes, blocks, jobs)
            yield volumes, load
            self._end(volumes, load)
        except Exception:
            guest_evidence.show()
            raise
        finally:
            self.desk.answers.set()
            self.desk.away = False
            if self.agent.alive():
                self.provisioner.publish([], 0.0)
            self.site.clear(load)

    def _load(self, volumes: Sequence[Attached], blocks: int, jobs: tuple[int, int]) -> Load:
        used = min(_USED, self.site.size)
        load = Load(
            paths=[one.path for one in volumes],
            count=blocks,
            stride=used // blocks,
            pause=0.1 * len(volumes) ** 0.5,
            seed=self.dice.randrange(1 << 30),
            writers=jobs[0],
            readers=jobs[1],
        )
        time.sleep(_WARM)
        load.ask("take")
        return load

    def _end(self, volumes: Sequence[Attached], load: Load) -> None:
        """All that was acknowledged is there, and all legs hold the same."""
        found = load.ask("check")
        check(not found["wrong"], f"data: {found['wrong']}")
        check(not load.ask("close")["hangs"], "I/O hangs")
        self.note(f"{found['blocks']} blocks verified")
        legs = [self._legs(one) for one in volumes]
        self.provisioner.publish([], 0.0)
        for one in volumes:
            array = Path("/dev/md") / one.volume.alias
            run("mdadm", "--stop", str(array.resolve()))
        for pair in legs:
            self._same(pair)

    def _legs(self, one: Attached) -> list[str]:
        return [leg["uuid"] for leg in self.status(one)["legs"]]

    def _same(self, legs: Sequence[str]) -> None:
        """The data of legs, which is all behind their md superblock and bitmap."""
        shown = run("mdadm", "--examine", str(_LEGS / legs[0]))
        offset = int(shown.partition("Data Offset :")[2].split()[0]) * _SECTOR
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context((_LEGS / leg).open("rb")) for leg in legs]
            at, end = offset, offset + self.site.size
            while (at := min(_data(file, at, end) for file in files)) < end:
                # Not a set: hashing them would cost more than reading them.
                parts = [os.pread(file.fileno(), min(_MIB, end - at), at) for file in files]
                same = all(part == parts[0] for part in parts)
                check(same, f"legs differ within 1 MiB from byte {at}")
                at += _MIB

    def quiet(self, load: Load) -> dict[str, Any]:
        """What the load saw; none of it may have failed or been wrong."""
        seen = load.ask("take")
        for name, one in seen.items():
            check(not one["wrong"], f"{name}: {one['wrong']}")
            check(not one["errors"], f"{one['errors']} {name}s failed: {one['error']}")
        longest = ", ".join(f"{name} {one['longest']:.1f} s" for name, one in seen.items())
        self.note(f"longest I/O: {longest}")
        return seen

    # -- what the agent shows ----------------------------------------------------------------------

    def shown(self) -> dict[str, Any]:
        """Its status; empty while there is none."""
        try:
            return dict(json.loads(STATUS.read_text()))
        except FileNotFoundError:
            return {}

    def status(self, one: Attached) -> dict[str, Any]:
        """What it shows of a volume."""
        found = self.shown().get("volumes", [])
        return next((each for each in found if each["uuid"] == one.volume.uuid), {})

    def history(self, one: Attached) -> list[dict[str, Any]]:
        """The healings of a volume."""
        if not HISTORY.exists():
            return []
        return [
            each for each in json.loads(HISTORY.read_text()) if each["volume"] == one.volume.uuid
        ]

    def wait(self, what: str, seconds: float, done: Callable[[], object]) -> float:
        """Wait until something is so; the seconds that took.

        :raises WrongError: it is not.
        """
        begin = time.monotonic()
        while not done():
            check(
                time.monotonic() < begin + seconds, f"not {what} in {seconds:.0f} s: {self._all()}"
            )
            time.sleep(_POLL)
        return time.monotonic() - begin

    def _all(self) -> str:
        shown = self.shown()
        states = [
            (
                each["state"],
                each["arrayState"],
                [leg["place"] for leg in each["legs"]],
                [note["text"] for note in each["notes"]],
            )
            for each in shown.get("volumes", [])
        ]
        return f"{states}; {shown.get('network')}; waiting: {shown.get('waiting')}"

    def good(self, volumes: Sequence[Attached], seconds: float = GOOD_SECONDS) -> float:
        """Wait until the agent shows all as good, md agrees, and the provisioner has it so."""
        return self.wait("redundant", seconds, lambda: self.all_good(volumes))

    def all_good(self, volumes: Sequence[Attached]) -> bool:
        """Whether the agent shows all as good, md agrees, and the provisioner has it so."""
        return all(map(self._good, volumes))

    def _good(self, one: Attached) -> bool:
        shown = self.status(one)
        if shown.get("state") != "good":
            return False
        md = Path("/sys/block") / shown["array"] / "md"
        whole = (md / "degraded").read_text().strip() == "0"
        return whole and {leg["recorded"] for leg in shown["legs"]} == {"Available"}


def _data(file: BinaryIO, at: int, end: int) -> int:
    """Where a sparse file has data from somewhere on; what was never written is a hole in it."""
    try:
        return min(os.lseek(file.fileno(), at, os.SEEK_DATA), end)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end


def kernel_names() -> tuple[list[str], list[str]]:
    """Controllers and arrays of this machine."""
    controllers = Path("/sys/class/nvme-fabrics/ctl").glob("nvme*")
    arrays = Path("/sys/block").glob("md*")
    return sorted(one.name for one in controllers), sorted(one.name for one in arrays)
