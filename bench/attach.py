# SPDX-License-Identifier: Apache-2.0
"""How fast volumes are attached and detached: stock os-brick, ours and what has to be done anyway.

One virtual machine is the compute host and, over its loopback device, every storage node. Its clock
counts instructions (QEMU's ``-icount shift=1,sleep=off``), so that times do not depend on what else
this machine does: two runs of the same code differ by little. Seconds are those of that clock.
The subjects take turns:

* ``stock``: os-brick as it comes;
* ``ours``: os-brick with our connector;
* ``raw``: nvme-cli and mdadm by hand, waiting for readiness alone (the floor of the aims);
* ``fabrics``: writes to /dev/nvme-fabrics and sysfs, and mdadm.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.one_machine import CLOCK, ERRORS, SEEN, about, told
from kumo_client import naming
from lab import brick_site
from lab.cluster import Lab
from lab.compute import Brick
from lab.connection import Leg, connection_info
from lab.progress import Progress

SUBJECTS = ("stock", "ours", "raw", "fabrics")
FLOOR = "raw"
GIB = 1 << 30
# One address for each storage node and each of its portals; nobody listens on the last two.
NODES = ("127.0.1.1", "127.0.1.2", "127.0.1.3")
SECOND_PORTALS = ("127.0.2.1", "127.0.2.2", "127.0.2.3")
REFUSED, SILENT = "127.0.3.1", "127.0.4.1"
PORT = 4420
_NAMESPACE = uuid.UUID("0f4b3c0e-58c5-5d1c-8a0c-2b7d1d3d6a55")
_TIMEOUT = 7200.0


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a case is made of.

    :param legs: of each volume; 1 is a volume without an array.
    :param block: bytes of a logical block.
    :param dead: address of one more leg, where nobody answers.
    """

    name: str
    volumes: int = 1
    legs: int = 1
    portals: int = 1
    block: int = 512
    grow: bool = False
    dead: str = ""
    shared: bool = False


KINDS = (
    Kind("1 portal"),
    Kind("2 portals", portals=2),
    Kind("2 legs", legs=2),
    Kind("3 legs", legs=3),
    Kind("16 volumes at once", volumes=16),
    Kind("16 volumes at once, one subsystem", volumes=16, shared=True),
    Kind("8 volumes of 2 legs at once", volumes=8, legs=2),
    Kind("extend, 512-byte blocks", grow=True),
    Kind("extend, 4096-byte blocks", grow=True, block=4096),
    Kind("extend, 2 legs", grow=True, legs=2),
    Kind("2 legs, one refuses", legs=2, dead=REFUSED),
    Kind("2 legs, one silent", legs=2, dead=SILENT),
)


class Plan:
    """What the guest is to do, see :mod:`bench.guest_attach`."""

    def __init__(self, kinds: Iterable[Kind], subjects: list[str], rounds: int) -> None:
        self.subjects = subjects
        self.targets: list[dict[str, Any]] = []
        self.cases = [self._case(kind) for kind in kinds]
        self.body = {
            "targets": self.targets,
            "silent": [SILENT],
            "rounds": rounds,
            "cases": self.cases,
        }

    def _case(self, kind: Kind) -> dict[str, Any]:
        size = naming.replica_bytes(1, kind.legs)
        before = len(self.targets)
        volumes = [self._volume(kind, number, size) for number in range(kind.volumes)]
        return {
            "name": kind.name,
            # By hand, nobody can connect a subsystem for several volumes at once, nor take a leg
            # from the half of an array that udev has begun with it.
            "subjects": [
                name
                for name in self.subjects
                if name in brick_site.EDITIONS or not (kind.shared or kind.dead)
            ],
            "volumes": volumes,
            "legs": [target["uuid"] for target in self.targets[before:]],
            "multipath": kind.portals > 1,
            "again": kind.volumes == 1 and not kind.grow and not kind.dead,
            "create": kind.legs > 1,
            "size": size,
            "grown": naming.replica_bytes(2, kind.legs) if kind.grow else 0,
            "dead": kind.dead,
        }

    def _volume(self, kind: Kind, number: int, size: int) -> dict[str, Any]:
        identifier = _uuid(kind.name, number)
        legs = []
        for index in range(kind.legs):
            place = "shared" if kind.shared else number
            nqn = f"nqn.2014-08.org.nvmexpress:uuid:{_uuid(kind.name, place, index, 'nqn')}"
            addresses = [NODES[index], SECOND_PORTALS[index]][: kind.portals]
            leg = Leg(_uuid(kind.name, number, index), nqn, addresses, PORT, f"node{index + 1}")
            self.targets.append(
                {"uuid": leg.uuid, "nqn": nqn, "addresses": addresses, "size": size}
                | {"block": kind.block}
            )
            legs.append(leg)
        return dict(connection_info(identifier, f"v-{identifier}", 1, legs)["data"])


