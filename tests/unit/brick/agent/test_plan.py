# SPDX-License-Identifier: Apache-2.0
"""Single situations, and what is planned in them."""

import dataclasses

import pytest

from os_brick_nvmeof.agent import actions, judge, model, plan, remember
from os_brick_nvmeof.agent.model import Place
from os_brick_nvmeof.conf import TimeOuts
from tests.fakes.agent_world import FOREIGN, LIMITS, RIGHT, VOLUME, World


def planned(world, memory=None, limits=LIMITS):
    seen, wanted = world.seen(), world.wanted()
    memory = remember.look(memory or model.Memory(), wanted, seen, world.now, limits)
    return memory, plan.make(wanted, seen, memory, world.now, limits)


def kinds(made):
    return [action.kind for action in made.actions]


def notes(made):
    return " | ".join(note.text for note in made.notes)


@pytest.fixture
def world():
    found = World()
    found.controllers = dict.fromkeys(found.controllers, RIGHT)
    for record in found.records:
        record.events = found.version
    return found


@pytest.fixture
def leg(world):
    return next(iter(world.members))


def lose(world, leg):
    world.up[world.disks[leg].node] = False
    world.write()


def test_the_loss_of_a_leg_is_reported_before_anything_else(world, leg):
    lose(world, leg)
    _, made = planned(world)
    assert kinds(made) == ["ReportArray"]
    assert dict((uuid, state) for uuid, state, _ in made.actions[0].legs)[leg] == "Missing"
    assert "no live path to node n0" in notes(made)


def test_an_idle_array_is_told_of_a_dead_path_after_a_while(world, leg):
    world.link["n0"] = False
    memory, made = planned(world)
    assert kinds(made) == []
    world.now += LIMITS.fail_after
    _, made = planned(world, memory)
    assert kinds(made) == ["FailLeg"]


def test_a_leg_that_takes_the_next_writes_alone_is_not_called_missing(world, leg):
    other = list(world.members)[1]
    world.up["n0"] = world.up["n1"] = False
    memory, _ = planned(world)
    world.now += 60
    memory, made = planned(world, memory)
    assert "ReportArray" not in kinds(made)
    # One comes back, takes writes, and is lost before anybody can tell.
    world.up["n1"] = True
    world.write()
    world.up["n1"] = False
    _, made = planned(world, memory)
    (told,) = [one for one in made.actions if one.kind == "ReportArray"]
    states = {uuid: (state, count) for uuid, state, count in told.legs}
    assert states[leg][0] == "Missing"
    assert states[other][0] == "Available"
    assert states[other][1] > states[leg][1]


@pytest.mark.parametrize("state", ["read-auto", "readonly", "inactive"])
def test_an_array_that_is_not_written_to_says_nothing(world, leg, state):
    lose(world, leg)
    world.state = state
    assert kinds(planned(world)[1]) == []


def test_a_broken_array_is_assembled_anew_once_its_legs_are_back(world, leg):
    world.state = "broken"
    world.members[leg] = Place.FAULTY
    world.link["n0"] = False
    memory, made = planned(world)
    assert "the kernel takes no more writes" in notes(made)
    assert kinds(made) == []
    world.link["n0"] = True
    assert kinds(planned(world, memory)[1]) == ["Restart"]
    world.records[0].state = "Missing"
    world.link["n0"] = False
    assert kinds(planned(world, memory)[1]) == ["Restart"]
    world.link["n1"] = False
    assert kinds(planned(world, memory)[1]) == []


def test_a_broken_array_that_another_host_has_too_is_left_alone(world):
    world.state, world.shared = "broken", True
    assert kinds(planned(world)[1]) == []


def test_of_two_hosts_the_one_that_sees_a_leg_fail_tells(world, leg):
    world.shared = True
    world.records[0].state, world.records[0].freshness = "Missing", "stale"
    assert kinds(planned(world)[1]) == []
    world.records[0].state, world.records[0].freshness = "Available", "fresh"
    lose(world, leg)
    (told,) = planned(world)[1].actions
    assert [state for _, state, _ in told.legs] == ["Missing", "Available"]


