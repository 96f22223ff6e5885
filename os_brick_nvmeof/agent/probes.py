# SPDX-License-Identifier: Apache-2.0
"""The agent's own probes of storage nodes: whether anybody answers at a portal.

A probe opens a TCP connection and ends it at once (with RST, so that no TIME_WAIT is left). The
kernel of the node answers it, however busy the target is. There is one at a time for each portal
that is in use, not for each volume.

What counts as an answer: the connection came about, or was refused, on any socket, however late;
or I/O to the portal was completed. A refusal is one because the kernel that refuses ends broken
connections by itself. What this host could not send at all says nothing (``ENETUNREACH``, no
descriptors): the portal is then one that cannot be told of.
"""

from __future__ import annotations

import dataclasses
import errno
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from oslo_log import log

from os_brick_nvmeof.agent.model import Probed
from os_brick_nvmeof.props import Portal

LOG = log.getLogger(__name__)

# Outcomes of a socket that show that somebody is there, and those of silence: the neighbour does
# not answer (ARP), or a router says so.
ANSWERS = frozenset({0, errno.ECONNREFUSED, errno.ECONNRESET})
SILENCE = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EHOSTDOWN})
# Unanswered probes in a row after which I/O that waits is worth a decision.
SUSPECT = 2
# Seconds for which an answer is waited for, and sockets of a portal that wait at the same time.
PATIENCE = 5.0
MOST = 16
# Seconds in which the answers of portals that are well are gathered, to be taken at once.
GATHER = 0.02
# A portal that is silent for so many seconds is asked each so many.
LONG, SELDOM = 10.0, 5.0
_LINGER = struct.pack("ii", 1, 0)


class Net(Protocol):
    """Sockets that are being connected."""

    def begin(self, portal: Portal) -> int:
        """:returns: a key. :raises OSError: it could not be begun, or ended at once."""

    def ready(self, seconds: float) -> list[tuple[int, int]]:
        """Wait until one has come to an end, so long at most; keys and errors (0: connected)."""

    def end(self, key: int) -> None:
        """Close one, answered or not."""


