# SPDX-License-Identifier: Apache-2.0
"""The host's half of the attach benchmark: its plan and its table."""

import pytest

from bench import attach
from os_brick_nvmeof import props


@pytest.fixture(scope="module")
def plan():
    return attach.Plan(attach.KINDS, list(attach.SUBJECTS), 3)


def test_every_volume_has_legs_of_its_own_that_are_exported(plan):
    targets = {target["uuid"]: target for target in plan.targets}
    assert len(targets) == len(plan.targets)
    seen = set()
    for case in plan.cases:
        legs = [leg for data in case["volumes"] for leg in props.parse(data).legs]
        assert [leg.uuid for leg in legs] == case["legs"]
        for leg in legs:
            assert targets[leg.uuid]["nqn"] == leg.nqn
            assert targets[leg.uuid]["addresses"] == [portal.address for portal in leg.portals]
            assert targets[leg.uuid]["size"] == case["size"] >= 1 << 30
            seen.add(leg.uuid)
    assert seen == set(targets)


def test_cases_are_what_their_names_say(plan):
    cases = {case["name"]: case for case in plan.cases}
    assert cases["2 portals"]["multipath"]
    assert len(cases["3 legs"]["volumes"][0]["volume_replicas"]) == 3
    assert len(cases["8 volumes of 2 legs at once"]["volumes"]) == 8
    assert cases["extend, 2 legs"]["grown"] >= 2 << 30
    shared = cases["16 volumes at once, one subsystem"]
    nqns = {leg["target_nqn"] for item in shared["volumes"] for leg in item["volume_replicas"]}
    assert len(nqns) == 1
    assert shared["subjects"] == ["stock", "ours"]
    assert cases["1 portal"]["subjects"] == list(attach.SUBJECTS)
    aliases = [props.parse(item).alias for case in plan.cases for item in case["volumes"]]
    assert len(set(aliases)) == len(aliases)


def line(subject, round_, seconds, what="connect"):
    return {"case": "c", "what": what, "subject": subject, "round": round_, "seconds": seconds}


def test_medians_without_the_first_round_and_multiples_of_the_floor():
    lines = [line("stock", 0, 99.0), line("raw", 0, 99.0), {"case": "c", "error": "x"}]
    lines += [line("stock", n, s) for n, s in ((1, 0.3), (2, 0.1), (3, 0.2))]
    lines += [line("raw", 1, 0.1), line("stock", 1, 0.5, "connect again")]
    first, second = attach.table(lines)
    assert first["median"] == {"stock": 0.2, "raw": 0.1}
    assert first["count"] == {"stock": 3, "raw": 1}
    shown = attach.show([first, second], ["stock", "raw", "fabrics"]).splitlines()
    assert shown[0].split() == ["stock", "raw", "fabrics", "stock/raw", "fabrics/raw"]
    assert shown[1].split() == ["c:", "connect", "0.200", "0.100", "-", "2.00", "-"]
    assert shown[2].split() == ["c:", "connect", "again", "0.500", "-", "-", "-", "-"]


def test_the_command_line(capsys):
    options = attach.parse(["--subjects", "stock,raw", "--case", "1 portal"])
    assert options.subjects == ["stock", "raw"]
    with pytest.raises(SystemExit):
        attach.parse(["--subjects", "mine"])
    assert "unknown: mine" in capsys.readouterr().err
