# SPDX-License-Identifier: Apache-2.0
"""Stories of the last word: what a host that has left tells of the array of a volume."""

import contextlib
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kumo_client import errors
from kumo_client.schemas.host import ArrayReport, HostProbe, LegReport, UnpublishRequest
from kumo_client.schemas.volume import ReplicaAdd
from kumo_provisioner import reconcile, settling
from kumo_provisioner.db import models
from kumo_provisioner.services import arrays, publish, replicas, volumes
from tests.unit.provisioner.conftest import HOST, NQN, volume
from tests.unit.provisioner.live import note_volume
from tests.unit.provisioner.stories import T, node_of, places, published, shown

OTHER = HostProbe(host_nqn=f"{NQN}-2", host_id="host-2")
HERE, LOST, HALF = "Available", "Missing", "Synchronizing"


@pytest.fixture
def made(core, three):
    return volumes.create(core, T, volume(replicas=2))


def attached(core, uid, host=HOST):
    """Publish, and report the open array; gives the number of the publication."""
    number = published(core, uid, host).publication
    assert number
    report(core, uid, 5, 5, host=host, state="open")
    return number


def report(core, uid, *counts, host=HOST, number=0, state="clean", states=(), legs=None):
    found = legs or list(places(core, uid))
    told = itertools.zip_longest(found, counts, states, fillvalue=HERE)
    request = ArrayReport(
        host_id=host.host_id,
        vol_id=uid,
        state=state,
        publication=number,
        legs=[LegReport(replica=leg, state=said, events=count) for leg, count, said in told],
    )
    return replicas.report_array(core, T, request)


def leave(core, uid, host=HOST):
    publish.unpublish(core, T, UnpublishRequest(vol_id=uid, host_id=host.host_id if host else None))


def known(core, uid):
    return [(one.replica_state, one.freshness, one.events) for one in places(core, uid).values()]


def test_a_host_that_has_left_tells_how_it_stopped_its_array(core, made):
    number = attached(core, made)
    assert published(core, made).publication == number
    with pytest.raises(errors.BusyError, match="still published"):
        report(core, made, 9, 9, number=number)
    leave(core, made)
    assert known(core, made) == [(HERE, "fresh", 0)] * 2
    for _ in range(2):
        assert report(core, made, 9, 9, number=number) == []
        assert known(core, made) == [(HERE, "fresh", 9)] * 2
    assert shown(core, made).array_state == "clean"
    # An older one of the same publication, whose request was under way for long.
    with pytest.raises(errors.ConflictError, match="10 before"):
        report(core, made, 8, 8, number=number)
    answer = published(core, made, OTHER)
    assert [one.events for one in answer.replicas] == [9, 9]
    assert answer.publication > number


def test_the_counter_may_be_one_less_than_it_was(core, made):
    """md takes the last rise back when the array is idle."""
    number = attached(core, made)
    leave(core, made)
    with pytest.raises(errors.ConflictError, match="was 5 before"):
        report(core, made, 3, 3, number=number)
    report(core, made, 4, 4, number=number)
    assert known(core, made) == [(HERE, "fresh", 4)] * 2


def test_a_leg_that_was_lost_at_the_end_is_reported_behind(core, made):
    number = attached(core, made)
    leave(core, made)
    report(core, made, 9, 7, number=number, states=(HERE, LOST))
    assert known(core, made) == [(HERE, "fresh", 9), (LOST, "stale", 7)]


def test_an_array_of_which_nobody_had_told_yet(core, made):
    number = published(core, made).publication
    leave(core, made)
    assert shown(core, made).array_state == "new"
    report(core, made, 9, 9, number=number)
    assert shown(core, made).array_state == "clean"


@pytest.mark.parametrize("again", [HOST, OTHER])
def test_nothing_is_taken_over_a_newer_publication(core, made, again):
    number = attached(core, made)
    leave(core, made)
    newer = published(core, made, again).publication
    for _ in range(2):
        with pytest.raises(errors.ConflictError, match="published to another host, or again"):
            report(core, made, 9, 9, number=number)
        # Also when that host has left.
        if shown(core, made).published_hosts:
            leave(core, made, again)
    assert known(core, made) == [(HERE, "fresh", 0)] * 2
    report(core, made, 9, 9, number=newer, host=again)


def test_nothing_is_taken_from_another_host(core, made):
    number = attached(core, made)
    leave(core, made)
    with pytest.raises(errors.ConflictError):
        report(core, made, 9, 9, number=number, host=OTHER)
    with pytest.raises(errors.ConflictError):
        report(core, made, 9, 9, number=number + 1)
    # The one that left before the last one did.
    first, last = attached(core, made), published(core, made, OTHER).publication
    leave(core, made)
    with pytest.raises(errors.ConflictError):
        report(core, made, 9, 9, number=first)
    leave(core, made, OTHER)
    with pytest.raises(errors.ConflictError):
        report(core, made, 9, 9, number=first)
    report(core, made, 9, 9, number=last, host=OTHER)


def test_who_was_cut_off_has_no_last_word(core, made):
    number = attached(core, made)
    leave(core, made, None)
    with pytest.raises(errors.ConflictError):
        report(core, made, 9, 9, number=number)
    assert shown(core, made).array_state == "open"


