# SPDX-License-Identifier: Apache-2.0
"""The tables of the state machines are what the code does."""

import itertools

import pytest

from kumo_client.schemas.volume import REPLICA_TERMINATING
from kumo_provisioner import states
from kumo_provisioner.db import models
from kumo_provisioner.services import legs, volumes
from tests.unit.provisioner import conftest, stories
from tests.unit.provisioner.transitions import WATCH

STAYING = [state for state in states.REPLICA.states if state != REPLICA_TERMINATING]


def noted():
    """(machine, before, after) of everything that one report of a leg can change."""
    cases = itertools.product(
        STAYING, states.FRESHNESS.states, legs.REPORTED, (False, True), (False, True)
    )
    for state, freshness, told, proven, replicated in cases:
        leg = models.Replica(uuid="leg", state=state, freshness=freshness)
        legs.note(leg, told, 1, proven=proven, replicated=replicated)
        yield states.REPLICA, state, leg.state
        yield states.FRESHNESS, freshness, leg.freshness


def test_reports_move_a_replica_as_its_table_says():
    seen = {(machine.name, before, after) for machine, before, after in noted() if before != after}
    of_replicas = {
        ("Replica", one.before, one.after)
        for one in states.REPLICA.transitions
        if one.before in STAYING and one.after in STAYING
    }
    assert {one for one in seen if one[0] == "Replica"} == of_replicas
    assert {one[1:] for one in seen if one[0] != "Replica"} == {
        (models.BLANK, models.FRESH),
        (models.STALE, models.FRESH),
    }
    assert states.FRESHNESS.allows(models.BLANK, models.FRESH)
    assert states.FRESHNESS.allows(models.STALE, models.FRESH)


@pytest.mark.parametrize("machine", states.ALL, ids=lambda machine: machine.name)
def test_every_state_can_be_reached_and_left(machine):
    reached = {states.MADE}
    for _ in machine.states:
        reached |= {one.after for one in machine.transitions if one.before in reached}
    assert reached == {states.MADE, *machine.states, states.GONE}
    assert {one.before for one in machine.transitions} == {states.MADE, *machine.states}


def test_what_no_table_has_is_noticed_unless_a_test_writes_it(core, three, monkeypatch):
    uid = volumes.create(core, stories.T, conftest.volume())
    monkeypatch.setattr(states.StateMachine, "allows", lambda *_args: False)
    with core.db.write() as session:
        session.get_one(models.Volume, uid).array_state = models.ARRAY_OPEN
    assert WATCH.strange == set()
    stories.published(core, uid)
    strange = {
        ("Publication", states.MADE, models.PUBLISHING),
        ("Publication", models.PUBLISHING, models.PUBLISHED),
    }
    assert WATCH.strange >= strange
    WATCH.strange.clear()
