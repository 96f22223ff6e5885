# SPDX-License-Identifier: Apache-2.0
"""Actions that are done on this host, through the connector's own modules and under its locks.

Whatever an action was planned on may have changed before the lock was had: an attach, a detach or
md itself came first. So under the lock the host is looked at again, and what is not planned any
more is not done.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from oslo_log import log

from os_brick_nvmeof import (
    arrays,
    fabrics,
    md,
    paths,
    props,
    records,
    replicated,
    sysfs,
    waiting,
)
from os_brick_nvmeof import conf as connector_conf
from os_brick_nvmeof.agent import cutting
from os_brick_nvmeof.agent.actions import (
    Action,
    AddSpare,
    ConfirmRemoval,
    CutNode,
    FailLeg,
    FinishRestart,
    OfArray,
    OfMember,
    OfNode,
    ReAdd,
    Reconnect,
    RemoveLeg,
    Restart,
    SetSlots,
    SetSpeed,
    SetTimeOuts,
    ShortenWait,
)
from os_brick_nvmeof.agent.model import Leg, Volume
from os_brick_nvmeof.context import Context
from os_brick_nvmeof.host import CommandError
from os_brick_nvmeof.props import Portal

LOG = log.getLogger(__name__)

# Seconds for a faulty leg to let go of the I/O that is under way.
REMOVE_SECONDS = 5.0
# Seconds for an array to stop that nobody may be using.
STOP_SECONDS = 2.0
# Seconds for the kernel to notice that a connection was ended.
NOTICE_SECONDS = 1.0
# Until its time-out begins to run.
BREAKING = (sysfs.LIVE, sysfs.RESETTING)
# Seconds that mdadm may take to change the form of an array.
GROW_SECONDS = 60.0


class ActError(Exception):
    """An action was not done, or not to its end."""


class NotNowError(ActError):
    """The situation is another one by now; nothing was done."""


class Hands:
    """:param still: says whether an action is still to be done, looking at the host.
    :param end: ends the connections to a portal and says how many.
    :param channel: makes what :mod:`.cutting` works with.
    """

    def __init__(
        self,
        ctx: Context,
        still: Callable[[Action], bool],
        end: Callable[[Portal], int] = cutting.end,
        channel: Callable[[], cutting.Channel] = cutting.channel,
    ) -> None:
        self._ctx = ctx
        self._still = still
        self._end = end
        self._channel = channel

    def do(self, volume: Volume, action: Action) -> bool:
        """Carry an action out; False when it is not one for this host.

        Of what is said to the vendor, Export and ConfirmRemoval have a part
        here as well: after the first, before the second.

        :raises ActError: with the reason. :raises KumoBrickError: as the connector says it.
        """
        match action:
            case Reconnect():
                self._reconnect(volume, action)
            case SetTimeOuts():
                self._set_time_outs(action)
            case ShortenWait():
                self._shorten(action)
            case CutNode():
                self._cut(action)
            case Restart():
                self._restart(volume, action)
            case FinishRestart():
                self._finish_restart(volume, action)
            case FailLeg():
                self._locked(action, lambda: self._flag(action, action.device, "faulty"))
            case ReAdd() | AddSpare():
                self._locked(action, lambda: self._put_in(volume, action))
            case RemoveLeg():
                self._locked(action, lambda: self._remove(action))
            case SetSlots():
                self._locked(action, lambda: self._set_slots(action, action.slots))
            case SetSpeed():
                self._set_speed(action)
            case _:
                return False
        return True

    # -- connections ------------------------------------------------------------------------------

    def _reconnect(self, volume: Volume, action: Reconnect) -> None:
        ctx = self._ctx
        seconds = ctx.conf[connector_conf.GROUP].connect_timeout
        # A dead portal is waited for without the lock: a detach would wait as long.
        fabrics.probe(ctx, action.portal, waiting.Deadline(ctx.clock, seconds))
        time_outs = connector_conf.time_outs(ctx.conf, action.io_class)
        with ctx.locks.volume(volume.uuid):
            self._check(action)
            fabrics.connect(ctx, action.nqn, action.portal, time_outs)

    def _set_time_outs(self, action: SetTimeOuts) -> None:
        ctx = self._ctx
        with ctx.locks.subsystem(action.nqn):
            found = sysfs.controller(ctx.host.root, action.controller, action.nqn)
            if found is None:
                raise NotNowError(f"{action.controller} is gone")
            fabrics.set_time_outs(ctx, found, connector_conf.time_outs(ctx.conf, action.io_class))
        if self._still(action):
            raise ActError(f"the kernel did not take the time-outs of {action.controller}")

    def _cut(self, action: CutNode) -> None:
        """Without locks: nothing comes or goes that attach and detach know of, and the kernel
        could lose the connections by itself at any moment.

        The time-out after which I/O fails is looked at when the controller changes from
        "resetting", in which the kernel stops its queues, to "connecting"
        (``nvme_change_ctrl_state``, drivers/nvme/host/core.c): so it is 0 until then. If we are
        killed meanwhile, or that takes long, it is put right when the controller is live again.
        """
        ctx = self._ctx
        self._check(action)
        live = self._failing_at_once(action)
        try:
            count = sum(self._end(portal) for portal in sorted(action.portals, key=str))
            LOG.warning("Ended %d connections to storage node %s", count, action.node)
            deadline = waiting.Deadline(ctx.clock, NOTICE_SECONDS)
            waiting.until(
                ctx, lambda: not any(self._state(one) in BREAKING for one in live), deadline
            )
        finally:
            seconds = connector_conf.time_outs(ctx.conf, props.REPLICATED).fast_io_fail
            for one in live:
                if self._state(one) != sysfs.RESETTING:
                    fabrics.set_time_out(ctx, one, "fast_io_fail_tmo", seconds)

    def _shorten(self, action: ShortenWait) -> None:
        """Without locks, as :meth:`_cut`. A later round puts it right."""
        self._check(action)
        self._failing_at_once(action)

    def _failing_at_once(self, action: OfNode) -> list[sysfs.Controller]:
        """Have I/O to live controllers fail as soon as they are lost; gives them."""
        root = self._ctx.host.root
        found = (sysfs.controller(root, name, nqn) for name, nqn in sorted(action.controllers))
        live = [one for one in found if one is not None and one.state == sysfs.LIVE]
        for one in live:
            fabrics.set_time_out(self._ctx, one, "fast_io_fail_tmo", 0)
        return live

    def prepare(self) -> None:
        """Make ready for cutting nodes off; a kernel that cannot is said."""
        try:
            link = self._channel()
            try:
                cutting.prepare(link)
            finally:
                link.close()
        except OSError as error:
            LOG.warning("Nodes that are dead cannot be cut off on this host: %s", error)

    def _state(self, controller: sysfs.Controller) -> str | None:
        return sysfs.state(self._ctx.host.root, controller.name)

    def show(self, leg: Leg) -> None:
        """After an export: have the kernel look for the namespace."""
        for one in fabrics.live(self._ctx, leg.nqn) if leg.nqn else ():
            fabrics.rescan(self._ctx, one)

    def release(self, volume: Volume, action: ConfirmRemoval) -> None:
        """Before a leg is given up: let go of its connection, unless others use it."""
        if not action.gone.nqn:
            return
        with self._ctx.locks.volume(volume.uuid):
            self._check(action)
            legs = [leg_of(action.gone)]
            paths.release_legs(self._ctx, volume_of(volume), legs)

    # -- arrays -----------------------------------------------------------------------------------

    def _check(self, action: Action) -> None:
        if not self._still(action):
            raise NotNowError("the situation has changed meanwhile")

    def _locked(self, action: OfArray, work: Callable[[], None]) -> None:
        with self._ctx.locks.volume(action.volume), self._ctx.locks.array(action.array):
            self._check(action)
            work()

    def _look(self, action: OfArray) -> arrays.Array:
        found = arrays.look(self._ctx.host.root, action.name)
        if found is None:
            raise NotNowError(f"{action.name} is gone")
        return found

    def _restart(self, volume: Volume, action: Restart) -> None:
        """As an attach does it. md does not stop what somebody has open; then the array is as it
        was, but for members that md had dropped: they are no part of it any more.

        An array that is not there any more after a failure, or when we are killed, is brought up by
        :meth:`_finish_restart`.
        """
        ctx, given = self._ctx, volume_of(volume)
        with ctx.locks.volume(action.volume):
            with ctx.locks.array(action.array):
                self._check(action)
                self._note_attached(volume)
                self._drop_faulty(action)
                md.stop(ctx, given, self._look(action), waiting.Deadline(ctx.clock, STOP_SECONDS))
            LOG.info("%s of %s was broken and is assembled anew", action.name, given)
            replicated.attach(ctx, given)

    def _drop_faulty(self, action: Restart) -> None:
        """Have md write down, on the leg that it kept, that the others are no part of the array.

        It could not when it dropped them, and does not try again by itself: all superblocks would
        be alike, and what was acknowledged is on the leg that it kept. Taking a device out makes it
        write them (``hot_remove_disk()``, drivers/md/md.c), before it stops at the latest.
        """
        members = self._look(action).members
        faulty = [one.name for one in members if arrays.FAULTY in one.flags]
        for one in members if faulty else ():
            if one.name not in faulty:
                self._keep_bad_blocks(action, one.name)
        for name in faulty:
            self._take_out(action, name)

    def _keep_bad_blocks(self, action: Restart, device: str) -> None:
        """Have md write down the bad blocks of a leg that it kept: see :mod:`os_brick_nvmeof.md`.

        It writes that log only when an entry is new. What it wrote while the leg was away is lost,
        and the kernel would refuse the leg. So one more sector is entered, of those before the data
        that nobody uses; the next superblock takes the whole log with it.

        :raises ActError: it cannot be entered.
        """
        home = f"{sysfs.BLOCK}/{action.name}/md/dev-{device}"
        known = (sysfs.read(self._ctx.host.root / home / "bad_blocks") or "").split()
        if not known:
            return
        ranges = [(int(at), int(size)) for at, size in zip(known[::2], known[1::2], strict=True)]
        LOG.error("%s of %s lacks writes, so these cannot be read: %s", device, action.name, ranges)
        sector = int(sysfs.read(self._ctx.host.root / home / "offset") or 0) - 1
        while any(at <= sector < at + size for at, size in ranges):
            sector -= 1
        try:
            self._ctx.host.write(f"/{home}/bad_blocks", f"{sector} 1")
        except OSError as error:
            raise ActError(f"the bad blocks of {device} would be lost: {error}") from error

    def _finish_restart(self, volume: Volume, action: FinishRestart) -> None:
        with self._ctx.locks.volume(action.volume):
            self._check(action)
            known = [records.of(self._ctx, leg.nqn).get(leg.uuid) for leg in volume.legs]
            if records.ATTACHED in known:
                replicated.attach(self._ctx, volume_of(volume))
            else:
                LOG.info("Volume %s was detached before it was assembled anew", volume.uuid)

    def _note_attached(self, volume: Volume) -> None:
        """Have records that a detach changes: stock os-brick writes none."""
        for nqn in sorted({leg.nqn for leg in volume.legs if leg.nqn}):
            with self._ctx.locks.subsystem(nqn):
                uuids = [leg.uuid for leg in volume.legs if leg.nqn == nqn]
                records.note(self._ctx, nqn, uuids, records.ATTACHED)

    def _flag(self, action: OfArray, device: str, word: str) -> None:
        """Write to ``md/dev-*/state``, as mdadm does (Documentation/admin-guide/md.rst)."""
        path = f"/{sysfs.BLOCK}/{action.name}/md/dev-{device}/state"
        try:
            self._ctx.host.write(path, word)
        except OSError as error:
            raise ActError(f"{device} of {action.name} is not {word}: {error}") from error

    def _put_in(self, volume: Volume, action: ReAdd | AddSpare) -> None:
        before = self._look(action)
        for one in before.members:
            if arrays.FAULTY in one.flags and (
                one.name == action.device or self._gone(action, one)
            ):
                self._take_out(action, one.name)
        self._stop_strays(volume, action)
        active = [one for one in before.members if arrays.FAULTY not in one.flags]
        full = isinstance(action, AddSpare)
        if not md.add(self._ctx, volume_of(volume), self._look(action), action.device, full):
            raise ActError(f"mdadm did not take {action.device} into {action.name}")
        if len(active) >= before.places:
            self._set_slots(action, len(active) + 1)

    def _stop_strays(self, volume: Volume, action: OfMember) -> None:
        """Stop what udev made of the leg alone when it appeared: an array that was not started."""
        deadline = waiting.Deadline(self._ctx.clock, REMOVE_SECONDS)
        for one in arrays.holding(self._ctx.host.root, [action.device]):
            if one.name != action.name and not one.running:
                LOG.info("%s holds %s and was not started: stopped", one.name, action.device)
                md.stop(self._ctx, volume_of(volume), one, deadline)

    def _gone(self, action: OfMember, member: arrays.Member) -> bool:
        """Whether the device of a member is there no more."""
        path = self._ctx.host.root / sysfs.BLOCK / action.name / "md" / f"dev-{member.name}"
        return not (path / "block").exists()

    def _take_out(self, action: OfArray, device: str) -> None:
        """Take a faulty device out; md holds it while I/O is under way (EBUSY)."""
        deadline = waiting.Deadline(self._ctx.clock, REMOVE_SECONDS)
        path = f"/{sysfs.BLOCK}/{action.name}/md/dev-{device}/state"
        problem: OSError | None = None

        def attempt() -> bool:
            nonlocal problem
            try:
                self._ctx.host.write(path, "remove")
            except OSError as error:
                problem = error
                if error.errno == errno.ENOENT:
                    return True
                if error.errno != errno.EBUSY:
                    raise ActError(f"{device} stays in {action.name}: {error}") from error
                return False
            return True

        if not waiting.until(self._ctx, attempt, deadline):
            raise ActError(f"{device} stays in {action.name}: {problem}")

    def _remove(self, action: RemoveLeg) -> None:
        now = {one.name: one.flags for one in self._look(action).members}
        if arrays.FAULTY not in now.get(action.device, frozenset()):
            self._flag(action, action.device, "faulty")
        self._take_out(action, action.device)

    def _set_slots(self, action: OfArray, slots: int) -> None:
        try:
            self._ctx.host.run(
                "mdadm",
                "--grow",
                f"/dev/{action.name}",
                f"--raid-devices={slots}",
                timeout=GROW_SECONDS,
            )
        except CommandError as error:
            raise ActError(f"{action.name} does not get {slots} places: {error}") from error

    def _set_speed(self, action: SetSpeed) -> None:
        self._look(action)
        for name, value in (("min", action.minimum), ("max", action.maximum)):
            if value:
                path = f"/{sysfs.BLOCK}/{action.name}/md/sync_speed_{name}"
                try:
                    self._ctx.host.write(path, str(value))
                except OSError as error:
                    raise ActError(f"{path} does not take {value}: {error}") from error


def volume_of(volume: Volume) -> props.Volume:
    """A volume for the connector's modules."""
    return props.Volume(
        uuid=volume.uuid,
        alias=volume.alias,
        io_class=volume.io_class,
        size=volume.size,
        legs=tuple(leg_of(leg) for leg in volume.legs),
        replicated=volume.replicated,
        array_state=volume.array_state,
        shared=volume.shared,
        told=True,
    )


def leg_of(leg: Leg) -> props.Leg:
    return props.Leg(
        uuid=leg.uuid,
        nqn=leg.nqn,
        portals=leg.portals,
        node=leg.node,
        state=leg.state,
        freshness=leg.freshness,
        events=leg.events,
    )
