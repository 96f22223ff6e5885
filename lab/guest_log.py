# SPDX-License-Identifier: Apache-2.0
"""The kernel's log of a machine with times that can be compared with those of other clocks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lab.errors import LabError
from lab.machine import Machine

_MARK = "kumo-lab-time"
_LINE = re.compile(r"\[\s*(\d+\.\d+)\] (.*)")
# The mark goes the way of every message, so its stamp is of the same clock as theirs.
_SHOW = f'echo "{_MARK} $(date +%s.%N)" >/dev/kmsg; dmesg'


@dataclass(frozen=True)
class Line:
    """A message; ``time`` in seconds since the epoch."""

    time: float
    text: str


def parse(text: str) -> list[Line]:
    """Read ``dmesg``. The newest mark in it says what time its stamps are.

    :raises LabError: it has no mark.
    """
    found = [(float(m[1]), m[2]) for m in map(_LINE.match, text.splitlines()) if m]
    marks = [(stamp, words.split()) for stamp, words in found if words.startswith(_MARK)]
    if not marks:
        raise LabError("the kernel's log has no mark")
    stamp, (_, now) = marks[-1]
    offset = float(now) - stamp
    return [Line(at + offset, words) for at, words in found if not words.startswith(_MARK)]


def read(machine: Machine) -> list[Line]:
    """The kernel's log since the boot of a machine, by the clock of the lab's own machine."""
    text = machine.run(_SHOW).stdout
    ahead, _ = machine.clock()
    return [Line(line.time - ahead, line.text) for line in parse(text)]


def first(lines: list[Line], pattern: str, since: float = 0.0) -> Line | None:
    """The first message that matches, of those not before ``since``."""
    expression = re.compile(pattern)
    for line in lines:
        if line.time >= since and expression.search(line.text):
            return line
    return None


def matching(lines: list[Line], since: float, pattern: str) -> list[Line]:
    """The messages that match, of those not before ``since``."""
    expression = re.compile(pattern)
    return [line for line in lines if line.time >= since and expression.search(line.text)]
