# SPDX-License-Identifier: Apache-2.0
"""How the memory follows from what is seen and from what was done. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from os_brick_nvmeof.agent import judge
from os_brick_nvmeof.agent.actions import (
    Action,
    AskReplacement,
    ConfirmRemoval,
    CutNode,
    Export,
    FinishRestart,
    ReportArray,
    ReportLeg,
    ReportTask,
    Restart,
    RetireLeg,
)
from os_brick_nvmeof.agent.model import (
    BROKEN,
    Asked,
    Limits,
    Memory,
    Seen,
    Told,
    Tried,
    Volume,
    Wanted,
)

# Seconds to the second try, doubled each time, and the longest.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
# A portal is tried more often: nothing is lost by it, and the node may be back any moment.
LONGEST_RECONNECT = 5.0


def look(memory: Memory, wanted: Wanted, seen: Seen, now: float, limits: Limits) -> Memory:
    """Take over what a look tells. What could not be told changes nothing."""
    views = [judge.view(volume, seen, memory) for volume in wanted.volumes]
    lost, dead = dict(memory.lost), dict(memory.dead)
    members = dict(memory.members)
    kept: dict[str, list[str]] = {}
    for key in members:
        kept.setdefault(key.partition("/")[0], []).append(key)
    for one in views:
        for leg in one.legs:
            if one.attached and leg.path is not judge.Path.UNKNOWN:
                _since(dead, leg.uuid, leg.path is judge.Path.DEAD, now)
            if leg.place is not judge.Place.UNKNOWN:
                _since(lost, leg.uuid, leg.lost, now)
        if one.array is not None and one.array.members is not None:
            _note_members(members, one, kept.get(one.array.uuid, []))
    known = {leg.uuid for volume in wanted.volumes for leg in volume.legs}
    # What failed while a leg could not be reached is tried at once when it can.
    back = memory.dead.keys() - dead.keys()
    return dataclasses.replace(
        memory,
        lost=_only(lost, known),
        dead=_only(dead, known),
        members={key: leg for key, leg in members.items() if leg in known},
        asked=_asked(memory, wanted, now, limits),
        counted=_only(memory.counted, {volume.uuid for volume in wanted.volumes}),
        cut={node: time for node, time in memory.cut.items() if 0 <= now - time < limits.cut_pause},
        restarts=_restarts(memory, wanted, views),
        # Of what was pulled after a report, the provisioner's own view counts.
        told={
            key: one
            for key, one in memory.told.items()
            if wanted.volume(key) and wanted.time <= one.time <= now
        },
        tried={
            key: one
            for key, one in memory.tried.items()
            if now < one.next + LONGEST_PAUSE and not any(leg in key for leg in back)
        },
    )


def _restarts(memory: Memory, wanted: Wanted, views: Iterable[judge.View]) -> dict[str, float]:
    """Those whose array does not run yet, or not anew."""
    up = {
        one.volume.uuid
        for one in views
        if one.array is not None and one.array.running and one.array.state != BROKEN
    }
    return {
        volume: time
        for volume, time in memory.restarts.items()
        if volume not in up and (wanted.stale or wanted.volume(volume))
    }


def _since(times: dict[str, float], leg: str, yes: bool, now: float) -> None:
    if not yes:
        times.pop(leg, None)
    elif leg not in times or times[leg] > now:
        # The clock may have been set back.
        times[leg] = now


def _only(times: Mapping[str, float], known: set[str]) -> dict[str, float]:
    return {key: value for key, value in times.items() if key in known}


def _note_members(members: dict[str, str], one: judge.View, kept: Iterable[str]) -> None:
    """Keep the devices that are gone, forget those that left the array.

    :param kept: what is known of this array.
    """
    assert one.array is not None  # noqa: S101
    here = {f"{one.array.uuid}/{member.device}": member.uuid for member in one.array.members or ()}
    for key in kept:
        if key not in here:
            members.pop(key, None)
    members.update({key: uuid for key, uuid in here.items() if uuid})


def _asked(memory: Memory, wanted: Wanted, now: float, limits: Limits) -> dict[str, Asked]:
    found = {}
    for lost, one in memory.asked.items():
        volume = wanted.volume(one.volume)
        if wanted.stale or wanted.time <= one.time:
            # What was pulled before says nothing of it.
            found[lost] = one
        elif volume is not None and volume.leg(lost):
            kept = _judged(volume, lost, one, now, limits)
            if kept is not None:
                found[lost] = kept
    return found


def _judged(volume: Volume, lost: str, one: Asked, now: float, limits: Limits) -> Asked | None:
    """What has become of a request that the provisioner's view can tell of."""
    if one.new:
        leg = volume.leg(one.new)
        return one if leg and leg.replaces in ("", lost) else None
    added = [leg for leg in volume.legs if leg.uuid not in one.before]
    for leg in added:
        if leg.replaces in ("", lost):
            return dataclasses.replace(one, new=leg.uuid)
    return one if 0 <= now - one.time < limits.ask_again else None


