# SPDX-License-Identifier: Apache-2.0
"""What benchmarks share whose one virtual machine is host and storage nodes at once."""

from __future__ import annotations

import datetime
import json
import os
import platform
from typing import Any

from lab.errors import LabError
from lab.machine import Machine

CLOCK = "-icount shift=1,sleep=off"
SEEN, ERRORS = "/root/seen", "/root/errors"


def told(machine: Machine, code: int) -> list[dict[str, Any]]:
    """What the program in the machine wrote into :data:`SEEN`, line by line.

    :param code: its exit code. What it wrote into :data:`ERRORS` says why it failed.
    :raises LabError: it failed.
    """
    lines = machine.get(SEEN).decode().splitlines()
    if code:
        raise LabError(f"the benchmark failed: {machine.get(ERRORS).decode()[-2000:]}")
    return [json.loads(line) for line in lines]


def about(kernel: str, clock: str = CLOCK) -> dict[str, Any]:
    """Where and when figures were measured."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.platform()}",
        "clock": clock,
        "kernel": kernel,
    }
