# SPDX-License-Identifier: Apache-2.0
"""A writer and a reader on each of some block devices, and how long they had to wait.

For each line on standard input, one JSON object says what was seen since the line before: the
longest wait of writers and of readers in seconds, operations, and the first error of each. What
hangs in the kernel is told as a wait that has not ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from typing import IO, Any, cast

from lab.guest_load import Loop, operations

# On an emulated processor each operation takes a millisecond of everything.
_PAUSE_SECONDS = 0.1


class Window(Loop):
    """A loop that can be asked again and again."""

    def taken(self) -> dict[str, Any]:
        """What was seen since it was asked before."""
        found = self.told()
        self._longest = 0.0
        return dict(found)


def together(told: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """What loops saw, by what they do.

    :param told: "write" or "read", and what :meth:`Window.taken` gave.
    """
    found: dict[str, Any] = {}
    for name, one in told:
        known = found.setdefault(name, {"longest": 0.0, "count": 0, "error": ""})
        known["longest"] = max(known["longest"], one["longest"])
        known["count"] += one["count"]
        known["error"] = known["error"] or one["error"]
    return found


class Load:
    """The writers and readers, as a process of their own."""

    def __init__(self, paths: Iterable[str]) -> None:
        argv = [sys.executable, "-m", "bench.guest_io", *paths]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._input = cast(IO[str], self._process.stdin)
        self._output = cast(IO[str], self._process.stdout)
        # It takes its time to start.
        self.take()

    def take(self) -> dict[str, Any]:
        """What was seen since this was asked before.

        :raises RuntimeError: the process has ended.
        """
        self._input.write("\n")
        line = self._output.readline()
        if not line:
            raise RuntimeError(f"the load has ended with code {self._process.wait()}")
        return dict(json.loads(line))

    def idle(self, path: str, seconds: float = 30.0) -> None:
        """End it, and wait until nothing of it is under way on a device.

        :raises TimeoutError: its I/O hangs.
        """
        self._input.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"I/O to {path} hangs") from error


def main(paths: list[str]) -> None:
    """Run until the end of the input."""
    loops = [
        Window(name, once, _PAUSE_SECONDS)
        for path in paths
        for name, once in operations(path).items()
    ]
    for loop in loops:
        loop.start()
    time.sleep(0.1)
    for _ in sys.stdin:
        print(json.dumps(together((loop.name, loop.taken()) for loop in loops)), flush=True)
    # Threads that hang in the kernel would keep a process from ending in order.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
