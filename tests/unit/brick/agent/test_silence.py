# SPDX-License-Identifier: Apache-2.0
"""When a node that does not answer is cut off, and when it is left alone."""

import dataclasses

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from os_brick_nvmeof.agent import judge, model, plan, probes, remember, silence
from os_brick_nvmeof.agent.model import Place, Probed
from os_brick_nvmeof.props import Portal
from tests.fakes.agent_net import Net, Now
from tests.fakes.agent_world import LIMITS, RIGHT, STOCK, VOLUME, HarmError, World

DEAD = Probed(5, 2.5, True)
WELL = Probed(1, 0.0, None)
NEW = Portal("10.0.9.9", "4420", "tcp")


class Case:
    """A world whose volumes are in use, its node n0 dead, and what is planned at once."""

    def __init__(self, **given):
        self.world = World(**given)
        self.world.controllers = dict.fromkeys(self.world.controllers, RIGHT)
        self.probed = {self.world.portal(node): WELL for node in self.world.controllers}
        self.probed[self.world.portal("n0")] = DEAD
        self.memory = model.Memory()
        self.limits = LIMITS
        self.change = lambda seen: seen
        self.wish = lambda wanted: wanted

    def made(self):
        seen = dataclasses.replace(self.world.seen(), probed=self.probed)
        seen, wanted = self.change(seen), self.wish(self.world.wanted())
        now = self.world.now
        self.memory = remember.look(self.memory, wanted, seen, now, self.limits)
        return plan.hasten(wanted, seen, self.memory, now, self.limits)

    def left(self):
        """Why it is not cut off."""
        made = self.made()
        assert "CutNode" not in [action.kind for action in made.actions]
        return made.network or " | ".join(note.text for note in made.notes)


@pytest.fixture
def case():
    return Case()


def test_a_dead_node_is_cut_off(case):
    (cut,) = case.made().actions
    assert (cut.kind, cut.node, cut.volume) == ("CutNode", "n0", VOLUME)
    assert cut.portals == {case.world.portal("n0")}
    assert cut.controllers == {("nvme0", "nqn.of.n0")}
    assert "has not answered for 2.5 s" in cut.reason
    assert cut == case.made().actions[0]


def shortened(case):
    return [one.controllers for one in case.made().actions if one.kind == "ShortenWait"]


def test_while_there_is_a_doubt_the_kernel_is_not_to_wait_when_it_loses_the_node(case):
    portal = case.world.portal("n0")
    case.probed[portal] = Probed(2, 0.6, True)
    assert shortened(case) == [{("nvme0", "nqn.of.n0")}]
    (made,) = case.made().actions
    assert "has not answered for 0.6 s and may be dead" in made.reason
    case.world.controllers["n0"] = dataclasses.replace(RIGHT, fast_io_fail=0)
    assert shortened(case) == []
    # It is cut off all the same when it has been silent for long enough.
    case.probed[portal] = DEAD
    assert case.made().actions[0].controllers == {("nvme0", "nqn.of.n0")}


@pytest.mark.parametrize(
    "probed",
    [WELL, Probed(2, 0.6, False), Probed(2, 0.6, None), None],
)
def test_what_answers_or_is_not_waited_for_keeps_its_time_outs(case, probed):
    del case.probed[case.world.portal("n0")]
    if probed is not None:
        case.probed[case.world.portal("n0")] = probed
    assert shortened(case) == []


def test_the_time_out_of_the_last_leg_stays(case):
    case.probed[case.world.portal("n0")] = Probed(2, 0.6, True)
    case.world.members[list(case.world.members)[1]] = Place.FAULTY
    made = case.made()
    assert (made.actions, made.notes) == ((), ())


def test_where_the_operator_has_turned_the_time_out_off_it_stays_off(case):
    case.probed[case.world.portal("n0")] = Probed(2, 0.6, True)
    case.world.controllers["n0"] = dataclasses.replace(RIGHT, fast_io_fail=-1)
    assert shortened(case) == []


