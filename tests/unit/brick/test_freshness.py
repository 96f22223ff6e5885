# SPDX-License-Identifier: Apache-2.0
"""Which legs may be handed out: stories one by one."""

import dataclasses

import pytest

from os_brick_nvmeof import errors, props
from os_brick_nvmeof.freshness import Absent, Assemble, Create, Mode, Rejoin, Unreachable
from os_brick_nvmeof.superblock import FAULTY, SPARE, Blank, Foreign, Unknown
from tests.unit.brick import histories as h
from tests.unit.brick.sights import GONE, decide, members, refused, sb, volume

# -- create -------------------------------------------------------------------------------------


def test_a_new_array_is_made_of_blank_legs():
    decision = decide(volume(array_state=props.NEW), Blank(), Blank())
    assert isinstance(decision, Create)
    assert [h.at(leg) for leg in decision.legs] == [0, 1]
    assert (decision.missing, decision.mode) == (0, Mode.NORMAL)


def test_an_array_that_was_begun_and_never_used_is_made_again():
    new = volume(array_state=props.NEW)
    assert isinstance(decide(new, sb(events=0), Blank()), Create)
    assert isinstance(decide(new, sb(events=0), sb(1, events=0)), Create)


def test_an_array_that_took_a_write_is_never_made_again():
    new = volume(array_state=props.NEW)
    assert members(decide(new, sb(), sb(1))) == [0, 1]
    refused(decide(new, sb(events=1), Blank()), errors.StaleError, 1)


def test_a_place_is_kept_for_a_leg_that_is_not_there_yet():
    new = volume((("fresh", 0), ("blank", 0)), array_state=props.NEW)
    waiting = dataclasses.replace(new.legs[1], nqn="")
    decision = decide(
        dataclasses.replace(new, legs=(new.legs[0], waiting)), Blank(), Unreachable("not offered")
    )
    assert isinstance(decision, Create)
    assert ([h.at(leg) for leg in decision.legs], decision.missing) == ([0], 1)


def test_a_new_array_is_made_for_a_reader_too():
    decision = decide(volume(array_state=props.NEW, read_only=True), Blank(), Blank())
    assert isinstance(decision, Create)
    assert decision.mode is Mode.READ_ONLY


@pytest.mark.parametrize(
    ("seen", "kind"),
    [
        (GONE, errors.UnreachableError),
        (Absent("no such namespace"), errors.NamespaceMissingError),
        (Unknown("it cannot be read: EIO"), errors.UnknownDataError),
    ],
)
def test_a_new_array_with_one_leg_that_is_not_seen(seen, kind):
    refused(decide(volume(array_state=props.NEW), Blank(), seen), kind, 1)


def test_a_missing_leg_of_a_new_array_may_hold_its_data():
    new = volume(array_state=props.NEW)
    waiting = dataclasses.replace(new.legs[1], nqn="")
    new = dataclasses.replace(new, legs=(new.legs[0], waiting))
    refused(decide(new, Blank(), Unreachable("not offered")), errors.UnreachableError, 1)


@pytest.mark.parametrize("state", ["", props.CLEAN, props.OPEN])
def test_blank_legs_are_no_new_array_unless_told(state):
    assert "not new" in refused(
        decide(volume(array_state=state), Blank(), Blank()), errors.ArrayError
    )


def test_nothing_is_made_for_a_second_host():
    decision = decide(volume(array_state=props.NEW, shared=True), Blank(), Blank())
    assert "another host" in refused(decision, errors.ArrayError)


# -- foreign and unknown ------------------------------------------------------------------------


@pytest.mark.parametrize("state", [props.NEW, props.CLEAN, props.OPEN])
@pytest.mark.parametrize("stale", [False, True])
def test_a_leg_of_another_array_or_with_other_data(state, stale):
    given = volume(array_state=state, accept_stale=stale)
    other = dataclasses.replace(
        sb(), array_uuid="0b6fe5d1-0000-4000-8000-000000000009", name="any:volume-2"
    )
    text = refused(decide(given, sb(), other), errors.ForeignDataError, 1)
    assert "0b6fe5d1-0000-4000-8000-000000000009" in text
    refused(decide(given, other, other), errors.ForeignDataError, 0)
    refused(decide(given, other, Blank()), errors.ForeignDataError, 0)
    refused(decide(given, Blank(), Foreign("it holds a file system")), errors.ForeignDataError, 1)


