# SPDX-License-Identifier: Apache-2.0
"""Connection properties: ours, those of the KumoScale driver, and nonsense."""

import copy

import pytest

from os_brick_nvmeof import errors, props

V = "0b6fe5d1-0000-4000-8000-000000000001"
A = "0b6fe5d1-0000-4000-8000-00000000000a"
B = "0b6fe5d1-0000-4000-8000-00000000000b"
PORTALS = [("10.0.0.1", "4420", "TCP"), ("[fd00::1]", "4420", "RoCEv2")]


def stock(*legs):
    return {
        "vol_uuid": V,
        "alias": "volume-1",
        "volume_replicas": [
            {"vol_uuid": leg, "target_nqn": f"nqn.{leg[-1]}", "portals": PORTALS} for leg in legs
        ],
        "replica_count": len(legs),
    }


def ours():
    given = stock(A)
    given["replica_count"] = 2
    given["kumo"] = {
        "version": 1,
        "class": "replicated",
        "capacity": 3,
        "array_state": "open",
        "shared": True,
        "host_nqn": "nqn.host",
        "replicas": [
            {"uuid": A, "state": "Available", "node": "n1", "freshness": "fresh", "events": 7},
            {"uuid": B, "state": "Missing", "node": "n2", "freshness": "stale", "events": 5},
        ],
    }
    return given


def test_ours():
    given = ours()
    before = copy.deepcopy(given)
    volume = props.parse(given)
    assert given == before
    assert (volume.uuid, volume.alias, volume.size) == (V, "volume-1", 3 << 30)
    assert (volume.array_state, volume.shared, volume.told) == ("open", True, True)
    assert volume.host_nqn == "nqn.host"
    first, second = volume.legs
    assert first.portals == (
        props.Portal("10.0.0.1", "4420", "tcp"),
        props.Portal("fd00::1", "4420", "rdma"),
    )
    assert [str(one) for one in first.portals] == ["tcp://10.0.0.1:4420", "rdma://[fd00::1]:4420"]
    assert (second.freshness, second.events, second.nqn) == ("stale", 5, "")
    assert str(second) == f"leg {B} on node n2"


def test_the_plain_format_says_nothing_of_freshness():
    volume = props.parse(stock(A, B))
    assert volume.replicated
    assert volume.io_class == props.REPLICATED
    assert not volume.told
    assert {leg.freshness for leg in volume.legs} == {""}
    assert volume.array_state == ""
    assert props.is_kumoscale(stock(A))
    assert not props.is_ours(stock(A))
    assert not props.parse(stock(A)).replicated


def test_one_leg_that_is_left_of_an_array():
    given = ours()
    given["kumo"]["replicas"] = given["kumo"]["replicas"][:1]
    given["replica_count"] = 1
    assert props.parse(given).replicated
    # An array that somebody has made is never attached as one of its legs.
    given["kumo"]["class"] = props.PLAIN
    assert props.parse(given).replicated
    given["kumo"]["array_state"] = ""
    assert not props.parse(given).replicated


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p: p.update(kumo=[1]), "kumo"),
        (lambda p: p.update(vol_uuid="x"), "vol_uuid"),
        (lambda p: p.update(alias="a/b"), "alias"),
        (lambda p: p.update(alias="a" * 33), "alias"),
        (lambda p: p.update(alias=None), "alias"),
        (lambda p: p["kumo"].update(version=2), "version"),
        (lambda p: p["kumo"].update(array_state="odd"), "array_state"),
        (lambda p: p["kumo"]["replicas"][0].update(freshness="odd"), "freshness"),
        (lambda p: p["kumo"]["replicas"][0].update(uuid="odd"), "uuid"),
        (lambda p: p["kumo"].update(replicas=3), "replicas"),
        (lambda p: (p.update(volume_replicas=[]), p["kumo"].update(replicas=[])), "empty"),
        (lambda p: p["volume_replicas"][0].update(portals=["10.0.0.1"]), "portal"),
    ],
)
def test_nonsense_is_named(change, text):
    given = ours()
    change(given)
    with pytest.raises(errors.BadPropertiesError, match=text) as caught:
        props.parse(given)
    assert caught.value.code == "BadProperties"


def test_an_error_names_what_it_is_about():
    error = errors.StaleError(
        "old", volume=V, leg=A, node="n1", portal="tcp://10.0.0.1:4420", way_out="wait"
    )
    assert str(error) == (
        f"Stale: old (volume {V}, leg {A}, node n1, portal tcp://10.0.0.1:4420); wait"
    )