@pytest.mark.parametrize(
    ("state", "probed", "put_right"),
    [("live", Probed(2, 0.6, True), False), ("live", WELL, True), ("connecting", WELL, False)],
)
def test_the_time_out_is_put_right_when_the_node_answers_again(case, state, probed, put_right):
    world = case.world
    world.controllers["n0"] = dataclasses.replace(RIGHT, fast_io_fail=0)
    seen = world.seen()
    controllers = tuple(
        dataclasses.replace(one, state=state) if one.name == "nvme0" else one
        for one in seen.controllers
    )
    probed = {**case.probed, world.portal("n0"): probed}
    seen = dataclasses.replace(seen, controllers=controllers, probed=probed)
    memory = remember.look(case.memory, world.wanted(), seen, world.now, LIMITS)
    made = plan.make(world.wanted(), seen, memory, world.now, LIMITS)
    assert ("SetTimeOuts" in [action.kind for action in made.actions]) is put_right


@pytest.mark.parametrize(
    "probed",
    [
        Probed(2, 2.5, True),
        Probed(5, 1.9, True),
        Probed(5, 2.5, False),
        Probed(5, 2.5, None),
        None,
    ],
)
def test_what_is_not_definite_is_nothing(case, probed):
    portal = case.world.portal("n0")
    del case.probed[portal]
    if probed is not None:
        case.probed[portal] = probed
    assert case.left() == ""


def test_the_provisioner_makes_it_certain_sooner_but_not_by_itself(case):
    case.probed[case.world.portal("n0")] = Probed(3, 1.2, True)
    assert case.left() == ""

    def away(wanted):
        return dataclasses.replace(wanted, nodes={**wanted.nodes, "n0": "Unavailable"})

    case.wish = away
    assert case.made().actions[0].node == "n0"
    case.wish = lambda wanted: dataclasses.replace(away(wanted), stale=True)
    assert case.left() == ""
    case.wish = away
    case.probed[case.world.portal("n0")] = WELL
    assert case.left() == ""


def test_it_goes_on_without_the_provisioner(case):
    case.wish = lambda wanted: dataclasses.replace(wanted, stale=True)
    assert case.made().actions


def test_it_can_be_turned_off(case):
    case.limits = dataclasses.replace(LIMITS, silence=0.0)
    assert case.left() == ""


def test_the_last_leg_is_never_cut_off(case):
    other = list(case.world.members)[1]
    case.world.members[other] = Place.FAULTY
    assert "no other leg is in sync" in case.left()
    case.world.members[other] = Place.SYNCING
    assert "no other leg is in sync" in case.left()
    case.world.members[other] = Place.IN_SYNC
    case.world.link["n1"] = False
    assert "looks dead" in case.left()


def test_a_leg_whose_node_is_in_doubt_does_not_count():
    case = Case(replicas=3)
    assert case.made().actions
    case.probed[case.world.portal("n1")] = Probed(2, 0.6, None)
    assert "so it is the network" in case.left()
    del case.probed[case.world.portal("n1")]
    assert "so it is the network" in case.left()


def volumes(case, *rest):
    """More volumes beside the one of the world."""
    case.wish = lambda wanted: dataclasses.replace(wanted, volumes=(*wanted.volumes, *rest))


def volume(case, number, nodes, **given):
    world = case.world
    legs = tuple(
        model.Leg(f"leg-{number}-{node}", node, world.nqn(node), (world.portal(node),))
        for node in nodes
    )
    return model.Volume(f"volume-{number}", f"volume-{number}", legs, **given)


def connected(case, *nodes):
    for node in nodes:
        case.world.controllers[node] = RIGHT
        case.probed[case.world.portal(node)] = WELL


def test_two_legs_of_one_volume_that_look_dead_are_left_alone():
    case = Case(replicas=3, nodes=8)
    connected(case, "n3", "n4", "n5", "n6", "n7")
    volumes(case, volume(case, 2, ["n3", "n4", "n5", "n6", "n7"], replicated=False))
    assert case.made().actions
    case.probed[case.world.portal("n1")] = Probed(2, 0.6, None)
    assert "another leg looks dead as well" in case.left()


