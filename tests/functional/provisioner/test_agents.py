# SPDX-License-Identifier: Apache-2.0
"""Existing agents against the real server, and work that goes on after a crash."""

import threading
import time

import pytest

from kumo_client.schemas.volume import MigrateVolume, StorageClass, VolumeCreate
from tests.fakes.fleet import Fleet
from tests.fakes.old_agent import OldAgent
from tests.functional.provisioner.common import made_volume, new_id, publish, unpublish

SHORT = 0.2


@pytest.fixture
def four(provisioner, fleet):
    provisioner.configure({"tasks": {"poll_interval": SHORT}, "events": {"poll_interval": SHORT}})
    provisioner.restart()
    nodes = fleet.add(4)
    for node in nodes:
        provisioner.register(node)
    return nodes


@pytest.fixture(scope="module")
def shared(shared_provisioner):
    """A provisioner and four nodes for all tests that leave them alone."""
    nodes = Fleet(shared_provisioner.node_certificate, shared_provisioner.node_token)
    for node in nodes.add(4):
        shared_provisioner.register(node)
    yield shared_provisioner, nodes
    nodes.close()


@pytest.fixture
def agent(shared):
    provisioner, _ = shared
    uid = new_id()
    asked = StorageClass(num_replicas=2, zones=["nova"], max_replica_down_time=1)
    create = VolumeCreate(uuid=uid, alias=f"v-{uid}"[:27], capacity=1, storage_class=asked)
    provisioner.client.create_volume(create)
    made = OldAgent(provisioner.url, provisioner.token, provisioner.ca_file, uid, minute=200)
    made.attach()
    return made


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def states(agent):
    return sorted((one["replicaState"], one["freshness"]) for one in agent.legs().values())


GOOD = [("Available", "fresh")] * 2


@pytest.mark.parametrize("premature", [False, True])
def test_an_existing_agent_replaces_a_lost_leg(shared, agent, premature):
    provisioner, fleet = shared
    agent.premature = premature
    assert agent.round() == "nothing"
    assert states(agent) == GOOD
    lost, good = agent.legs()
    agent.array[lost] = None
    agent.broken.add(lost)
    assert agent.round() == "nothing"
    assert agent.legs()[lost]["replicaState"] == "Missing"
    time.sleep(0.25)
    # A leg that was reported Missing stays so, although its node has it.
    provisioner.reconcile()
    assert agent.round() == "replaced"
    (new,) = set(agent.legs()) - {lost, good}
    assert agent.legs()[lost]["replicaState"] == "Terminating"
    assert agent.legs()[new]["freshness"] == "blank"
    # The last leg with all writes stays, whatever an agent asks for.
    assert agent.patch(good)["status"] == "LastReplica"
    assert agent.round() == "removed"
    for _ in range(4):
        agent.tick()
        agent.round()
    assert states(agent) == GOOD
    assert set(agent.legs()) == {new, good}
    gone = agent.call("DELETE", f"/replica/{agent.volume}/{lost}")
    assert gone["status"] == "NotExists"
    assert agent.patch(lost, "Available")["status"] == "NotExists"
    held = {uid for node in fleet.nodes for uid in node.state.replicas}
    assert {new, good} <= held
    assert lost not in held


def test_an_existing_agent_mends_a_leg_that_comes_back(agent):
    agent.premature = True
    back, _ = agent.legs()
    agent.array[back] = None
    assert agent.round() == "added"
    assert agent.legs()[back]["freshness"] == "stale"
    # It was said to be Available before it was in sync; that is not believed.
    assert agent.legs()[back]["replicaState"] == "Synchronizing"
    for _ in range(3):
        agent.tick()
        agent.round()
    assert states(agent) == GOOD


def test_an_agent_that_cannot_connect_the_spare_gets_another(agent):
    lost, good = agent.legs()
    agent.array[lost] = None
    agent.broken.add(lost)
    agent.round()
    time.sleep(0.25)
    assert agent.call("POST", f"/replica/{agent.volume}", {})["status"] == "Success"
    (dead,) = set(agent.legs()) - {lost, good}
    agent.broken.add(dead)
    agent.round()
    # Existing agents ask again every round, and must neither fill all places nor be stuck.
    seen = [agent.round() for _ in range(6)]
    assert "replaced" in seen
    assert agent.shown()["numReplicas"] <= 4
    for _ in range(4):
        agent.tick()
        agent.round()
    assert states(agent) == GOOD


def test_an_existing_worker_moves_a_leg(shared, agent):
    provisioner, _ = shared
    old, _ = agent.legs()
    answer = provisioner.client.migrate_volume(MigrateVolume(vol_id=agent.volume, rep_id=old))
    assert agent.work()
    assert not agent.work()
    assert provisioner.client.task(answer.task_id).state == "FINISHED"
    assert states(agent) == GOOD
    assert old not in agent.legs()


def test_a_drain_goes_on_after_a_crash(provisioner, fleet, four):
    client = provisioner.client
    for _ in range(4):
        made_volume(client, replicas=2)
    victim = four[0]
    for node in four:
        for uid in node.state.replicas:
            node.model.write(uid, f"data of {uid}")
            node.model.copy_step = 1 << 27
    before = sorted(one.content for node in four for one in node.state.replicas.values())
    task = client.drain_backend(victim.persistent_id).task_id
    for _ in range(3):
        time.sleep(0.3)
        provisioner.kill()
        provisioner.start()
        client = provisioner.client
    until(lambda: provisioner.reconcile() and client.task(task).state == "FINISHED")
    assert victim.state.replicas == {}
    after = sorted(one.content for node in four for one in node.state.replicas.values())
    assert after == before
    assert fleet.exports() == set()


def test_a_reader_is_woken_and_a_stop_does_not_wait_for_it(provisioner, four):
    client = provisioner.client
    uid = made_volume(client)
    last = client.events(limit=1000).last
    begun, found = time.monotonic(), []

    def read(since):
        found.append(provisioner.new_client(budget=60.0).events(since, wait=50))

    reader = threading.Thread(target=read, args=(last,))
    reader.start()
    time.sleep(0.3)
    publish(client, uid)
    reader.join(20)
    assert [one.type for one in found[0].events] == ["host.added"]
    unpublish(client, uid)
    reader = threading.Thread(target=read, args=(client.events(limit=1000).last,))
    reader.start()
    time.sleep(0.3)
    assert provisioner.stop() == 0
    reader.join(20)
    assert found[1].events == []
    assert time.monotonic() - begun < 30