def test_a_leg_of_a_volume_that_two_hosts_have_is_left_in(world, leg):
    world.shared = True
    world.link["n0"] = False
    memory, _ = planned(world)
    world.now += 60
    assert kinds(planned(world, memory)[1]) == []


def test_no_leg_is_failed_while_the_other_is_not_in_sync(world, leg):
    world.members[leg] = Place.SYNCING
    world.left[leg] = 9
    other = list(world.members)[1]
    world.up[world.disks[other].node] = False
    memory, _ = planned(world)
    world.now += 60
    assert "FailLeg" not in kinds(planned(world, memory)[1])


def test_a_replacement_is_asked_for_once_the_time_is_over(world, leg):
    lose(world, leg)
    memory, _ = planned(world)
    world.now += world.down_time - 1
    assert "it is replaced in 1 s" in notes(planned(world, memory)[1])
    world.now += 1
    memory, made = planned(world, memory)
    asked = made.actions[-1]
    assert (asked.kind, asked.leg) == ("AskReplacement", leg)
    memory = remember.begun(memory, asked, world.now)
    _, made = planned(world, memory)
    assert "AskReplacement" not in kinds(made)
    assert "a replacement was asked for" in notes(made)


def test_it_is_asked_for_again_when_nothing_came_of_it(world, leg):
    lose(world, leg)
    memory, _ = planned(world)
    world.now += 100
    memory, made = planned(world, memory)
    memory = remember.begun(memory, made.actions[-1], world.now)
    memory = remember.failed(memory, made.actions[-1], world.now, "lost", definite=False)
    world.now += LIMITS.ask_again - 1
    assert "AskReplacement" not in kinds(planned(world, memory)[1])
    world.now += 1
    assert "AskReplacement" in kinds(planned(world, memory)[1])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda world: setattr(world, "down_time", 0.0), "never replaced"),
        (lambda world: world.modes.update(n0="Maintenance"), "node n0 is in maintenance"),
        (lambda world: setattr(world, "shared", True), "another host has it as well"),
        (lambda world: setattr(world, "state", "read-auto"), "nothing may be written"),
        (lambda world: world.blind.add("members"), "could not be told"),
    ],
)
def test_why_a_lost_leg_is_not_replaced(world, leg, change, text):
    lose(world, leg)
    change(world)
    memory, _ = planned(world)
    world.now += 1000
    _, made = planned(world, memory)
    assert {"AskReplacement", "ReAdd", "AddSpare"} & set(kinds(made)) == set()
    assert text in notes(made)


def back(world, leg):
    lose(world, leg)
    world.up[world.disks[leg].node] = True


def test_a_leg_that_returns_is_put_back(world, leg):
    back(world, leg)
    _, made = planned(world)
    (added,) = [action for action in made.actions if action.kind == "ReAdd"]
    assert (added.leg, added.device, added.name) == (leg, world.device(leg), "md127")


@pytest.mark.parametrize(
    ("kind", "array", "text"),
    [
        (model.OTHER, "", "refused: it holds other data"),
        (model.ARRAY, FOREIGN, f"refused: it holds array {FOREIGN}"),
    ],
)
def test_a_leg_that_was_tampered_with_is_refused(world, leg, kind, array, text):
    back(world, leg)
    world.disks[leg].kind, world.disks[leg].array = kind, array
    _, made = planned(world)
    assert {"ReAdd", "AddSpare"} & set(kinds(made)) == set()
    assert text in notes(made)


def test_what_cannot_be_told_is_not_put_back(world, leg):
    back(world, leg)
    world.blind.add("superblocks")
    _, made = planned(world)
    assert "what is on it could not be told" in notes(made)
    assert "ReAdd" not in kinds(made)


