# SPDX-License-Identifier: Apache-2.0
"""Placement: what holds for every fleet and every request."""

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_provisioner import placement
from kumo_provisioner.placement import Ask, Candidate, Rules

NAMES = st.sampled_from(["", "a", "b", "c"])
MOSTLY = {
    "state": ["Available"] * 5 + ["Unavailable"],
    "mode": [""] * 6 + ["Draining", "Maintenance"],
    "cordoned": [False] * 6 + [True],
    "pool_state": ["ok"] * 6 + ["full", "readonly", "failed"],
    "spans": [False, False, True],
    "node_max_iops": [0, 0, 20],
    "node_max_bw": [0, 0, 20],
    "used_at": [0, 1000],
}
NUMBERS = ("total", "used", "charged", "max_iops", "max_bw", "sold_iops", "sold_bw", "iops", "bw")
SMALL = st.integers(0, 30)


def some(draw, name):
    return draw(st.sampled_from(MOSTLY[name]))


@st.composite
def fleets(draw, most=6):
    found = []
    for number in range(draw(st.integers(0, most))):
        node = {name: draw(NAMES) for name in ("rack", "zone", "region")}
        node |= {name: some(draw, name) for name in ("state", "mode", "cordoned")}
        node |= {name: some(draw, name) for name in ("node_max_iops", "node_max_bw")}
        node |= {"node_sold_iops": draw(SMALL), "node_sold_bw": draw(SMALL)}
        for pool in range(draw(st.integers(1, 3))):
            values = {name: some(draw, name) for name in ("pool_state", "spans", "used_at")}
            values |= {name: draw(SMALL) for name in NUMBERS}
            found.append(Candidate(f"node-{number}", f"pool-{pool}", **node, **values))
    return found


ASKS = st.builds(
    Ask,
    replicas=st.integers(1, 3),
    charge=st.integers(0, 20),
    iops=st.sampled_from([0, 0, 5]),
    bw=st.sampled_from([0, 0, 5]),
    zones=st.lists(NAMES, max_size=2),
    racks=st.lists(NAMES, max_size=2),
    regions=st.lists(NAMES, max_size=2),
    same_rack_allowed=st.booleans(),
    allow_span=st.booleans(),
    backend_id=st.sampled_from(["", "", "", "node-1"]),
    taken=st.frozensets(st.sampled_from(["node-0", "node-2"]), max_size=1),
    taken_racks=st.frozensets(NAMES, max_size=1),
)
RULES = st.builds(
    Rules, max_fill=st.sampled_from([0.5, 1.0]), hot=st.sampled_from([0.5, 1.0, 9.0]),
    fresh_since=st.sampled_from([0, 500]), assumed_iops=st.sampled_from([0, 40]),
    assumed_bw=st.sampled_from([0, 40]),
)  # fmt: skip


def may(pool, fleet, ask, rules):
    """The rules once more, told in another way."""
    node = [one for one in fleet if one.backend_id == pool.backend_id]
    fresh = [one for one in node if one.used_at >= rules.fresh_since]

    def in_use(used, limit):
        return used > rules.hot * limit if limit else False

    def listed(value, wanted):
        return not value or value in wanted or not any(wanted)

    return all(
        [
            pool.state == "Available" and not pool.mode and not pool.cordoned,
            pool.pool_state == "ok",
            listed(pool.zone, ask.zones),
            listed(pool.rack, ask.racks),
            listed(pool.region, ask.regions),
            ask.backend_id in ("", pool.backend_id),
            pool.backend_id not in ask.taken,
            ask.same_rack_allowed or not pool.rack or pool.rack not in ask.taken_racks,
            ask.allow_span or not pool.spans,
            not ask.charge or pool.charged + ask.charge <= pool.total,
            pool.used <= rules.max_fill * pool.total,
            not ask.iops or pool.sold_iops + ask.iops <= pool.max_iops,
            not ask.bw or pool.sold_bw + ask.bw <= pool.max_bw,
            not ask.iops
            or not pool.node_max_iops
            or pool.node_sold_iops + ask.iops <= pool.node_max_iops,
            not ask.bw or not pool.node_max_bw or pool.node_sold_bw + ask.bw <= pool.node_max_bw,
            pool not in fresh or not in_use(pool.iops, pool.max_iops),
            pool not in fresh or not in_use(pool.bw, pool.max_bw),
            not in_use(
                sum(one.iops for one in fresh),
                pool.node_max_iops or sum(one.max_iops for one in node),
            ),
            not in_use(
                sum(one.bw for one in fresh),
                pool.node_max_bw or sum(one.max_bw for one in node),
            ),
        ]
    )


def apart(chosen, ask):
    racks = [one.rack for one in chosen if one.rack]
    nodes = {one.backend_id for one in chosen}
    return len(nodes) == len(chosen) and (ask.same_rack_allowed or len(racks) == len(set(racks)))


