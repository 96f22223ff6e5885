# SPDX-License-Identifier: Apache-2.0
"""Waiting for events without a thread for each who waits.

All requests of a process that wait share one task, which looks at the database when this process
has committed an event, and now and then for what other processes have.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread
import sqlalchemy.event
from oslo_log import log
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_provisioner.core import Core

LOG = log.getLogger(__name__)
T = TypeVar("T")
_KEY = "kumo_events"


class Watcher:
    """Those who wait in one event loop.

    :param head: gives a number that changes when something has happened; may take a moment.
    :param interval: seconds between two looks while somebody waits.
    """

    def __init__(self, head: Callable[[], int], interval: float) -> None:
        self._head = head
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Event] = set()
        self._nudge = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def nudge(self) -> None:
        """Look now. May be called from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._nudge.set)
        except RuntimeError:
            LOG.debug("An event came after the end of the loop that waited for it")

    def end(self) -> None:
        """Let nobody wait any more. May be called from any thread."""
        self._ended = True
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            LOG.debug("The loop has ended before its watcher")

    def _wake(self) -> None:
        for waiter in self._waiting:
            waiter.set()

    async def first(self, look: Callable[[], T], enough: Callable[[T], bool], seconds: float) -> T:
        """What ``look`` gives as soon as that is ``enough``, or when the time is over."""
        deadline = time.monotonic() + seconds
        mine = asyncio.Event()
        self._waiting.add(mine)
        try:
            while True:
                mine.clear()
                found = await anyio.to_thread.run_sync(look)
                left = deadline - time.monotonic()
                if enough(found) or left <= 0 or self._ended:
                    return found
                if self._task is None or self._task.done():
                    self._task = asyncio.create_task(self._watch())
                try:
                    await asyncio.wait_for(mine.wait(), left)
                except TimeoutError:
                    deadline = 0.0
        finally:
            self._waiting.discard(mine)

    async def _watch(self) -> None:
        seen = -1
        while self._waiting and not self._ended:
            self._nudge.clear()
            try:
                head = await anyio.to_thread.run_sync(self._head)
            except (SQLAlchemyError, errors.KumoError) as exc:
                # The database may be away for a moment; those who wait look for themselves later.
                LOG.warning("Events cannot be looked for now: %s", exc)
                head = seen
            if head != seen:
                seen = head
                self._wake()
            try:
                await asyncio.wait_for(self._nudge.wait(), self._interval)
            except TimeoutError:
                continue


_guard = threading.Lock()
_watchers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Watcher] = (
    weakref.WeakKeyDictionary()
)


def of(core: Core, head: Callable[[Core], int], interval: float) -> Watcher:
    """The watcher of the running loop."""
    loop = asyncio.get_running_loop()
    with _guard:
        found = _watchers.get(loop)
        if found is None:
            found = _watchers[loop] = Watcher(lambda: head(core), interval)
        return found


def on_commit(session: Session) -> None:
    """Tell those who wait when the transaction of this session has committed."""
    session.info[_KEY] = True


@sqlalchemy.event.listens_for(Session, "after_commit")
def _committed(session: Session) -> None:
    if session.info.pop(_KEY, False):
        for watcher in _all():
            watcher.nudge()


def end() -> None:
    """Answer all who wait, because the program ends."""
    for watcher in _all():
        watcher.end()


def _all() -> list[Watcher]:
    with _guard:
        return list(_watchers.values())
