# SPDX-License-Identifier: Apache-2.0
"""Waiting: deadlines, polling with back-off, and threads that can be left behind.

Writes to some of the kernel's files block for as long as a storage node is silent, and nothing
can interrupt them. They run in threads of their own; who waits for one does so until a deadline.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from os_brick_nvmeof.context import Context

T = TypeVar("T")

FIRST_POLL = 0.001
LONGEST_POLL = 0.05
_BACK_OFF = 1.5


class Event(Protocol):
    """Set once, by one thread, for another that waits."""

    def set(self) -> None:
        """Wake who waits."""

    def is_set(self) -> bool:
        """Whether it was set."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; False when that took longer than ``timeout`` seconds."""


class Threads:
    """Threads of this process; green ones where eventlet has patched :mod:`threading`."""

    def start(self, work: Callable[[], None], name: str) -> None:
        """Run it beside us. The process may end before it does."""
        threading.Thread(target=work, name=name, daemon=True).start()

    def event(self) -> Event:
        """A new event, not set."""
        return threading.Event()


class Deadline:
    """A moment on a clock."""

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self._clock = clock
        self.seconds = seconds
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds left; 0 when it has passed."""
        return max(0.0, self._end - self._clock())

    @property
    def passed(self) -> bool:
        """Whether it has passed."""
        return self.left <= 0


def until(
    ctx: Context, check: Callable[[], T | None], deadline: Deadline, longest: float = LONGEST_POLL
) -> T | None:
    """Call ``check`` until it answers with something true; its last answer when time is up.

    It is called at once, then after 1 ms, and with growing pauses up to ``longest`` seconds; at
    least once more after the deadline.
    """
    pause = FIRST_POLL
    while True:
        last = deadline.passed
        answer = check()
        if answer or last:
            return answer
        # Never 0: that would not let time pass on a clock that is coarse.
        ctx.sleep(max(min(pause, deadline.left), FIRST_POLL / 10))
        pause = min(pause * _BACK_OFF, longest)


class Call(Generic[T]):
    """A call that runs in a thread of its own.

    :param work: what to call.
    :param late: called by that thread with the result, when nobody waited long enough for it.
    """

    def __init__(
        self,
        ctx: Context,
        work: Callable[[], T],
        name: str,
        late: Callable[[T], None] | None = None,
    ) -> None:
        self._work = work
        self._late = late
        self._done = ctx.threads.event()
        # Guards the decision whether somebody takes the result or it is late.
        self._lock = threading.Lock()
        self._left = False
        self._result: T | None = None
        self._error: BaseException | None = None
        ctx.threads.start(self._run, name)

    def _run(self) -> None:
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001  (given to who waits)
            self._error = error
            self._done.set()
            return
        with self._lock:
            self._result = result
            late = self._left
            self._done.set()
        if late and self._late:
            self._late(result)

    def wait(self, deadline: Deadline) -> bool:
        """Wait until it has ended; False when it has not by then. May be called again."""
        return self._done.is_set() or self._done.wait(deadline.left)

    def leave(self) -> bool:
        """Wait no more: its result is late from now on. False when it has ended already."""
        with self._lock:
            if self._done.is_set():
                return False
            self._left = True
            return True

    @property
    def ended(self) -> bool:
        """Whether it has returned or raised."""
        return self._done.is_set()

    @property
    def error(self) -> BaseException | None:
        """What it raised, if it has ended so."""
        return self._error

    def awaited(self) -> T:
        """What it returned, however long that takes.

        :raises BaseException: what it raised.
        """
        self._done.wait()
        return self.result()

    def result(self) -> T:
        """What it returned.

        :raises BaseException: what it raised.
        """
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


def together(ctx: Context, works: Sequence[Callable[[], T]], name: str) -> list[T]:
    """Run all at once, the first in this thread, and return their results in order.

    Each has to come to an end by itself. When some raise, the rest is awaited all the same, and
    the first error is raised.
    """
    calls = [Call(ctx, work, f"{name}-{index}") for index, work in enumerate(works[1:], 1)]
    results: list[T] = []
    errors: list[BaseException] = []
    for get in (*works[:1], *(call.awaited for call in calls)):
        try:
            results.append(get())
        except BaseException as error:  # noqa: BLE001  (raised below)
            errors.append(error)
    if errors:
        raise errors[0]
    return results
