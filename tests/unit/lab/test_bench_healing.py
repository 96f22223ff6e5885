# SPDX-License-Identifier: Apache-2.0
"""The host's half of the healing benchmark, and its stand-in for the provisioner."""

import types

import pytest

from bench import guest_io, guest_vendor, healing
from os_brick_nvmeof import props
from os_brick_nvmeof.agent import vendor

LEGS = ("leg-1", "leg-2")


def line(subject, redundant, case="re-add"):
    return {"case": case, "subject": subject, "round": 0, "seconds": {"redundant": redundant}}


def test_medians_with_their_range_and_multiples_of_the_floor():
    lines = [line("raw", each) for each in (0.1, 0.3, 0.2)]
    lines += [line("ours", 0.4), {"case": "re-add", "subject": "ours", "round": 1, "error": "x"}]
    (row,) = healing.table(lines)
    assert row["median"] == {"raw": 0.2, "ours": 0.4}
    assert row["range"]["raw"] == (0.1, 0.3)
    head, shown = healing.show([row], list(healing.SUBJECTS)).splitlines()
    assert head.split() == ["raw", "rounds", "ours", "rounds/raw", "ours/raw"]
    told = ["re-add:", "redundant", "0.200", "(0.100-0.300)", "-", "0.400", "(0.400-0.400)"]
    assert shown.split() == [*told, "-", "2.00"]


def test_the_grid_has_the_defaults_and_each_cell_once():
    labels = [healing.label(cell) for cell in healing.grid()]
    assert len(set(labels)) == len(labels)
    assert {"2/1/1", "2/1/4", "2/2/4", "2/1/4/failfast"} <= set(labels)


def test_a_frontier_tells_the_longest_waits_and_what_became_of_the_array():
    cell = healing.grid()[0]
    wait = {"cell": cell, "write error": "", "read error": ""}
    lines = [
        wait | {"what": "silent node 1", "detect": 3.0, "write": 3.1, "read": 0.1},
        wait | {"what": "silent node 2", "detect": 4.0, "write": 4.1, "read": 4.2},
        wait
        | {"what": "all silent for 3 s", "state": "broken", "degraded": "1", "write": 1, "read": 1}
        | {"write error": "Input/output error"},
        {"cell": cell, "what": "all silent for 6 s", "error": "TimeoutError: x"},
    ]
    _, shown = healing.frontier(lines).splitlines()
    assert shown.split()[:4] == [healing.label(cell), "3.0-4.0", "4.1", "4.2"]
    assert shown.endswith("3 s: broken, 1 missing, write failed")
    never = wait | {"what": "silent node 1", "detect": None, "write": 60.0, "read": 0.1}
    assert healing.frontier([never]).splitlines()[1].split()[1] == "never"


def test_the_plan_is_what_the_command_line_says(capsys):
    made = healing.plan(healing.parse(["--case", "replacement", "--subjects", "raw,ours"]))
    assert [case["name"] for case in made["cases"]] == ["replacement"]
    assert (made["subjects"], made["cells"]) == (["raw", "ours"], [])
    made = healing.plan(healing.parse(["--frontier", "--cell", "2/1/4"]))
    assert (made["subjects"], made["cases"]) == ([], [])
    assert [cell["fast_io_fail"] for cell in made["cells"]] == [4]
    with pytest.raises(SystemExit):
        healing.parse(["--cell", "9/9/9"])
    assert "unknown: 9/9/9" in capsys.readouterr().err


def test_waits_of_several_volumes_are_the_longest_of_them():
    one = {"longest": 1.0, "count": 2, "error": ""}
    told = guest_io.together(
        [("write", one), ("read", one), ("write", {"longest": 0.5, "count": 3, "error": "x"})]
    )
    assert told["write"] == {"longest": 1.0, "count": 5, "error": "x"}
    assert told["read"] == one


def test_a_window_begins_anew_each_time_it_is_asked():
    window = guest_io.Window("write", lambda number: None)
    window._longest = 3.0
    assert window.taken()["longest"] == 3.0
    assert window.taken()["longest"] == 0.0


class Node:
    """What the stand-in needs of a node."""

    def __init__(self, number):
        self.name, self.nqn, self.legs = f"node{number}", f"nqn.{number}", []
        self.portal = props.Portal(f"10.66.0.{number}", "4420", "tcp")

    def add(self, leg, size):
        self.legs.append((leg, size))


@pytest.fixture
def nodes():
    return [Node(number) for number in (1, 2, 3)]


@pytest.fixture
def provisioner(nodes, monkeypatch):
    made = guest_vendor.Provisioner(nodes, 5)
    # The agent asks as soon as something has changed.
    monkeypatch.setattr(
        made._changed, "wait_for", lambda check, seconds: check() or made.pull(None, 0.0) or True
    )
    legs = tuple(
        props.Leg(leg, node.nqn, (node.portal,), node.name)
        for leg, node in zip(LEGS, nodes, strict=False)
    )
    made.publish([props.Volume("v", "v", props.REPLICATED, 1, legs, True)], 10.0)
    return made


def test_a_lost_leg_is_replaced_on_the_third_node_by_the_provisioners_rules(provisioner, nodes):
    (volume,) = provisioner.pull(None, 0.0).volumes
    assert (volume.down_time, [leg.freshness for leg in volume.legs]) == (10.0, ["fresh"] * 2)
    provisioner.report_leg(volume, "leg-2", "Missing")
    new = provisioner.request_replacement(volume, "leg-2")
    assert nodes[2].legs == [(new, 5)]
    with pytest.raises(vendor.VendorError) as refused:
        provisioner.request_replacement(volume, "leg-2")
    assert refused.value.definite
    provisioner.report_array(volume, [("leg-1", "Available", 7), (new, "Available", 7)])
    provisioner.retire(volume, "leg-2")
    (volume,) = provisioner.pull(None, 0.0).volumes
    states = {leg.uuid: (leg.state, leg.freshness, leg.node) for leg in volume.legs}
    assert states["leg-2"] == ("Terminating", "stale", "node2")
    assert states[new] == ("Available", "fresh", "node3")
    provisioner.confirm(volume, volume.leg("leg-2"))
    (volume,) = provisioner.pull(None, 0.0).volumes
    assert [leg.uuid for leg in volume.legs] == ["leg-1", new]


def test_what_is_no_leg_is_refused_and_a_change_is_news(provisioner):
    gone = types.SimpleNamespace(uuid="gone")
    with pytest.raises(vendor.VendorError):
        provisioner.report_leg(gone, "leg-1", "Missing")
    since = provisioner.wait(None, 0).since
    assert not provisioner.wait(since, 0).look
    (volume,) = provisioner.pull(None, 0.0).volumes
    provisioner.report_leg(volume, "leg-1", "Missing")
    assert provisioner.wait(since, 0).look
    assert provisioner.task("x") is None
    with pytest.raises(vendor.VendorError):
        provisioner.report_task("x", state="RUNNING", status="", progress=0.0)


def test_an_agent_that_does_not_ask_is_told_of(provisioner, monkeypatch):
    monkeypatch.setattr(provisioner._changed, "wait_for", lambda check, seconds: False)
    with pytest.raises(TimeoutError):
        provisioner.publish([], 0.0)
