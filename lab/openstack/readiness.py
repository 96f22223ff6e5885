# SPDX-License-Identifier: Apache-2.0
"""Wait until services can be used, or say which cannot and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from lab.errors import LabError
from lab.openstack.service import Service

_TAIL_LINES = 25
_POLL_SECONDS = 0.2


class ServiceFailedError(LabError):
    """A service ended, could not be used in time, or reported that it cannot work.

    The message names it and holds the end of its log.
    """

    def __init__(self, name: str, reason: str, log: Path) -> None:
        super().__init__(f"{name}: {reason}; end of {log}:\n{tail(log)}")
        self.name = name


def tail(log: Path, lines: int = _TAIL_LINES) -> str:
    """The last ``lines`` of ``log``."""
    if not log.exists():
        return "(no log)"
    return "\n".join(read_from(log, 0).splitlines()[-lines:])


def read_from(log: Path, offset: int) -> str:
    """What was written to ``log`` after ``offset`` bytes; "" while there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


class Waiter:
    """Polls services until each is ready.

    :param call: runs a probe where the service can be reached.
    :param alive: whether the process of that name runs.
    :param log_path: the log of the process of that name.
    """

    def __init__(
        self,
        call: Callable[[Callable[[], bool]], bool],
        alive: Callable[[str], bool],
        log_path: Callable[[str], Path],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._call, self._alive, self._log_path = call, alive, log_path
        self._clock, self._sleep = clock, sleep
        self._log_begin: dict[str, int] = {}

    def expect(self, service: Service) -> None:
        """Remember that ``service`` is about to be started: what its log says already is old."""
        log = self._log_path(service.name)
        self._log_begin[service.name] = log.stat().st_size if log.exists() else 0

    def wait(
        self, services: Iterable[Service], seconds: float, ready: Callable[[str, float], None]
    ) -> None:
        """Wait until all are ready, calling ``ready(name, seconds waited)`` for each.

        :param seconds: deadline for all together.
        :raises ServiceFailedError: one of them cannot be used.
        """
        begin = self._clock()
        waiting = list(services)
        while True:
            for service in list(waiting):
                if self._is_ready(service):
                    waiting.remove(service)
                    ready(service.name, self._clock() - begin)
            if not waiting:
                return
            if self._clock() - begin > seconds:
                names = ", ".join(service.name for service in waiting)
                reason = f"not ready after {seconds:.0f} s (waiting for: {names})"
                raise ServiceFailedError(waiting[0].name, reason, self._log_path(waiting[0].name))
            self._sleep(_POLL_SECONDS)

    def _is_ready(self, service: Service) -> bool:
        log = self._log_path(service.name)
        if not self._alive(service.name):
            raise ServiceFailedError(service.name, "process ended", log)
        if service.failure_marks:
            text = read_from(log, self._log_begin.get(service.name, 0))
            for mark in service.failure_marks:
                if mark in text:
                    raise ServiceFailedError(service.name, f"log says {mark!r}", log)
        try:
            return self._call(service.ready)
        except OSError:
            return False
