# SPDX-License-Identifier: Apache-2.0
"""The portals of one leg, connected at the same time.

Every portal is asked at once whether it answers. With multipath all that do are connected.
Otherwise one of them is, and the next one that answered takes over when its connection fails:
time-outs of portals never add up.

The kernel connects one portal at a time, whoever asks (``nvmf_dev_mutex``,
drivers/nvme/host/fabrics.c). So those that have answered queue here, and the time-out of each
counts from its turn: on a busy host, or with many attaches at once, nobody is given up for others.

A connect that blocks is left behind at the deadline. If it succeeds later, the thread that did it
deletes the controller again, unless the leg is attached.
"""

from __future__ import annotations

import contextlib
import functools
import threading

from oslo_log import log as logging

from os_brick_nvmeof import conf, errors, fabrics, records, removal, sysfs, waiting
from os_brick_nvmeof.context import Context
from os_brick_nvmeof.props import Leg, Portal

LOG = logging.getLogger(__name__)

# Seconds between two looks at whether waiting for a turn makes sense.
_LOOK = 0.1
# Seconds of no answer after which a portal may be given up: a SYN that was lost is sent again
# after one (tcp(7), TCP_TIMEOUT_INIT), and our own threads can be late on a busy host.
_SILENT = 1.5


class Race:
    """One round of connecting a leg.

    :ivar patience: by when all is over, queued or not.
    :ivar one: set when one controller is live, or none can be any more.
    :ivar all: set when every portal has come to an end.
    :ivar failed: what went wrong, by portal.
    """

    def __init__(
        self, ctx: Context, leg: Leg, timeouts: conf.TimeOuts, deadline: waiting.Deadline
    ) -> None:
        self._ctx = ctx
        self._leg = leg
        self._timeouts = timeouts
        self._deadline = deadline
        self.patience = waiting.Deadline(
            ctx.clock, deadline.left + ctx.conf[conf.GROUP].device_timeout
        )
        self.one = ctx.threads.event()
        self.all = ctx.threads.event()
        self.failed: dict[Portal, errors.UnreachableError] = {}
        self._lock = threading.Lock()
        self._open = set(leg.portals)
        # Of portals that have answered: when their time is over; None before their turn.
        self._turns: dict[Portal, waiting.Deadline | None] = {}
        # Of portals that have been asked: when they have been silent for long enough.
        self._silence: dict[Portal, waiting.Deadline] = {}
        self._made: list[sysfs.Controller] = []
        self._left = False

    def start(self) -> None:
        """Begin, each portal in a thread."""
        for portal in dict.fromkeys(self._leg.portals):
            waiting.Call(self._ctx, functools.partial(self._run, portal), f"kumo-{portal}")

    def wait(self) -> None:
        """Wait for one live controller, or until there is no hope for any."""
        self.one.wait(self._deadline.left)
        while self.hopeful() and not self.patience.passed:
            if self.one.wait(min(_LOOK, self.patience.left)):
                return

    def give_up(self) -> None:
        """Let who waits go on without a controller, if all portals have been silent for long."""
        with self._lock:
            silences = [self._silence.get(portal) for portal in self._open]
            silent = not self._turns and all(each and each.passed for each in silences)
        if silent:
            self.one.set()

    def hopeful(self) -> bool:
        """Whether a portal that has answered waits for its turn, or has it."""
        with self._lock:
            turns = [self._turns[portal] for portal in self._open & self._turns.keys()]
        return any(turn is None or not turn.passed for turn in turns)

    def leave(self) -> list[sysfs.Controller]:
        """Wait no more.

        :returns: controllers that it made; any that comes later is dealt with by its thread.
        """
        with self._lock:
            self._left = True
            return list(self._made)

    def _run(self, portal: Portal) -> None:
        with self._lock:
            self._silence[portal] = waiting.Deadline(self._ctx.clock, _SILENT)
        try:
            waits = fabrics.existing(self._ctx, self._leg.nqn, portal) is not None
            if not waits:
                fabrics.probe(self._ctx, portal, self._deadline)
                with self._lock:
                    self._turns[portal] = None
            if waits or self._ctx.multipath:
                made = self._connect(portal)
            else:
                # One at a time, and none beside one that is live, whichever attach it is for.
                with self._ctx.locks.connecting(self._leg.nqn):
                    if self._settled():
                        return
                    made = self._connect(portal)
        except (errors.KumoBrickError, OSError) as error:
            self._fail(portal, error)
            return
        if made:
            self._late(made)

    def _settled(self) -> bool:
        """Whether this subsystem needs no connection any more."""
        if fabrics.live(self._ctx, self._leg.nqn):
            self._live()
        with self._lock:
            return self._left or not self._open

    def _connect(self, portal: Portal) -> sysfs.Controller | None:
        """Connect; what was made too late is returned."""
        with contextlib.ExitStack() as stack:
            deadline = self._deadline
            if portal in self._turns:
                stack.enter_context(self._ctx.locks.connects())
                deadline = waiting.Deadline(self._ctx.clock, self._deadline.seconds)
                with self._lock:
                    if self._left:
                        return None
                    self._turns[portal] = deadline
            controller, new = fabrics.connect_answering(
                self._ctx, self._leg.nqn, portal, self._timeouts, deadline
            )
        with self._lock:
            late = self._left
            if new and not late:
                self._made.append(controller)
        self._live(portal)
        return controller if new and late else None

    def _live(self, *portals: Portal) -> None:
        self._close(*(portals if self._ctx.multipath else self._leg.portals))
        self.one.set()

    def _late(self, controller: sysfs.Controller) -> None:
        nqn = self._leg.nqn
        with self._ctx.locks.subsystem(nqn):
            others = [each for each in fabrics.live(self._ctx, nqn) if each.name != controller.name]
            attached = records.ATTACHED in records.of(self._ctx, nqn).values()
            if attached and (self._ctx.multipath or not others):
                LOG.info("%s of %s was connected late, and is kept", controller.name, self._leg)
                return
            LOG.info("%s of %s was connected too late: deleting it", controller.name, self._leg)
            removal.begin(self._ctx, [controller])

    def _fail(self, portal: Portal, error: Exception) -> None:
        if not isinstance(error, errors.UnreachableError):
            text = error.text if isinstance(error, errors.KumoBrickError) else str(error)
            error = fabrics.unreachable(portal, text)
        LOG.info("Portal %s of %s: %s", portal, self._leg, error.text)
        self.failed[portal] = error
        self._close(portal)

    def _close(self, *portals: Portal) -> None:
        with self._lock:
            self._open.difference_update(portals)
            ended = not self._open
        if ended:
            self.all.set()
            self.one.set()