def durable(memory: Memory) -> tuple[Mapping[str, object], ...]:
    """What is to be written down when a look has changed it."""
    return memory.lost, memory.asked, memory.restarts


# -- of what was done -----------------------------------------------------------------------------


def begun(memory: Memory, action: Action, now: float) -> Memory:
    """To be written down before the action is carried out."""
    if isinstance(action, CutNode):
        return dataclasses.replace(memory, cut={**memory.cut, action.node: now})
    if isinstance(action, Restart):
        return dataclasses.replace(memory, restarts={**memory.restarts, action.volume: now})
    if not isinstance(action, AskReplacement):
        return memory
    asked = Asked(now, action.volume, action.before)
    return dataclasses.replace(memory, asked={**memory.asked, action.leg: asked})


def dropped(memory: Memory, action: Action) -> Memory:
    """Nothing was done, since the situation had changed."""
    if isinstance(action, Restart):
        return _restarted(memory, action)
    if not isinstance(action, CutNode):
        return memory
    cut = {node: time for node, time in memory.cut.items() if node != action.node}
    return dataclasses.replace(memory, cut=cut)


def _restarted(memory: Memory, action: Action) -> Memory:
    restarts = {uuid: time for uuid, time in memory.restarts.items() if uuid != action.volume}
    return dataclasses.replace(memory, restarts=restarts)


def done(memory: Memory, action: Action, now: float, *, new: str = "") -> Memory:
    """An action has succeeded. ``new``: the leg that a request for a replacement gave."""
    tried = {key: one for key, one in memory.tried.items() if key != action.key}
    if isinstance(action, Export):
        # Whether it was of any use shows when the namespace is there.
        tried[action.key] = _again(memory, action, now, "its node was asked to")
    elif isinstance(action, ConfirmRemoval | ReportLeg | ReportTask | RetireLeg):
        # Until the provisioner is asked again, its view is that from before.
        tried[action.key] = Tried(1, now + FIRST_PAUSE, "it was told")
    memory = dataclasses.replace(memory, tried=tried)
    if isinstance(action, AskReplacement) and new and action.leg in memory.asked:
        # The time becomes that of the answer: a view from before it does not have the leg.
        asked = dataclasses.replace(memory.asked[action.leg], new=new, time=now)
        memory = dataclasses.replace(memory, asked={**memory.asked, action.leg: asked})
    if isinstance(action, Restart | FinishRestart):
        memory = _restarted(memory, action)
    if isinstance(action, ReportArray):
        states = {leg: state for leg, state, _ in action.legs}
        memory = dataclasses.replace(
            memory,
            counted={**memory.counted, action.volume: now},
            told={**memory.told, action.volume: Told(now, states)},
        )
    return memory


def failed(memory: Memory, action: Action, now: float, error: str, *, definite: bool) -> Memory:
    """An action has failed; it is due again after a pause that grows.

    :param definite: it certainly has not happened and will not.
    """
    tried = {**memory.tried, action.key: _again(memory, action, now, error)}
    memory = dataclasses.replace(memory, tried=tried)
    if definite and isinstance(action, AskReplacement):
        asked = {leg: one for leg, one in memory.asked.items() if leg != action.leg}
        memory = dataclasses.replace(memory, asked=asked)
    return memory


def _again(memory: Memory, action: Action, now: float, error: str) -> Tried:
    before = memory.tried.get(action.key)
    count = before.count + 1 if before else 1
    longest = LONGEST_RECONNECT if action.kind == "Reconnect" else LONGEST_PAUSE
    pause = min(longest, FIRST_PAUSE * 2 ** min(count - 1, 10))
    return Tried(count, now + pause, error)


def due(memory: Memory, actions: Iterable[Action], now: float) -> list[Action]:
    """The actions whose pause is over."""
    return [one for one in actions if not _waits(memory.tried.get(one.key), now)]


def _waits(tried: Tried | None, now: float) -> bool:
    # A pause that lasts longer than any comes from a clock that was set back.
    return tried is not None and now < tried.next <= now + LONGEST_PAUSE
