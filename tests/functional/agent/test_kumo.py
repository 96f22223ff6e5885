# SPDX-License-Identifier: Apache-2.0
"""The planner and Kumo's side of it against the real provisioner; the host is a small world."""

import pytest

from kumo_client import naming
from kumo_client.api.provisioner import Provisioner
from kumo_client.schemas.host import PublishRequest, UnpublishRequest
from kumo_client.schemas.volume import MigrateVolume, StorageClass, VolumeCreate
from os_brick_nvmeof.agent import model, plan, remember, voice
from os_brick_nvmeof.agent.model import Place
from os_brick_nvmeof.agent.vendor import Identity, VendorError
from os_brick_nvmeof.agent.vendors.kumo import KumoVendor
from os_brick_nvmeof.stopped import Stopped
from tests.fakes.agent_world import HOST_NQN, LIMITS, RIGHT, Disk, RefusedError, World
from tests.fakes.fleet import Fleet
from tests.functional.provisioner.common import new_id

ABILITIES = ("array-report", "hold-writes")
IDENTITY = Identity("agent-host", HOST_NQN, "compute.example", multipath=True)
# What a KumoScale does not have.
PLAIN = ("host-volumes", "array-report", "publish-attach", "events")


@pytest.fixture(scope="module")
def shared(shared_provisioner):
    nodes = Fleet(shared_provisioner.node_certificate, shared_provisioner.node_token)
    for node in nodes.add(4):
        shared_provisioner.register(node)
    yield shared_provisioner, nodes
    nodes.close()


class AttachedWorld(World):
    """A world whose provisioner is the real one."""

    def __init__(self, provisioner, vendor, fleet):
        super().__init__(nodes=0)
        self.client, self.vendor, self.fleet = provisioner.client, vendor, fleet
        self.volume = new_id()
        self.alias = f"agent-{self.volume}"[:27]
        asked = StorageClass(num_replicas=2, zones=["nova"], max_replica_down_time=1)
        self.client.create_volume(
            VolumeCreate(uuid=self.volume, alias=self.alias, capacity=1, storage_class=asked)
        )
        vendor.probe(seconds=30, abilities=ABILITIES)
        self.client.publish(PublishRequest(host_id=IDENTITY.host_id, vol_id=self.volume))
        self.up = {node.persistent_id: True for node in fleet.nodes}
        self.link = dict.fromkeys(self.up, True)
        self.slots = 2
        for place in self.locations():
            self.disks[place.uuid] = Disk(place.backend.persistent_id, 1, array=self.volume)
            self.members[place.uuid] = Place.IN_SYNC
        self.controllers = dict.fromkeys((disk.node for disk in self.disks.values()), RIGHT)
        self.memory = model.Memory()

    def locations(self):
        return self.client.volume(self.volume).location

    def nqn(self, node):
        return naming.subsystem_nqn(node, HOST_NQN, "replicated")

    def portal(self, node):
        (one,) = self.client.backend(node).portals
        return model.Portal(one.ip, str(one.port), "tcp")

    def wanted(self):
        found = self.vendor.pull(self.seen(), self.now)
        mine = tuple(one for one in found.volumes if one.uuid == self.volume)
        for leg in mine[0].legs if mine else ():
            if leg.uuid not in self.disks:
                node = self.fleet.by_id(leg.node)
                exported = (leg.uuid, HOST_NQN) in self.fleet.exports()
                assert leg.uuid in node.state.replicas
                self.disks[leg.uuid] = Disk(leg.node, 0, model.NOTHING, "", exported)
        return model.Wanted(
            mine,
            found.tasks,
            found.nodes,
            found.time,
            stale=False,
            abilities=found.abilities,
        )

    def do(self, action):
        try:
            said = voice.say(self.vendor, self.wanted().volumes[0], action)
        except VendorError as error:
            raise RefusedError(str(error), error.definite) from error
        if action.kind == "Export":
            assert (action.leg, HOST_NQN) in self.fleet.exports()
            self.disks[action.leg].exported = True
        return super().do(action) if said is None else said

    def round(self):
        seen, wanted = self.seen(), self.wanted()
        self.memory = remember.look(self.memory, wanted, seen, self.now, LIMITS)
        made = plan.make(wanted, seen, self.memory, self.now, LIMITS)
        for action in made.actions:
            self.memory = remember.begun(self.memory, action, self.now)
            try:
                new = self.do(action)
            except RefusedError as error:
                self.memory = remember.failed(
                    self.memory, action, self.now, str(error), definite=error.definite
                )
            else:
                self.memory = remember.done(self.memory, action, self.now, new=new or "")
        self.tick(5)
        return [action.kind for action in made.actions]

    def rounds(self, number):
        return [kind for _ in range(number) for kind in self.round()]


def states(world):
    return sorted((one.replica_state, one.freshness) for one in world.locations())


GOOD = [("Available", "fresh")] * 2