def test_a_namespace_of_another_uuid_is_not_the_leg(world, leg):
    back(world, leg)
    seen = world.seen()
    swapped = tuple(
        dataclasses.replace(one, uuid=FOREIGN) if one.uuid == leg else one
        for one in seen.namespaces
    )
    seen = dataclasses.replace(seen, namespaces=swapped)
    made = plan.make(world.wanted(), seen, model.Memory(), world.now, LIMITS)
    assert "ReAdd" not in kinds(made)
    assert "does not show its namespace" in notes(made)


@pytest.mark.parametrize(("state", "asked"), [("Available", True), ("Unavailable", False)])
def test_a_leg_on_a_node_that_exports_nothing_to_this_host_yet(world, leg, state, asked):
    """It refuses connections; whoever only connects waits for a round of the provisioner."""
    back(world, leg)
    node = world.disks[leg].node
    world.disks[leg].exported = False
    world.controllers.pop(node)
    # As a leg that md never had.
    world.members.pop(leg)
    wanted = world.wanted()
    wanted = dataclasses.replace(wanted, nodes={**wanted.nodes, node: state})
    made = plan.make(wanted, world.seen(), model.Memory(), world.now, LIMITS)
    assert ("Export" in kinds(made)) is asked
    stale = dataclasses.replace(wanted, stale=True)
    made = plan.make(stale, world.seen(), model.Memory(), world.now, LIMITS)
    assert "Export" not in kinds(made)


def test_a_leg_that_md_dropped_and_the_kernel_has_lost_is_looked_for(world, leg):
    lose(world, leg)
    world.up["n0"], world.disks[leg].exported = True, False
    assert world.members[leg] is Place.FAULTY
    assert "Export" in kinds(planned(world)[1])
    world.disks[leg].exported = True
    assert "Export" not in kinds(planned(world)[1])


def test_a_leg_that_its_node_does_not_show_is_asked_for_after_growing_pauses(world, leg):
    lose(world, leg)
    world.up["n0"], world.disks[leg].exported = True, False
    wanted, seen, memory, asked = world.wanted(), world.seen(), model.Memory(), []
    for second in range(600):
        now = world.now + second
        memory = remember.look(memory, wanted, seen, now, LIMITS)
        made = plan.make(wanted, seen, memory, now, LIMITS)
        assert "Export" in kinds(made) or "Export" in {one.kind for one in made.waiting}
        for action in made.actions:
            if action.kind == "Export":
                asked.append(second)
                memory = remember.done(memory, action, now)
    assert asked[:5] == [0, 1, 3, 7, 15]
    assert len(asked) < 20
    # Its node was away and is back: at once.
    memory = dataclasses.replace(memory, dead={leg: now})
    memory = remember.look(memory, wanted, seen, now, LIMITS)
    assert "Export" in kinds(plan.make(wanted, seen, memory, now, LIMITS))


@pytest.mark.parametrize(
    "action",
    [
        actions.RetireLeg(volume=VOLUME, leg="leg", reason="it is replaced"),
        actions.ReportTask(
            volume=VOLUME, task="a", state="RUNNING", status="", progress=5.0, reason="it grows"
        ),
    ],
)
def test_what_was_told_is_not_told_again_before_the_provisioner_is_asked(action):
    memory = remember.done(model.Memory(), action, 100.0)
    assert remember.due(memory, [action], 100.5) == []
    assert remember.due(memory, [action], 101.0) == [action]


def test_when_it_is_the_network_there_are_only_reconnects_and_it_says_why(world, leg):
    back(world, leg)
    world.up["n3"] = world.up["n4"] = False
    world.controllers.pop("n0")
    _, made = planned(world)
    assert set(kinds(made)) == {"ReportArray", "Reconnect"}
    assert made.network == "2 of 5 storage nodes are away, so it is the network"