def test_an_array_that_stock_made_has_our_name_and_a_uuid_of_its_own():
    made = "0b6fe5d1-0000-4000-8000-000000000009"
    for name in ("any:volume-1", "volume-1"):
        one, two = (dataclasses.replace(sb(at), array_uuid=made, name=name) for at in (0, 1))
        decision = decide(volume(), one, two)
        assert isinstance(decision, Assemble)
        assert decision.uuid == made
        assert len(decision.members) == 2
    assert decide(volume(), sb(), sb(1)).uuid == h.VOLUME


def test_of_two_arrays_of_one_name_nobody_can_tell():
    one, two = (
        dataclasses.replace(sb(at), array_uuid=f"0b6fe5d1-0000-4000-8000-00000000000{at}")
        for at in (0, 1)
    )
    refused(decide(volume(), one, two), errors.ForeignDataError, 0)
    refused(decide(volume(), sb(), two), errors.ForeignDataError, 1)


def test_an_array_that_is_no_mirror_or_is_being_changed():
    refused(decide(volume(), sb(level=5), sb(1)), errors.UnknownDataError, 0)
    refused(decide(volume(), sb(), sb(1, features=5)), errors.UnknownDataError, 1)


def test_two_legs_that_claim_one_place():
    refused(decide(volume(), sb(), sb()), errors.UnknownDataError, 0)


def test_an_unreadable_leg_beside_one_that_lists_it():
    text = refused(decide(volume(), sb(), Unknown("EIO at 4096")), errors.StaleError, 1)
    assert "EIO at 4096" in text


# -- assemble -----------------------------------------------------------------------------------


def test_both_legs_in_order():
    decision = decide(volume(), sb(), sb(1))
    assert members(decision) == [0, 1]
    assert not decision.degraded
    assert (decision.rejoin, decision.filling, decision.mode) == ((), (), Mode.NORMAL)


def test_a_counter_that_is_one_behind_after_a_crash():
    assert members(decide(volume(), sb(), sb(1, events=43))) == [1, 0]


def test_a_leg_one_behind_that_the_freshest_has_given_up_is_filled_by_its_bitmap():
    decision = decide(volume(), sb(events=43, roles=(0, FAULTY)), sb(1))
    assert members(decision) == [0]
    assert decision.degraded
    assert decision.rejoin == (Rejoin(volume().legs[1], full=False),)


def test_a_leg_of_another_size_is_no_member():
    decision = decide(volume(), sb(events=43), sb(1, size=8192))
    assert members(decision) == [0]
    assert decision.rejoin == (Rejoin(volume().legs[1], full=True),)


def test_a_leg_that_goes_on_being_filled():
    half = sb(1, features=3, recovery_offset=8)
    decision = decide(volume((("fresh", 1), ("stale", 1))), sb(), half)
    assert members(decision) == [0]
    assert [h.at(leg) for leg in decision.filling] == [1]
    assert decision.degraded
    assert decision.rejoin == ()


def test_the_stale_leg_alone_is_refused_and_accepted_with_the_other():
    """A fails, B is written, A is back and B away; then B is back."""
    old, new = sb(0, events=42), sb(1, events=50, roles=(SPARE, 1))
    for state in ("", props.NEW, props.OPEN, props.CLEAN):
        for record in ((("fresh", 0), ("fresh", 0)), (("stale", 42), ("fresh", 50))):
            given = volume(record, array_state=state)
            text = refused(decide(given, old, GONE), errors.StaleError, 1)
            assert "accept_stale" in text
            decision = decide(given, old, new)
            assert members(decision) == [1]
            assert decision.rejoin == (Rejoin(given.legs[0], full=False),)


def test_an_operator_may_take_the_stale_leg():
    decision = decide(volume(accept_stale=True), sb(), GONE)
    assert members(decision) == [0]
    assert "Overridden for this volume: Stale" in decision.warnings[0]


def test_nothing_makes_half_data_whole():
    half = sb(1, features=3, recovery_offset=8)
    given = volume((("fresh", 1), ("stale", 1)), accept_stale=True)
    refused(decide(given, GONE, half), errors.StaleError, 0)
    other = sb(0, features=3, recovery_offset=8)
    text = refused(decide(volume((("fresh", 1), ("stale", 1))), other, half), errors.StaleError)
    assert "not complete" in text


def test_one_leg_dead_after_an_orderly_end_that_was_reported():
    given = volume((("fresh", 42), ("fresh", 42)), array_state=props.CLEAN)
    decision = decide(given, sb(), GONE)
    assert members(decision) == [0]
    assert decision.degraded
    assert decision.rejoin == ()


