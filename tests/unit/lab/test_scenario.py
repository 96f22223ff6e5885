# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest

from lab.errors import LabError, ScenarioFailedError, UsageError
from lab.scenario import Context, Needs, Registry, Step


def module(needs, **other):
    return SimpleNamespace(SUMMARY="what it shows", NEEDS=needs, run=lambda ctx: None, **other)


MODULES = {
    "tour": module(Needs(3, 1, openstack=True)),
    "small_one": module(Needs(1, 1)),
    "two_hosts": module(Needs(3, 2)),
    "broken": SimpleNamespace(SUMMARY="x"),
    "_helper": None,
}


@pytest.fixture
def registry():
    return Registry(MODULES, MODULES.__getitem__)


def test_names_are_those_of_the_files_with_dashes(registry):
    assert registry.names() == ["broken", "small-one", "tour", "two-hosts"]


def test_get(registry):
    scenario = registry.get("small-one")
    assert (scenario.name, scenario.summary) == ("small-one", "what it shows")
    assert (scenario.needs, scenario.run) == (Needs(1, 1), MODULES["small_one"].run)


def test_an_unknown_name_is_answered_with_the_known_ones(registry):
    with pytest.raises(UsageError, match="no scenario 'nix'") as caught:
        registry.get("nix")
    assert "small-one, tour" in caught.value.way_out


def test_a_module_that_is_no_scenario_is_named(registry):
    with pytest.raises(LabError, match="broken has no NEEDS, run"):
        registry.get("broken")


def test_all_starts_with_those_that_need_most():
    good = {name: item for name, item in MODULES.items() if name != "broken"}
    names = [scenario.name for scenario in Registry(good, good.__getitem__).all()]
    assert names == ["two-hosts", "tour", "small-one"]


def test_all_leaves_out_what_is_run_by_name_only():
    modules = {"quick": module(Needs()), "long_one": module(Needs(), IN_ALL=False)}
    registry = Registry(modules, modules.__getitem__)
    assert [scenario.name for scenario in registry.all()] == ["quick"]
    assert not registry.get("long-one").in_all
    assert registry.names() == ["long-one", "quick"]


def test_every_shipped_scenario_is_whole():
    registry = Registry()
    for name in registry.names():
        scenario = registry.get(name)
        assert scenario.summary
        assert "\n" not in scenario.summary
        assert isinstance(scenario.needs, Needs)


def test_needs():
    both = Needs(3, 1, openstack=True).union(Needs(1, 2))
    assert both == Needs(3, 2, openstack=True)
    assert str(both) == "3 storage, 2 compute, OpenStack"
    assert str(Needs(1, 1)) == "1 storage, 1 compute"


def test_steps_are_shown_and_counted(screen, clock):
    context = Context(None, screen, clock=clock)
    with context.step("create"):
        clock.now += 2
    context.note("1 GiB in 2 s")
    with pytest.raises(ScenarioFailedError, match="3 volumes left"), context.step("delete"):
        context.check(False, "3 volumes left")
    context.check([1], "not reached")
    assert context.steps == [Step("create", 2.0, True), Step("delete", 0.0, False)]
    assert [line.strip() for line in screen.text.splitlines()] == [
        "ok         2.0 s  create",
        "1 GiB in 2 s",
        "FAILED     0.0 s  delete",
    ]
