# SPDX-License-Identifier: Apache-2.0
"""Whether a database comes from what a node was told: for any history, by the rules alone."""

import copy
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumo_client import stamp
from kumo_client.schemas.node import Stamp as Memory
from kumo_client.stamp import Line, Stamp
from kumo_provisioner import stamps
from kumo_provisioner.db import models

D, A, B, C = (str(uuid.UUID(int=number)) for number in range(4))


def identity(**extra):
    values = {"id": 1, "uuid": D, "branch": A, "number": 0, "made": 1, "past": [], "away": []}
    return models.Identity(**values | {"doubt": "", "since": 0, "reason": ""} | extra)


def image(row):
    names = [one.name for one in models.Identity.__table__.columns]
    return copy.deepcopy({name: getattr(row, name) for name in names})


OPERATIONS = st.one_of(
    st.just(("start",)),
    st.just(("raise",)),
    st.tuples(st.just("ask"), st.integers(0, 2)),
    st.just(("copy",)),
    st.tuples(st.just("restore"), st.integers(0, 5)),
)


@given(st.lists(OPERATIONS, max_size=40))
def test_an_old_copy_is_noticed_and_nothing_else(operations):
    """A node takes over what comes from what it knows, as the real one does. What was asked under
    a stamp that is not in the copy is noticed; without a restore nothing ever is."""
    row, copies, nodes = identity(), [], {}
    # By node: how many asks under later stamps than the database that is in use has.
    unknown_to = set()
    for operation, *rest in operations:
        if operation == "start":
            stamps.fork(row)
        elif operation == "raise":
            row.number += 1
        elif operation == "ask":
            line = stamps.known(row).line.told()
            memory = nodes.get(rest[0])
            if memory is None or line.covers(memory):
                nodes[rest[0]] = line.now
        elif operation == "copy":
            copies.append(image(row))
        elif copies:
            saved = copies[rest[0] % len(copies)]
            ends = dict(map(tuple, saved["past"])) | {saved["branch"]: saved["number"]}
            unknown_to = {
                name
                for name, one in nodes.items()
                if one.branch not in ends or one.number > ends[one.branch]
            }
            row = identity(**copy.deepcopy(saved))
            stamps.fork(row)
        known = stamps.known(row)
        for name, one in nodes.items():
            verdict = known.judge(str(name), Memory.of(one))
            assert (verdict == stamps.OLDER) is (name in unknown_to)


@given(st.lists(st.integers(0, 9), max_size=30))
def test_starts_and_numbers_alone_are_never_a_doubt(raises):
    row, memories = identity(), []
    for count in raises:
        row.number += count
        memories.append(Memory.of(stamps.known(row).line.now))
        stamps.fork(row)
    verdicts = {stamps.known(row).judge("n", one) for one in memories}
    assert verdicts <= {stamps.FINE, stamps.BEHIND}


@pytest.mark.parametrize(
    ("memory", "verdict"),
    [
        (None, stamps.FINE),
        ((D, A, 5), stamps.FINE),
        ((D, A, 6), stamps.OLDER),
        ((D, B, 2), stamps.FINE),
        ((D, B, 3), stamps.OLDER),
        ((D, C, 0), stamps.OLDER),
        ((C, A, 1), stamps.OTHER),
    ],
)
def test_judgements(memory, verdict):
    known = stamps.known(identity(number=5, past=[[B, 2]], away=["left"]))
    told = None if memory is None else Memory.of(Stamp(*memory))
    assert known.judge("n", told) == verdict
    again = stamps.LEFT if verdict == stamps.OLDER else verdict
    assert known.judge("left", told) == again


def test_a_node_that_was_away_for_many_starts_is_told_apart():
    row = identity()
    memory = Memory.of(stamps.known(row).line.now)
    for _ in range(stamp.TOLD_MAX):
        assert stamps.known(row).judge("n", memory) == stamps.FINE
        stamps.fork(row)
    assert stamps.known(row).judge("n", memory) == stamps.BEHIND
    for _ in range(stamp.PAST_MAX):
        stamps.fork(row)
    assert len(row.past) == stamp.PAST_MAX


@given(
    st.uuids(),
    st.lists(st.tuples(st.uuids(), st.integers(0, stamp.NUMBER_MAX)), min_size=1, max_size=9),
)
def test_what_is_told_is_understood(database, ends):
    (branch, number), *past = [(str(one), count) for one, count in ends]
    line = Line(Stamp(str(database), branch, number), tuple(past))
    assert stamp.parse(str(line)) == line