def test_another_volume_that_needs_the_node_protects_it(case):
    world = case.world
    connected(case, "n2", "n3")
    second = volume(case, 2, ["n0", "n2"])

    def member(node, place=Place.IN_SYNC):
        return model.Member(f"x{node}", f"leg-2-{node}", place)

    array = model.Array("md2", "volume-2", "volume-2", "active", 2, (member("n0"), member("n2")))
    case.change = lambda seen: dataclasses.replace(seen, arrays=(world._array(), array))
    volumes(case, second)
    assert case.made().actions

    def put(**what):
        new = dataclasses.replace(array, **what)
        case.change = lambda seen: dataclasses.replace(seen, arrays=(world._array(), new))

    put(members=(member("n0"), member("n2", Place.FAULTY)))
    assert "volume volume-2: no other leg" in case.left()
    put(members=(member("n0", Place.FAULTY), member("n2")))
    assert case.made().actions
    put(members=(member("n0", Place.UNKNOWN), member("n2")))
    assert "members of its array could not be told" in case.left()
    put(members=None)
    assert case.left() != ""
    put(state="read-auto")
    assert "its array is read-auto" in case.left()
    volumes(case, dataclasses.replace(second, shared=True))
    assert "another host has it" in case.left()


def test_a_volume_that_is_not_attached_needs_nothing(case):
    connected(case, "n2")
    volumes(case, volume(case, 2, ["n0", "n2"]))
    case.change = lambda seen: dataclasses.replace(seen, arrays=(case.world._array(),))
    assert case.made().actions
    stray = model.Array("md9", "u", "a", "inactive", 2, (model.Member("sdx", "", Place.FAULTY),))
    case.change = lambda seen: dataclasses.replace(seen, arrays=(case.world._array(), stray))
    assert "its array could not be told" in case.left()


@pytest.mark.parametrize(("time_outs", "harmless"), [(STOCK, True), (RIGHT, False), (None, False)])
def test_volumes_with_one_replica_have_to_wait_or_protect_the_node(case, time_outs, harmless):
    connected(case, "n2", "n3")
    plain = volume(case, 2, ["n0"], replicated=False)
    leg = dataclasses.replace(plain.legs[0], nqn="nqn.plain")
    volumes(case, dataclasses.replace(plain, legs=(leg,)))
    more = model.Controller(
        "nvme50",
        "nqn.plain",
        "tcp",
        case.world.portal("n0").address,
        "4420",
        "live",
        time_outs=time_outs,
    )
    case.change = lambda seen: dataclasses.replace(seen, controllers=(*seen.controllers, more))
    if harmless:
        # It is cut off as well, and its I/O waits on.
        assert case.made().actions[0].controllers == {("nvme0", "nqn.of.n0")}
    else:
        assert "its I/O would fail" in case.left()


def test_what_others_have_connected_there_protects_the_node(case):
    address = case.world.portal("n0").address
    more = model.Controller("nvme50", "nqn.foreign", "tcp", address, "4420", "live")
    case.change = lambda seen: dataclasses.replace(seen, controllers=(*seen.controllers, more))
    assert "somebody else" in case.left()
    other = dataclasses.replace(more, nqn="nqn.of.n0", host_nqn="nqn.another")
    case.change = lambda seen: dataclasses.replace(seen, controllers=(*seen.controllers, other))
    assert "somebody else" in case.left()


def test_a_connection_that_goes_elsewhere_cannot_be_judged(case):
    more = model.Controller("nvme50", "nqn.of.n0", "tcp", "10.0.8.8", "4420", "live")
    case.change = lambda seen: dataclasses.replace(seen, controllers=(*seen.controllers, more))
    assert case.left() == ""


