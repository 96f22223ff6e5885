# SPDX-License-Identifier: Apache-2.0
"""Asking the provisioner what is wanted, and waiting for its events: two threads.

A provisioner that is away, slow or frozen holds up nobody else.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable

from oslo_log import log

from os_brick_nvmeof.agent.known import Known
from os_brick_nvmeof.agent.lastwords import LastWords
from os_brick_nvmeof.agent.messages import Messages
from os_brick_nvmeof.agent.metrics import Metrics
from os_brick_nvmeof.agent.model import Pace, Seen, Wanted
from os_brick_nvmeof.agent.vendor import Vendor, VendorError

LOG = log.getLogger(__name__)

# That only fresh legs are taken is the connector's to announce: stock os-brick may be in use.
ABILITIES = ("array-report", "hold-writes")


class Asking:
    """:param look: looks at the host, for the first question.

    :ivar again: a question is to be asked at once.
    """

    def __init__(
        self,
        known: Known,
        vendor: Vendor,
        pace: Pace,
        look: Callable[[Wanted], Seen],
        *,
        messages: Messages,
        last_words: LastWords,
        metrics: Metrics,
        stopping: threading.Event,
        wake: threading.Event,
        clock: Callable[[], float],
    ) -> None:
        self.again = threading.Event()
        self._known, self._vendor, self._pace, self._look = known, vendor, pace, look
        self._messages, self._last_words, self._metrics = messages, last_words, metrics
        self._stopping, self._wake, self._clock = stopping, wake, clock
        self._probed = 0.0
        self._away = ""

    def probe(self) -> None:
        """Say that this host is alive, if it is time to.

        :raises VendorError: it could not be said.
        """
        now = self._clock()
        if not 0 <= now - self._probed < self._pace.probe:
            self._vendor.probe(seconds=self._pace.probe, abilities=ABILITIES)
            self._probed = now

    def pull(self) -> bool:
        """Ask the provisioner; False when it is away."""
        now = self._clock()
        known = self._known
        problem = ""
        try:
            self.probe()
            wanted = self._vendor.pull(known.seen or self._look(known.wanted), now)
        except VendorError as error:
            problem = str(error)
            wanted = dataclasses.replace(known.wanted, stale=True)
        self._note_away(problem)
        with known.lock:
            before, known.wanted = known.wanted, wanted
            # What was said or asked for is judged by an answer from after that.
            waiting = bool(known.memory.told or known.memory.asked)
        news = (wanted.volumes, wanted.nodes) != (before.volumes, before.nodes)
        self._metrics.pulls.labels("away" if problem else "ok").inc()
        if not problem:
            self._messages.again()
            self._last_words.send(wanted)
        if news and not problem:
            known.save(lambda: known.store.save_wanted(wanted), "the provisioner's answer")
        if waiting or dataclasses.replace(before, time=wanted.time) != wanted:
            self._wake.set()
        return not problem

    def _note_away(self, problem: str) -> None:
        if problem and not self._away:
            LOG.warning("The provisioner is away: %s", problem)
        elif self._away and not problem:
            LOG.info("The provisioner answers again")
        self._away = problem

    # -- threads ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Ask, again and again, until the agent ends."""
        while not self._stopping.is_set():
            self.again.clear()
            good = safely(self.pull)
            pause = self._pace.pull if good and not self.reporting() else self._pace.busy
            # Events come in swarms.
            self._stopping.wait(self._pace.busy / 4)
            safely(functools.partial(self._rest, pause))

    def _rest(self, seconds: float) -> bool:
        """Wait until something asks for a question; say meanwhile that this host is alive.

        :returns: False when that could not be said: the next question says what is the matter.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.again.wait(min(left, self._pace.probe)):
                break
            try:
                self.probe()
            except VendorError:
                return False
        return True

    def reporting(self) -> bool:
        """Whether something is under way of which the provisioner's view tells the end."""
        with self._known.lock:
            return self._last_words.urgent or any(task.open for task in self._known.wanted.tasks)

    def listen(self) -> None:
        """Wait for events, again and again, until the agent ends."""
        since: int | None = None
        while not self._stopping.is_set():
            try:
                news = self._vendor.wait(since, 50)
                since = news.since
                if news.look:
                    self.again.set()
            except VendorError as error:
                # A KumoScale tells of no events; then there is the timer.
                since = None
                self._stopping.wait(300 if error.code == "NotAvailable" else self._pace.busy * 5)
            except Exception:
                LOG.exception("A defect of thread events")
                since = None
                self._stopping.wait(self._pace.busy * 5)


def safely(work: Callable[[], bool | None]) -> bool:
    """One turn of a thread: an error of it is in the log, and it was not done."""
    try:
        return bool(work())
    except Exception:
        # A thread that ends would not be missed by anybody.
        LOG.exception("A defect of thread %s", threading.current_thread().name)
        return False