@pytest.fixture(params=["kumo", "kumoscale"])
def world(shared, request, monkeypatch):
    provisioner, fleet = shared
    client = provisioner.new_client()
    if request.param == "kumoscale":
        known = client.supports
        monkeypatch.setattr(client, "supports", lambda name: name not in PLAIN and known(name))
    return AttachedWorld(provisioner, KumoVendor(client, IDENTITY), fleet)


def test_nothing_is_to_be_done_for_a_good_volume(world):
    assert set(world.rounds(3)) <= {"ReportArray"}
    assert states(world) == GOOD


def test_a_leg_that_returns_is_put_back(world):
    world.rounds(1)
    leg = next(iter(world.members))
    world.up[world.disks[leg].node] = False
    world.write()
    world.round()
    assert sorted(states(world)) == [("Available", "fresh"), ("Missing", "stale")]
    world.up[world.disks[leg].node] = True
    done = world.rounds(5)
    assert done.count("ReAdd") == 1
    assert "AskReplacement" not in done
    assert states(world) == GOOD


def test_a_leg_that_stays_away_is_replaced(world):
    world.rounds(1)
    lost, good = world.members
    world.link[world.disks[lost].node] = False
    world.write()
    done = world.rounds(30)
    assert done.count("AskReplacement") == 1
    assert done.count("RetireLeg") == done.count("ConfirmRemoval") == 1
    assert states(world) == GOOD
    (new,) = {one.uuid for one in world.locations()} - {good}
    assert new != lost
    held = {uid for node in world.fleet.nodes for uid in node.state.replicas}
    assert lost not in held
    assert world.members == {good: Place.IN_SYNC, new: Place.IN_SYNC}
    assert world.slots == 2


def test_a_leg_moves(world):
    world.rounds(1)
    old = next(iter(world.members))
    answer = world.client.migrate_volume(MigrateVolume(vol_id=world.volume, rep_id=old))
    for _ in range(15):
        world.round()
        assert sum(place is Place.IN_SYNC for place in world.members.values()) >= 2
    assert world.client.task(answer.task_id).state == "FINISHED"
    assert states(world) == GOOD
    assert old not in world.members


def test_the_end_of_an_array_is_told_after_the_unpublish(shared):
    """The counters that prove a leg are those of the last publication, or none."""
    provisioner, fleet = shared
    vendor = KumoVendor(provisioner.client, IDENTITY)
    world = AttachedWorld(provisioner, vendor, fleet)
    world.round()
    ask = PublishRequest(host_id=IDENTITY.host_id, vol_id=world.volume)

    def word(count, publication):
        legs = tuple((leg, "Available", count) for leg in sorted(world.members))
        return Stopped(world.volume, "0", publication, legs)

    def counters():
        return {one.events for one in world.locations()}

    def leave():
        world.client.unpublish(UnpublishRequest(host_id=IDENTITY.host_id, vol_id=world.volume))

    first = world.client.publish(ask).publication
    since = vendor.wait(None, 0).since
    leave()
    assert vendor.wait(since, 5).look
    assert counters() == {0}
    # Nobody told in time: another session has begun and ended meanwhile.
    second = world.client.publish(ask).publication
    leave()
    with pytest.raises(VendorError, match="Conflict") as caught:
        vendor.last_word(word(50, first))
    assert caught.value.definite
    assert counters() == {0}
    # The process that tells is a new one.
    vendor = KumoVendor(provisioner.new_client(), IDENTITY)
    for _ in range(2):
        assert vendor.last_word(word(60, second))
        assert counters() == {60}
    answer = world.client.publish(ask)
    assert (answer.array_state, {one.events for one in answer.replicas}) == ("clean", {60})
    with pytest.raises(VendorError, match="Conflict"):
        vendor.last_word(word(70, second))
    assert counters() == {60}


def test_events_wake_the_agent(shared):
    provisioner, fleet = shared
    vendor = KumoVendor(provisioner.client, IDENTITY)
    world = AttachedWorld(provisioner, vendor, fleet)
    since = vendor.wait(None, 0).since
    world.round()
    news = vendor.wait(since, 5)
    assert news.look
    assert news.since > since
    vendor.tell("WARN", "leg lost", {"leg": "x"})
    last = provisioner.client.events(news.since, wait=5).events[-1]
    assert (last.type, last.message) == (
        "log.forwarded",
        "nvmeof_agent on compute.example: leg lost",
    )


def test_what_the_server_refuses_is_definite_and_silence_is_not(shared):
    provisioner, _ = shared
    vendor = KumoVendor(provisioner.client, IDENTITY)
    volume = model.Volume(new_id(), "none", ())
    with pytest.raises(VendorError, match="NotExists") as caught:
        vendor.request_replacement(volume, "x")
    assert caught.value.definite
    assert vendor.task(new_id()) is None
    session = provisioner.session(budget=0.3)
    session.endpoints = ("https://127.0.0.1:9",)
    session._preferred = session.endpoints[0]
    with pytest.raises(VendorError, match="CommunicationError") as caught:
        KumoVendor(Provisioner(session), IDENTITY).pull(model.Seen(), 0.0)
    assert (caught.value.away, caught.value.definite) == (True, False)
