# SPDX-License-Identifier: Apache-2.0
"""Writers and readers that verify every block, and know what may be in it, inside a machine.

Each block of 4 KiB says which one it is and how often it was written, and ends in a checksum of all
that. A read is right if it gives what was acknowledged last when it began, or something newer that
was handed to the kernel before it ended: what was written in vain may be there or not. I/O that
fails is counted and tried again. One JSON object on standard input is answered by one on standard
output; see :class:`Load`.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import IO, Any, cast

BLOCK = 4096
DIRECT = os.O_DIRECT
_HEAD = struct.Struct(">QQ")
_SUM = struct.Struct(">I")
_PAUSE_SECONDS = 0.1
_CLOSE_SECONDS = 60.0


def made(block: int, number: int) -> bytes:
    """What a block holds after it was written so many times."""
    body = (_HEAD.pack(block, number) * (BLOCK // _HEAD.size))[: BLOCK - _SUM.size]
    return body + _SUM.pack(zlib.crc32(body))


def number_of(block: int, data: bytes) -> int:
    """How many times a block was written when it got this content; -1: it never had it."""
    told, number = _HEAD.unpack_from(data)
    return number if told == block and data == made(block, number) else -1


class Device:
    """Blocks of a device, what may be in each, and I/O to them.

    :param count: of blocks. :param stride: bytes from one to the next.
    """

    def __init__(self, path: str, count: int, stride: int, dice: random.Random) -> None:
        self.path, self.count, self._stride, self._dice = path, count, stride, dice
        self._done = [0] * count
        self._begun = [0] * count
        self._handle = -1
        self.open()

    def open(self) -> None:
        """:raises OSError: it cannot be opened."""
        self._handle = os.open(self.path, os.O_RDWR | DIRECT)

    def close(self) -> None:
        """Let go of the device."""
        os.close(self._handle)

    def write(self, buffer: mmap.mmap, block: int) -> None:
        """Write a block once more. One writer only."""
        number = self._begun[block] + 1
        buffer[:] = made(block, number)
        self._begun[block] = number
        os.pwrite(self._handle, buffer, block * self._stride)
        self._done[block] = number

    def read(self, buffer: mmap.mmap, block: int) -> str:
        """Read a block; what is wrong with it, or ""."""
        least = self._done[block]
        os.preadv(self._handle, [buffer], block * self._stride)
        found, most = number_of(block, buffer[:]), self._begun[block]
        if least <= found <= most:
            return ""
        return f"{self.path}: block {block} has number {found}, not {least} to {most}"

    def any(self, writer: int = 0, writers: int = 1) -> int:
        """A block; of those of one of several writers, since each block has one only."""
        return writer + writers * self._dice.randrange(self.count // writers)

    def fill(self, buffer: mmap.mmap) -> None:
        """Write all blocks, so that each can be read."""
        for block in range(self.count):
            self.write(buffer, block)

    def check(self, buffer: mmap.mmap) -> list[str]:
        """Read all blocks; what is wrong."""
        return [text for block in range(self.count) if (text := self.read(buffer, block))]


class Job(threading.Thread):
    """Repeats an operation, and goes on after an error."""

    def __init__(self, name: str, once: Callable[[mmap.mmap], str | None], pause: float) -> None:
        super().__init__(name=name, daemon=True)
        self._once, self._pause = once, pause
        self._buffer = mmap.mmap(-1, BLOCK)
        self._open = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._since: float | None = None
        self._fresh()

    def _fresh(self) -> None:
        self._longest, self._count, self._errors = 0.0, 0, 0
        self._error = self._wrong = ""

    def go_on(self) -> None:
        """Begin, or begin again."""
        self._open.set()

    def rest(self) -> bool:
        """Do nothing more; False when an operation does not end."""
        self._open.clear()
        return self._idle.wait(_CLOSE_SECONDS)

    def run(self) -> None:
        """Until the process ends."""
        while True:
            self._open.wait()
            self._idle.clear()
            if self._open.is_set():
                self.once()
            self._idle.set()
            time.sleep(self._pause)

    def once(self) -> None:
        """One operation."""
        self._since = begin = time.monotonic()
        try:
            self._wrong = self._once(self._buffer) or self._wrong
        except OSError as error:
            self._errors += 1
            self._error = self._error or str(error)
        self._since = None
        self._longest = max(self._longest, time.monotonic() - begin)
        self._count += 1

    def taken(self) -> dict[str, Any]:
        """What was seen since this was asked before."""
        since = self._since
        waiting = 0.0 if since is None else time.monotonic() - since
        told = {
            "longest": round(max(self._longest, waiting), 3),
            "count": self._count,
            "errors": self._errors,
            "error": self._error,
            "wrong": self._wrong,
        }
        self._fresh()
        return told


def together(told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several jobs saw, as one."""
    return {
        "longest": max((one["longest"] for one in told), default=0.0),
        "count": sum(one["count"] for one in told),
        "errors": sum(one["errors"] for one in told),
        "error": next((one["error"] for one in told if one["error"]), ""),
        "wrong": next((one["wrong"] for one in told if one["wrong"]), ""),
    }


