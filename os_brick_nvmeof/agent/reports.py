# SPDX-License-Identifier: Apache-2.0
"""Rules for what the provisioner is told of the legs of an array. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from os_brick_nvmeof.agent.actions import Action, ReportArray, ReportLeg
from os_brick_nvmeof.agent.judge import LegView, View
from os_brick_nvmeof.agent.model import (
    AVAILABLE,
    CAN_REPORT_ARRAYS,
    MISSING,
    SYNCHRONIZING,
    TERMINATING,
    UNKNOWN,
    Place,
)
from os_brick_nvmeof.agent.round import Round


def of_volume(this: Round, view: View) -> Iterator[Action]:
    # An array that nobody has written to yet does not know what another host's has missed.
    if view.array is None or view.array.members is None or not view.array.writable:
        return
    told = {one.uuid: state for one in view.legs if (state := leg_state(this, one))}
    if view.volume.shared and not any(_lost_now(view, leg, told[leg]) for leg in told):
        # While a server moves, two hosts have the array and one of them writes. Only that one sees
        # legs fail; what the other one takes to be in sync may lack what was written.
        return
    news = [one for one in view.legs if one.uuid in told and _differs(this, one, told[one.uuid])]
    if CAN_REPORT_ARRAYS in this.wanted.abilities:
        yield from _whole(this, view, told, news)
        return
    for one in news:
        yield ReportLeg(
            volume=view.volume.uuid,
            leg=one.uuid,
            state=told[one.uuid],
            reason=f"it was {one.leg.state}",
        )


def _lost_now(view: View, leg: str, state: str) -> bool:
    one = view.volume.leg(leg)
    return state == MISSING and one is not None and one.state != MISSING


def leg_state(this: Round, one: LegView) -> str:
    """The state of a leg for the wire; "" when there is nothing to say, or it is not known.

    What md says counts, not the path: a leg in sync that cannot be reached now may be the one that
    takes the next writes alone, and one that was reported Missing counts as stale.
    """
    if one.leg.state == TERMINATING or one.place is Place.UNKNOWN:
        return ""
    if one.lost:
        new = one.leg.freshness == "blank" or one.leg.state == UNKNOWN
        patient = new and one.place is Place.OUT
        return "" if patient and this.lost_for(one.uuid) < this.limits.spare_wait else MISSING
    return AVAILABLE if one.place is Place.IN_SYNC else SYNCHRONIZING


def _differs(this: Round, one: LegView, state: str) -> bool:
    if one.leg.state != state:
        return True
    return state == AVAILABLE and one.leg.freshness not in ("fresh", "")


def _whole(this: Round, view: View, told: dict[str, str], news: list[LegView]) -> Iterator[Action]:
    array = view.array
    if array is None or not told:
        return
    before = this.memory.told.get(view.volume.uuid)
    if before is not None and before.states == told:
        # The provisioner has it; its view here is older than that.
        return
    counted = this.memory.counted.get(view.volume.uuid, 0.0)
    rested = not 0 <= this.now - counted < this.limits.count_every
    moved = any(
        one.leg.events != array.events
        for one in view.legs
        if told.get(one.uuid) == AVAILABLE and array.events
    )
    opened = view.volume.array_state != "open"
    if not news and not (rested and moved) and not opened:
        return
    why = ", ".join(f"leg {one.uuid} is {told[one.uuid]}" for one in news)
    yield ReportArray(
        volume=view.volume.uuid,
        legs=tuple((leg, state, _events(view, leg)) for leg, state in sorted(told.items())),
        reason=why or ("its array is open" if opened else "event counters have moved"),
    )


def _events(view: View, leg: str) -> int:
    """The event counter of a leg. One that is in sync has the highest of all, whether it can be
    read now or not: the provisioner tells by it which leg has all writes when none is reached. One
    that is being filled has none."""
    one = view.leg(leg)
    if one is None or view.array is None:
        return 0
    own = one.superblock.events if one.superblock is not None else 0
    if one.place is not Place.IN_SYNC:
        return own if one.lost else 0
    blocks = [other.superblock.events for other in view.legs if other.superblock is not None]
    told = [other.leg.events for other in view.legs]
    return max(1, view.array.events, *blocks, *told)
