# SPDX-License-Identifier: Apache-2.0
"""A writer and a reader on a block device, and how long each had to wait, inside a machine.

Both use O_DIRECT and one block of 4 KiB at a time, so that nothing but the device answers. Runs
until its time is over and prints one JSON object: operations, the longest wait in seconds, and the
first error, of each of the two. What hangs in the kernel is told as a wait that has not ended.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable

BLOCK = 4096
_PAUSE_SECONDS = 0.02
_BLOCKS = 256


class Loop(threading.Thread):
    """Repeats an operation; ``name`` is for the answer, ``pause`` in seconds between two."""

    def __init__(
        self, name: str, once: Callable[[int], None], pause: float = _PAUSE_SECONDS
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._once, self._pause = once, pause
        self._since: float | None = None
        self._longest = 0.0
        self._count = 0
        self._error = ""

    def run(self) -> None:
        """Until the process ends, or an operation fails."""
        while not self._error:
            self._since = time.monotonic()
            try:
                self._once(self._count)
            except OSError as error:
                self._error = str(error)
            self._longest = max(self._longest, time.monotonic() - self._since)
            self._since = None
            self._count += 1
            time.sleep(self._pause)

    def told(self) -> dict[str, object]:
        """What was seen so far."""
        since = self._since
        waiting = 0.0 if since is None else time.monotonic() - since
        longest = max(self._longest, waiting)
        return {"count": self._count, "longest": round(longest, 3), "error": self._error}


def operations(path: str) -> dict[str, Callable[[int], None]]:
    """A write and a read of one block each, by name.

    :raises OSError: the device cannot be opened.
    """
    device = os.open(path, os.O_RDWR | os.O_DIRECT)
    out, back = mmap.mmap(-1, BLOCK), mmap.mmap(-1, BLOCK)

    def write(number: int) -> None:
        out[:8] = number.to_bytes(8, "big")
        os.pwrite(device, out, number % _BLOCKS * BLOCK)

    def read(number: int) -> None:
        os.preadv(device, [back], (number % _BLOCKS) * BLOCK)

    return {"write": write, "read": read}


def main(path: str, seconds: float) -> None:
    """Run, and tell."""
    loops = [Loop(name, once) for name, once in operations(path).items()]
    for loop in loops:
        loop.start()
    time.sleep(seconds)
    print(json.dumps({loop.name: loop.told() for loop in loops}), flush=True)
    # Threads that hang in the kernel would keep a process from ending in order.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
