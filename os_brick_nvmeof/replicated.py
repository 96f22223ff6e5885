# SPDX-License-Identifier: Apache-2.0
"""Volumes with several replicas: an md array whose legs are namespaces of several nodes.

Who calls holds the volume's lock. Every function can be repeated, also after its process was
killed: what an attach left half done is found by the array's UUID, and finished or undone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence

from oslo_log import log as logging

from os_brick_nvmeof import (
    arrays,
    conf,
    errors,
    fabrics,
    freshness,
    md,
    stopped,
    sysfs,
    udev,
    waiting,
)
from os_brick_nvmeof import paths as legs
from os_brick_nvmeof.arrays import Array
from os_brick_nvmeof.context import Context
from os_brick_nvmeof.freshness import Absent, Assemble, Create, Mode, Refuse, Unreachable, View
from os_brick_nvmeof.paths import LegDevice, LegOutcome
from os_brick_nvmeof.props import GIB, REPLICATED, Leg, Volume
from os_brick_nvmeof.superblock import Superblock, Unknown

LOG = logging.getLogger(__name__)

# Times that superblocks are read while another host writes to them.
_READS = 5
# Seconds for an array that nobody should be using.
_SHORT = 2.0


def attach(ctx: Context, volume: Volume) -> str:
    """Have the volume as a block device.

    An array that a former attach handed out is taken as it is, whatever its legs. Otherwise all
    legs are connected at once, and what is on them and in the record decides.

    :returns: its path, "/dev/md/<alias>".
    :raises KumoBrickError: nothing was written, and nothing is left behind; see
        :func:`freshness.decide` for the reasons.
    :raises OSError: sysfs or the lock directory cannot be used.
    """
    spare = legs.Spare(
        waiting.Deadline(ctx.clock, ctx.conf[conf.GROUP].degraded_timeout),
        functools.partial(_enough, ctx, volume),
    )
    with ctx.locks.array(volume.uuid):
        # What is written down of its end is over now.
        stopped.forget(ctx.locks, volume.uuid)
        found = arrays.find(ctx, volume, _devices_here(ctx, volume))
        if found and found.running and md.marked(ctx, found.name):
            return md.publish(ctx, volume, found.name)
    outcomes = legs.connect_legs(ctx, volume, [leg for leg in volume.legs if leg.nqn], spare)
    try:
        with ctx.locks.array(volume.uuid):
            path = _bring_up(ctx, volume, outcomes)
    except Exception:
        _take_back(ctx, volume, outcomes)
        raise
    _drop(ctx, volume, [outcome for outcome in outcomes if outcome.device is None])
    return path


def _enough(ctx: Context, volume: Volume, outcomes: Sequence[LegOutcome]) -> bool:
    """Whether these legs are proven to have all data, and no operator has to answer for it."""
    views = _views(ctx, volume, outcomes, waiting.Deadline(ctx.clock, _SHORT))
    decision = freshness.decide(volume, views)
    return isinstance(decision, Assemble) and not decision.warnings


def _bring_up(ctx: Context, volume: Volume, outcomes: Sequence[LegOutcome]) -> str:
    devices = {one.leg.uuid: one.device for one in outcomes if one.device is not None}
    names = [device.name for device in devices.values()]
    decision = _decide(ctx, volume, outcomes)
    if isinstance(decision, Assemble):
        # While mdadm's rules put the legs together, a second mdadm makes neither faster.
        udev.settle(ctx, names)
        if volume.shared:
            # Meanwhile the other host went on.
            decision = _decide(ctx, volume, outcomes)
    if isinstance(decision, Refuse):
        return _refuse(ctx, volume, names, decision)
    md.check_name(ctx, volume, names)
    if isinstance(decision, Create):
        array = md.create(ctx, volume, decision, [devices[leg.uuid].name for leg in decision.legs])
    else:
        for warning in decision.warnings:
            LOG.warning("%s: %s", volume, warning)
        array = md.assemble(
            ctx,
            volume,
            decision,
            [devices[leg.uuid].name for leg in decision.members],
            [devices[leg.uuid].name for leg in decision.filling],
        )
    _check_size(ctx, volume, array, decision.mode)
    md.mark(ctx, array.name)
    path = md.publish(ctx, volume, array.name)
    if isinstance(decision, Assemble):
        if decision.degraded:
            LOG.warning(
                "%s is attached with %d of %d legs in sync",
                volume,
                len(decision.members),
                decision.places,
            )
        for rejoin in decision.rejoin:
            md.add(ctx, volume, array, devices[rejoin.leg.uuid].name, rejoin.full)
    return path


def _refuse(ctx: Context, volume: Volume, names: Sequence[str], decision: Refuse) -> str:
    """Raise, unless somebody uses the array already: stock os-brick attached it earlier."""
    found = arrays.find(ctx, volume, names)
    if found and found.running:
        try:
            md.stop(ctx, volume, found, waiting.Deadline(ctx.clock, _SHORT))
        except errors.StillInUseError as error:
            LOG.warning("%s is in use, so it stays attached: %s; %s", volume, error, decision.error)
            return md.publish(ctx, volume, found.name)
    raise decision.error


def _decide(ctx: Context, volume: Volume, outcomes: Sequence[LegOutcome]) -> freshness.Decision:
    """Read the superblocks and decide.

    While another host writes, the superblocks are not all read at one moment, and a leg can look
    older than another: then they are read again.
    """
    seconds = ctx.conf[conf.GROUP].device_timeout
    for _ in range(_READS if volume.shared else 1):
        deadline = waiting.Deadline(ctx.clock, seconds)
        views = _views(ctx, volume, outcomes, deadline)
        views = _once_more(ctx, volume, outcomes, views, deadline)
        decision = freshness.decide(volume, views)
        sound = sum(isinstance(view.seen, Superblock) for view in views)
        if isinstance(decision, Assemble) and len(decision.members) == sound:
            break
    return decision


def _once_more(
    ctx: Context,
    volume: Volume,
    outcomes: Sequence[LegOutcome],
    views: list[View],
    deadline: waiting.Deadline,
) -> list[View]:
    """Read the legs again when some could not be read: a connection may be lost for a moment.

    It is waited for if the volume cannot do without the leg, ``connect_timeout`` at most and not
    beyond the deadline. All are read again, so that what is judged is of one moment.
    """
    unknown = {view.leg.uuid for view in views if isinstance(view.seen, Unknown)}
    failed = [one for one in outcomes if one.device and one.leg.uuid in unknown]
    if not failed:
        return views
    needed = isinstance(freshness.decide(volume, views), Refuse)
    patience = min(deadline.left, ctx.conf[conf.GROUP].connect_timeout) if needed else 0

    def away() -> list[str]:
        return [one.leg.uuid for one in failed if legs.usable(ctx, one.leg) != one.device]

    waiting.until(ctx, lambda: not away(), waiting.Deadline(ctx.clock, patience))
    gone = away()
    if len(gone) == len(failed):
        return views
    LOG.info("%s: %d legs could not be read; all are read again", volume, len(failed))
    again = waiting.Deadline(ctx.clock, max(deadline.left, _SHORT))
    second = _views(ctx, volume, [one for one in outcomes if one.leg.uuid not in gone], again)
    return [old if old.leg.uuid in gone else new for old, new in zip(views, second, strict=True)]


def _views(
    ctx: Context, volume: Volume, outcomes: Sequence[LegOutcome], deadline: waiting.Deadline
) -> list[View]:
    calls = {
        one.leg.uuid: waiting.Call(
            ctx,
            functools.partial(arrays.content, ctx, one.device.path, one.device.size),
            f"kumo-read-{one.device.name}",
        )
        for one in outcomes
        if one.device is not None
    }
    by_leg = {one.leg.uuid: one for one in outcomes}
    views = []
    for leg in volume.legs:
        outcome = by_leg.get(leg.uuid)
        if outcome is None:
            views.append(View(leg, Unreachable("it is not handed out to this host")))
        elif outcome.device is not None:
            call = calls[leg.uuid]
            views.append(View(leg, arrays.answer(call, outcome.device.path, deadline)))
        else:
            why = outcome.error.text if outcome.error else "no device"
            views.append(View(leg, Unreachable(why) if outcome.unreachable else Absent(why)))
    return views


def _check_size(ctx: Context, volume: Volume, array: Array, mode: Mode) -> None:
    """An array that is smaller than its volume was extended while it was detached: grow it."""
    if array.size >= volume.size:
        return
    if mode is Mode.NORMAL:
        md.grow(ctx, volume, array, volume.size)
        return
    raise errors.SizeError(
        f"its array has {array.size} bytes and should have {volume.size}, and it must not be "
        "written to grow it",
        volume=volume.uuid,
        way_out="attach it once for writing",
    )


def _take_back(ctx: Context, volume: Volume, outcomes: Sequence[LegOutcome]) -> None:
    """Leave nothing of a failed attach: what udev made of the legs goes first, then they do."""
    names = [one.device.name for one in outcomes if one.device is not None]
    # An mdadm of udev that has a leg open adds it to an array even when the leg has gone meanwhile.
    udev.settle(ctx, names)
    try:
        with ctx.locks.array(volume.uuid):
            for array in arrays.holding(ctx.host.root, names):
                if not md.marked(ctx, array.name):
                    md.stop(ctx, volume, array, waiting.Deadline(ctx.clock, _SHORT))
                    md.withdraw(ctx, volume, array.name)
    except (errors.KumoBrickError, OSError) as error:
        LOG.warning("An array of the failed attach of %s stays: %s", volume, error)
    _drop(ctx, volume, outcomes)


def _drop(ctx: Context, volume: Volume, outcomes: Sequence[LegOutcome]) -> None:
    if not outcomes:
        return
    try:
        legs.undo(ctx, outcomes)
    except (errors.KumoBrickError, OSError) as error:
        LOG.warning("What an attach of %s connected in vain stays: %s", volume, error)


# -- detach -------------------------------------------------------------------------------------


def detach(ctx: Context, volume: Volume, force: bool = False) -> None:
    """Stop the array, prove that it has stopped, and let its legs go; fine when it is not there.

    Also legs that joined since the attach, of which the properties do not know. Bounded by
    ``stop_timeout`` for the array and again for the legs, also when no node answers.

    :param force: go on when the array cannot be stopped in order; that error is raised when the
        legs are gone.
    :raises StillInUseError: somebody uses it; without ``force`` its legs were kept.
    :raises OSError: sysfs or the lock directory cannot be used.
    """
    lost = None
    with ctx.locks.array(volume.uuid):
        found = arrays.find(ctx, volume, _devices_here(ctx, volume))
        every = _legs_of(ctx, volume, found)
        if found:
            used = _in_use(ctx, volume, found, every)
            try:
                _stop(ctx, volume, found, every)
                if used:
                    _last_word(ctx, volume, every, used)
            except errors.StillInUseError as error:
                if not force:
                    raise
                lost = error
        if lost is None:
            legs.release_legs(ctx, volume, every, force)
            if found:
                md.withdraw(ctx, volume, found.name)
            return
        legs.release_legs(ctx, volume, every, force)
        # Without its legs it may let go.
        if found:
            md.stop(ctx, volume, found, waiting.Deadline(ctx.clock, _SHORT))
            md.withdraw(ctx, volume, found.name)
    raise lost


def _stop(ctx: Context, volume: Volume, array: Array, every: Sequence[Leg]) -> None:
    """Stop an array whose legs may be silent: I/O to them has to fail for md to let go.

    Connections that stock os-brick made wait for their node without end. One that breaks from now
    on fails in time; one that is broken is cut off.
    """
    timeouts = conf.time_outs(ctx.conf, REPLICATED)
    if timeouts.fast_io_fail < 0:
        timeouts = dataclasses.replace(timeouts, fast_io_fail=0)
    for nqn in sorted({leg.nqn for leg in every}):
        for controller in fabrics.live(ctx, nqn):
            fabrics.set_time_outs(ctx, controller, timeouts)
    legs.cut(ctx, every)
    deadline = waiting.Deadline(ctx.clock, ctx.conf[conf.GROUP].stop_timeout)
    md.stop(ctx, volume, array, deadline, stuck=lambda: legs.cut(ctx, every))


def _in_use(ctx: Context, volume: Volume, array: Array, every: Sequence[Leg]) -> set[str]:
    """Legs that have all that was written to an array; none when no last word is to be told.

    An array that nobody has checked tells nothing.
    """
    if not volume.publication or ctx.locks.directory is None or not md.marked(ctx, array.name):
        return set()
    found = {leg.uuid: sysfs.find(ctx.host.root, leg.nqn, leg.uuid) for leg in every}
    return {uuid for uuid, device in found.items() if device and device.name in array.in_sync}


def _last_word(ctx: Context, volume: Volume, every: Sequence[Leg], used: Collection[str]) -> None:
    """Write down for the agent what the legs are now, before they go.

    Without it a later attach needs every leg, so nothing here keeps a detach from going on.
    """
    deadline = waiting.Deadline(ctx.clock, min(_SHORT, ctx.conf[conf.GROUP].device_timeout))
    calls = {}
    for leg in every:
        device = sysfs.find(ctx.host.root, leg.nqn, leg.uuid)
        if device and fabrics.live(ctx, leg.nqn):
            work = functools.partial(arrays.content, ctx, f"/dev/{device.name}", device.size)
            calls[leg.uuid] = waiting.Call(ctx, work, f"kumo-read-{device.name}")
    contents = {leg: arrays.answer(call, leg, deadline) for leg, call in calls.items()}
    told = stopped.judge(volume, {leg.uuid for leg in (*volume.legs, *every)}, used, contents)
    if not told:
        LOG.info("What each leg of %s has cannot be told at its end", volume)
        return
    word = stopped.Stopped(volume.uuid, volume.tenant, volume.publication, told)
    try:
        stopped.keep(ctx.locks, word)
    except OSError as error:
        LOG.warning("What each leg of %s has cannot be written down: %s", volume, error)


def _legs_of(ctx: Context, volume: Volume, array: Array | None) -> list[Leg]:
    """The legs that this host may have: of the properties, and what else the array is made of."""
    known = [leg for leg in volume.legs if leg.nqn]
    if array is None:
        return known
    have = {leg.uuid for leg in known}
    joined = [
        Leg(namespace.uuid, namespace.nqn, ())
        for namespace in _namespaces(ctx)
        if namespace.name in array.names and namespace.uuid not in have
    ]
    return known + joined


def _namespaces(ctx: Context) -> list[sysfs.Namespace]:
    root = ctx.host.root
    nqns = sorted({controller.nqn for controller in sysfs.controllers(root)})
    return [namespace for nqn in nqns for namespace in sysfs.namespaces(root, nqn)]


def _devices_here(ctx: Context, volume: Volume) -> list[str]:
    """Names of the block devices of the legs that are on this host now."""
    found = (sysfs.find(ctx.host.root, leg.nqn, leg.uuid) for leg in volume.legs if leg.nqn)
    return [namespace.name for namespace in found if namespace]


# -- extend -------------------------------------------------------------------------------------


def extend(ctx: Context, volume: Volume) -> int:
    """Let the array of an attached volume have the size that its volume has now.

    The properties may be older than the resize, so the nodes are asked how large the legs are. All
    members are looked at again at once and have to agree before the array is touched.

    :returns: bytes.
    :raises ArrayError: it is not attached here, or mdadm could not do it.
    :raises SizeError: the legs do not agree, or did not grow in time.
    """
    with ctx.locks.array(volume.uuid):
        array = arrays.find(ctx, volume, _devices_here(ctx, volume))
        if array is None or not array.running:
            raise errors.ArrayError(
                "it is not attached to this host", volume=volume.uuid, way_out="attach it first"
            )
        members = _members(ctx, volume, array)
        offsets = _offsets(ctx, volume, members)
        wanted = _wanted(ctx, volume, array, members, offsets)
        if wanted <= array.size:
            return array.size
        _together(
            ctx,
            volume,
            [
                functools.partial(legs.grown, ctx, device, wanted + offset)
                for device, offset in zip(members, offsets, strict=True)
            ],
        )
        return md.grow(ctx, volume, array, wanted)


def _members(ctx: Context, volume: Volume, array: Array) -> list[LegDevice]:
    """The members of an array that are not lost, as block devices."""
    known = {leg.uuid: leg for leg in volume.legs}
    lost = {member.name for member in array.members if arrays.FAULTY in member.flags}
    found = []
    for namespace in _namespaces(ctx):
        if namespace.name in array.names - lost:
            leg = known.get(namespace.uuid) or Leg(namespace.uuid, namespace.nqn, ())
            # The subsystem may be another one since the attach: this one is in use.
            leg = dataclasses.replace(leg, nqn=namespace.nqn)
            name = namespace.name
            found.append(LegDevice(leg, f"/dev/{name}", name, namespace.size, namespace.block_size))
    missing = array.names - lost - {device.name for device in found}
    if missing or not found:
        raise errors.ArrayError(
            f"{array.name} has members that are no legs: {', '.join(sorted(missing)) or 'none'}",
            volume=volume.uuid,
            way_out="look at it with mdadm --detail",
        )
    return found


def _offsets(ctx: Context, volume: Volume, members: Sequence[LegDevice]) -> list[int]:
    """Bytes before the data of each member."""
    offsets = []
    for device in members:
        seen = arrays.read(ctx, device.path, device.size)
        if not isinstance(seen, Superblock):
            raise errors.UnknownDataError(
                str(seen), volume=volume.uuid, leg=device.leg.uuid, node=device.leg.node
            )
        offsets.append(seen.data_offset * sysfs.SECTOR)
    return offsets


def _wanted(
    ctx: Context,
    volume: Volume,
    array: Array,
    members: Sequence[LegDevice],
    offsets: Sequence[int],
) -> int:
    """Bytes that the array is to have: whole GiB that all legs have room for.

    A leg is larger than its volume by less than 1 GiB.
    """
    sizes = _together(
        ctx, volume, [functools.partial(legs.offered_size, ctx, device) for device in members]
    )
    rooms = [
        max((size - offset) // GIB * GIB, array.size)
        for size, offset in zip(sizes, offsets, strict=True)
    ]
    wanted = max(*rooms, volume.size)
    for device, room in zip(members, rooms, strict=True):
        if room < wanted:
            raise errors.SizeError(
                f"its node gives it room for {room} bytes of data, and {wanted} are needed",
                volume=volume.uuid,
                leg=device.leg.uuid,
                node=device.leg.node,
                way_out="extend all legs of the volume, then extend again",
            )
    return wanted


def _together(ctx: Context, volume: Volume, works: Sequence[Callable[[], int]]) -> list[int]:
    try:
        return waiting.together(ctx, works, "kumo-size")
    except errors.SizeError as error:
        raise errors.SizeError(
            error.text,
            volume=volume.uuid,
            leg=error.leg,
            node=error.node,
            way_out=error.way_out,
        ) from error


def paths(ctx: Context, volume: Volume) -> list[str]:
    """Paths of the volume's block devices on this host: one, or none."""
    found = arrays.find(ctx, volume, _devices_here(ctx, volume))
    if found is None or not found.running:
        return []
    named = arrays.linked(ctx.host.root, volume) == found.name
    return [arrays.link(volume) if named else f"/dev/{found.name}"]
