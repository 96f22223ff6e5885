# SPDX-License-Identifier: Apache-2.0
"""What is written down of an array that was stopped in order."""

import dataclasses
import json
import os
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from os_brick_nvmeof import errors, freshness, props, replicated, stopped
from os_brick_nvmeof.freshness import Refuse
from os_brick_nvmeof.superblock import Unknown
from tests.unit.brick import histories as h
from tests.unit.brick.volumes import LEGS, VOLUME, World

A, B, _C, _D = LEGS
HERE, LOST, HALF = props.AVAILABLE, props.MISSING, props.SYNCHRONIZING


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path, udev=True)
    plain = made.volume
    made.volume = lambda **changes: plain(**{"tenant": "t", "publication": 7} | changes)
    return made


def known(world):
    return stopped.known(world.ctx.locks)


def legs(world):
    (one,) = known(world)
    return [state for _, state, _ in one.legs]


# -- what is told -------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.integers(2, 3), st.data())
def test_it_is_what_a_host_reports_that_tells_everything(count, data):
    """In any history: nothing, or just that; all of it when every leg is seen."""
    state = h.begin(count)
    sight = st.sampled_from((h.SEEN, h.SEEN, h.SEEN, h.UNREACHABLE))
    for _ in range(data.draw(st.integers(3, 25))):
        following = list(h.steps(state))
        if state.members:
            look(state, tuple(data.draw(sight) for _ in range(count)))
        else:
            sights = tuple(data.draw(sight) for _ in range(count))
            decision = freshness.decide(h.volume(state), h.views(state, sights))
            following = [] if isinstance(decision, Refuse) else [h.after(state, decision)]
        if following:
            state = data.draw(st.sampled_from(following))


def look(state, sights):
    ended = h.detach(state, told=True)
    contents = {
        view.leg.uuid: view.seen
        for view, sight in zip(h.views(ended, (h.SEEN,) * len(sights)), sights, strict=True)
        if sight == h.SEEN
    }
    used = {h.LEGS[at] for at in state.members}
    told = stopped.judge(h.volume(ended), h.LEGS[: len(sights)], used, contents)
    if not told:
        # Of an array that was torn in a crash and not written since, the superblocks differ.
        there = frozenset(ended.disks[at].number for at in state.members | state.filling)
        last = {ended.disks[at][1:3] for at in state.members}
        assert h.UNREACHABLE in sights or last != {(ended.events, there)} or not ended.events
    for at, (leg, said, events) in enumerate(told):
        assert leg == h.LEGS[at]
        # One that was half filled and left out of an array that was not written looks so still.
        out = (HALF,) if at in state.filling else (HALF, LOST)
        assert said in ((HERE,) if at in state.members else out)
        if at in state.members:
            assert events == ended.records[at].events == ended.events


def test_what_does_not_fit_together_tells_nothing():
    state = h.detach(h.write(h.create(h.begin(2))), told=True)
    volume = h.volume(state)
    one, two = (h.block(state, at) for at in range(2))

    def judged(first, second, used=h.LEGS[:2]):
        contents = {h.LEGS[0]: first, h.LEGS[1]: second}
        return stopped.judge(volume, h.LEGS[:2], used, contents)

    assert [said for _, said, _ in judged(one, two)] == [HERE, HERE]
    assert judged(one, Unknown("no")) == ()
    assert judged(one, dataclasses.replace(two, events=two.events - 1)) == ()
    assert judged(one, dataclasses.replace(two, number=0)) == ()
    assert judged(one, dataclasses.replace(two, array_uuid=VOLUME[::-1], name="other")) == ()
    assert judged(one, two, used=h.LEGS[:1]) == ()
    assert judged(one, two, used=()) == ()
    half = dataclasses.replace(one, feature_map=2, recovery_offset=8)
    assert judged(half, dataclasses.replace(two, feature_map=2, recovery_offset=8)) == ()


