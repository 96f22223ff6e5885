# SPDX-License-Identifier: Apache-2.0
"""The portals of one leg, connected at the same time.

Every portal is asked at once whether it answers. With multipath all that do are connected.
Otherwise the first one is, and the next one that answered takes over when its connection fails:
time-outs of portals never add up.

A connect that blocks is left behind at the deadline. If it succeeds later, the thread that did it
deletes the controller again, unless the leg is attached.
"""

from __future__ import annotations

import functools
import threading

from oslo_log import log as logging

from os_brick_nvmeof import conf, errors, fabrics, records, removal, sysfs, waiting
from os_brick_nvmeof.context import Context
from os_brick_nvmeof.props import Leg, Portal

LOG = logging.getLogger(__name__)


class Race:
    """One round of connecting a leg.

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
        self.one = ctx.threads.event()
        self.all = ctx.threads.event()
        self.failed: dict[Portal, str] = {}
        self._lock = threading.Lock()
        self._open = set(leg.portals)
        self._made: list[sysfs.Controller] = []
        self._live = False
        self._left = False
        # Without multipath: whether one is being connected, and who answered meanwhile.
        self._busy = False
        self._answered: list[Portal] = []

    def start(self) -> None:
        """Begin, each portal in a thread."""
        for portal in dict.fromkeys(self._leg.portals):
            waiting.Call(self._ctx, functools.partial(self._run, portal), f"kumo-{portal}")

    def leave(self) -> list[sysfs.Controller]:
        """Wait no more.

        :returns: controllers that it made; any that comes later is dealt with by its thread.
        """
        with self._lock:
            self._left = True
            return list(self._made)

    def _run(self, portal: Portal) -> None:
        try:
            if fabrics.existing(self._ctx, self._leg.nqn, portal):
                self._connect(portal)
                return
            fabrics.probe(self._ctx, portal, self._deadline)
        except (errors.KumoBrickError, OSError) as error:
            self._fail(portal, error)
            return
        turn: Portal | None = portal if self._turn(portal) else None
        while turn:
            try:
                self._connect(turn)
                return
            except (errors.KumoBrickError, OSError) as error:
                self._fail(turn, error)
                turn = self._next()

    def _turn(self, portal: Portal) -> bool:
        """Without multipath one is connected at a time, and none after one that is live."""
        if self._ctx.multipath:
            return True
        with self._lock:
            if self._busy or self._live:
                self._answered.append(portal)
                return False
            self._busy = True
            return True

    def _next(self) -> Portal | None:
        with self._lock:
            turn = self._answered.pop(0) if self._answered and not self._live else None
            self._busy = bool(turn)
            return turn

    def _connect(self, portal: Portal) -> None:
        controller, new = fabrics.connect_answering(
            self._ctx, self._leg.nqn, portal, self._timeouts, self._deadline
        )
        with self._lock:
            late = self._left
            self._live = True
            if new and not late:
                self._made.append(controller)
        self._close(*([portal] if self._ctx.multipath else self._leg.portals))
        self.one.set()
        if new and late:
            self._late(controller)

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
        reason = error.text if isinstance(error, errors.KumoBrickError) else str(error)
        LOG.info("Portal %s of %s: %s", portal, self._leg, reason)
        self.failed[portal] = reason
        self._close(portal)

    def _close(self, *portals: Portal) -> None:
        with self._lock:
            self._open.difference_update(portals)
            ended = not self._open
        if ended:
            self.all.set()
            self.one.set()
