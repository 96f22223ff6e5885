# SPDX-License-Identifier: Apache-2.0
"""Placement: what holds for every fleet and every request."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_provisioner import placement
from kumo_provisioner.placement import Ask, Candidate

NAMES = st.sampled_from(["", "a", "b", "c"])
STATES = st.sampled_from(["Available", "Available", "Available", "Unavailable"])


@st.composite
def fleets(draw):
    count = draw(st.integers(0, 7))
    return [
        Candidate(
            backend_id=f"node-{number}",
            state=draw(STATES),
            total=draw(st.integers(0, 40)),
            charged=draw(st.integers(0, 40)),
            rack=draw(NAMES),
            zone=draw(NAMES),
            region=draw(NAMES),
        )
        for number in range(count)
    ]


ASKS = st.builds(
    Ask,
    replicas=st.integers(1, 3),
    charge=st.integers(0, 30),
    zones=st.lists(NAMES, max_size=2),
    racks=st.lists(NAMES, max_size=2),
    regions=st.lists(NAMES, max_size=2),
    same_rack_allowed=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(fleets(), ASKS)
def test_what_is_chosen_fits_and_what_is_refused_does_not(fleet, ask):
    known = {one.backend_id: one for one in fleet}
    try:
        chosen = [known[one] for one in placement.place(fleet, ask)]
    except errors.NoSpaceError as exc:
        fitting = [one for one in fleet if placement.refusal(one, ask) is None]
        racks = {one.rack or one.backend_id for one in fitting}
        room = len(fitting) if ask.same_rack_allowed else len(racks)
        assert room < ask.replicas
        told = exc.details.get("refusals", {})
        assert len(told) >= len(fleet) - room
        return
    assert len({one.backend_id for one in chosen}) == ask.replicas == len(chosen)
    for one in chosen:
        assert one.state == "Available"
        assert one.charged + ask.charge <= one.total
        for value, wanted in ((one.zone, ask.zones), (one.rack, ask.racks)):
            assert not value or not [name for name in wanted if name] or value in wanted
    racks = [one.rack for one in chosen if one.rack]
    assert ask.same_rack_allowed or len(set(racks)) == len(racks)


@settings(max_examples=100, deadline=None)
@given(fleets(), ASKS, st.randoms())
def test_the_order_of_the_fleet_does_not_matter(fleet, ask, random):
    def placed(nodes):
        try:
            return placement.place(nodes, ask)
        except errors.NoSpaceError:
            return None

    mixed = list(fleet)
    random.shuffle(mixed)
    assert placed(fleet) == placed(mixed)


def node(backend_id, **values):
    return Candidate(
        backend_id, values.pop("state", "Available"), 100 * GIB, **{"charged": 0} | values
    )


def test_the_relatively_emptiest_node_comes_first():
    fleet = [node("full", charged=50 * GIB), node("empty"), node("half", charged=20 * GIB)]
    assert placement.place(fleet, Ask(2, GIB)) == ["empty", "half"]


def test_a_zone_list_binds_only_nodes_that_have_a_zone():
    plain, nova, other = node("plain"), node("nova", zone="nova"), node("other", zone="z1")
    ask = Ask(1, GIB, zones=["nova"])
    assert placement.refusal(plain, ask) is None
    assert placement.refusal(nova, ask) is None
    assert placement.refusal(other, ask) == "its zone z1 is not one of nova"
    assert placement.refusal(other, Ask(1, GIB)) is None


def test_a_refusal_names_the_reason_of_every_node():
    fleet = [
        node("a", state="Unavailable"),
        node("b", charged=100 * GIB, name="beta"),
        node("c", zone="z1"),
        node("d", rack="r1"),
        node("e", rack="r1"),
    ]
    with pytest.raises(errors.NoSpaceError) as caught:
        placement.place(fleet, Ask(3, GIB, zones=["nova"]))
    assert caught.value.details["refusals"] == {
        "a": "its state is Unavailable",
        "b": "1.00 GiB are needed and 0.00 of 100.00 GiB are free",
        "c": "its zone z1 is not one of nova",
        "e": "rack r1 holds another replica",
    }
    assert "beta: 1.00 GiB" in caught.value.description


def test_without_nodes_the_error_says_so():
    with pytest.raises(errors.NoSpaceError, match="no storage node is registered"):
        placement.place([], Ask(1, GIB))


@pytest.mark.parametrize(
    ("kind", "ratio", "charged"), [("THICK", 4.0, 100), ("THIN", 4.0, 25), ("THIN", 3.0, 34)]
)
def test_charge(kind, ratio, charged):
    assert placement.charge(100, kind, ratio) == charged