@pytest.mark.parametrize(
    ("records", "changes"),
    [
        ((("fresh", 0), ("fresh", 0)), {}),  # nobody ever reported counters
        ((("fresh", 42), ("", 0)), {}),
        ((("fresh", 42), ("fresh", 43)), {}),  # the other one is known to be further
        ((("fresh", 41), ("fresh", 41)), {"resync_offset": 0}),  # lost in the middle of a write
        ((("stale", 42), ("fresh", 42)), {}),
        ((("", 42), ("stale", 42)), {}),
    ],
)
def test_an_orderly_end_that_does_not_prove_it(records, changes):
    given = volume(records, array_state=props.CLEAN)
    refused(decide(given, sb(**changes), GONE), errors.StaleError, 1)


def test_a_leg_that_was_recorded_behind_at_an_orderly_end():
    given = volume((("fresh", 42), ("blank", 0)), array_state=props.CLEAN)
    assert members(decide(given, sb(), GONE)) == [0]


@pytest.mark.parametrize("other", ["blank", "stale"])
def test_an_orderly_end_without_counters_proves_nothing(other):
    """The leg behind may have been filled, and the fresh one lost after that, untold."""
    given = volume((("fresh", 0), (other, 0)), array_state=props.CLEAN)
    refused(decide(given, sb(), GONE), errors.StaleError, 1)


def test_a_leg_that_went_on_alone_needs_nobody():
    decision = decide(volume(), sb(roles=(0, SPARE)), GONE)
    assert members(decision) == [0]
    refused(
        decide(volume((("stale", 0), ("fresh", 0))), sb(roles=(0, SPARE)), GONE),
        errors.StaleError,
        1,
    )


def test_an_operator_may_take_a_leg_recorded_as_stale():
    given = volume((("stale", 0), ("fresh", 0)), accept_stale=True)
    decision = decide(given, sb(roles=(0, SPARE)), GONE)
    assert members(decision) == [0]
    assert "recorded as stale" in decision.warnings[0]


@pytest.mark.parametrize("record", ["blank", "stale"])
def test_a_replaced_leg_is_blank_and_gets_filled(record):
    given = volume((("fresh", 0), (record, 0)))
    decision = decide(given, sb(), Blank())
    assert members(decision) == [0]
    assert decision.rejoin == (Rejoin(given.legs[1], full=True),)


def test_a_leg_that_lost_its_data_behind_the_records_back():
    text = refused(decide(volume(), sb(), Blank()), errors.StaleError, 1)
    assert "it is blank" in text
    confirmed = volume((("fresh", 42), ("fresh", 42)), array_state=props.CLEAN)
    assert decide(confirmed, sb(), Blank()).rejoin == (Rejoin(confirmed.legs[1], full=True),)


def test_a_leg_recorded_as_blank_is_no_source_whatever_it_holds():
    given = volume((("fresh", 0), ("blank", 0)))
    decision = decide(given, sb(), sb(1))
    assert members(decision) == [0]
    assert decision.rejoin == (Rejoin(given.legs[1], full=True),)
    refused(decide(given, GONE, sb(1)), errors.StaleError, 0)
    refused(decide(given, sb(), sb(1, events=50, roles=(SPARE, 1))), errors.StaleError, 1)


def test_a_copy_in_the_making_does_not_stand_for_its_origin():
    given = volume((("fresh", 0), ("fresh", 0), ("blank", 0)))
    refused(decide(given, sb(), GONE, sb(1)), errors.StaleError, 1)


def test_a_record_that_lags_behind_what_all_legs_show():
    given = volume((("stale", 40), ("fresh", 42)))
    decision = decide(given, sb(0, events=50, roles=(0, SPARE)), sb(1))
    assert members(decision) == [0]


@pytest.mark.parametrize("stale", [0, 1])
def test_a_loss_that_no_superblock_tells_of(stale):
    """Both legs were away at once; one was given up first, and its superblock never heard of it."""
    records = [("fresh", 0), ("fresh", 0)]
    records[stale] = ("stale", 0)
    given = volume(tuple(records))
    decision = decide(given, sb(resync_offset=0), sb(1, resync_offset=0))
    assert members(decision) == [1 - stale]
    assert decision.degraded
    assert decision.rejoin == (Rejoin(given.legs[stale], full=False),)
    assert members(decide(given, sb(), sb(1))) == [1 - stale, stale]


def test_a_second_host_reads_no_leg_that_was_given_up_untold():
    given = volume((("stale", 0), ("fresh", 0)), shared=True)
    decision = decide(given, sb(resync_offset=0), sb(1, resync_offset=0))
    assert members(decision) == [1]
    assert (decision.mode, decision.rejoin) == (Mode.UNTOUCHED, ())