def test_all_portals_have_to_be_silent(case):
    more = model.Controller("nvme50", "nqn.of.n0", "tcp", NEW.address, NEW.port, "live")
    case.change = lambda seen: dataclasses.replace(seen, controllers=(*seen.controllers, more))

    def two(wanted):
        (one,) = wanted.volumes
        legs = [dataclasses.replace(one.legs[0], portals=(*one.legs[0].portals, NEW))]
        return dataclasses.replace(
            wanted, volumes=(dataclasses.replace(one, legs=(*legs, *one.legs[1:])),)
        )

    case.wish = two
    case.probed[NEW] = WELL
    assert case.left() == ""
    case.probed[NEW] = Probed(4, 2.1, False)
    assert case.made().actions[0].portals == {NEW, case.world.portal("n0")}


def test_an_array_that_no_longer_uses_the_leg_needs_no_haste(case):
    case.world.members[next(iter(case.world.members))] = Place.FAULTY
    assert case.left() == ""


def test_it_is_not_done_again_at_once_and_an_intent_survives(case):
    (cut,) = case.made().actions
    case.memory = remember.begun(case.memory, cut, case.world.now)
    assert "a moment ago" in case.left()
    case.world.now += 31
    assert case.made().actions
    assert case.memory.cut == {}


def test_one_that_failed_waits(case):
    (cut,) = case.made().actions
    case.memory = remember.failed(case.memory, cut, case.world.now, "EPERM", definite=True)
    made = case.made()
    assert (made.actions, len(made.waiting)) == ((), 1)


def test_the_portals_in_use_are_watched(case):
    seen, wanted = case.world.seen(), case.world.wanted()
    views = [judge.view(one, seen, case.memory) for one in wanted.volumes]
    assert silence.to_watch(views) == {
        case.world.portal(node): frozenset({f"nvme{number}"})
        for number, node in enumerate(["n0", "n1"])
    }
    blind = dataclasses.replace(seen, controllers=None)
    assert silence.to_watch([judge.view(wanted.volumes[0], blind, case.memory)]) == {}


# -- whatever happens -----------------------------------------------------------------------------

# Shorter than the agent's silence by the time between two probes.
SHORT = 1.4
# What is shorter cannot be known: two probes, and the time to the next look.
KNOWN = 1.25


class Story:
    """Nodes that die, stand still for a moment, are slow or are cut off, and probes that see it.

    :ivar still: until when a node stands still. :ivar since: when a node fell silent.
    """

    def __init__(self, replicas):
        self.world = World(replicas=replicas, nodes=6)
        self.world.controllers = dict.fromkeys(self.world.up, RIGHT)
        self.now, self.memory = Now(), model.Memory()
        self.net = Net(self.now)
        self.dead, self.slow = set(), {}
        self.still, self.since = {}, {}
        self.done = dict.fromkeys(self.world.up, 0)
        self.cuts = []
        self.probes = probes.Probes(0.5, self.io, lambda: None, net=self.net, clock=self.now)
        number = self.world.number
        self.nodes = {f"nvme{number(node)}": node for node in self.world.up}
        self.probes.watch(
            {self.world.portal(node): frozenset({name}) for name, node in self.nodes.items()}
        )

    def io(self, names):
        (node,) = (self.nodes[name] for name in names)
        return frozenset(names), self.done[node], 4

    def quiet(self, node):
        return node in self.dead or self.now() < self.still.get(node, 0.0)

    def known(self, node):
        """Whether it has answered nobody for so long that two probes tell."""
        return self.now() - self.since.get(node, self.now()) >= KNOWN

    def step(self):
        for node in self.world.up:
            if self.quiet(node):
                self.since.setdefault(node, self.now())
            else:
                self.since.pop(node, None)
            delay = None if self.quiet(node) else self.slow.get(node, 0.01)
            self.net.delay[self.world.portal(node)] = delay
            self.done[node] += not self.quiet(node) and node not in self.slow
        self.probes.tick()
        self.judge()
        self.now.pass_by(0.25)
        self.world.now += 0.25

    def wanted(self):
        """All nodes are in use, most of them by volumes with one replica, which wait."""
        found = self.world.wanted()
        legs = [
            model.Leg(f"p-{node}", node, self.world.nqn(node), (self.world.portal(node),))
            for node in self.world.up
        ]
        rest = [
            model.Volume(leg.uuid, leg.uuid, (leg,), replicated=False)
            for leg in legs
            if leg.node not in [record.backend_id for record in self.world.records]
        ]
        nodes = {node: "Available" for node in self.world.up}
        return dataclasses.replace(found, volumes=(*found.volumes, *rest), nodes=nodes)

    def judge(self):
        wanted = self.wanted()
        # The kernel has not noticed anything yet.
        seen = dataclasses.replace(self.world.seen(), probed=self.probes.seen())
        memory = remember.look(self.memory, wanted, seen, self.world.now, LIMITS)
        for action in plan.hasten(wanted, seen, memory, self.world.now, LIMITS).actions:
            self.memory = remember.begun(memory, action, self.world.now)
            if action.kind == "CutNode":
                if action.node not in self.dead:
                    raise HarmError(f"{action.node} was slow, not dead")
                self.cuts.append(action.node)
            self.without(action)

    def without(self, action):
        """The volume has to do without this node."""
        silent = [node for node in self.world.up if self.known(node)]
        if 3 * len(silent) >= len(self.world.up):
            raise HarmError("it was the network")
        homes = {self.world.disks[leg].node for leg in self.world.good()}
        if not any(not self.known(node) for node in homes - {action.node}):
            raise HarmError("the last leg was cut off")
        if len([node for node in homes if self.known(node)]) > 1:
            raise HarmError("two legs of a volume looked dead")


