# SPDX-License-Identifier: Apache-2.0
"""Which legs may be handed out: every history up to a length, long ones, and any nonsense."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from os_brick_nvmeof import errors, freshness, props
from os_brick_nvmeof.freshness import Absent, Assemble, Create, Refuse
from os_brick_nvmeof.superblock import FAULTY, SPARE, Blank, Foreign, Unknown
from tests.unit.brick import histories as h
from tests.unit.brick.sights import GONE, decide, members, refused, sb, volume


def check(state, sights):
    """One attach in one state; gives the decision when something is handed out."""
    decision = freshness.decide(h.volume(state), h.views(state, sights))
    if isinstance(decision, Refuse):
        why = provable(state, sights)
        assert why is None or not state.written, (why, state, sights, decision.error)
        return None
    if isinstance(decision, Create):
        assert state.array_state == props.NEW
        assert state.written == 0
        assert all(sight == h.SEEN for sight in sights)
        return decision
    chosen = {h.at(leg) for leg in decision.members}
    assert state.written == 0 or chosen <= h.fresh(state), (state, sights, decision)
    assert all(sights[at] == h.SEEN for at in chosen)
    for rejoin in decision.rejoin:
        assert h.at(rejoin.leg) not in chosen
        assert rejoin.full or state.disks[h.at(rejoin.leg)].number is not None
    return decision


def provable(state, sights):
    """Why a refusal would be wrong; None when it may be right."""
    seen = {at for at, sight in enumerate(sights) if sight == h.SEEN}
    usable = {at for at in h.fresh(state) & seen if state.records[at].freshness != props.BLANK}
    if len(seen) == len(sights) and any(not told_apart(state, at, seen) for at in usable):
        return "all legs are seen"
    for at in usable:
        disk, record = state.disks[at], state.records[at]
        if record.freshness != props.FRESH:
            continue
        if disk.active == {disk.number} and not told_apart(state, at, seen):
            return "it went on alone"
        if 0 < disk.events == record.events and state.array_state == props.CLEAN:
            return "it is recorded as fresh after an orderly end"
    return None


def told_apart(state, at, seen):
    """Whether a leg that is seen went on without this one, for all that can be read.

    Neither the record says otherwise, nor legs that are in sync and link the two.
    """
    known = [at]
    for heir in known:
        one = state.disks[heir]
        known += [
            other
            for other in seen - set(known)
            if not one.recovering
            and one.number in state.disks[other].active
            and state.disks[other].events <= one.events
        ]
    apart = seen - set(known)
    if state.records[at].freshness == props.FRESH:
        apart = {
            other
            for other in apart
            if state.records[other].freshness == props.FRESH
            or state.disks[other].events >= state.disks[at].events
        }
    return any(len(state.disks[other].active) < len(state.disks) for other in apart)


def test_a_leg_recorded_as_stale_that_was_put_back_unreported_and_went_on_alone():
    """It was left out of an attach that wrote nothing, so it is back without a new counter."""
    state = h.detach(h.write(h.create(h.begin(2))), told=True)
    state = h.assemble(state, frozenset({0}), frozenset())
    state = h.detach(state, told=True)
    assert [one.freshness for one in state.records] == [props.FRESH, props.STALE]
    state = h.after(state, freshness.decide(h.volume(state), h.views(state, (h.SEEN, h.SEEN))))
    assert state.members == {0, 1}
    state = h.crash(h.write(h.lose(state, 0)))
    assert check(state, (h.SEEN, h.UNREACHABLE)) is None
    assert check(state, (h.UNREACHABLE, h.SEEN)) is None
    assert check(state, (h.SEEN, h.SEEN)) is not None


def test_a_chain_of_legs_that_succeeded_each_other():
    """1 and 2 lost 0; 2 lost 1; 0 was filled from 2, and went on when 2 was lost."""
    old = sb(1, events=2, roles=(FAULTY, 1, 2), raid_disks=3)
    link = sb(2, events=5, roles=(0, FAULTY, 2), raid_disks=3)
    last = sb(0, events=6, roles=(0, FAULTY, FAULTY), raid_disks=3)
    given = volume((("fresh", 0),) * 3)
    decision = decide(given, last, old, link)
    assert members(decision) == [0]
    both = sb(0, events=5, roles=(0, FAULTY, 2), raid_disks=3)
    assert members(decide(given, both, old, link)) == [0, 2]
    # Without the one that links them, nothing tells that 0 has what 1 has.
    refused(decide(given, last, old, GONE), errors.StaleError, 1)


@pytest.mark.parametrize(("legs_of_it", "length"), [(2, 7), (3, 5)])
def test_every_history_up_to_a_length(legs_of_it, length):
    sights = list(itertools.product((h.SEEN, h.UNREACHABLE), repeat=legs_of_it))
    known, front = set(), {h.begin(legs_of_it)}
    outcomes = set()
    for _ in range(length):
        known |= front
        following = set()
        for state in front:
            following.update(h.steps(state))
            if state.members:
                continue
            decisions = [check(state, sight) for sight in sights]
            outcomes.update(type(decision) for decision in decisions)
            following.update(h.after(state, one) for one in decisions if one is not None)
        front = following - known
    assert outcomes == {Create, Assemble, type(None)}


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 3), st.data())
def test_long_histories(legs_of_it, data):
    state = h.begin(legs_of_it)
    sight = st.sampled_from((h.SEEN, h.SEEN, h.SEEN, h.UNREACHABLE, h.UNKNOWN, h.ABSENT))
    for _ in range(data.draw(st.integers(5, 40))):
        following = list(h.steps(state))
        if not state.members:
            sights = tuple(data.draw(sight) for _ in range(legs_of_it))
            decision = check(state, sights)
            if decision is not None:
                following = [h.after(state, decision)]
        if following:
            state = data.draw(st.sampled_from(following))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(props.FRESHNESS),
            st.integers(0, 3),
            st.one_of(
                st.just(Blank()),
                st.just(GONE),
                st.just(Absent("gone")),
                st.just(Unknown("no")),
                st.just(Foreign("other")),
                st.builds(
                    lambda number, events, roles, features: sb(
                        number, events, roles, features=features, recovery_offset=8
                    ),
                    st.integers(0, 3),
                    st.integers(0, 3),
                    st.tuples(*[st.sampled_from((0, 1, SPARE, FAULTY))] * 3),
                    st.sampled_from((1, 3)),
                ),
            ),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(props.ARRAY_STATES),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_any_nonsense_gets_an_answer(of_legs, state, shared, read_only, stale):
    given = volume(
        [(fresh, events) for fresh, events, _ in of_legs],
        array_state=state,
        shared=shared,
        read_only=read_only,
        accept_stale=stale,
    )
    decision = decide(given, *[seen for _, _, seen in of_legs])
    if isinstance(decision, Create):
        assert state == props.NEW
        assert not shared
        assert all(isinstance(seen, Blank) or seen.events == 0 for _, _, seen in of_legs)
    elif isinstance(decision, Assemble):
        by_leg = dict(zip(given.legs, of_legs, strict=True))
        for leg in decision.members:
            assert by_leg[leg][2].in_sync
            assert leg.freshness != props.BLANK or stale
        if shared or read_only:
            assert decision.rejoin == decision.filling == ()
        assert not {one.leg for one in decision.rejoin} & {*decision.members, *decision.filling}
    else:
        assert decision.error.volume == h.VOLUME
