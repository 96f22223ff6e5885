# SPDX-License-Identifier: Apache-2.0
"""How fast replicated volumes become redundant again: our agent, its floors, and rounds of 30 s.

One virtual machine is the compute host and three storage nodes, each a network namespace with
nvmet. Its clock counts instructions (QEMU's ``-icount shift=1,sleep=off``), so that time-outs and
repairs take as long whatever else this machine does, and time in which nothing happens is skipped.
Seconds are those of that clock. The subjects take turns, under the load of a writer and a reader of
4 KiB:

* ``raw``: mdadm by hand at the first moment possible, and the kernel's time-outs alone;
* ``rounds``: one repair in each round of 30 s, the public behaviour of KumoScale's agent;
* ``ours``: kumo-agent.

``--frontier`` measures the kernel's time-outs instead, without an agent.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.one_machine import ERRORS, SEEN, about, told
from lab.agent import python_path
from lab.cluster import Lab
from lab.progress import Progress

SUBJECTS = ("raw", "rounds", "ours")
FLOOR = "raw"
CASES: tuple[dict[str, Any], ...] = (
    {"name": "re-add", "volumes": 1, "replace": False},
    {"name": "re-add, 4 volumes", "volumes": 4, "replace": False},
    {"name": "replacement", "volumes": 1, "replace": True},
)
_TIMEOUT = 7200.0
_KEEP_ALIVE = (1, 2, 5)
_FAST_IO_FAIL = (0, 1, 4, 5)
_BASE = {"keep_alive": 2, "reconnect_delay": 1, "fast_io_fail": 1, "failfast": False}


def grid() -> list[dict[str, Any]]:
    """The sets of time-outs to measure: seconds, and whether md's legs are marked as failfast."""
    cells = [
        _BASE | {"keep_alive": alive, "fast_io_fail": fail}
        for alive in _KEEP_ALIVE
        for fail in _FAST_IO_FAIL
    ]
    cells += [_BASE | {"fast_io_fail": fail} for fail in (2, 3)]
    cells += [_BASE | {"reconnect_delay": 2, "fast_io_fail": fail} for fail in (1, 4)]
    return cells + [_BASE | {"failfast": True, "fast_io_fail": fail} for fail in (1, 4)]


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """What the guest is to do, see :mod:`bench.guest_healing`."""
    chosen = [case for case in CASES if not options.case or case["name"] in options.case]
    return {
        "subjects": [] if options.frontier else options.subjects,
        "cases": [] if options.frontier else chosen,
        "cells": [] if not options.frontier else _cells(options.cell),
        "outages": [3.0, 6.0],
        "rounds": options.rounds,
        "size_mib": options.size,
        "outage": 10.0,
        "down_time": 10.0,
        "seed": 20,
    }


def _cells(wanted: list[str] | None) -> list[dict[str, Any]]:
    return [cell for cell in grid() if not wanted or label(cell) in wanted]


def label(cell: Mapping[str, Any]) -> str:
    """A cell in a few characters: keep-alive, reconnect delay, fast_io_fail, failfast."""
    times = "/".join(str(cell[name]) for name in ("keep_alive", "reconnect_delay", "fast_io_fail"))
    return times + ("/failfast" if cell["failfast"] else "")