def test_a_leg_with_a_history_of_its_own_tells_nothing_of_this_one():
    """It went on without the others once, and has a higher counter."""
    state = h.detach(h.write(h.lose(h.write(h.create(h.begin(2))), 1)), told=True)
    alone = dataclasses.replace(h.block(state, 1), events=99, roles=(0xFFFE, 1))
    told = stopped.judge(
        h.volume(state), h.LEGS[:2], h.LEGS[:1], {h.LEGS[0]: h.block(state, 0), h.LEGS[1]: alone}
    )
    assert [said for _, said, _ in told] == [HERE, LOST]


# -- at the end of an attach --------------------------------------------------------------------


def test_an_orderly_end_is_written_down_until_the_next_attach(world):
    world.attach()
    assert known(world) == []
    world.md.write("md127", b"data")
    world.detach()
    (word,) = known(world)
    events = word.legs[0][2]
    assert word == stopped.Stopped(VOLUME, "t", 7, ((A, HERE, events), (B, HERE, events)))
    assert events > 0
    world.detach()
    assert known(world) == [word]
    world.array_state = props.CLEAN
    world.attach()
    assert known(world) == []


def test_by_what_was_written_down_one_leg_is_enough(world):
    world.used()
    (word,) = known(world)
    world.array_state = props.CLEAN
    world.hide(1)
    with pytest.raises(errors.StaleError, match="may have newer data"):
        world.attach()
    world.told = [(props.FRESH, events) for _, _, events in word.legs]
    world.attach()
    assert world.md.read("md127") == {b"first"}


def test_a_leg_that_was_lost_is_told(world):
    world.used()
    world.attach()
    world.hide(0)
    world.md.write("md127", b"more")
    world.detach()
    assert legs(world) == [LOST, HERE]


def test_nothing_is_told_of_a_leg_that_fell_silent_and_was_not_missed(world):
    world.used()
    world.attach()
    world.hide(0, "silent")
    world.settle(30)
    world.detach(force=True)
    assert all(LOST in legs(world) for _ in known(world))


def test_who_takes_no_last_word_is_told_none(world):
    world.attach()
    world.md.write("md127", b"data")
    reads = len([call for call in world.kernel.calls if call[0] == "read"])
    world.detach(publication=0)
    assert known(world) == []
    assert len([call for call in world.kernel.calls if call[0] == "read"]) == reads


def test_an_array_that_nobody_has_checked_tells_nothing(world, monkeypatch):
    world.attach()
    world.md.write("md127", b"data")
    monkeypatch.setattr(replicated.md, "marked", lambda ctx, name: False)
    world.detach()
    assert known(world) == []


def test_a_detach_goes_on_when_nothing_can_be_written_down(world, monkeypatch, caplog):
    def full(*_args):
        raise OSError(28, "No space left on device")

    world.attach()
    world.md.write("md127", b"data")
    monkeypatch.setattr(stopped, "keep", full)
    world.detach()
    assert "cannot be written down" in caplog.text
    assert world.everything() == ([], [], [], [])


# -- the file -----------------------------------------------------------------------------------


def test_nonsense_is_dropped_and_strangers_are_not_touched(world, caplog):
    directory = pathlib.Path(world.ctx.locks.directory)
    directory.mkdir(exist_ok=True)
    bad, strange = directory / f"{stopped.FILE}{VOLUME}", directory / f"{stopped.FILE}x"
    for text in ("{", "[]", json.dumps({"tenant": "t", "publication": "x", "legs": []})):
        bad.write_text(text)
        strange.write_text("mine")
        assert known(world) == []
        assert not bad.exists()
        assert strange.exists()
        assert "is dropped" in caplog.text


def test_without_a_directory_nothing_is_kept(world):
    class Nowhere:
        directory = None

    word = stopped.Stopped(VOLUME, "", 1, ())
    stopped.keep(Nowhere, word)
    stopped.forget(Nowhere, VOLUME)
    assert stopped.known(Nowhere) == []
    Nowhere.directory = os.path.join(world.ctx.locks.directory, "none")
    assert stopped.known(Nowhere) == []
    assert stopped.marks(Nowhere) == frozenset()
    stopped.forget(Nowhere, VOLUME)