class Sockets:
    """:class:`Net` of this machine; used by one thread."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._open: dict[int, socket.socket] = {}

    def begin(self, portal: Portal) -> int:
        """:raises OSError: it could not be begun, or was refused at once."""
        family = socket.AF_INET6 if ":" in portal.address else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            problem = made.connect_ex((portal.address, int(portal.port)))
            if problem not in (0, errno.EINPROGRESS):
                raise OSError(problem, "no probe")
        except (OSError, ValueError):
            made.close()
            raise
        self._open[made.fileno()] = made
        self._poll.register(made, select.POLLOUT)
        return made.fileno()

    def ready(self, seconds: float) -> list[tuple[int, int]]:
        """Those that have come to an end, with their errors."""
        return [
            (key, self._open[key].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            for key, _ in self._poll.poll(max(0.0, seconds) * 1000)
        ]

    def end(self, key: int) -> None:
        """Close one."""
        made = self._open.pop(key)
        self._poll.unregister(made)
        made.close()


@dataclasses.dataclass
class _State:
    """A portal.

    :ivar names: its controllers. :ivar first: when the first probe since the last answer
        was sent. :ivar live: those that are live. :ivar done: their I/O completed by then; None:
        it could not be read.
    :ivar told: whether probes could be sent.
    """

    names: frozenset[str]
    waiting: dict[int, float] = dataclasses.field(default_factory=dict)
    unanswered: int = 0
    first: float = 0.0
    last: float = 0.0
    live: frozenset[str] = frozenset()
    done: int | None = None
    stalled: bool | None = None
    told: bool = True

    def heard(self) -> None:
        self.unanswered, self.done, self.stalled, self.told = 0, None, None, True


class Probes:
    """A thread that asks the portals that it is told of.

    :param interval: seconds between two probes of a portal.
    :param io: the live ones of some controllers, and their I/O completed ever and under way; None:
        it could not be told. Asked only while a portal does not answer.
    :param urgent: called while a portal does not answer and I/O to it waits.
    :param count: called with "answered" or "silent" for each probe that has come to an end.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        interval: float,
        io: Callable[[Collection[str]], tuple[frozenset[str], int, int] | None],
        urgent: Callable[[], None],
        *,
        net: Net | None = None,
        count: Callable[[str], None] = lambda _outcome: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval, self._io, self._urgent = interval, io, urgent
        self._net: Net = net or Sockets()
        self._count, self._clock = count, clock
        self._lock = threading.Lock()
        self._wanted: dict[Portal, frozenset[str]] = {}
        self._states: dict[Portal, _State] = {}
        self._keys: dict[int, Portal] = {}
        self._ticked = clock()
        self._stopped = threading.Event()

    def watch(self, portals: Mapping[Portal, frozenset[str]]) -> None:
        """Ask these from now on, and no others. With each the names of its controllers."""
        with self._lock:
            self._wanted = dict(portals)

    def seen(self) -> dict[Portal, Probed]:
        """What is known of each portal; one that is not told of could not be asked.

        When the thread itself has not run for a while, nothing is known.
        """
        with self._lock:
            if self._clock() - self._ticked > max(1.0, 3 * self._interval):
                return {}
            return {
                portal: Probed(
                    unanswered=state.unanswered,
                    silent=self._ticked - state.first if state.unanswered else 0.0,
                    stalled=state.stalled,
                )
                for portal, state in self._states.items()
                if state.told
            }

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        """Until :meth:`stop`."""
        while not self._stopped.is_set():
            try:
                self.tick()
                end = self._clock() + self._interval
                while not self._stopped.is_set() and (left := end - self._clock()) > 0:
                    if self._keys and not self._doubt:
                        self._stopped.wait(min(left, GATHER))
                    if not self.hear(max(0.0, end - self._clock())):
                        self._stopped.wait(max(0.0, end - self._clock()))
            except Exception:
                # Nobody would miss the thread, and the kernel's time-outs are left.
                LOG.exception("A defect of the probes")
                self._stopped.wait(self._interval)

    def hear(self, seconds: float) -> bool:
        """Wait for answers; False when there was no need to."""
        if not self._keys:
            return False
        for key, problem in self._net.ready(seconds):
            portal = self._keys.pop(key)
            self._net.end(key)
            with self._lock:
                state = self._states[portal]
                del state.waiting[key]
                self._judge(state, problem)
        return True

    @property
    def _doubt(self) -> bool:
        """Whether some portal is looked at closely."""
        return any(state.unanswered >= SUSPECT for state in self._states.values())

    def _judge(self, state: _State, problem: int) -> None:
        if problem in ANSWERS:
            state.heard()
            self._count("answered")
        elif problem in SILENCE:
            self._count("silent")
        else:
            state.heard()
            state.told = False

    def tick(self) -> None:
        """Take the answers that are there, give up the oldest probes, send new ones."""
        self.hear(0.0)
        now = self._clock()
        with self._lock:
            self._adjust()
            urgent = False
            for portal, state in self._states.items():
                self._give_up(state, now)
                if state.unanswered:
                    self._look(state)
                urgent = urgent or (state.unanswered >= SUSPECT and bool(state.stalled))
                pause = SELDOM if state.unanswered and now - state.first > LONG else 0.0
                if now - state.last >= pause:
                    self._send(portal, state, now)
            self._ticked = self._clock()
        if urgent:
            self._urgent()

    def _adjust(self) -> None:
        for portal in self._states.keys() - self._wanted.keys():
            for key in self._states.pop(portal).waiting:
                del self._keys[key]
                self._net.end(key)
        for portal, names in self._wanted.items():
            if portal in self._states:
                self._states[portal].names = names
            else:
                self._states[portal] = _State(names)

    def _give_up(self, state: _State, now: float) -> None:
        old = [key for key, sent in state.waiting.items() if now - sent > PATIENCE]
        for key in old or list(state.waiting)[: max(0, len(state.waiting) - MOST + 1)]:
            del state.waiting[key], self._keys[key]
            self._net.end(key)
            self._count("silent")

    def _look(self, state: _State) -> None:
        """I/O that is completed is an answer as well."""
        io = self._io(state.names)
        if io is None:
            state.done = state.stalled = None
            return
        live, done, waiting = io
        # The kernel may have lost a controller since, which completes nothing any more.
        if state.done is not None and live == state.live and done != state.done:
            state.heard()
            return
        # What is completed is compared with the look before.
        state.stalled = waiting > 0 if state.done is not None else None
        state.live, state.done = live, done

    def _send(self, portal: Portal, state: _State, now: float) -> None:
        state.last = now
        key = -1
        try:
            key = self._net.begin(portal)
        except (OSError, ValueError) as error:
            problem = getattr(error, "errno", None) or errno.EINVAL
            self._judge(state, problem)
            if problem not in SILENCE:
                return
        else:
            state.waiting[key] = now
            self._keys[key] = portal
        state.told = True
        if not state.unanswered:
            state.first = now
        state.unanswered += 1
