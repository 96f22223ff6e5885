# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at every step of every operation: no orphan, nothing lost, everything repeatable.

One kill hits all operations at the same boundary of their calls to the nodes; each works on a
volume of its own.
"""

import random
import threading
import time

import pytest
from requests.adapters import HTTPAdapter

from kumo_client import errors
from kumo_client.schemas.snapshot import SnapshotCreate
from tests.functional.provisioner import common

CALLS = [
    ("PUT", "/v1/replicas/[^/]+$"),
    ("PUT", "/v1/snapshots/"),
    ("PUT", "/exports$"),
    ("PATCH", "/v1/replicas/"),
    ("DELETE", "/v1/replicas/[^/]+$"),
    ("DELETE", "/v1/snapshots/"),
    ("DELETE", "/exports$"),
]


def prepare(client):
    """Operations by name, each on objects of its own, and the volumes that must survive."""
    made = {name: common.made_volume(client, 2) for name in "abcdefghi"}
    snapshot_b = common.made_snapshot(client, made["b"])
    snapshot_f = common.made_snapshot(client, made["f"])
    common.publish(client, made["h"])
    create = common.volume(2)
    clone, copy, snapshot = common.new_id(), common.new_id(), common.new_id()
    operations = {
        "create": lambda c: c.create_volume(create),
        "clone": lambda c: c.clone_volume(common.clone_of(made["a"], clone)),
        "volume from snapshot": lambda c: c.create_snapshot_volume(
            common.volume_from(snapshot_b, copy)
        ),
        "snapshot": lambda c: c.create_snapshot(
            SnapshotCreate(alias=snapshot, volume_id=made["c"], snapshot_id=snapshot)
        ),
        "delete": lambda c: c.delete_volume(made["d"]),
        "extend": lambda c: c.extend_volume(made["e"], 2),
        "delete snapshot": lambda c: c.delete_snapshot(snapshot_f),
        "publish": lambda c: common.publish(c, made["g"]),
        "unpublish": lambda c: common.unpublish(c, made["h"]),
    }
    survivors = {made[name] for name in "abcefghi"}
    return operations, survivors


class Once(HTTPAdapter):
    """Sends one request; a repeat after the kill would hide what the kill left."""

    sent = False

    def send(self, *args, **kwargs):
        if self.sent:
            raise errors.ProtocolError("this client sends one request only")
        self.sent = True
        return super().send(*args, **kwargs)


def run_all(provisioner, operations):
    """Start every operation in a thread; gives the threads and the answers so far."""
    answers = {}

    def one(name, operation):
        client = provisioner.new_client(budget=30, transport=Once())
        try:
            operation(client)
            answers[name] = "Success"
        except errors.KumoError as exc:
            answers[name] = exc.code

    threads = [threading.Thread(target=one, args=item, daemon=True) for item in operations.items()]
    for thread in threads:
        thread.start()
    return threads, answers


def hold_all(nodes, before):
    return [
        node.hold(method, path, before=before, times=1000)
        for node in nodes
        for method, path in CALLS
    ]


def wait_for(holds, calls):
    deadline = time.monotonic() + 60
    while sum(hold.count for hold in holds) < calls:
        assert time.monotonic() < deadline, [hold.count for hold in holds]
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("before", "late"),
    [(True, False), (True, True), (False, False)],
    ids=["before, lost", "before, late", "after"],
)
@pytest.mark.parametrize("which", [[0], [0, 1]], ids=["one node", "both nodes"])
def test_kill_at_each_boundary(provisioner, fleet, which, before, late):
    for node in fleet.add(2):
        provisioner.register(node)
    operations, survivors = prepare(provisioner.client)
    holds = hold_all([fleet.nodes[number] for number in which], before)
    threads, answers = run_all(provisioner, operations)
    wait_for(holds, len(operations) * len(which))
    provisioner.kill()
    for thread in threads:
        thread.join(10)
    assert "Success" not in answers.values()
    if not late:
        for hold in holds:
            hold.release(drop=True)
        fleet.settle()
    fleet.clear_faults()

    provisioner.start()
    counts = provisioner.reconcile()
    if late:
        for hold in holds:
            hold.release()
        fleet.settle()
        provisioner.reconcile()
    assert counts["unknown"] == counts["waiting"] == counts["skipped"] == 0
    common.assert_consistent(provisioner, fleet)
    assert survivors <= {one.uuid for one in provisioner.client.volumes()}

    for name, operation in operations.items():
        try:
            operation(provisioner.client)
        except (errors.NotExistsError, errors.VolumeNotPublishedError):
            # Its intent was recorded before the kill, and the reconcile finished it.
            assert name in ("delete", "delete snapshot", "unpublish")
    common.assert_consistent(provisioner, fleet)
    assert provisioner.client.session.request("POST", "/reconcile", json={})["removed"] == 0


def test_kill_during_the_undo_of_a_failed_create(provisioner, fleet):
    first, second = fleet.add(2)
    for node in fleet.nodes:
        provisioner.register(node)
    second.fail("PUT", "/v1/replicas/", errors.NoSpaceError("the pool is full"))
    hold = first.hold("DELETE", "/v1/replicas/")
    threads, _ = run_all(provisioner, {"create": lambda c: c.create_volume(common.volume(2))})
    hold.wait()
    assert len(first.state.replicas) == 1
    provisioner.kill()
    hold.release(drop=True)
    threads[0].join(10)
    fleet.settle()
    fleet.clear_faults()
    provisioner.start()
    provisioner.reconcile()
    assert fleet.objects() == set()
    assert provisioner.client.volumes() == []


def churn(provisioner, stop, known, lock, seed):
    """Random operations; ``known`` holds the volumes that were answered as created."""
    rng = random.Random(seed)
    once = Once()
    client = provisioner.new_client(transport=once)
    while not stop.is_set():
        once.sent = False
        try:
            if rng.random() < 0.6:
                create = common.volume(rng.choice([1, 2]))
                client.create_volume(create)
                with lock:
                    known.add(create.uuid)
            else:
                with lock:
                    uid = known.pop() if known else None
                if uid and rng.random() < 0.5:
                    client.delete_volume(uid)
                elif uid:
                    common.made_snapshot(client, uid)
        except errors.KumoError:
            time.sleep(0.01)


def test_kills_at_random_moments_under_load(provisioner, fleet):
    for node in fleet.add(3):
        provisioner.register(node)
    known, lock = set(), threading.Lock()
    for number in range(2):
        stop = threading.Event()
        threads = [
            threading.Thread(target=churn, args=(provisioner, stop, known, lock, 10 * number + n))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.8 + 0.37 * number)
        provisioner.kill()
        stop.set()
        for thread in threads:
            thread.join(20)
        fleet.settle()
        provisioner.start()
        counts = provisioner.reconcile()
        assert counts["unknown"] == 0
        common.assert_consistent(provisioner, fleet)
        assert known <= {one.uuid for one in provisioner.client.volumes()}
    assert known
