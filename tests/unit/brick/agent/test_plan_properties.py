# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to the world, the agent does no harm, and ends redundant."""

from hypothesis import given, settings
from hypothesis import strategies as st

from os_brick_nvmeof.agent import model, plan, remember
from os_brick_nvmeof.agent.actions import Reconnect, ReportArray, ReportLeg
from tests.fakes.agent_world import HOST_NQN, LIMITS, VOLUME, RefusedError, World

NODES = [f"n{number}" for number in range(5)]
BLIND = ["events", "controllers", "namespaces", "arrays", "members", "superblocks"]

EVENTS = st.one_of(
    st.tuples(st.just("die"), st.sampled_from(NODES)),
    st.tuples(st.just("return"), st.sampled_from(NODES)),
    st.tuples(st.just("cut"), st.sampled_from(NODES)),
    st.tuples(st.just("heal"), st.sampled_from(NODES)),
    st.tuples(st.just("drop"), st.sampled_from(NODES)),
    st.tuples(st.just("tamper"), st.sampled_from(NODES)),
    st.tuples(st.just("wipe"), st.sampled_from(NODES)),
    st.tuples(st.just("migrate"), st.sampled_from(NODES)),
    st.tuples(st.just("blind"), st.sampled_from(BLIND)),
    st.tuples(st.just("rounds"), st.integers(1, 4)),
    st.tuples(st.just("wait"), st.sampled_from([5, 40, -20])),
    st.tuples(
        st.sampled_from(
            ["write", "see", "away", "back", "lose", "share", "alone", "crash", "forget"]
        ),
        st.none(),
    ),
)
WORLDS = st.builds(
    World,
    replicas=st.sampled_from([2, 3]),
    nodes=st.just(5),
    down_time=st.sampled_from([0.0, 10.0, 30.0]),
)


class Agent:
    """Rounds in a world."""

    def __init__(self, world):
        self.world = world
        self.memory = model.Memory()

    def round(self, crash=False):
        world = self.world
        seen, wanted = world.seen(), world.wanted()
        self.memory = remember.look(self.memory, wanted, seen, world.now, LIMITS)
        made = plan.make(wanted, seen, self.memory, world.now, LIMITS)
        assert made == plan.make(wanted, seen, self.memory, world.now, LIMITS)
        if made.network:
            assert {type(one) for one in made.actions} <= {Reconnect, ReportLeg, ReportArray}
        for action in made.actions:
            assert action.reason
            self.memory = remember.begun(self.memory, action, world.now)
            try:
                new = world.do(action)
            except RefusedError as error:
                self.memory = remember.failed(
                    self.memory, action, world.now, str(error), definite=error.definite
                )
            else:
                if crash:
                    # It ends before it can write down how it went.
                    return
                self.memory = remember.done(self.memory, action, world.now, new=new or "")


def happen(world, agent, what, which):
    legs = {disk.node: leg for leg, disk in world.disks.items()}
    leg = legs.get(which)
    if what in ("die", "return"):
        world.up[which] = what == "return"
    elif what in ("cut", "heal"):
        world.link[which] = what == "heal"
    elif what == "drop":
        world.controllers.pop(which, None)
    elif what in ("tamper", "wipe"):
        spoil(world, leg, what)
    elif what == "migrate":
        migrate(world, leg)
    elif what == "blind":
        world.blind.add(which)
    elif what == "rounds":
        for _ in range(which):
            agent.round()
            world.tick()
    elif what == "wait":
        world.tick(which)
    elif what in ("crash", "forget"):
        agent.round(crash=True)
        if what == "forget":
            agent.memory = model.Memory()
    else:
        other(world, what)


def spoil(world, leg, what):
    """What is on a leg that is out of the array changes while nobody looks."""
    if leg is None or world.members.get(leg, model.Place.FAULTY) is not model.Place.FAULTY:
        return
    disk = world.disks[leg]
    disk.kind, disk.array = (model.OTHER, "") if what == "tamper" else (model.NOTHING, "")


def migrate(world, leg):
    busy = any(task.open for task in world.tasks.values())
    known = [one for one in world.records if one.uuid == leg and one.state != "Terminating"]
    if not busy and known and len(world.records) == world.replicas:
        tags = {"volId": VOLUME, "replicaId": leg}
        world.tasks = {"t": model.Task("t", model.MIGRATION, model.IDLE, "", 0.0, tags)}


def other(world, what):
    if what == "write":
        world.write()
    elif what == "see":
        world.blind.clear()
    elif what == "lose":
        world.lossy = 1
    elif what in ("share", "alone"):
        world.shared = what == "share"
    else:
        world.answering = what == "back"


def mend(world):
    """All nodes run and are reached, everything can be seen, the provisioner answers."""
    world.up = dict.fromkeys(world.up, True)
    world.link = dict.fromkeys(world.link, True)
    world.blind.clear()
    world.answering, world.shared, world.lossy = True, False, 0


def ends_redundant(world, agent):
    mend(world)
    for number in range(60):
        if world.redundant() and not any(task.open for task in world.tasks.values()):
            return number
        agent.round()
        world.tick(5)
        world.write()
    raise AssertionError(f"not redundant: {world.records}, {world.members}, {agent.memory}")


@settings(max_examples=120, deadline=None)
@given(WORLDS, st.lists(EVENTS, min_size=8, max_size=40))
def test_it_does_no_harm_and_ends_redundant(world, events):
    agent = Agent(world)
    for what, which in events:
        happen(world, agent, what, which)
    if not world.down_time:
        # Nothing is ever replaced: what others have written over stays refused.
        for disk in world.disks.values():
            if disk.kind == model.OTHER:
                disk.kind = model.NOTHING
    ends_redundant(world, agent)


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, min_size=8, max_size=40))
def test_a_provisioner_without_our_extensions(events):
    world = World()
    world.abilities = frozenset()
    agent = Agent(world)
    for what, which in events:
        if what not in ("tamper", "wipe"):
            happen(world, agent, what, which)
    ends_redundant(world, agent)


def test_a_replacement_that_cannot_be_used_gives_its_place_to_another():
    world = World(replicas=3, down_time=10.0)
    agent = Agent(world)
    agent.round()
    spoiled = next(iter(world.members))
    world.members[spoiled] = model.Place.FAULTY
    spoil(world, spoiled, "tamper")
    world.version += 1
    for leg in list(world.members)[1:]:
        world.disks[leg].version = world.version
    for _ in range(12):
        agent.round()
        world.tick(2)
        new = [leg for leg, disk in world.disks.items() if disk.node == "n3"]
        for leg in new:
            # The new one is spoilt as well, before it can be used.
            spoil(world, leg, "tamper")
    assert len(world.records) == 4
    ends_redundant(world, agent)
    assert world.asked == [spoiled, spoiled]


def test_a_quiet_world_needs_nothing():
    world = World()
    agent = Agent(world)
    assert ends_redundant(world, agent) == 0
    for _ in range(3):
        agent.round()
    seen, wanted = world.seen(), world.wanted()
    made = plan.make(wanted, seen, agent.memory, world.now, LIMITS)
    assert made.actions == ()
    assert seen.host_nqn == HOST_NQN
