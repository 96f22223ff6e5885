# SPDX-License-Identifier: Apache-2.0
"""Rules for the legs of an array: failing, putting back, replacing, letting go. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from os_brick_nvmeof.agent.actions import (
    Action,
    AddSpare,
    AskReplacement,
    ConfirmRemoval,
    FailLeg,
    FinishRestart,
    ReAdd,
    RemoveLeg,
    Restart,
    RetireLeg,
    SetSlots,
    SetSpeed,
)
from os_brick_nvmeof.agent.judge import LegView, Path, View
from os_brick_nvmeof.agent.model import (
    ARRAY,
    AVAILABLE,
    BROKEN,
    MAINTENANCE,
    MAX_LEGS,
    MIGRATION,
    NOTHING,
    OTHER,
    SYNCHRONIZING,
    TERMINATING,
    UNKNOWN,
    Array,
    Leg,
    Place,
    Task,
)
from os_brick_nvmeof.agent.round import Note, Round

# Fewer slots make an array that is no mirror.
LEAST_SLOTS = 2
# A leg that could not be put in so many times in a row is replaced.
ENOUGH_TRIES = 5


def of_volume(this: Round, view: View) -> Iterator[Action | Note]:
    array = view.array
    if array is None:
        return
    if array.members is None:
        yield Note(view.volume.uuid, "", "the members of its array could not be told")
        return
    if array.state == BROKEN:
        yield from _restart(view, array)
        return
    if not array.writable:
        yield Note(view.volume.uuid, "", f"its array is {array.state}; nothing may be written")
        return
    if view.volume.shared:
        yield Note(view.volume.uuid, "", "another host has it as well; its legs stay as they are")
        return
    yield from _fail(this, view, array)
    if not view.good():
        yield Note(view.volume.uuid, "", "no leg is in sync and reachable; paths are mended only")
        return
    for leg in view.legs:
        yield from _put_in(this, view, array, leg)
    yield from _fit(this, view, array)
    yield from _replace(this, view)
    yield from _retire(this, view)
    yield from _let_go(view, array)


def _restart(view: View, array: Array) -> Iterator[Action | Note]:
    """Nothing but a new start makes it take writes; for that whoever uses it has to let go of it.

    It waits for all legs that the provisioner has as Available: any of them may be the one with
    the last writes.
    """
    volume = view.volume
    text = "its array is broken: it lost all legs at once, so the kernel takes no more writes"
    yield Note(volume.uuid, "", f"{text}; detach and attach it, or reboot its server hard")
    needed = [leg for leg in view.legs if leg.leg.state == AVAILABLE]
    if not volume.shared and view.good() and all(leg.path is Path.LIVE for leg in needed):
        yield Restart(
            volume=volume.uuid,
            array=array.uuid,
            name=array.name,
            reason="it is broken and its legs are back",
        )


def unfinished(this: Round, view: View) -> Iterator[Action | Note]:
    """An array that was stopped to be assembled anew, and is not up."""
    volume, array = view.volume, view.array
    if volume.uuid not in this.memory.restarts or (array is not None and array.running):
        return
    text = "its array was stopped to be assembled anew and is not up yet"
    keys = [f"{kind.__name__} {volume.uuid}" for kind in (FinishRestart, Restart)]
    why = [tried.error for key in keys if (tried := this.memory.tried.get(key))]
    yield Note(volume.uuid, "", ": ".join([text, *why[:1]]))
    needed = [leg for leg in view.legs if leg.leg.state == AVAILABLE]
    told = this.seen.arrays is not None
    if told and not volume.shared and all(leg.path is Path.LIVE for leg in needed):
        yield FinishRestart(volume=volume.uuid, reason="it was stopped and is not up again")


# -- out and in again -----------------------------------------------------------------------------


def _fail(this: Round, view: View, array: Array) -> Iterator[Action]:
    for leg in view.legs:
        inside = leg.place in (Place.IN_SYNC, Place.SYNCING)
        if not inside or leg.path is not Path.DEAD or not this.dead(leg.uuid) or not leg.member:
            continue
        if view.good(besides=leg.uuid):
            yield FailLeg(
                volume=view.volume.uuid,
                leg=leg.uuid,
                array=array.uuid,
                name=array.name,
                device=leg.member.device,
                reason=f"no live path for {this.dead_for(leg.uuid):.0f} s, other legs are in sync",
            )


def _put_in(this: Round, view: View, array: Array, leg: LegView) -> Iterator[Action | Note]:
    if not leg.lost or leg.leg.state == TERMINATING:
        return
    volume = view.volume.uuid
    if leg.path is not Path.LIVE:
        yield Note(volume, leg.uuid, f"no live path to node {leg.leg.node}")
        return
    if leg.namespace is None:
        yield Note(volume, leg.uuid, f"node {leg.leg.node} does not show its namespace")
        return
    block = leg.superblock
    if block is None:
        yield Note(volume, leg.uuid, "what is on it could not be told")
    elif block.kind == OTHER or (block.kind == ARRAY and block.array != array.uuid):
        what = f"array {block.array}" if block.kind == ARRAY else "other data"
        yield Note(volume, leg.uuid, f"refused: it holds {what}")
    elif block.kind == ARRAY:
        yield ReAdd(
            volume=volume,
            leg=leg.uuid,
            array=array.uuid,
            name=array.name,
            device=leg.namespace.name,
            reason="it can be reached again",
        )
    elif block.kind == NOTHING:
        yield AddSpare(
            volume=volume,
            leg=leg.uuid,
            array=array.uuid,
            name=array.name,
            device=leg.namespace.name,
            slots=_slots(view),
            reason="it is to be synchronised from the beginning",
        )


def _may_be_put_in(this: Round, view: View, leg: LegView) -> bool:
    """Whether putting it in is tried now and has not failed again and again."""
    if view.array is None:
        return False
    for one in _put_in(this, view, view.array, leg):
        tried = None if isinstance(one, Note) else this.memory.tried.get(one.key)
        if not isinstance(one, Note) and (tried is None or tried.count < ENOUGH_TRIES):
            return True
    return False


def _slots(view: View) -> int:
    return max(LEAST_SLOTS, len(view.volume.staying))


def _fit(this: Round, view: View, array: Array) -> Iterator[Action]:
    """Slots and speed as they should be."""
    members = array.members or ()
    slots = _slots(view)
    inside = sum(one.place in (Place.IN_SYNC, Place.SYNCING) for one in members)
    leaving = any(one.leg.state == TERMINATING and one.place is not Place.OUT for one in view.legs)
    nameless = any(not one.uuid and one.place is not Place.FAULTY for one in members)
    if array.slots > slots >= inside and not array.total and not leaving and not nameless:
        yield SetSlots(
            volume=view.volume.uuid,
            array=array.uuid,
            name=array.name,
            slots=slots,
            reason=f"the volume has {slots} legs, its array has room for {array.slots}",
        )
    limits = this.limits
    low = limits.speed_min and array.speed_min not in (None, limits.speed_min)
    high = limits.speed_max and array.speed_max not in (None, limits.speed_max)
    if low or high:
        yield SetSpeed(
            volume=view.volume.uuid,
            array=array.uuid,
            name=array.name,
            minimum=limits.speed_min,
            maximum=limits.speed_max,
            reason="the options say so",
        )


# -- replaced -------------------------------------------------------------------------------------


def replacement(this: Round, view: View, lost: str) -> LegView | None:
    """The leg that is to take the place of another."""
    asked = this.memory.asked.get(lost)
    for one in view.legs:
        # What the provisioner says of it counts more than what it was asked for.
        wanted = asked is not None and asked.new == one.uuid and not one.leg.replaces
        if one.uuid != lost and (one.leg.replaces == lost or wanted):
            return one
    return None


def may_ask(this: Round, view: View, lost: Leg) -> str:
    """Why no replacement of a leg can be asked for now; "" when it can."""
    others = [leg for leg in view.volume.legs if leg.uuid != lost.uuid]
    if len(view.volume.legs) >= MAX_LEGS:
        return f"there are {MAX_LEGS} legs"
    if any(leg.state == TERMINATING for leg in view.volume.legs):
        return "another leg is on its way out"
    if replacement(this, view, lost.uuid):
        return "it has a replacement"
    if lost.uuid in this.memory.asked:
        return "a replacement was asked for"
    spares = (SYNCHRONIZING, UNKNOWN)
    if any(leg.freshness == "blank" or leg.state in spares for leg in others):
        return "another leg is not in sync yet"
    if any(one.place is Place.SYNCING for one in view.legs):
        return "another leg is being synchronised"
    return ""


def ask(view: View, lost: Leg, reason: str) -> AskReplacement:
    """The request for a replacement."""
    return AskReplacement(
        volume=view.volume.uuid,
        leg=lost.uuid,
        before=frozenset(leg.uuid for leg in view.volume.legs),
        reason=reason,
    )


def _replace(this: Round, view: View) -> Iterator[Action | Note]:
    volume = view.volume
    lost = [one for one in view.legs if one.lost and one.leg.state != TERMINATING]
    moved = [task.tags.get("replicaId", "") for task in moving(this, volume.uuid)]
    for one in sorted(lost, key=lambda leg: (-this.lost_for(leg.uuid), leg.uuid)):
        left = volume.down_time - this.lost_for(one.uuid)
        if not volume.down_time:
            yield Note(volume.uuid, one.uuid, "lost; it is never replaced (maxReplicaDownTime 0)")
        elif left > 0:
            yield Note(volume.uuid, one.uuid, f"lost; it is replaced in {left:.0f} s")
        elif this.wanted.nodes.get(one.leg.node) == MAINTENANCE:
            yield Note(volume.uuid, one.uuid, f"lost; node {one.leg.node} is in maintenance")
        elif _surplus(this, view, one):
            yield Note(volume.uuid, one.uuid, "lost; enough other legs are in sync")
        elif moved and one.uuid not in moved:
            yield Note(volume.uuid, one.uuid, "lost; a migration of another leg goes first")
        elif _may_be_put_in(this, view, one):
            yield Note(volume.uuid, one.uuid, "lost; it can be put back")
        elif _useless(this, view, one):
            yield RetireLeg(
                volume=volume.uuid, leg=one.uuid, reason="this replacement could not be used"
            )
            return
        elif why := may_ask(this, view, one.leg):
            yield Note(volume.uuid, one.uuid, f"lost; no replacement is asked for: {why}")
        else:
            yield ask(view, one.leg, f"lost for {this.lost_for(one.uuid):.0f} s")
            # One at a time: the next is asked for when this one is there.
            return


def _useless(this: Round, view: View, leg: LegView) -> bool:
    """Whether it is a replacement that never came to be in sync, and may go."""
    if leg.leg.freshness not in ("blank", ""):
        return False
    if any(one.state == TERMINATING for one in view.volume.legs):
        return False
    here = view.volume.staying
    return any(replacement(this, view, one.uuid) is leg for one in here)


# -- let go ---------------------------------------------------------------------------------------


def replicas(this: Round, view: View) -> int:
    """How many legs are wanted."""
    if view.volume.replicas:
        return view.volume.replicas
    here = view.volume.staying
    pairs = sum(replacement(this, view, leg.uuid) is not None for leg in here)
    return max(1, len(here) - pairs)


def moving(this: Round, volume: str) -> list[Task]:
    """Migrations of a volume that are under way."""
    return [
        task
        for task in this.wanted.tasks
        if task.kind == MIGRATION and task.open and task.volume == volume
    ]


def _surplus(this: Round, view: View, leg: LegView) -> bool:
    """Whether a leg is one too many and enough others are in sync.

    One too many there is only while a leg and its replacement are both there: then one of the two
    may go, or one that is lost. How many legs a volume has otherwise is the provisioner's business.
    """
    here = view.volume.staying
    pairs = {one.uuid: new.uuid for one in here if (new := replacement(this, view, one.uuid))}
    paired = leg.uuid in (*pairs.keys(), *pairs.values())
    if not pairs or len(here) <= replicas(this, view) or not (paired or leg.lost):
        return False
    others = [one for one in view.good(besides=leg.uuid) if _recorded(one.leg)]
    if leg.lost and pairs.get(leg.uuid) in [one.uuid for one in others]:
        # Nothing is lost with it, and its place may be needed.
        return True
    return len(others) >= replicas(this, view)


def _recorded(leg: Leg) -> bool:
    """Whether the provisioner knows that it is in sync."""
    return leg.state == AVAILABLE and leg.freshness in ("fresh", "")


def _retire(this: Round, view: View) -> Iterator[Action]:
    if any(leg.state == TERMINATING for leg in view.volume.legs):
        return
    moved = [task.tags.get("replicaId", "") for task in moving(this, view.volume.uuid)]
    new = {one.uuid for leg in moved if (one := replacement(this, view, leg))}
    going = [one for one in view.legs if one.uuid not in new and _surplus(this, view, one)]
    # Rather one that is not in sync, then the one that was replaced.
    going.sort(
        key=lambda one: (
            one.place is Place.IN_SYNC,
            not replacement(this, view, one.uuid),
            one.uuid,
        )
    )
    for one in (*_moved(this, view), *going):
        yield RetireLeg(
            volume=view.volume.uuid,
            leg=one.uuid,
            reason="its replacement is in sync",
        )
        return


def _moved(this: Round, view: View) -> Iterator[LegView]:
    """Legs that a migration takes away and whose replacement is in sync."""
    for task in moving(this, view.volume.uuid):
        old = view.leg(task.tags.get("replicaId", ""))
        new = replacement(this, view, old.uuid) if old else None
        if old and new and new.good and _recorded(new.leg):
            yield old


def _let_go(view: View, array: Array) -> Iterator[Action | Note]:
    for one in view.legs:
        if one.leg.state != TERMINATING or one.place is Place.UNKNOWN:
            continue
        if one.place is Place.OUT:
            yield ConfirmRemoval(
                volume=view.volume.uuid,
                leg=one.uuid,
                gone=one.leg,
                reason="it is to go and in no array",
            )
        elif not view.good(besides=one.uuid):
            yield Note(view.volume.uuid, one.uuid, "it is to go, but no other leg is in sync")
        elif one.member is not None:
            yield RemoveLeg(
                volume=view.volume.uuid,
                leg=one.uuid,
                array=array.uuid,
                name=array.name,
                device=one.member.device,
                reason="it is to go",
            )
