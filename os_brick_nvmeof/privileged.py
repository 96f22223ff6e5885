# SPDX-License-Identifier: Apache-2.0
"""The host for real: what needs root goes through os-brick's privileged daemon, or the agent's.

See ``plugin/privileged/kumo.py``, which is what runs there. A process that is root and told so
(``os_brick.privileged.default.set_client_mode(False)``) has no daemon and does it itself.
"""

from __future__ import annotations

import errno
import pathlib
import socket
import time
from collections.abc import Callable
from typing import Any

from os_brick import privileged

from os_brick_nvmeof import host

# Seconds after which an answer is not waited for any more. A connect ends by itself: one attempt
# of TCP and the time-outs of the connect commands (drivers/nvme/host/tcp.c, fabrics.c).
FABRICS_SECONDS = 90.0
WRITE_SECONDS = 60.0
READ_SECONDS = 30.0
IDENTIFY_SECONDS = 30.0
# Data of a guest may be on its way, to a node that is slow or away for a moment.
FLUSH_SECONDS = 300.0
# What a command may take longer than its own limit, to be killed.
_MARGIN = 5.0
_FIRST_WAIT = 0.001
_LONGEST_WAIT = 0.05
# The wait grows with what has passed, so that asking again adds at most about an eighth.
_SHARE = 8


class LocalHost:
    """This machine; see :class:`os_brick_nvmeof.host.Host`. Used by many threads at once.

    :param far: has ``start``, ``outcome`` and ``forget`` of ``os_brick.privileged.kumo``, called in
        another daemon than os-brick's.
    """

    root = pathlib.Path("/")

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        far: Any = None,
    ) -> None:
        # Here, because the module is there only where the wheel is installed beside os-brick.
        from os_brick.privileged import kumo

        self._far = far or kumo
        self._apart = far is not None
        self._clock = clock
        self._sleep = sleep

    def fabrics(self, options: str) -> str:
        """Write connect options to /dev/nvme-fabrics and read the kernel's answer."""
        return str(self._ask("/dev/nvme-fabrics", FABRICS_SECONDS, "fabrics", options))

    def write(self, path: str, value: str) -> None:
        """Write to an attribute under /sys."""
        self._ask(path, WRITE_SECONDS, "write", path, value)

    def read(self, device: str, offset: int, length: int) -> bytes:
        """Read from a block device past the page cache."""
        return bytes(self._ask(device, READ_SECONDS, "read", device, offset, length))

    def flush(self, device: str) -> None:
        """Write out what the page cache holds of a block device, and empty it."""
        self._ask(device, FLUSH_SECONDS, "flush", device)

    def identify(self, controller: str, cns: int, nsid: int) -> bytes:
        """Ask a controller with the Identify command."""
        return bytes(self._ask(controller, IDENTIFY_SECONDS, "identify", controller, cns, nsid))

    def probe(self, address: str, port: str, timeout: float) -> None:
        """Open a TCP connection and close it."""
        socket.create_connection((address, int(port)), timeout).close()

    def link(self, path: str, target: str) -> None:
        """Make or remove a symbolic link below /dev/md."""
        self._ask(path, WRITE_SECONDS, "link", path, target)

    def run(self, *argv: str, timeout: float = 30.0) -> str:
        """Run a command as root; see :data:`os_brick.privileged.kumo.PROGRAMS`."""
        try:
            kind, *values = self._answer(timeout + _MARGIN, "run", argv, timeout)
        except TimeoutError as error:
            raise host.CommandError(argv, None, str(error)) from error
        if kind == "done":
            return str(values[0])
        raise host.CommandError(argv, values[0] if kind == "command" else None, str(values[1]))

    def _ask(self, about: str, seconds: float, verb: str, *arguments: Any) -> Any:
        kind, *values = self._answer(seconds, verb, *arguments)
        if kind == "done":
            return values[0]
        raise OSError(values[0], values[1], about)

    def _answer(self, seconds: float, verb: str, *arguments: Any) -> Any:
        if not self._apart and not privileged.default.client_mode:
            return self._far.perform(verb, arguments)
        begin = self._clock()
        answer = self._far.start(verb, *arguments)
        while answer[0] == "pending":
            passed = self._clock() - begin
            if passed > seconds:
                self._far.forget(answer[1])
                raise TimeoutError(errno.ETIMEDOUT, f"{verb} is not done after {passed:.0f} s")
            self._sleep(min(max(passed / _SHARE, _FIRST_WAIT), _LONGEST_WAIT))
            answer = self._far.outcome(answer[1])
        return answer