def table(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Median, least and most by case, quantity and subject.

    :param lines: what the guest told.
    """
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        for what, seconds in line.get("seconds", {}).items():
            found[line["case"], what][line["subject"]].append(seconds)
    return [
        {
            "case": case,
            "what": what,
            "median": {name: statistics.median(each) for name, each in by_subject.items()},
            "range": {name: (min(each), max(each)) for name, each in by_subject.items()},
        }
        for (case, what), by_subject in found.items()
    ]


def show(rows: Iterable[Mapping[str, Any]], subjects: list[str]) -> str:
    """The table as text: medians with least and most, and medians as multiples of the floor."""
    compared = [name for name in subjects if name != FLOOR]
    head = f"{'':34}" + "".join(f"{name:>24}" for name in subjects)
    lines = [head + "".join(f"{name + '/' + FLOOR:>12}" for name in compared)]
    for row in rows:
        median = row["median"]
        cells = "".join(f"{_cell(row, name):>24}" for name in subjects)
        floor = median.get(FLOOR)
        ratios = "".join(
            f"{median[name] / floor:12.2f}" if floor and name in median else f"{'-':>12}"
            for name in compared
        )
        lines.append(f"{row['case'] + ': ' + row['what']:34}{cells}{ratios}")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name not in row["median"]:
        return "-"
    least, most = row["range"][name]
    return f"{row['median'][name]:.3f} ({least:.3f}-{most:.3f})"


def frontier(lines: Iterable[Mapping[str, Any]]) -> str:
    """The frontier as text: longest waits of all rounds, and what became of the array."""
    found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        if "cell" in line and "error" not in line:
            found[label(line["cell"])].append(line)
    head = f"{'keep-alive/delay/fast_io_fail':32}{'dropped after':>16}{'write':>8}{'read':>8}"
    shown = [head + "  all silent"]
    for name, each in found.items():
        lost = [line for line in each if "detect" in line]
        detects = [line["detect"] for line in lost if line["detect"] is not None]
        span = f"{min(detects):.1f}-{max(detects):.1f}" if detects else "never"
        waits = "".join(
            f"{max((line[way] for line in lost), default=0.0):8.1f}" for way in ("write", "read")
        )
        ends = "; ".join(_outcome(line) for line in each if "state" in line)
        shown.append(f"{name:32}{span:>16}{waits}  {ends}")
    return "\n".join(shown)


def _outcome(line: Mapping[str, Any]) -> str:
    failed = [way for way in ("write", "read") if line[f"{way} error"]]
    text = f"{line['what'].removeprefix('all silent for ')}: {line['state']}"
    text += f", {line['degraded']} missing" if line["degraded"] != "0" else ""
    return text + (f", {' and '.join(failed)} failed" if failed else "")


def measure(options: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """Carry a plan out in a virtual machine made for it; what the guest told, line by line.

    What it tells is on the machine's console as well, as soon as it is known.

    :raises LabError: the machine or the program in it failed.
    """
    name = options.name or f"healing-{os.getpid()}"
    lab = Lab.up(name, storage=0, compute=1, progress=progress, kernel=options.kernel, icount=True)
    try:
        (machine,) = lab.compute
        machine.put("/root/plan.json", json.dumps(plan(options)).encode())
        command = (
            f"set -o pipefail; PYTHONPATH={python_path()} /usr/bin/python3 -W ignore"
            f" -m bench.guest_healing </root/plan.json 2>{ERRORS} | tee {SEEN} >/dev/console"
        )
        with progress.task(f"measuring; see {machine.console_path}"):
            done = machine.run(["bash", "-c", command], check=False, timeout=_TIMEOUT)
        if options.log:
            options.log.write_bytes(machine.get(ERRORS))
        return told(machine, done.returncode)
    finally:
        if not options.keep:
            lab.down()


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.healing", description="time healing")
    parser.add_argument("--rounds", type=int, default=3, help="of each case (%(default)s)")
    parser.add_argument("--subjects", default=",".join(SUBJECTS), help="%(default)s")
    parser.add_argument("--case", action="append", help="only this one; may be repeated")
    parser.add_argument("--size", type=int, default=256, help="MiB of a volume (%(default)s)")
    parser.add_argument("--frontier", action="store_true", help="the kernel's time-outs instead")
    parser.add_argument("--cell", action="append", help="of the frontier, only this one: 2/1/4")
    parser.add_argument("--kernel", default="6.12", help="of the machine (%(default)s)")
    parser.add_argument("--name", help="of the machine's lab")
    parser.add_argument("--keep", action="store_true", help="leave the machine running")
    parser.add_argument("--log", type=Path, help="write what the agent logs")
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    options = parser.parse_args(argv)
    options.subjects = options.subjects.split(",")
    unknown = set(options.subjects) - set(SUBJECTS)
    unknown |= set(options.case or ()) - {case["name"] for case in CASES}
    unknown |= set(options.cell or ()) - {label(cell) for cell in grid()}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, write the JSON. The code is 0 if nothing failed."""
    options = parse(argv)
    lines = measure(options, Progress())
    if options.frontier:
        print(frontier(lines))
    else:
        print(show(table(lines), options.subjects))
    failures = [line for line in lines if "error" in line]
    for line in failures:
        print(json.dumps(line))
    if options.output:
        made = about(options.kernel) | {"plan": plan(options), "lines": lines}
        options.output.write_text(json.dumps(made, indent=1))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