@pytest.mark.parametrize(
    ("states", "network"),
    [
        ("UU", False),
        ("UAA", False),
        ("UUA", True),
        ("UAAA", False),
        ("UUAA", True),
        ("UUAAAA", True),
        ("UAAAAA", False),
        ("UUMAAAAA", False),
    ],
)
def test_how_many_nodes_make_it_the_network(states, network):
    names = {"U": "Unavailable", "A": "Available", "M": "Maintenance"}
    nodes = {f"n{number}": names[state] for number, state in enumerate(states)}
    wanted = model.Wanted(nodes=nodes, stale=False)
    assert bool(judge.network(wanted, ())) is network


def test_this_host_may_be_the_one_that_is_cut_off():
    world = World(replicas=3)
    world.link["n0"] = world.link["n1"] = False
    _, made = planned(world)
    assert made.network.startswith("this host reaches 2 of its 3 storage nodes no more")
    # What the provisioner sees as well is no matter of this host's network.
    world.up["n0"] = False
    assert planned(world)[1].network == ""


def test_without_the_provisioner_what_needs_no_decision_is_done(world, leg):
    back(world, leg)
    memory, _ = planned(world)
    world.answering = False
    world.now += 1000
    _, made = planned(world, memory)
    assert kinds(made) == ["ReAdd"]


@pytest.mark.parametrize("own", [True, False])
def test_whose_an_array_is(world, own):
    """Stock os-brick gives arrays a random uuid; the name tells, and the devices in it."""
    seen = world.seen()
    ours = dataclasses.replace(seen.arrays[0], uuid=FOREIGN, name="md5")
    if not own:
        strange = model.Member("nvme77n1", FOREIGN, Place.IN_SYNC)
        ours = dataclasses.replace(ours, members=(*ours.members, strange))
    other = dataclasses.replace(
        seen.arrays[1], members=(model.Member("sda", FOREIGN, Place.FAULTY),)
    )
    seen = dataclasses.replace(seen, arrays=(ours, other))
    found = judge.find_array(world.wanted().volumes[0], seen)
    assert (found is not None and found.name == "md5") is own


def test_two_arrays_of_one_volume_are_none(world):
    seen = world.seen()
    twice = dataclasses.replace(seen, arrays=(seen.arrays[0], seen.arrays[0]))
    assert judge.find_array(world.wanted().volumes[0], twice) is None
    strange = dataclasses.replace(
        seen.arrays[0], members=(model.Member("sda", FOREIGN, Place.IN_SYNC),)
    )
    strange = dataclasses.replace(seen, arrays=(strange,))
    assert judge.find_array(world.wanted().volumes[0], strange) is None


def test_a_device_that_is_gone_is_remembered(world, leg):
    memory, _ = planned(world)
    seen = world.seen()
    members = tuple(
        dataclasses.replace(one, uuid="") if one.uuid == leg else one
        for one in seen.arrays[0].members
    )
    seen = dataclasses.replace(seen, arrays=(dataclasses.replace(seen.arrays[0], members=members),))
    volume = world.wanted().volumes[0]
    assert judge.view(volume, seen, memory).leg(leg).place is Place.IN_SYNC
    assert judge.view(volume, seen, model.Memory()).leg(leg).place is Place.UNKNOWN


def test_connections_of_another_nqn_of_this_host_are_left_alone(world, leg):
    seen = world.seen()
    others = tuple(dataclasses.replace(one, host_nqn="nqn.else") for one in seen.controllers)
    seen = dataclasses.replace(seen, controllers=others)
    made = plan.make(world.wanted(), seen, model.Memory(), world.now, LIMITS)
    assert "SetTimeOuts" not in kinds(made)


def test_time_outs_of_stock_connections_are_set(world):
    world.controllers["n0"] = TimeOuts(5, 10, -1, 600)
    _, made = planned(world)
    assert [action.controller for action in made.actions] == ["nvme0"]