class Jobs:
    """Writers and readers for each device.

    :param plan: ``paths``; ``count`` and ``stride`` of blocks; ``pause`` in seconds; ``seed``;
        ``writers`` and ``readers`` of each (1).
    """

    def __init__(self, plan: dict[str, Any]) -> None:
        dice = random.Random(plan["seed"])
        self._buffer = mmap.mmap(-1, BLOCK)
        self._devices = [
            Device(path, plan["count"], plan["stride"], dice) for path in plan["paths"]
        ]
        self._jobs: list[Job] = []
        for one in self._devices:
            one.fill(self._buffer)
            for number in range(plan.get("writers", 1)):
                self._write(one, number, plan)
            for _ in range(plan.get("readers", 1)):
                self._add("read", lambda buffer, one=one: one.read(buffer, one.any()), plan)
        for job in self._jobs:
            job.start()
            job.go_on()

    def _write(self, one: Device, number: int, plan: dict[str, Any]) -> None:
        def once(buffer: mmap.mmap) -> None:
            one.write(buffer, one.any(number, plan.get("writers", 1)))

        self._add("write", once, plan)

    def _add(self, name: str, once: Callable[..., str | None], plan: dict[str, Any]) -> None:
        self._jobs.append(Job(name, once, plan["pause"]))

    def take(self) -> dict[str, Any]:
        """What was seen since this was asked before, by what was done."""
        return {
            name: together([job.taken() for job in self._jobs if job.name == name])
            for name in ("write", "read")
        }

    def close(self) -> dict[str, Any]:
        """Let go of the devices; ``hangs`` says how many operations do not end."""
        hangs = sum(not job.rest() for job in self._jobs)
        for one in self._devices if not hangs else ():
            one.close()
        return {"hangs": hangs}

    def open(self, paths: list[str]) -> dict[str, Any]:
        """Go on with the same devices, by other paths maybe."""
        for one, path in zip(self._devices, paths, strict=True):
            one.path = path
            one.open()
        wrong = self.check()
        for job in self._jobs:
            job.go_on()
        return wrong

    def check(self) -> dict[str, Any]:
        """Read everything: ``blocks``, and ``wrong`` ones of them."""
        wrong = [text for one in self._devices for text in one.check(self._buffer)]
        return {"blocks": sum(one.count for one in self._devices), "wrong": wrong[:5]}


class Load:
    """The same, as a process of its own."""

    def __init__(self, **plan: Any) -> None:
        argv = [sys.executable, "-m", "lab.guest_verified", json.dumps(plan)]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._input = cast(IO[str], self._process.stdin)
        self._output = cast(IO[str], self._process.stdout)
        # It takes its time to start.
        self.ask("take")

    def ask(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Call a method of :class:`Jobs`.

        :raises RuntimeError: the process has ended.
        """
        self._input.write(json.dumps({"call": name, "arguments": arguments}) + "\n")
        line = self._output.readline()
        if not line:
            raise RuntimeError(f"the load has ended with code {self._process.wait()}")
        return dict(json.loads(line))

    def idle(self, path: str, seconds: float = 30.0) -> None:
        """End it, and wait until nothing of it is under way.

        :raises TimeoutError: its I/O hangs.
        """
        self._input.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"I/O to {path} hangs") from error


def main(plan: str) -> None:
    """Run until the end of the input."""
    jobs = Jobs(json.loads(plan))
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(getattr(jobs, asked["call"])(**asked["arguments"])), flush=True)
    # Threads that hang in the kernel would keep a process from ending in order.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
