# SPDX-License-Identifier: Apache-2.0
"""fio on a block device of a machine: writers and readers that verify, until they are stopped.

Every block carries a crc32c of itself in a header (fio's ``verify``). Writers read back what they
have written; at the end everything is read once more.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from lab.errors import LabError
from lab.machine import Machine

_MIB = 1 << 20
_BLOCK = 4096
# Of each job, so that what is written stays small and an emulated processor is not busy with it.
_MIB_EACH = 8
_IOPS = 8
_LONGEST = 3600
_STOP_SECONDS = 120.0
_COMMON = f"--direct=1 --verify=crc32c --verify_interval={_BLOCK} --verify_fatal=1"
# One block at a time where blocks are written: two requests for one may pass each other.
_WRITE = "--rw=randwrite --verify_backlog=32 --ioengine=psync"
_READ = "--rw=randread --ioengine=libaio --iodepth=4"
UNIT = "kumo-fio"
JOBS = {"write1": _WRITE, "write2": _WRITE, "read": _READ}
SIZE = len(JOBS) * _MIB_EACH * _MIB


@dataclass(frozen=True)
class Told:
    """What a job of fio saw: operations, the longest one in seconds, and its error number."""

    name: str
    count: int
    longest: float
    error: int


def told(text: str) -> list[Told]:
    """Read fio's JSON; other lines may come before it.

    :raises LabError: there is none.
    """
    begin = text.find("{")
    try:
        jobs = json.loads(text[begin:])["jobs"] if begin >= 0 else []
    except ValueError as error:
        raise LabError(f"fio's answer is odd: {text[-300:]!r}") from error
    if not jobs:
        raise LabError(f"fio told nothing: {text[-300:]!r}")
    return [
        Told(
            job["jobname"],
            sum(job[way]["total_ios"] for way in ("read", "write")),
            # From when it is handed to the kernel, where it may have to wait as well.
            max(job[way]["lat_ns"].get("max", 0) for way in ("read", "write")) / 1e9,
            int(job["error"]),
        )
        for job in jobs
    ]


class Load:
    """fio on one device of a machine, as a unit of its own.

    :param name: tells loads of one machine apart.
    """

    def __init__(self, machine: Machine, path: str, name: str = UNIT) -> None:
        self._machine, self._path, self.unit = machine, path, name
        self._output = f"/run/{name}.json"

    def fill(self) -> None:
        """Write headers over all that is used.

        :raises LabError: fio failed.
        """
        self._run(f"--name=fill --rw=write --do_verify=0 --size={SIZE}")

    def check(self) -> None:
        """Read all that is used, and verify it.

        :raises LabError: fio failed: some block is not what was written.
        """
        self._run(f"--name=check --rw=read --size={SIZE}")

    def _run(self, words: str) -> None:
        command = f"fio {_COMMON} --ioengine=libaio --iodepth=4 --bs={16 * _BLOCK} {words}"
        self._machine.run(f"{command} --filename={self._path}", timeout=300)

    def start(self) -> None:
        """Begin, in the background."""
        jobs = " ".join(
            f"--name={name} --offset={at * _MIB_EACH}m --size={_MIB_EACH}m {words}"
            f" --filename={self._path} {_COMMON} --bs={_BLOCK} --rate_iops={_IOPS},{_IOPS}"
            f" --time_based --runtime={_LONGEST}"
            for at, (name, words) in enumerate(JOBS.items())
        )
        self._machine.run(
            f"systemctl reset-failed {self.unit} 2>/dev/null; rm -f {self._output};"
            f" systemd-run --collect --unit {self.unit}"
            f" fio --output={self._output} --output-format=json {jobs}"
        )

    def running(self) -> bool:
        """Whether it still runs; it ends by itself when a block is wrong or I/O fails."""
        state = self._machine.run(["systemctl", "is-active", "-q", self.unit], check=False)
        return state.returncode == 0

    def stop(self) -> list[Told]:
        """End it; what each job saw.

        :raises LabError: it does not end, or told nothing.
        """
        self._machine.run(["systemctl", "kill", "-s", "INT", self.unit], check=False)
        deadline = time.monotonic() + _STOP_SECONDS
        while self.running():
            if time.monotonic() > deadline:
                raise LabError(f"fio on {self._path} does not end: its I/O hangs")
            time.sleep(0.5)
        return told(self._machine.run(f"cat {self._output}").stdout)
