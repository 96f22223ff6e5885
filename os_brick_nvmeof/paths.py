# SPDX-License-Identifier: Apache-2.0
"""The legs of a volume as block devices of this host: connect, undo, release, resize.

One subsystem serves many volumes of a host, so none of this belongs to one volume alone. What is
done to a subsystem's controllers and records is done under its lock; nothing waits for a storage
node under it, but for :data:`removal.SILENT` seconds. An attach connects without the lock. It takes
the lock at its beginning to say that it comes, and at its end to see that no detach took its
connection away in between.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from oslo_log import log as logging

from os_brick_nvmeof import (
    arrays,
    conf,
    errors,
    fabrics,
    identify,
    records,
    removal,
    sysfs,
    waiting,
)
from os_brick_nvmeof.context import Context
from os_brick_nvmeof.host import CommandError
from os_brick_nvmeof.legs import RESCAN, LegConnect, LegDevice, LegOutcome, usable
from os_brick_nvmeof.props import Leg, Volume

__all__ = [
    "LegDevice",
    "LegOutcome",
    "Spare",
    "connect_legs",
    "cut",
    "grown",
    "offered_size",
    "release_legs",
    "undo",
    "usable",
]

LOG = logging.getLogger(__name__)


class Spare(NamedTuple):
    """When a volume goes on without legs that are silent.

    :ivar patience: no leg is given up before.
    :ivar enough: told how legs have ended so far; whether the volume can do with those.
    """

    patience: waiting.Deadline
    enough: Callable[[Sequence[LegOutcome]], bool]


def connect_legs(
    ctx: Context, volume: Volume, legs: Sequence[Leg], spare: Spare | None = None
) -> list[LegOutcome]:
    """Have legs as block devices, all at once.

    Takes ``connect_timeout`` for a leg that cannot be reached, and ``device_timeout`` more for one
    that is slow to appear.

    :param spare: None if all legs are waited for to the end.
    :returns: one for each leg, in order. Errors are in there.
    :raises OSError: sysfs or the lock directory cannot be used; then everything is undone.
    """
    before = {leg.uuid for nqn, some in _by_subsystem(legs) for leg in _announce(ctx, nqn, some)}
    timeouts = conf.time_outs(ctx.conf, volume.io_class)
    tries = [LegConnect(ctx, volume, leg, timeouts, leg.uuid in before) for leg in legs]
    try:
        if spare and len(tries) > 1:
            return _without_silent(ctx, tries, spare)
        return waiting.together(ctx, [each.connect for each in tries], "kumo-leg")
    except BaseException:
        try:
            undo(ctx, [each.outcome(None, None, True) for each in tries])
        except (errors.KumoBrickError, OSError) as error:
            LOG.warning("What a failed attach of %s connected stays: %s", volume, error)
        raise


def _without_silent(ctx: Context, tries: Sequence[LegConnect], spare: Spare) -> list[LegOutcome]:
    """Connect; legs whose portals are silent are given up as soon as the others are enough."""
    over = ctx.threads.event()
    ended: list[LegOutcome] = []
    judged = 0
    enough = False

    def connect(each: LegConnect) -> LegOutcome:
        outcome = each.connect()
        ended.append(outcome)
        return outcome

    def look() -> bool:
        nonlocal judged, enough
        if judged < len(ended) < len(tries):
            judged = len(ended)
            enough = spare.enough(ended[:judged])
        for each in tries if enough else ():
            each.give_up()
        return over.is_set()

    def watch() -> None:
        if not over.wait(spare.patience.left):
            waiting.until(ctx, look, waiting.Deadline(ctx.clock, math.inf))

    watching = waiting.Call(ctx, watch, "kumo-legs")
    try:
        works = [functools.partial(connect, each) for each in tries]
        outcomes = waiting.together(ctx, works, "kumo-leg")
    finally:
        over.set()
    watching.awaited()
    return outcomes


def _announce(ctx: Context, nqn: str, legs: Sequence[Leg]) -> list[Leg]:
    """Write down that legs are coming; those that were attached already are returned."""
    with ctx.locks.subsystem(nqn):
        known = records.of(ctx, nqn)
        shown: Collection[str] = ()
        if any(leg.uuid not in known for leg in legs):
            # Somebody else may have attached one, and nobody wrote it down.
            shown = sysfs.subsystem(ctx.host.root, nqn).uuids.values()
        records.note(ctx, nqn, (leg.uuid for leg in legs), records.ATTACHED)
    return [
        leg
        for leg in legs
        if known.get(leg.uuid) == records.ATTACHED or (leg.uuid not in known and leg.uuid in shown)
    ]


def undo(ctx: Context, outcomes: Sequence[LegOutcome]) -> None:
    """Let go what a failed attach connected: controllers that it made and nobody else uses.

    A leg that was attached before stays recorded so: a second attach may fail while a guest goes on
    with the first.

    :raises StillInUseError: when one does not go.
    """
    for nqn, some in _by_subsystem([outcome.leg for outcome in outcomes]):
        made = [each for outcome in outcomes for each in outcome.made if each.nqn == nqn]
        uuids = {leg.uuid for leg in some}
        with ctx.locks.subsystem(nqn):
            seen = sysfs.subsystem(ctx.host.root, nqn)
            names = {each.name for each in made}
            # Where nothing is connected but what we made, nobody else can use it unrecorded.
            ours_alone = names.issuperset(
                each.name for each in fabrics.ours(ctx, nqn, seen.controllers)
            )
            known = records.of(ctx, nqn)
            new = {outcome.leg.uuid for outcome in outcomes if not outcome.before} & uuids
            records.note(ctx, nqn, new, records.RELEASED, seen.uuids.values())
            others = [
                device
                for device in _others(ctx, seen, uuids, known)
                if seen.uuids[device] in known or not ours_alone or _held_by(ctx, device)
            ]
            if others or not made or _stop_inactive(ctx, seen, uuids):
                continue
            devices = _only_through(seen, names)
            calls = removal.begin(ctx, made)
            if ours_alone:
                records.forget(ctx, nqn)
        removal.prove(ctx, made, calls, devices, _stop_deadline(ctx))


def release_legs(ctx: Context, volume: Volume, legs: Sequence[Leg], force: bool = False) -> None:
    """Let legs go: delete the controllers of subsystems that nobody else on this host uses.

    Others use a subsystem when it lists a namespace that is not ours, unless a connector of this
    host has released it and no device is made of it. Takes ``stop_timeout`` at most.

    :param force: also when a device is made of a leg.
    :raises StillInUseError: a leg is still held, or its device did not go.
    """
    works = [
        functools.partial(_release, ctx, volume, nqn, some, force)
        for nqn, some in _by_subsystem(legs)
    ]
    waiting.together(ctx, works, "kumo-release")


def cut(ctx: Context, legs: Iterable[Leg]) -> None:
    """Let I/O fail that waits for nodes without end: delete their lost controllers.

    A controller fails I/O by itself ``fast_io_fail_tmo`` seconds after its connection broke, but
    what is written to that attribute counts from the next break on (nvme_change_ctrl_state in
    drivers/nvme/host/core.c): those that were made without it, as stock os-brick does, wait until
    their node is back, unless they are deleted. Subsystems with a live controller are left alone.
    """
    for nqn, _some in _by_subsystem(legs):
        with ctx.locks.subsystem(nqn):
            lost = fabrics.ours(ctx, nqn)
            if not any(each.state == sysfs.LIVE for each in lost):
                removal.begin(ctx, [each for each in lost if fabrics.waits(ctx, each)])


def _release(ctx: Context, volume: Volume, nqn: str, legs: Sequence[Leg], force: bool) -> None:
    uuids = {leg.uuid for leg in legs}
    deadline = _stop_deadline(ctx)
    with ctx.locks.subsystem(nqn):
        seen = sysfs.subsystem(ctx.host.root, nqn)
        for device in [each for each, uuid in seen.uuids.items() if uuid in uuids and not force]:
            holders = _held_by(ctx, device)
            if holders:
                about = [leg for leg in legs if leg.uuid == seen.uuids[device]]
                raise _held(volume, about, f"{', '.join(holders)} is made of {device}")
        records.note(ctx, nqn, uuids, records.RELEASED, seen.uuids.values())
        others = _others(ctx, seen, uuids, records.of(ctx, nqn))
        others = others or _stop_inactive(ctx, seen, uuids)
        if others:
            LOG.debug("Subsystem %s stays connected for %s", nqn, ", ".join(others))
            return
        controllers = [each for each in seen.controllers if each.host_nqn in ("", ctx.host_nqn)]
        devices = _only_through(seen, {each.name for each in controllers})
        calls = removal.begin(ctx, controllers)
        records.forget(ctx, nqn)
    try:
        removal.prove(ctx, controllers, calls, devices, deadline)
    except errors.StillInUseError as error:
        raise _held(volume, legs, error.text) from error


def _held(volume: Volume, about: Sequence[Leg], text: str) -> errors.StillInUseError:
    return errors.StillInUseError(
        text,
        volume=volume.uuid,
        leg=", ".join(leg.uuid for leg in about),
        node=", ".join(sorted({leg.node for leg in about})),
        way_out="close what uses it, then detach again",
    )


def grown(ctx: Context, device: LegDevice, size: int) -> int:
    """Have the kernel look at a namespace again until it is that large.

    :param size: bytes.
    :returns: bytes that it has now.
    :raises SizeError: it was still smaller after ``device_timeout``.
    """
    deadline = waiting.Deadline(ctx.clock, ctx.conf[conf.GROUP].device_timeout)
    rescan = waiting.Deadline(ctx.clock, 0)

    def enough() -> int:
        nonlocal rescan
        now = sysfs.size(ctx.host.root, device.name) or 0
        if now >= size:
            return now
        if rescan.passed:
            for each in fabrics.live(ctx, device.leg.nqn):
                fabrics.rescan(ctx, each)
            rescan = waiting.Deadline(ctx.clock, RESCAN)
        return 0

    now = waiting.until(ctx, enough, deadline)
    if now:
        return now
    raise errors.SizeError(
        f"{device.path} has {sysfs.size(ctx.host.root, device.name)} bytes after "
        f"{deadline.seconds:g} s, and should have {size}",
        leg=device.leg.uuid,
        node=device.leg.node,
        way_out="extend again once the node is back",
    )


def offered_size(ctx: Context, device: LegDevice) -> int:
    """Bytes that the target says the leg has, whatever this host has noticed.

    :raises SizeError: nobody could tell within ``device_timeout``.
    """
    leg = device.leg
    deadline = waiting.Deadline(ctx.clock, ctx.conf[conf.GROUP].device_timeout)
    reason = "no live connection"
    namespace = sysfs.find(ctx.host.root, leg.nqn, leg.uuid)
    nsid = namespace.nsid if namespace else 0
    for each in fabrics.live(ctx, leg.nqn) if namespace else ():
        ask = functools.partial(identify.size, ctx, each.name, nsid)
        call = waiting.Call(ctx, ask, f"kumo-identify-{each.name}")
        reason = f"no answer after {deadline.seconds:g} s"
        if call.wait(deadline):
            try:
                return call.result()
            except OSError as error:
                reason = str(error)
    raise errors.SizeError(
        f"the size of {device.path} is not known: {reason}",
        leg=leg.uuid,
        node=leg.node,
        way_out="extend again once the node is back",
    )


def _by_subsystem(legs: Iterable[Leg]) -> Iterator[tuple[str, list[Leg]]]:
    """Legs by NQN, sorted, which is the order of locks; without those that have none."""
    legs = [leg for leg in legs if leg.nqn]
    for nqn in sorted({leg.nqn for leg in legs}):
        yield nqn, [leg for leg in legs if leg.nqn == nqn]


def _only_through(seen: sysfs.Subsystem, controllers: Collection[str]) -> list[str]:
    """Block devices of a subsystem that are there through these controllers alone."""
    return [device for device, names in seen.paths.items() if set(controllers).issuperset(names)]


def _others(
    ctx: Context, seen: sysfs.Subsystem, uuids: Collection[str], known: Mapping[str, str]
) -> list[str]:
    """Block devices of a subsystem that are not ours and may be in use on this host.

    What udev's incremental assembly has begun with a namespace that is merely published is none.
    """
    return [
        device
        for device, uuid in seen.uuids.items()
        if uuid not in uuids and _is_used(ctx, device, known.get(uuid))
    ]


def _is_used(ctx: Context, device: str, record: str | None) -> bool:
    if record == records.ATTACHED:
        return True
    holders = _held_by(ctx, device)
    if holders and all(_is_inactive(ctx, each) for each in holders):
        return False
    return bool(holders) or record != records.RELEASED


def _is_inactive(ctx: Context, name: str) -> bool:
    """Whether it is an array that was never started: it serves nobody."""
    found = arrays.look(ctx.host.root, name)
    return found is not None and found.state == arrays.INACTIVE


def _stop_inactive(ctx: Context, seen: sysfs.Subsystem, uuids: Collection[str]) -> list[str]:
    """Stop inactive arrays that hold namespaces which are not ours; gives those that stay."""
    held = [_held_by(ctx, device) for device, uuid in seen.uuids.items() if uuid not in uuids]
    stay = []
    for name in dict.fromkeys(name for names in held for name in names):
        if _is_inactive(ctx, name):
            try:
                ctx.host.run("mdadm", "--stop", f"/dev/{name}")
            except CommandError as error:
                LOG.info("Inactive array %s stays: %s", name, error)
                stay.append(name)
    return stay


def _held_by(ctx: Context, device: str) -> list[str]:
    return sysfs.holders(ctx.host.root, device)


def _stop_deadline(ctx: Context) -> waiting.Deadline:
    return waiting.Deadline(ctx.clock, ctx.conf[conf.GROUP].stop_timeout)
