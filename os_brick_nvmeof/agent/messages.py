# SPDX-License-Identifier: Apache-2.0
"""What the vendor is told for people: kept in order, and sent by a thread of its own.

Healing waits for none of it. What cannot be sent now is sent later, oldest first and one at a
time, also by the next process; a message whose answer was lost may arrive twice.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from oslo_log import log

from os_brick_nvmeof.agent.vendor import Vendor, VendorError

LOG = log.getLogger(__name__)
# Messages that wait at the most.
MOST = 500
# Seconds after which one that could not be sent is sent again, unless the vendor answers before.
PAUSE = 30.0
# Times that a message is sent to a vendor who answers, but not that it was taken.
TRIES = 5


@dataclasses.dataclass(eq=False)
class _Message:
    level: str
    text: str
    details: Mapping[str, Any]
    tried: int = 0


class Messages:
    """A queue and its thread.

    :param clock: seconds since the epoch: each message says when it was put.
    :param kept: what an earlier process has kept.
    :param save: writes down what waits.
    """

    def __init__(
        self,
        vendor: Vendor,
        clock: Callable[[], float],
        kept: Iterable[Mapping[str, Any]] = (),
        save: Callable[[list[dict[str, Any]]], None] = lambda _waiting: None,
    ) -> None:
        self._vendor, self._clock, self._save = vendor, clock, save
        self._waiting = collections.deque((_Message(**one) for one in kept), MOST)
        # What is written down; taken by one thread at a time, before the other lock.
        self._kept = [dataclasses.asdict(one) for one in self._waiting]
        self._saving = threading.Lock()
        self._lock = threading.Lock()
        self._again = threading.Event()
        self._stopping = threading.Event()
        self.again()

    def put(self, level: str, text: str, details: Mapping[str, Any]) -> None:
        """Have it told; never waits. The oldest is dropped when there are too many."""
        told = {**details, "time": round(self._clock(), 3)}
        with self._lock:
            dropped = self._waiting.popleft() if len(self._waiting) >= MOST else None
            self._waiting.append(_Message(level, text, told))
        if dropped is not None:
            LOG.warning("%d messages wait for the provisioner; dropped: %s", MOST, dropped.text)
        self._again.set()

    def again(self) -> None:
        """The vendor answers: what waits is sent now."""
        if self._waiting:
            self._again.set()

    def send(self) -> None:
        """Send what waits, up to the first that cannot be sent now."""
        while not self._stopping.is_set():
            with self._lock:
                first = self._waiting[0] if self._waiting else None
            if first is None or not self._sent(first):
                return
            with self._lock:
                # It may have been dropped meanwhile as the oldest.
                if self._waiting and self._waiting[0] is first:
                    self._waiting.popleft()

    def _sent(self, one: _Message) -> bool:
        """Whether it was taken, or never will be."""
        try:
            self._vendor.tell(one.level, one.text, one.details)
        except VendorError as error:
            one.tried += not error.away
            final = error.definite or one.tried >= TRIES
            level = LOG.warning if final else LOG.debug
            level("The provisioner is not told %r: %s", one.text, error)
            return final
        except Exception:
            LOG.exception("A defect: the provisioner is not told %r", one.text)
        return True

    def run(self) -> None:
        """Send until :meth:`stop`."""
        while not self._stopping.is_set():
            self._again.wait(PAUSE if self._waiting else None)
            self._again.clear()
            self.send()
            self.keep()
        if self._waiting:
            LOG.warning("%d messages are told when the agent runs again", len(self._waiting))

    def keep(self) -> None:
        """Write down what waits, if that has changed."""
        with self._saving:
            with self._lock:
                waiting = [dataclasses.asdict(one) for one in self._waiting]
            if waiting == self._kept:
                return
            try:
                self._save(waiting)
            except OSError as error:
                LOG.error("What is to be told cannot be written down: %s", error)
            else:
                self._kept = waiting

    def stop(self) -> None:
        """Send nothing more; one that is under way is not waited for."""
        self._stopping.set()
        self._again.set()