def test_nothing_is_taken_when_the_legs_have_changed(core, made):
    number = attached(core, made)
    before = list(places(core, made))
    leave(core, made)
    new = replicas.add(core, T, made, ReplicaAdd())
    with pytest.raises(errors.ConflictError, match=f"has replica {new}"):
        report(core, made, 9, 9, number=number, legs=before)
    replicas.terminate(core, T, made, new)
    report(core, made, 9, 9, number=number, legs=before)
    # One that is no more is told of as not known.
    replicas.terminate(core, T, made, before[1])
    assert report(core, made, 9, 9, number=number, legs=before) == [before[1]]


def test_a_spare_that_was_not_begun_stays_what_it_is(core, made):
    number = attached(core, made)
    new = replicas.add(core, T, made, ReplicaAdd())
    leave(core, made)
    states = {one: LOST if one == new else HERE for one in places(core, made)}
    report(core, made, *[9 * (one == HERE) for one in states.values()], number=number,
           states=states.values())  # fmt: skip
    assert known(core, made) == [(HERE, "fresh", 9)] * 2 + [("Unknown", "blank", 0)]


def test_nothing_is_taken_when_the_data_is_another(core, made):
    number = attached(core, made)
    leave(core, made)
    note_volume(core, made, unsettled=settling.REVERT)
    with pytest.raises(errors.KumoError, match="revert"):
        report(core, made, 9, 9, number=number)
    note_volume(core, made, unsettled="")
    with core.db.write() as session:
        arrays.forget(session.get_one(models.Volume, made))
    with pytest.raises(errors.ConflictError):
        report(core, made, 9, 9, number=number)


def test_nothing_is_taken_without_a_leg_in_sync(core, made):
    number = attached(core, made)
    leave(core, made)
    with pytest.raises(errors.ConflictError, match="none of its replicas"):
        report(core, made, 9, 9, number=number, states=(LOST, HALF))


def test_a_plain_volume_has_no_last_word(core, three):
    uid = volumes.create(core, T, volume())
    number = published(core, uid).publication
    leave(core, uid)
    with pytest.raises(errors.ConflictError):
        report(core, uid, 9, number=number)


def test_a_leg_whose_node_went_away_meanwhile_has_what_it_had(core, made):
    number = attached(core, made)
    leave(core, made)
    leg, _ = places(core, made)
    held = node_of(core, places(core, made)[leg]).state.replicas
    kept = held.pop(leg)
    reconcile.run(core)
    report(core, made, 9, 9, number=number)
    assert known(core, made) == [(LOST, "fresh", 9), (HERE, "fresh", 9)]
    held[leg] = kept
    reconcile.run(core)
    assert known(core, made) == [(HERE, "fresh", 9)] * 2


STEPS = st.lists(
    st.tuples(
        st.sampled_from(("publish", "unpublish", "cut", "write", "lose", "open", "word")),
        st.sampled_from((HOST, OTHER)),
        st.integers(0, 1),
    ),
    max_size=25,
)


class Story:
    """One host at a time has the array. It may lose a leg and tell nobody, and any word that was
    ever written down may arrive at any time."""

    def __init__(self, core):
        self.core = core
        self.uid = volumes.create(core, T, volume(f"v{next(NAMES)}", replicas=2))
        self.legs = list(places(core, self.uid))
        self.events, self.good = 1, set(self.legs)
        self.host, self.number, self.words = None, 0, []

    def states(self, good):
        return [HERE if leg in good else LOST for leg in self.legs]

    def step(self, what, host, leg):
        if what == "publish" and self.host is None:
            self.host, self.number = host, published(self.core, self.uid, host).publication
        elif self.host is not None:
            getattr(self, what, lambda leg: None)(leg)

    def unpublish(self, _leg):
        self.words.append((self.host, self.number, self.events, frozenset(self.good)))
        leave(self.core, self.uid, self.host)
        self.host = None

    def cut(self, _leg):
        leave(self.core, self.uid, None)
        self.host = None

    def write(self, _leg):
        self.events += 2

    def lose(self, leg):
        if len(self.good) == 2:
            self.good -= {self.legs[leg]}
            self.events += 2

    def open(self, _leg):
        counts, states = [self.events] * 2, self.states(self.good)
        report(self.core, self.uid, *counts, host=self.host, states=states, state="open")

    def say(self, word):
        host, number, events, good = word
        with contextlib.suppress(errors.ConflictError):
            report(
                self.core,
                self.uid,
                *[events] * 2,
                host=host,
                number=number,
                states=self.states(good),
            )

    def check(self):
        if self.host is None and shown(self.core, self.uid).array_state == "clean":
            for leg, one in places(self.core, self.uid).items():
                if one.events and one.freshness == "fresh":
                    assert leg in self.good
                    assert one.events == self.events


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS, data=st.data())
def test_counters_prove_only_what_is_true(core, three, steps, data):
    story = Story(core)
    for what, host, leg in steps:
        if what == "word" and story.words:
            story.say(data.draw(st.sampled_from(story.words)))
        story.step(what, host, leg)
        story.check()


NAMES = itertools.count()