def test_a_crash_with_both_legs_there_is_only_a_crash():
    decision = decide(volume(), sb(resync_offset=0), sb(1, resync_offset=0))
    assert members(decision) == [0, 1]


def test_two_histories():
    one, two = sb(0, events=50, roles=(0, SPARE)), sb(1, events=48, roles=(SPARE, 1))
    text = refused(decide(volume(), one, two), errors.StaleError, 1)
    assert "without the other" in text
    settled = volume((("fresh", 50), ("stale", 42)))
    assert decide(settled, one, two).rejoin == (Rejoin(settled.legs[1], full=True),)
    refused(decide(volume((("stale", 50), ("fresh", 48))), one, two), errors.StaleError)


def test_an_operator_decides_between_two_histories_and_the_other_one_is_kept():
    one, two = sb(0, events=50, roles=(0, SPARE)), sb(1, events=48, roles=(SPARE, 1))
    decision = decide(volume((("stale", 50), ("fresh", 48)), accept_stale=True), one, two)
    assert members(decision) == [1]
    assert decision.rejoin == ()
    assert decision.warnings


def test_an_old_leg_that_never_knew_the_freshest_is_no_other_history():
    given = volume((("stale", 42), ("fresh", 60)))
    newer = sb(2, events=60, roles=(SPARE, SPARE, 0))
    decision = decide(given, sb(), newer)
    assert members(decision) == [1]
    assert decision.rejoin == (Rejoin(given.legs[0], full=True),)


def test_an_old_leg_of_a_whole_array_is_old_whatever_is_recorded():
    given = volume((("fresh", 42), ("fresh", 60)))
    assert members(decide(given, sb(), sb(2, events=60, roles=(SPARE, SPARE, 0)))) == [1]


def test_a_leg_that_is_listed_and_does_not_list_back_is_no_member():
    given = volume((("fresh", 0), ("fresh", 0)))
    decision = decide(given, sb(2, events=43, roles=(0, SPARE, 1)), sb(0, roles=(0, 1)))
    assert members(decision) == [0]
    assert decision.rejoin == (Rejoin(given.legs[1], full=True),)


def test_a_leg_that_is_listed_and_far_behind_is_no_member():
    decision = decide(volume(), sb(events=44), sb(1))
    assert members(decision) == [0]
    assert decision.rejoin == (Rejoin(volume().legs[1], full=True),)


def test_a_leg_that_is_no_source_tells_of_newer_data():
    half = sb(1, events=50, roles=(0, 1), features=3, recovery_offset=8)
    text = refused(decide(volume(), sb(roles=(0, SPARE)), half), errors.StaleError, 1)
    assert "50 is above" in text


def test_places_of_legs_that_were_given_up():
    given = volume((("fresh", 0),), replicated=True)
    assert members(decide(given, sb())) == [0]
    text = refused(decide(dataclasses.replace(given, told=False), sb()), errors.StaleError)
    assert "not known here" in text


def test_no_more_legs_are_added_than_there_are_places():
    given = volume((("fresh", 0), ("fresh", 0), ("blank", 0)))
    assert decide(given, sb(), sb(1), Blank()).rejoin == ()


def test_a_leg_that_is_to_go_does_not_come_back():
    given = volume()
    leaving = dataclasses.replace(given.legs[1], state=props.TERMINATING, freshness="stale")
    given = dataclasses.replace(given, legs=(given.legs[0], leaving))
    assert decide(given, sb(events=50, roles=(0, SPARE)), sb(1)).rejoin == ()


@pytest.mark.parametrize(
    ("change", "mode"), [({"read_only": True}, Mode.READ_ONLY), ({"shared": True}, Mode.UNTOUCHED)]
)
def test_nothing_is_written_for_a_reader_or_a_second_host(change, mode):
    decision = decide(volume(**change), sb(events=50, roles=(0, SPARE)), sb(1))
    assert (decision.mode, decision.rejoin, members(decision)) == (mode, (), [0])
    half = sb(1, features=3, recovery_offset=8)
    decision = decide(volume((("fresh", 1), ("stale", 1)), **change), sb(), half)
    assert (decision.filling, decision.rejoin) == ((), ())


def test_every_leg_out_of_reach():
    refused(decide(volume(), GONE, GONE), errors.UnreachableError, 0)
    refused(decide(volume(), Blank(), GONE), errors.UnreachableError, 1)
