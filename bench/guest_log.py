# SPDX-License-Identifier: Apache-2.0
"""When the kernel said what: its log, followed from inside the machine.

The times are those at which a line could be read, by the monotonic clock. Lines: drivers/md/md.c,
drivers/md/raid1.c and drivers/nvme/host/tcp.c.
"""

from __future__ import annotations

import os
import re
import threading
import time

DROPPED = r"md/raid1:{array}: Disk failure on "
LIVE = r"Successfully reconnected"
BEGUN = r"md: recover\w* of RAID array {array}$"
DONE = r"md: {array}: recover\w* done\."


class Log(threading.Thread):
    """Follows /dev/kmsg from now on."""

    def __init__(self) -> None:
        super().__init__(name="kmsg", daemon=True)
        self._handle = os.open("/dev/kmsg", os.O_RDONLY)
        os.lseek(self._handle, 0, os.SEEK_END)
        self._lines: list[tuple[float, str]] = []
        self._news = threading.Condition()

    def run(self) -> None:
        """Until the process ends."""
        while True:
            try:
                record = os.read(self._handle, 8192).decode(errors="replace")
            except BrokenPipeError:
                # Lines were overwritten before they were read (Documentation/ABI/testing/dev-kmsg).
                continue
            text = record.partition(";")[2].split("\n")[0]
            with self._news:
                self._lines.append((time.monotonic(), text))
                self._news.notify_all()

    def find(self, pattern: str, since: float) -> float | None:
        """When a line that matches first came after a moment."""
        with self._news:
            lines = list(self._lines)
        wanted = re.compile(pattern)
        return next((at for at, text in lines if at >= since and wanted.search(text)), None)

    def wait(self, pattern: str, since: float, seconds: float) -> float:
        """Wait for a line; when it came.

        :raises TimeoutError: it does not come; the end of the log is in the message.
        """
        with self._news:
            found = self._news.wait_for(lambda: self.find(pattern, since), seconds)
            if found is None:
                end = "\n".join(text for _, text in self._lines[-12:])
                raise TimeoutError(f"no {pattern!r} in {seconds:.0f} s:\n{end}")
            return found