NODES = [f"n{number}" for number in range(6)]
WHAT = st.one_of(
    st.tuples(st.just("die"), st.sampled_from(NODES)),
    st.tuples(st.just("live"), st.sampled_from(NODES)),
    st.tuples(
        st.sampled_from(["still", "slow"]),
        st.tuples(st.sampled_from(NODES), st.floats(0.1, SHORT)),
    ),
    st.tuples(st.just("fast"), st.sampled_from(NODES)),
    st.tuples(st.just("fault"), st.sampled_from(NODES[:3])),
    st.tuples(st.just("whole"), st.none()),
    st.tuples(st.just("pass"), st.integers(1, 14)),
)


def happen(story, what, about):
    node, seconds = about if isinstance(about, tuple) else (about, 0.0)
    if what == "die":
        story.dead.add(node)
    elif what == "live":
        story.dead.discard(node)
    elif what == "still":
        # Not right after another pause, nor when it is slow or dead: that would be a longer one.
        paused = story.now() - story.still.get(node, 0.0) <= 5
        if not paused and node not in story.slow and node not in story.dead:
            story.still[node] = story.now() + seconds
    elif what == "slow":
        if story.now() > story.still.get(node, 0.0):
            story.slow[node] = seconds
    elif what == "fast":
        story.slow.pop(node, None)
    elif what == "pass":
        for _ in range(about):
            story.step()
    else:
        spoil(story.world, what, node)


def spoil(world, what, node):
    """md has failed a leg, or all are in sync again."""
    legs = {disk.node: leg for leg, disk in world.disks.items()}
    if what == "whole":
        world.members = dict.fromkeys(world.members, Place.IN_SYNC)
    elif len(world.good()) > 1 and legs.get(node) in world.good():
        world.members[legs[node]] = Place.FAULTY


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 3]), st.lists(WHAT, min_size=6, max_size=40))
@example(2, [("die", "n0"), ("pass", 4), ("still", ("n0", 1.0)), ("live", "n0"), ("pass", 8)])
def test_only_a_node_that_is_dead_and_not_needed_is_cut_off(replicas, events):
    story = Story(replicas)
    happen(story, "pass", 8)
    for event in events:
        happen(story, *event)
        story.step()


@pytest.mark.parametrize("node", ["n0", "n1"])
def test_in_a_story_a_dead_node_is_cut_off_within_three_seconds(node):
    story = Story(2)
    happen(story, "pass", 9)
    happen(story, "die", node)
    happen(story, "pass", 12)
    assert story.cuts == [node]
    happen(story, "pass", 12)
    assert story.cuts == [node]