def test_connections_of_a_host_before_get_the_time_outs_of_now(world):
    world.controllers["n0"] = dataclasses.replace(RIGHT, fast_io_fail=1)
    _, made = planned(world)
    assert [(action.kind, action.controller) for action in made.actions] == [
        ("SetTimeOuts", "nvme0")
    ]


def test_a_plain_volume_gets_its_paths_back(world):
    seen, wanted = world.seen(), world.wanted()
    volume = dataclasses.replace(
        wanted.volumes[0], legs=wanted.volumes[0].legs[:1], replicated=False
    )
    second = dataclasses.replace(world.portal("n0"), address="fd00::1")
    one = dataclasses.replace(volume.legs[0], portals=(*volume.legs[0].portals, second))
    wanted = dataclasses.replace(wanted, volumes=(dataclasses.replace(volume, legs=(one,)),))
    made = plan.make(wanted, seen, model.Memory(), world.now, LIMITS)
    assert [(action.kind, str(action.portal)) for action in made.actions] == [
        ("Reconnect", "tcp://[fd00::1]:4420")
    ]
    # Without native multipath one connection is all that there may be.
    single = dataclasses.replace(seen, multipath=False)
    assert plan.make(wanted, single, model.Memory(), world.now, LIMITS).actions == ()
    detached = dataclasses.replace(seen, controllers=(), namespaces=())
    assert plan.make(wanted, detached, model.Memory(), world.now, LIMITS).actions == ()


def test_what_failed_waits_longer_each_time(world, leg):
    back(world, leg)
    memory, made = planned(world)
    action = made.actions[-1]
    pauses = []
    for _ in range(9):
        memory = remember.failed(memory, action, world.now, "no", definite=True)
        pauses.append(memory.tried[action.key].next - world.now)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    _, made = planned(world, memory)
    assert action not in made.actions
    assert action in made.waiting
    # The clock was set back: nothing waits for longer than the longest pause.
    world.now -= 100_000
    assert action in planned(world, memory)[1].actions
    assert action.key not in remember.done(memory, action, world.now).tried


def test_what_failed_is_tried_at_once_when_the_path_is_back(world, leg):
    back(world, leg)
    memory, made = planned(world)
    for _ in range(9):
        memory = remember.failed(memory, made.actions[-1], world.now, "no", definite=True)
    world.link["n0"] = False
    memory, _ = planned(world, memory)
    world.link["n0"] = True
    assert "ReAdd" in kinds(planned(world, memory)[1])


def test_speed_limits_are_set(world):
    limits = dataclasses.replace(LIMITS, speed_min=5000, speed_max=200_000)
    seen = world.seen()
    array = dataclasses.replace(seen.arrays[0], speed_min=5000, speed_max=100_000)
    seen = dataclasses.replace(seen, arrays=(array,))
    made = plan.make(world.wanted(), seen, model.Memory(), world.now, limits)
    assert [(one.kind, one.maximum) for one in made.actions] == [("SetSpeed", 200_000)]


def hold(world, legs, seconds="2"):
    tags = {"volId": VOLUME, "snapshotId": "s", "legs": ",".join(legs), "holdSeconds": seconds}
    world.tasks = {"h": model.Task("h", model.HOLD_WRITES, model.IDLE, "", 0.0, tags)}


@pytest.mark.parametrize(("asked", "held"), [("1.5", 1.5), ("60", 2.0), ("odd", 2.0)])
def test_writes_are_held_for_legs_that_are_in_sync(world, asked, held):
    hold(world, world.members, asked)
    _, made = planned(world)
    assert [(one.kind, one.seconds) for one in made.actions] == [("HoldWrites", held)]


def test_writes_are_not_held_for_a_leg_that_lacks_some(world, leg):
    hold(world, world.members)
    lose(world, leg)
    _, made = planned(world)
    (told,) = [one for one in made.actions if one.kind == "ReportTask"]
    assert (told.state, told.status) == ("FAILED", "NotEnoughReplicas")
    assert "HoldWrites" not in kinds(made)
