# SPDX-License-Identifier: Apache-2.0
"""What can happen to the legs of a volume, and what is known of it: a model apart from the code.

It knows the truth (who has all acknowledged writes), keeps superblocks as md does, and a record as
the provisioner does, which lags behind until somebody reports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

from os_brick_nvmeof import freshness, props
from os_brick_nvmeof.superblock import MAX_SECTOR, SPARE, Blank, Superblock, Unknown

VOLUME = "6a1c2f40-0000-4000-8000-0000000000aa"
LEGS = tuple(f"6a1c2f40-0000-4000-8000-00000000000{number}" for number in range(1, 5))
# What is seen of a leg at an attach.
SEEN, UNREACHABLE, UNKNOWN, ABSENT = "seen", "unreachable", "unknown", "absent"


class Disk(NamedTuple):
    """One leg: its superblock (number None: blank) and how much of the data it has."""

    number: int | None = None
    events: int = 0
    active: frozenset[int] = frozenset()
    recovering: bool = False
    clean: bool = True
    # Acknowledged writes on it; -1 for a mixture, as while it is filled.
    writes: int = 0


class Record(NamedTuple):
    """Of one leg, as the provisioner has it."""

    freshness: str = props.FRESH
    events: int = 0


class State(NamedTuple):
    """Everything. ``members`` is empty when no host has the array."""

    disks: tuple[Disk, ...]
    records: tuple[Record, ...]
    array_state: str = props.NEW
    written: int = 0
    members: frozenset[int] = frozenset()
    filling: frozenset[int] = frozenset()
    events: int = 0
    dirty: bool = False
    can_decrease: bool = False
    numbers: int = 0


def begin(legs: int) -> State:
    return State((Disk(),) * legs, (Record(),) * legs)


# -- md -----------------------------------------------------------------------------------------


def _update(state: State, *, toggle: bool, dirty: bool) -> State:
    """md_update_sb(): a change between clean and dirty alone may take the last rise back."""
    degraded = len(state.members) < len(state.disks)
    nospares = toggle and not degraded
    if nospares and not dirty and state.can_decrease and state.events != 1:
        events, can_decrease = state.events - 1, False
    else:
        events, can_decrease = state.events + 1, nospares
    there = state.members | state.filling
    active = frozenset(state.disks[at].number for at in there)
    disks = list(state.disks)
    for at in there:
        disks[at] = disks[at]._replace(
            events=events, active=active, recovering=at in state.filling, clean=not dirty
        )
    return state._replace(disks=tuple(disks), events=events, can_decrease=can_decrease, dirty=dirty)


def create(state: State) -> State:
    every = frozenset(range(len(state.disks)))
    disks = tuple(Disk(number=at, active=every) for at in every)
    return state._replace(disks=disks, members=every, events=0, numbers=len(every), dirty=False)


def assemble(state: State, members: frozenset[int], filling: frozenset[int]) -> State:
    events = max(state.disks[at].events for at in members)
    return state._replace(
        members=members, filling=filling, events=events, dirty=False, can_decrease=False
    )


def write(state: State) -> State:
    if not state.dirty:
        state = _update(state, toggle=True, dirty=True)
    disks = list(state.disks)
    for at in state.members:
        disks[at] = disks[at]._replace(writes=state.written + 1)
    return state._replace(disks=tuple(disks), written=state.written + 1)


def idle(state: State) -> State:
    return _update(state, toggle=True, dirty=False) if state.dirty else state


def lose(state: State, leg: int) -> State:
    """md does not let the last member go."""
    if leg in state.filling:
        state = state._replace(filling=state.filling - {leg})
    elif len(state.members) > 1:
        state = state._replace(members=state.members - {leg})
    else:
        return state
    return _update(state, toggle=False, dirty=state.dirty)


def join(state: State, leg: int) -> State:
    """Re-add or add: by its bitmap or as a whole, it is a mixture until it is filled."""
    disk, numbers = state.disks[leg], state.numbers
    if disk.number is None:
        disk, numbers = disk._replace(number=numbers), numbers + 1
    disks = list(state.disks)
    disks[leg] = disk._replace(recovering=True, writes=-1)
    state = state._replace(disks=tuple(disks), numbers=numbers, filling=state.filling | {leg})
    return _update(state, toggle=False, dirty=state.dirty)


def filled(state: State, leg: int) -> State:
    disks = list(state.disks)
    disks[leg] = disks[leg]._replace(writes=state.written)
    state = state._replace(
        disks=tuple(disks), members=state.members | {leg}, filling=state.filling - {leg}
    )
    return _update(state, toggle=False, dirty=state.dirty)


def crash(state: State) -> State:
    return state._replace(members=frozenset(), filling=frozenset(), dirty=False)


def torn(state: State, leg: int) -> State:
    """The host dies between two superblocks of an update: one leg keeps the one before."""
    before = state.disks[leg]
    state = _update(state, toggle=True, dirty=not state.dirty)
    disks = list(state.disks)
    disks[leg] = before
    return crash(state._replace(disks=tuple(disks)))


def torn_loss(state: State, lost: int, leg: int) -> State:
    """The same while the loss of a leg is written down."""
    before = state.disks[leg]
    state = lose(state, lost)
    disks = list(state.disks)
    disks[leg] = before
    return crash(state._replace(disks=tuple(disks)))


# -- the provisioner ----------------------------------------------------------------------------


def report(state: State) -> State:
    """The host tells of the whole array; a leg is fresh again only when it is in sync."""
    records = list(state.records)
    for at, record in enumerate(records):
        if at in state.members:
            records[at] = Record(props.FRESH, state.events)
        else:
            kept = props.BLANK if record.freshness == props.BLANK else props.STALE
            events = state.events if at in state.filling else record.events
            records[at] = Record(kept, events)
    return state._replace(records=tuple(records), array_state=props.OPEN)


def detach(state: State, *, told: bool) -> State:
    """In order; ``told``: the host has reported the end, so that the record is confirmed."""
    state = idle(state)
    if told:
        state = report(state)._replace(array_state=props.CLEAN)
    return crash(state)


def replace(state: State, leg: int) -> State:
    """The provisioner gives a leg up; it is recorded before the new one is there."""
    disks, records = list(state.disks), list(state.records)
    disks[leg], records[leg] = Disk(), Record(props.BLANK, 0)
    return state._replace(disks=tuple(disks), records=tuple(records))


def replaceable(state: State, leg: int) -> bool:
    """It is not in use, it is recorded as behind, and somebody else has everything."""
    others = [disk for at, disk in enumerate(state.disks) if at != leg]
    return (
        leg not in state.members | state.filling
        and state.records[leg].freshness == props.STALE
        and any(disk.writes == state.written and disk.number is not None for disk in others)
    )


# -- what the connector is given ----------------------------------------------------------------


def block(state: State, at: int) -> Superblock | Blank:
    disk = state.disks[at]
    if disk.number is None:
        return Blank()
    size = max((*disk.active, disk.number)) + 1
    places = len(state.disks)
    roles = [SPARE] * size
    for place, number in enumerate(sorted(disk.active)):
        roles[number] = place
    return Superblock(
        array_uuid=VOLUME,
        name="any:volume-1",
        events=disk.events,
        number=disk.number,
        device_uuid=LEGS[at],
        roles=tuple(roles),
        raid_disks=places,
        level=1,
        size=16384,
        data_offset=2048,
        data_size=16384,
        resync_offset=MAX_SECTOR if disk.clean else 0,
        recovery_offset=8 if disk.recovering else 0,
        feature_map=3 if disk.recovering else 1,
        update_time=0,
    )


def volume(state: State, **changes: object) -> props.Volume:
    legs = tuple(
        props.Leg(
            LEGS[at], f"nqn.{at}", (), node=f"n{at}", state="Available",
            freshness=record.freshness, events=record.events,
        )
        for at, record in enumerate(state.records)
    )  # fmt: skip
    plain = props.Volume(
        uuid=VOLUME, alias="volume-1", io_class=props.REPLICATED, size=8 << 20, legs=legs,
        replicated=True, array_state=state.array_state, told=True,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def views(state: State, sights: tuple[str, ...]) -> list[freshness.View]:
    found = []
    for at, leg in enumerate(volume(state).legs):
        seen = {
            SEEN: lambda at=at: block(state, at),
            UNREACHABLE: lambda: freshness.Unreachable("no answer"),
            UNKNOWN: lambda: Unknown("it cannot be read"),
            ABSENT: lambda: freshness.Absent("no namespace"),
        }[sights[at]]()
        found.append(freshness.View(leg, seen))
    return found


def at(leg: props.Leg) -> int:
    return LEGS.index(leg.uuid)


def fresh(state: State) -> frozenset[int]:
    """Legs with all acknowledged writes, of an array that exists."""
    return frozenset(
        at
        for at, disk in enumerate(state.disks)
        if disk.number is not None and disk.writes == state.written and not disk.recovering
    )


# -- every history ------------------------------------------------------------------------------


def steps(state: State) -> Iterator[State]:
    """What may come next while a host has the array, and the provisioner's own doing."""
    for leg in range(len(state.disks)):
        if replaceable(state, leg):
            yield replace(state, leg)
    if not state.members:
        return
    yield write(state)
    yield idle(state)
    yield report(state)
    yield crash(state)
    yield detach(state, told=False)
    yield detach(state, told=True)
    for leg in range(len(state.disks)):
        if leg in state.members:
            yield lose(state, leg)
            yield torn(state, leg)
            for other in state.members - {leg}:
                yield torn_loss(state, leg, other)
        elif leg in state.filling:
            yield lose(state, leg)
            yield filled(state, leg)
        else:
            yield join(state, leg)


def after(state: State, decision: freshness.Decision) -> State:
    """The array as a host has it after an attach; publishing makes ``clean`` ``open``."""
    if state.array_state == props.CLEAN:
        state = state._replace(array_state=props.OPEN)
    if isinstance(decision, freshness.Create):
        return create(state)
    assert isinstance(decision, freshness.Assemble)
    members = frozenset(at(leg) for leg in decision.members)
    return assemble(state, members, frozenset(at(leg) for leg in decision.filling))
