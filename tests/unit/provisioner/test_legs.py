# SPDX-License-Identifier: Apache-2.0
"""The rules for legs: guards and freshness, over random histories."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumo_client import errors
from kumo_client.schemas.volume import (
    MAX_LEGS,
    REPLICA_AVAILABLE,
    REPLICA_MISSING,
    REPLICA_SYNCHRONIZING,
    REPLICA_TERMINATING,
    REPLICA_UNKNOWN,
)
from kumo_provisioner.db.models import BLANK, FRESH, STALE, Replica
from kumo_provisioner.services import legs


def leg(uuid="r1", state=REPLICA_AVAILABLE, freshness=FRESH):
    return Replica(
        uuid=uuid,
        volume_id="v",
        backend_id=f"node-of-{uuid}",
        state=state,
        state_since=0,
        freshness=freshness,
        events=0,
        replaces="",
    )


def report(one, state, others=(), proven=False):
    legs.note(one, state, 1, proven=proven, replicated=True)
    legs.settle([one, *others])


def test_a_leg_that_was_lost_while_another_went_on_is_stale():
    lost, good = leg("a"), leg("b")
    report(lost, REPLICA_MISSING, [good])
    assert (lost.state, lost.freshness) == (REPLICA_MISSING, STALE)
    report(good, REPLICA_MISSING, [lost])
    assert (good.state, good.freshness) == (REPLICA_MISSING, FRESH)


def test_an_unproven_report_is_believed_the_second_time():
    back, good = leg("a", REPLICA_MISSING, STALE), leg("b")
    report(back, REPLICA_AVAILABLE, [good])
    assert (back.state, back.freshness) == (REPLICA_SYNCHRONIZING, STALE)
    report(back, REPLICA_AVAILABLE, [good])
    assert back.in_sync
    spare = leg("c", REPLICA_UNKNOWN, BLANK)
    report(spare, REPLICA_AVAILABLE, [good], proven=True)
    assert spare.in_sync


def test_time_in_a_state_begins_anew_only_with_another_state():
    one = leg()
    assert not legs.enter(one, REPLICA_AVAILABLE, 5)
    assert one.state_since == 0
    assert legs.enter(one, REPLICA_MISSING, 5)
    assert one.state_since == 5


def test_a_leg_that_is_to_go_takes_no_reports_and_strange_states_none_at_all():
    with pytest.raises(errors.ConflictError, match="takes no reports"):
        report(leg(state=REPLICA_TERMINATING), REPLICA_AVAILABLE)
    for state in (REPLICA_TERMINATING, REPLICA_UNKNOWN, "available"):
        with pytest.raises(errors.InvalidInputError):
            report(leg(), state)


def test_counters_tell_which_of_the_lost_legs_was_last():
    early, last = leg("a", REPLICA_MISSING), leg("b", REPLICA_MISSING)
    legs.judge([early, last], {"a": 10, "b": 12})
    assert (early.freshness, last.freshness) == (STALE, FRESH)


def test_what_may_be_added():
    good, lost = leg("a"), leg("b", REPLICA_MISSING, STALE)
    legs.check_add("v", [good, lost])
    for spare in (
        leg("c", REPLICA_UNKNOWN, BLANK),
        leg("c", REPLICA_SYNCHRONIZING, STALE),
        leg("c", REPLICA_MISSING, BLANK),
    ):
        with pytest.raises(errors.TooManyReplicasError, match="not in sync yet"):
            legs.check_add("v", [good, lost, spare])
    with pytest.raises(errors.TooManyReplicasError, match="more are not possible"):
        legs.check_add("v", [leg(str(number)) for number in range(MAX_LEGS)])
    with pytest.raises(errors.StaleError):
        legs.check_add("v", [lost])


def test_what_may_be_terminated():
    good, other = leg("a"), leg("b")
    lost, spare = leg("c", REPLICA_MISSING, STALE), leg("d", REPLICA_UNKNOWN, BLANK)
    legs.check_terminate(good, [good, other])
    with pytest.raises(errors.LastReplicaError):
        legs.check_terminate(good, [good, lost, spare])
    # The replacement of a leg that is lost may still be syncing.
    legs.check_terminate(lost, [good, lost, spare])
    with pytest.raises(errors.ConflictError, match="not in sync yet"):
        legs.check_terminate(good, [good, other, spare])
    legs.check_terminate(spare, [good, spare])
    going = leg("e", REPLICA_TERMINATING, STALE)
    with pytest.raises(errors.ConflictError, match="already"):
        legs.check_terminate(lost, [good, lost, going])


STEP = st.one_of(
    st.tuples(st.just("report"), st.integers(0, 4), st.sampled_from(legs.REPORTED), st.booleans()),
    st.tuples(st.just("add")),
    st.tuples(st.just("terminate"), st.integers(0, 4)),
    st.tuples(st.just("confirm"), st.integers(0, 4)),
)


@settings(max_examples=300)
@given(st.integers(2, 3), st.lists(STEP, max_size=25))
def test_no_history_breaks_a_guard(count, steps):
    volume = [leg(str(number)) for number in range(count)]
    for number, (what, *how) in enumerate(steps):
        one = volume[how[0] % len(volume)] if how else None
        before = [item.uuid for item in volume if item.freshness == FRESH]
        try:
            if what == "report":
                proved = how[2] or one.state == REPLICA_SYNCHRONIZING
                was = one.freshness
                report(one, how[1], [item for item in volume if item is not one], how[2])
                assert was == FRESH or proved or one.freshness != FRESH
            elif what == "add":
                legs.check_add("v", volume)
                volume.append(leg(f"n{number}", REPLICA_UNKNOWN, BLANK))
            elif what == "terminate" and one.state != REPLICA_TERMINATING:
                legs.check_terminate(one, volume)
                legs.enter(one, REPLICA_TERMINATING, number)
                legs.settle(volume)
            elif what == "confirm" and one.state == REPLICA_TERMINATING:
                volume.remove(one)
        except errors.KumoError:
            assert [item.uuid for item in volume if item.freshness == FRESH] == before
        assert 1 <= len(volume) <= MAX_LEGS
        assert sum(item.state == REPLICA_TERMINATING for item in volume) <= 1
        assert any(item.freshness == FRESH for item in volume)
        if legs.synced(volume):
            assert all(
                item.state == REPLICA_AVAILABLE for item in volume if item.freshness == FRESH
            )
        assert sum(item.freshness == BLANK for item in volume) <= 2