@settings(max_examples=300, deadline=None)
@given(fleets(), ASKS, RULES)
def test_a_place_is_found_exactly_if_there_is_one(fleet, ask, rules):
    fitting = [pool for pool in fleet if may(pool, fleet, ask, rules)]
    possible = any(apart(some, ask) for some in itertools.combinations(fitting, ask.replicas))
    try:
        chosen = placement.place(fleet, ask, rules)
    except errors.NoSpaceError as exc:
        assert not possible
        refusals = exc.details.get("refusals", [])
        told = {one["backendId"] for one in refusals}
        # Whoever is not refused would have got one of the replicas.
        assert len({one.backend_id for one in fleet} - told) < ask.replicas
        assert all(one["refusedBy"] in placement.FILTERS for one in refusals)
        return
    assert possible
    assert len(chosen) == ask.replicas
    assert apart(chosen, ask)
    assert all(one in fitting for one in chosen)
    best = min(fitting, key=lambda one: (placement.weight(one, ask, rules), one))
    assert chosen[0] == best


@settings(max_examples=150, deadline=None)
@given(fleets(), ASKS, RULES, st.randoms())
def test_the_order_of_the_fleet_does_not_matter(fleet, ask, rules, random):
    def placed(pools):
        try:
            return placement.place(pools, ask, rules)
        except errors.NoSpaceError:
            return None

    mixed = list(fleet)
    random.shuffle(mixed)
    assert placed(fleet) == placed(mixed)


@settings(max_examples=150, deadline=None)
@given(fleets(), ASKS, RULES)
def test_verdicts_tell_of_every_node_what_place_does(fleet, ask, rules):
    found = placement.verdicts(fleet, ask, rules)
    assert {one.backend_id for one in found} == {one.backend_id for one in fleet}
    try:
        chosen = {(one.backend_id, one.pool) for one in placement.place(fleet, ask, rules)}
    except errors.NoSpaceError:
        chosen = set()
    assert {(one.backend_id, one.pool) for one in found if one.chosen} == chosen
    for one in found:
        assert bool(one.refused_by) == bool(one.reason)
        assert not (one.chosen and one.refused_by)


def node(backend_id, **values):
    return Candidate(backend_id, **{"total": 100 * GIB} | values)


def ids(chosen):
    return [one.backend_id for one in chosen]


def test_the_relatively_emptiest_node_comes_first():
    fleet = [node("full", charged=50 * GIB), node("empty"), node("half", charged=20 * GIB)]
    assert ids(placement.place(fleet, Ask(2, GIB))) == ["empty", "half"]


def test_guarantees_sold_and_use_weigh_as_well_as_capacity():
    known = {"max_iops": 1000, "max_bw": 1000, "used_at": 10}
    fleet = [
        node("a", **known, charged=30 * GIB),
        node("b", **known, sold_iops=400),
        node("c", **known, bw=500),
    ]
    assert ids(placement.place(fleet, Ask(3, GIB))) == ["a", "b", "c"]
    weighed = Rules(capacity=10.0, guarantees=0.0, use=1.0)
    assert ids(placement.place(fleet, Ask(3, GIB), weighed)) == ["b", "c", "a"]
    # What was told long ago is not known any more.
    assert ids(placement.place(fleet, Ask(1, GIB), Rules(fresh_since=11))) == ["c"]


def test_what_is_really_occupied_weighs_where_it_is_more_than_what_is_sold():
    fleet = [
        node("filled", charged=10 * GIB, used=60 * GIB),
        node("sold", charged=50 * GIB, used=GIB),
        node("neither", charged=20 * GIB, used=20 * GIB),
    ]
    assert ids(placement.place(fleet, Ask(3, GIB))) == ["neither", "sold", "filled"]


def test_a_busy_pool_of_which_nobody_knows_what_it_delivers_comes_later_and_is_not_refused():
    fleet = [
        node("busy", iops=90_000, used_at=10),
        node("streaming", bw=700_000, used_at=10),
        node("idle", charged=GIB, iops=10, used_at=10),
    ]
    assumed = Rules(assumed_iops=100_000, assumed_bw=1_000_000, hot=0.5)
    assert ids(placement.place(fleet, Ask(3, GIB), assumed)) == ["idle", "streaming", "busy"]
    with pytest.raises(errors.NoSpaceError, match="nobody declared"):
        placement.place(fleet, Ask(1, GIB, iops=1), assumed)
    # What is known counts, not what is assumed.
    known = [fleet[0]._replace(max_iops=10_000_000), fleet[1]]
    assert ids(placement.place(known, Ask(2, GIB), assumed)) == ["busy", "streaming"]
    # What was told long ago is not known any more, and nothing may be assumed.
    for rules in (dataclasses.replace(assumed, fresh_since=11), Rules()):
        assert ids(placement.place(fleet, Ask(3, GIB), rules))[-1] == "idle"


def test_the_emptiest_pool_of_a_node_is_taken():
    fleet = [node("a", pool="x", charged=GIB), node("a", pool="y")]
    assert placement.place(fleet, Ask(1, GIB))[0].pool == "y"