def _uuid(*words: Any) -> str:
    return str(uuid.uuid5(_NAMESPACE, " ".join(map(str, words))))


def table(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians in seconds by case, call and subject, with the failures.

    :param lines: what the guest told.
    """
    times: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if "seconds" in line and line["round"] > 0:
            times[line["case"], line["what"]][line["subject"]].append(line["seconds"])
    return [
        {
            "case": case,
            "what": what,
            "median": {name: statistics.median(found) for name, found in by_subject.items()},
            "count": {name: len(found) for name, found in by_subject.items()},
        }
        for (case, what), by_subject in times.items()
    ]


def show(rows: Iterable[dict[str, Any]], subjects: list[str]) -> str:
    """The table as text: seconds, and multiples of the floor."""
    compared = [name for name in subjects if name != FLOOR]
    head = f"{'':44}" + "".join(f"{name:>9}" for name in subjects)
    lines = [head + "".join(f"{name + '/' + FLOOR:>13}" for name in compared)]
    for row in rows:
        median = row["median"]
        cells = "".join(
            f"{median[name]:9.3f}" if name in median else f"{'-':>9}" for name in subjects
        )
        floor = median.get(FLOOR)
        ratios = "".join(
            f"{median[name] / floor:13.2f}" if floor and name in median else f"{'-':>13}"
            for name in compared
        )
        lines.append(f"{row['case'] + ': ' + row['what']:44}{cells}{ratios}")
    return "\n".join(lines)


def measure(plan: Plan, options: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """Carry a plan out in a virtual machine made for it; what the guest told, line by line.

    :raises LabError: the machine or the program in it failed.
    """
    # Names of labs are unique, and this one is nobody else's.
    name = f"attach-{os.getpid()}"
    lab = Lab.up(
        name,
        storage=0,
        compute=1,
        progress=progress,
        kernel=options.kernel,
        icount=not options.real_time,
    )
    try:
        (machine,) = lab.compute
        for edition in set(plan.subjects) & set(brick_site.EDITIONS):
            with progress.task(f"os-brick, {edition}"):
                Brick(machine, edition).start()
        machine.put("/root/plan.json", json.dumps(plan.body).encode())
        command = f"kumo-python -m bench.guest_attach </root/plan.json >{SEEN} 2>{ERRORS}"
        with progress.task(f"{len(plan.cases)} cases, {options.rounds} rounds"):
            done = machine.run(command, check=False, timeout=_TIMEOUT)
        return told(machine, done.returncode)
    finally:
        if not options.keep:
            lab.down()


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.attach", description="time attach and detach")
    parser.add_argument("--rounds", type=int, default=5, help="of each case (%(default)s)")
    parser.add_argument("--subjects", default=",".join(SUBJECTS), help="%(default)s")
    parser.add_argument("--case", action="append", help="only this one; may be repeated")
    parser.add_argument("--kernel", default="6.12", help="of the machine (%(default)s)")
    parser.add_argument(
        "--real-time", action="store_true", help="let the machine's clock be that of this machine"
    )
    parser.add_argument("--keep", action="store_true", help="leave the machine running")
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    options = parser.parse_args(argv)
    options.subjects = options.subjects.split(",")
    unknown = set(options.subjects) - set(SUBJECTS)
    unknown |= set(options.case or ()) - {kind.name for kind in KINDS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, write the JSON. The code is 0 if nothing of ours failed."""
    options = parse(argv)
    kinds = [kind for kind in KINDS if not options.case or kind.name in options.case]
    plan = Plan(kinds, options.subjects, options.rounds)
    lines = measure(plan, options, Progress())
    rows = table(lines)
    print(show(rows, options.subjects))
    failures = [line for line in lines if "error" in line or "left" in line]
    for line in failures:
        print(json.dumps(line))
    if options.output:
        made = about(options.kernel, "real time" if options.real_time else CLOCK)
        made |= {"rounds": options.rounds, "rows": rows, "lines": lines}
        options.output.write_text(json.dumps(made, indent=1))
    return int(any("error" in line for line in failures if line["subject"] == brick_site.OURS))


if __name__ == "__main__":
    sys.exit(main())
