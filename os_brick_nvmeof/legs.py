# SPDX-License-Identifier: Apache-2.0
"""One leg of a volume on its way to a block device of this host."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import NamedTuple

from oslo_log import log as logging

from os_brick_nvmeof import conf, errors, fabrics, identify, portals, records, sysfs, waiting
from os_brick_nvmeof.context import Context
from os_brick_nvmeof.props import Leg, Portal, Volume

LOG = logging.getLogger(__name__)

# Seconds between two rescans while a namespace is awaited.
RESCAN = 1.0
# Seconds of scanning before the target is asked whether it has the namespace at all.
_ASK = 0.5
# Seconds that the other portals of a leg get once it has a device (multipath).
_GRACE = 1.0


class LegDevice(NamedTuple):
    """A leg that is a block device.

    :ivar path: "/dev/nvme0n1".
    :ivar size: bytes.
    :ivar block_size: bytes of a logical block.
    """

    leg: Leg
    path: str
    name: str
    size: int
    block_size: int


class LegOutcome(NamedTuple):
    """How connecting a leg ended.

    :ivar device: None when it has none; then ``error`` says why.
    :ivar unreachable: nothing is known of the leg's data: its node could not be asked. False
        with no device: its node answered, and does not have it.
    :ivar made: controllers that this very attach made.
    :ivar before: the leg was attached to this host already, as far as one can know.
    """

    leg: Leg
    device: LegDevice | None
    error: errors.KumoBrickError | None
    unreachable: bool
    made: tuple[sysfs.Controller, ...] = ()
    before: bool = False


class LegConnect:
    """Connects one leg.

    :param before: the leg was attached to this host already.
    """

    def __init__(
        self, ctx: Context, volume: Volume, leg: Leg, timeouts: conf.TimeOuts, before: bool
    ) -> None:
        self._ctx = ctx
        self._volume = volume
        self._timeouts = timeouts
        self._before = before
        self._options = ctx.conf[conf.GROUP]
        self.leg = leg
        self._made: list[sysfs.Controller] = []
        self._race: portals.Race | None = None

    def connect(self) -> LegOutcome:
        """Have it as a block device; bounded by the time-outs of the options.

        :raises OSError: sysfs or the lock directory cannot be used.
        """
        if not self.leg.nqn or not self.leg.portals:
            return self._failed("the storage does not offer this leg to this host", True)
        try:
            return self._connect()
        except errors.KumoBrickError as error:
            unreachable = not isinstance(error, errors.NamespaceMissingError)
            return self._failed(error.text, unreachable, type(error), error.way_out)
        finally:
            self._leave()

    def give_up(self) -> None:
        """Let :meth:`connect` return if all portals have been silent for long; may be repeated."""
        race = self._race
        if race:
            race.give_up()

    def _connect(self) -> LegOutcome:
        options = self._options
        whole = waiting.Deadline(self._ctx.clock, options.connect_timeout + options.device_timeout)
        while True:
            fresh = self._reach(min(options.connect_timeout, whole.left))
            device = self._device(fresh, min(options.device_timeout, whole.left))
            if device and self._confirmed(device):
                if self._race:
                    self._race.all.wait(min(_GRACE, whole.left))
                return self.outcome(device, None, False)
            # A detach of another volume, or the network, took the connection away meanwhile.
            if whole.passed:
                raise errors.UnreachableError("the connection was lost again and again")

    def _reach(self, seconds: float) -> bool:
        """Have a live controller; False when there was one and nothing had to be connected.

        :raises UnreachableError: with the reason of each portal.
        """
        ctx, leg = self._ctx, self.leg
        ours = fabrics.ours(ctx, leg.nqn)
        live = fabrics.live(ctx, leg.nqn, ours)
        for each in live:
            fabrics.set_time_outs(ctx, each, self._timeouts)
        missing = any(fabrics.through(portal, ours) is None for portal in leg.portals)
        if live and not (ctx.multipath and missing):
            return False
        self._leave()
        deadline = waiting.Deadline(ctx.clock, seconds)
        self._race = portals.Race(ctx, leg, self._timeouts, deadline)
        self._race.start()
        if live:
            return False
        self._race.wait()
        if not fabrics.live(ctx, leg.nqn):
            raise self._unreached(deadline, self._race.failed)
        return True

    def _unreached(
        self, deadline: waiting.Deadline, failed: Mapping[Portal, errors.UnreachableError]
    ) -> errors.UnreachableError:
        """What all portals have failed with, of the kind and with the way out of the gravest."""
        passed = round(deadline.seconds - deadline.left, 1)
        silent = fabrics.unreachable(None, f"not connected after {passed:g} s")
        found = {each: failed.get(each, silent) for each in self.leg.portals}
        gravest = max(found.values(), key=lambda each: isinstance(each, errors.SecurityError))
        reasons = "; ".join(f"{portal}: {each.text}" for portal, each in found.items())
        return type(gravest)(f"no portal can be connected: {reasons}", way_out=gravest.way_out)

    def _device(self, fresh: bool, seconds: float) -> LegDevice | None:
        """Wait for the block device; None when the connection is lost.

        :raises NamespaceMissingError: the target says that it does not have it.
        :raises UnreachableError: it did not appear in time, and nobody knows why.
        """
        ctx, leg = self._ctx, self.leg
        deadline = waiting.Deadline(ctx.clock, seconds)
        search = _Search(ctx, leg, fresh)
        found = waiting.until(ctx, search.look, deadline)
        if isinstance(found, LegDevice):
            return found
        if found:
            return None
        raise errors.UnreachableError(
            f"its namespace has not appeared on a live connection after {deadline.seconds:g} s",
            way_out="look at the kernel log of this host",
        )

    def _confirmed(self, device: LegDevice) -> bool:
        """Whether it is still there, seen under the lock: no detach can take it away later."""
        ctx, leg = self._ctx, self.leg
        with ctx.locks.subsystem(leg.nqn):
            if usable(ctx, leg) != device:
                return False
            # The detach of another volume may have dropped all records with the connection.
            records.note(ctx, leg.nqn, [leg.uuid], records.ATTACHED)
            return True

    def _leave(self) -> None:
        if self._race:
            self._made += self._race.leave()
            self._race = None

    def outcome(
        self, device: LegDevice | None, error: errors.KumoBrickError | None, unreachable: bool
    ) -> LegOutcome:
        """How it ended."""
        self._leave()
        return LegOutcome(self.leg, device, error, unreachable, tuple(self._made), self._before)

    def _failed(
        self,
        text: str,
        unreachable: bool,
        kind: type[errors.KumoBrickError] = errors.UnreachableError,
        way_out: str = "",
    ) -> LegOutcome:
        error = kind(
            text,
            volume=self._volume.uuid,
            leg=self.leg.uuid,
            node=self.leg.node,
            portal=", ".join(str(each) for each in self.leg.portals),
            way_out=way_out or "check the node and the network to it",
        )
        return self.outcome(None, error, unreachable)


class _Search:
    """Looks for the namespace of a leg, again and again."""

    def __init__(self, ctx: Context, leg: Leg, fresh: bool) -> None:
        self._ctx = ctx
        self._leg = leg
        # A new connection is being scanned already.
        self._rescan = waiting.Deadline(ctx.clock, RESCAN if fresh else 0)
        self._ask = waiting.Deadline(ctx.clock, _ASK)
        # Controllers to look at again; all if empty.
        self._names: list[str] = []
        self._asked: waiting.Call[bool] | None = None

    def look(self) -> LegDevice | bool | None:
        """The device; True when the connection is lost; None when it has to be awaited."""
        ctx, leg = self._ctx, self._leg
        seen = sysfs.subsystem(ctx.host.root, leg.nqn, self._names)
        device = usable(ctx, leg, seen)
        if device:
            return device
        live = fabrics.live(ctx, leg.nqn, seen.controllers)
        if not live:
            # Those that were looked at; if there are others, the next look takes them in.
            lost, self._names = not self._names, []
            return lost or None
        self._names = [each.name for each in live]
        if self._rescan.passed:
            for each in live:
                fabrics.rescan(ctx, each)
            self._rescan = waiting.Deadline(ctx.clock, RESCAN)
        elif self._ask.passed and not self._asked:
            # In a thread: a node that has just fallen silent answers after a minute, or never.
            offers = functools.partial(identify.offers, ctx, live[0].name, leg.uuid)
            self._asked = waiting.Call(ctx, offers, f"kumo-identify-{live[0].name}")
        elif self._asked:
            self._doubt(self._asked, live[0].name)
        return None

    def _doubt(self, asked: waiting.Call[bool], name: str) -> None:
        if not asked.ended:
            return
        # Ask again later; there may be more controllers by then.
        self._asked = None
        self._ask = waiting.Deadline(self._ctx.clock, RESCAN)
        self._names = []
        try:
            offered = asked.result()
        except OSError as error:
            LOG.info("%s does not tell its namespaces: %s", name, error)
            return
        if not offered:
            raise errors.NamespaceMissingError(
                f"subsystem {self._leg.nqn} does not offer it to this host",
                way_out="look at the volume at the provisioner",
            )


def usable(ctx: Context, leg: Leg, seen: sysfs.Subsystem | None = None) -> LegDevice | None:
    """The block device of a leg, found by UUID, that a live controller of ours serves now.

    :param seen: its subsystem, if it has just been read.
    """
    root = ctx.host.root
    seen = seen or sysfs.subsystem(root, leg.nqn)
    live = {each.name for each in fabrics.live(ctx, leg.nqn, seen.controllers)}
    for device, uuid in sorted(seen.uuids.items()):
        if uuid != leg.uuid or live.isdisjoint(seen.paths[device]):
            continue
        found = sysfs.namespace(root, seen, device)
        # The kernel shows a device before its size is known, and before its node is there.
        if found and found.size and os.path.exists(f"{root}/dev/{device}"):
            return LegDevice(leg, f"/dev/{device}", device, found.size, found.block_size)
    return None
