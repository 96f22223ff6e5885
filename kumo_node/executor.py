# SPDX-License-Identifier: Apache-2.0
"""Running commands. The only module here that starts processes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from typing import Protocol

from oslo_log import log

LOG = log.getLogger(__name__)


class CommandError(Exception):
    """A command did not succeed.

    :ivar returncode: its exit code; None when it did not end in time or could not be started, so
        that nothing is known about what it did.
    """

    def __init__(self, argv: Sequence[str], returncode: int | None, stderr: str) -> None:
        super().__init__(f"{argv[0]} ended with {returncode}: {stderr.strip()}")
        self.argv = list(argv)
        self.returncode = returncode
        self.stderr = stderr.strip()

    @property
    def definite(self) -> bool:
        """True when the command ran to its end and said no."""
        return self.returncode is not None and self.returncode > 0


class Executor(Protocol):
    """What the modules round each tool are given."""

    def run(self, *argv: str) -> str:
        """Run a command and return its standard output.

        :raises CommandError: on any exit code but 0, on time-out, when it cannot be started.
        """


class SubprocessExecutor:
    """Runs commands for real, in the C locale and without standard input.

    :param timeout: seconds after which a command is ended and reported as unknown.
    :param grace: seconds between asking it to end and killing it. LVM holds signals back while
        it has devices suspended; killed then, it leaves them suspended.
    """

    def __init__(self, timeout: float = 120, grace: float = 5) -> None:
        self.timeout = timeout
        self.grace = grace
        # LVM complains on stderr about every descriptor it inherits.
        self.env = dict(os.environ, LC_ALL="C", LVM_SUPPRESS_FD_WARNINGS="1")

    def run(self, *argv: str) -> str:
        start = time.monotonic()
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self.env,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise CommandError(argv, None, f"cannot be started: {error}") from error
        with process:
            out, err = self._wait(process, argv)
        LOG.debug(
            "%s: exit %d after %.2f s", " ".join(argv), process.returncode, time.monotonic() - start
        )
        if process.returncode != 0:
            raise CommandError(argv, process.returncode, err or out)
        return out

    def _wait(self, process: subprocess.Popen[str], argv: Sequence[str]) -> tuple[str, str]:
        try:
            return process.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired as error:
            process.terminate()
            try:
                process.communicate(timeout=self.grace)
            except subprocess.TimeoutExpired:
                process.kill()
            raise CommandError(argv, None, f"no end after {self.timeout} s") from error