def test_a_zone_list_binds_only_nodes_that_have_a_zone():
    fleet = [node("plain"), node("nova", zone="nova"), node("other", zone="z1")]
    by_id = {one.backend_id: one for one in placement.verdicts(fleet, Ask(1, GIB, zones=["nova"]))}
    assert not by_id["plain"].refused_by
    assert not by_id["nova"].refused_by
    assert by_id["other"].refused_by == "zone"
    assert by_id["other"].reason == "its zone z1 is not one of nova"
    assert not any(one.refused_by for one in placement.verdicts(fleet, Ask(1, GIB)))


REFUSED = {
    "state": ({"state": "Unavailable"}, "its state is Unavailable"),
    "mode": ({"mode": "Draining"}, "it is Draining"),
    "cordon": ({"cordoned": 1}, "it is cordoned"),
    "backend": ({}, "another node is asked for"),
    "replica": ({"backend_id": "taken"}, "it holds a replica of the volume"),
    "zone": ({"zone": "z1"}, "its zone z1 is not one of nova"),
    "rack": ({"rack": "r1"}, "its rack r1 is not one of r9"),
    "region": ({"region": "e"}, "its region e is not one of w"),
    "same-rack": ({"rack": "r9"}, "rack r9 holds another replica"),
    "node-guarantee": (
        {"node_max_iops": 9, "node_sold_iops": 8},
        "5 IOPS are to be guaranteed and 1 of 9 are left",
    ),
    "node-hot": (
        {"node_max_iops": 10, "iops": 9},
        "90% of what it delivers is in use, more than 80%",
    ),
    "pool-state": ({"pool_state": "full"}, "the pool's state is full"),
    "span": ({"spans": 1}, "the pool lies on several disks"),
    "capacity": (
        {"charged": 100 * GIB},
        "1.00 GiB are needed and 0.00 of 100.00 GiB are free",
    ),
    "fill": ({"used": 95 * GIB}, "95% of it is occupied, more than 90%"),
    "guarantee": (
        {"max_bw": 0},
        "5 KB/s are to be guaranteed and nobody declared what the pool delivers",
    ),
    "hot": ({"bw": 90, "node_max_bw": 1000}, "90% of what it delivers is in use, more than 80%"),
}


@pytest.mark.parametrize("name", placement.FILTERS)
def test_each_filter_refuses_under_its_name(name):
    values, reason = REFUSED[name]
    one = Candidate(
        **{"backend_id": "a", "total": 100 * GIB, "max_iops": 100, "max_bw": 100} | values
    )
    ask = Ask(
        1,
        GIB,
        5,
        5,
        zones=["nova"],
        racks=["r9"] if name == "rack" else [],
        regions=["w"],
        allow_span=False,
        backend_id="b" if name == "backend" else "",
        taken=frozenset({"taken"}),
        taken_racks=frozenset({"r9"}),
    )
    rules = Rules(max_fill=0.9, hot=0.8)
    with pytest.raises(errors.NoSpaceError) as caught:
        placement.place([one], ask, rules)
    told = caught.value.details["refusals"]
    assert [(each["refusedBy"], each["reason"]) for each in told] == [(name, reason)]
    assert f"{name}: {reason}" in caught.value.description


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
    told = {one["backendId"]: one["refusedBy"] for one in caught.value.details["refusals"]}
    assert told == {"a": "state", "b": "capacity", "c": "zone", "e": "same-rack"}
    assert "beta pool pool: capacity: 1.00 GiB" in caught.value.description


def test_a_refusal_by_a_large_fleet_is_a_short_text_and_full_details():
    fleet = [node(f"n{number:03}", cordoned=number % 2, mode="Draining") for number in range(200)]
    with pytest.raises(errors.NoSpaceError, match="and 180 more, refused by mode 180") as caught:
        placement.place(fleet, Ask(1, GIB))
    assert len(caught.value.details["refusals"]) == 200


def test_growing_asks_only_what_cannot_be_helped():
    busy = node("a", cordoned=1, mode="Draining", iops=99, max_iops=100, spans=1, used=100 * GIB)
    assert placement.growing(busy, Ask(1, GIB)) is None
    assert placement.growing(busy._replace(charged=100 * GIB), Ask(1, 0)) is None
    for values, name in (
        ({"charged": 100 * GIB}, "capacity"),
        ({"sold_iops": 99}, "guarantee"),
        ({"pool_state": "failed"}, "pool-state"),
        ({"node_max_iops": 1}, "node-guarantee"),
    ):
        assert placement.growing(busy._replace(**values), Ask(1, GIB, 5)).refused_by == name


def test_without_nodes_the_error_says_so():
    with pytest.raises(errors.NoSpaceError, match="no storage node is registered"):
        placement.place([], Ask(1, GIB))


@pytest.mark.parametrize(
    ("kind", "ratio", "charged"), [("THICK", 4.0, 100), ("THIN", 4.0, 25), ("THIN", 3.0, 34)]
)
def test_charge(kind, ratio, charged):
    assert placement.charge(100, kind, ratio) == charged
