# SPDX-License-Identifier: Apache-2.0
"""An operator's day: the real command against the real provisioner over fake nodes."""

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import uuid

import pytest

from kumo_client.cli import main as kumo_main
from kumo_client.cli import progress
from kumo_client.naming import GIB
from kumo_client.schemas.host import HostProbe
from kumo_client.schemas.node import ReplicaSpec
from tests.fakes.fleet import ADDRESS

NQN = "nqn.2014-08.org.nvmexpress:uuid:compute-1"
POOLS = {"ssd-a": 60 * GIB, "ssd-b": 60 * GIB}


@pytest.fixture(autouse=True)
def _quiet_logging_afterwards():
    yield
    logging.getLogger("kumo_client").handlers.clear()
    logging.getLogger("kumo_client").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(progress, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(progress, "LONGEST_PAUSE", 0.2)


class Operator:
    """Types commands. ``token``: what they are typed with."""

    def __init__(self, provisioner, token=None):
        self.environ = {
            "KUMO_URL": provisioner.url,
            "KUMO_TOKEN": token or provisioner.token,
            "KUMO_CA_FILE": provisioner.ca_file,
            "XDG_CONFIG_HOME": str(provisioner.directory),
        }

    def run(self, *argv):
        """(exit code, standard output, standard error)"""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = kumo_main.main([str(part) for part in argv], self.environ)
        return code, out.getvalue(), err.getvalue()

    def __call__(self, *argv):
        """What a command that succeeds prints."""
        code, out, err = self.run(*argv)
        assert code == 0, err
        return out

    def json(self, *argv):
        """The same as JSON."""
        return json.loads(self(*argv, "-f", "json"))

    def refused(self, *argv, code=1):
        """The error of a command that does not succeed."""
        found, _, err = self.run(*argv)
        assert found == code, err
        return err

    def types(self, *argv):
        """Types of events."""
        return [event["type"] for event in self.json("event", "list", *argv)]


@pytest.fixture
def kumo(provisioner):
    return Operator(provisioner)


@pytest.fixture
def nodes(fleet, kumo):
    """Three nodes with two pools each, in three racks."""
    made = fleet.add(3, pools=POOLS, max_iops=10_000, max_bw=1_000_000)
    for number, node in enumerate(made):
        where = ("--mgmt-ip", ADDRESS, "--mgmt-port", node.port, "--rack", f"r{number}")
        added = kumo.json("backend", "add", *where)
        assert added["persistentID"] == node.persistent_id
    return made


def held(node):
    return set(node.state.replicas)


def nodes_of(volume):
    return {location["backend"]["name"] for location in volume["location"]}


def test_nodes_come_and_are_cordoned(kumo, nodes):
    names = [node.model.name for node in nodes]
    assert [item["name"] for item in kumo.json("backend", "list")] == names
    pools = kumo.json("backend", "pools", names[0])
    assert {pool["name"]: pool["totalBytes"] for pool in pools} == POOLS
    changed = kumo.json(
        *("backend", "set", names[0], "--zone", "z9", "--max-iops", 5000),
        *("--pool", "ssd-a", 7, 8),
    )
    assert (changed["zone"], changed["rack"]) == ("z9", "r0")
    (declared,) = [pool for pool in changed["pools"] if pool["name"] == "ssd-a"]
    assert (declared["maxIOPS"], declared["maxBW"]) == (7, 8)
    assert kumo.json("backend", "cordon", names[0])["cordoned"] is True
    plan = kumo.json("volume", "create", "v", 10, "--replicas", 2, "--dry-run")
    refused = {item["refusedBy"] for item in plan["nodes"] if item["backendName"] == names[0]}
    assert refused != {""}
    assert {item["backendName"] for item in plan["nodes"] if item["chosen"]} == set(names[1:])
    assert kumo.json("volume", "list") == []
    code, out, err = kumo.run("volume", "create", "v", 10, "--replicas", 3, "--dry-run")
    assert code == 1
    assert "NoSpace" in err
    assert names[0] in out
    assert kumo.json("backend", "uncordon", names[0])["cordoned"] is False
    assert kumo.json("backend", "maintenance", names[1], "on")["state"] == "Maintenance"
    assert "NoSpace" in kumo.refused("volume", "create", "v", 10, "--replicas", 3)
    assert kumo.json("backend", "maintenance", names[1], "off")["state"] == "Available"
    assert len(nodes_of(kumo.json("volume", "create", "v", 10, "--replicas", 3))) == 3


def test_the_life_of_a_volume(kumo, nodes, provisioner):
    made = kumo.json(
        *("volume", "create", "v", 4, "--replicas", 2, "--desired-iops-per-gib", 10),
        *("--max-replica-down-time", 30),
    )
    assert made["desiredIOPS"] == 40
    sold = sum(pool["soldIOPS"] for pool in kumo.json("backend", "pools"))
    assert sold == 80
    assert kumo.json("volume", "extend", "v", 6)["capacity"] == 6
    changed = kumo.json("volume", "set", "v", "--max-iops-per-gib", 100, "--alias", "w")
    assert (changed["alias"], changed["maxIOPS"]) == ("w", 600)
    assert "replicas" not in kumo.refused("volume", "delete", "w", code=2)
    kumo("snapshot", "create", "w", "s1")
    assert kumo.json("snapshot", "list", "--volume", "w")[0]["coherent"] is True
    assert kumo.json("snapshot", "restore", "s1", "back", "--size", 7)["capacity"] == 7
    assert kumo.json("volume", "clone", "w", "copy")["sourceVolumeId"] == made["uuid"]
    assert kumo.json("volume", "revert", "w", "s1", "--yes")["uuid"] == made["uuid"]
    provisioner.client.probe_host(HostProbe(host_nqn=NQN, host_id="h1", name="compute-1"))
    assert kumo.json("volume", "publish", "w", "compute-1")["arrayState"] == "new"
    assert "InUse" in kumo.refused("host", "delete", "compute-1", "--yes")
    assert "InUse" in kumo.refused("volume", "delete", "w", "--yes")
    kumo("volume", "unpublish", "w", "--all-hosts", "--yes")
    kumo("host", "delete", "compute-1", "--yes")
    for alias in ("back", "copy"):
        kumo("volume", "delete", alias, "--yes")
    kumo("snapshot", "delete", "s1", "--yes")
    kumo("volume", "delete", "w", "--yes")
    assert all(not node.state.replicas and not node.state.snapshots for node in nodes)
    seen = kumo.types("--volume", made["uuid"])
    for what in ("created", "extended", "modified", "reverted", "deleted"):
        assert f"volume.{what}" in seen


def test_a_node_is_drained(kumo, nodes):
    for number in range(3):
        kumo("volume", "create", f"v{number}", 2, "--replicas", 1 + number % 2)
    busy = max(nodes, key=lambda node: len(held(node)))
    assert held(busy)
    name = busy.model.name
    assert "--yes is needed" in kumo.refused("backend", "drain", name, code=2)
    code, out, err = kumo.run(
        *("backend", "drain", name, "--yes", "--wait", "--at-most", 60, "-f", "json")
    )
    assert code == 0, err
    assert json.loads(out)["state"] == "FINISHED"
    assert f"Drain {busy.persistent_id}" in err
    assert kumo.json("backend", "show", name)["state"] == "Draining"
    volumes = kumo.json("volume", "list")
    assert len(volumes) == 3
    assert all(name not in nodes_of(volume) for volume in volumes)
    assert held(busy) == set()
    assert {task["type"] for task in kumo.json("task", "list")} >= {"Drain", "OfflineMigration"}
    (task,) = [item for item in kumo.json("task", "list") if item["type"] == "Drain"]
    assert kumo.json("task", "wait", task["taskId"])["progress"] == 100
    kumo("task", "delete", task["taskId"], "--yes")
    assert task["taskId"] not in [item["taskId"] for item in kumo.json("task", "list")]
    assert kumo.json("backend", "drain", name, "--stop")["state"] == "Available"
    assert {"backend.draining", "backend.drained"} <= set(kumo.types())
    kumo("backend", "delete", name)
    assert name not in kumo("backend", "list")


def test_a_replica_is_moved_by_hand(kumo, nodes):
    (home,) = nodes_of(kumo.json("volume", "create", "v", 2))
    other = next(node.model.name for node in nodes if node.model.name != home)
    task = kumo.json("volume", "migrate", "v", "--to", other, "--wait", "--at-most", 60)
    assert task["state"] == "FINISHED"
    assert nodes_of(kumo.json("volume", "show", "v")) == {other}
    kumo("volume", "create", "w", 2, "--replicas", 2)
    replicas = kumo.json("replica", "list", "w")
    assert {item["freshness"] for item in replicas} == {"fresh"}
    assert "say --replica which one" in kumo.refused("volume", "migrate", "w", code=2)


def test_a_logical_volume_is_adopted_and_given_up(kumo, nodes):
    model = nodes[0].model
    model.add_foreign("legacy", 3 * GIB, pool="ssd-a")
    found = kumo.json("volume", "adoptable", model.name)
    assert [(item["pool"], item["name"]) for item in found] == [("ssd-a", "legacy")]
    made = kumo.json("volume", "adopt", model.name, "ssd-a", "legacy", "old")
    assert (made["capacity"], nodes_of(made)) == (3, {model.name})
    kumo("volume", "unmanage", "old", "--yes")
    assert kumo.json("volume", "list") == []
    assert model.state.foreign
    assert {"volume.adopted", "volume.unmanaged"} <= set(kumo.types("--volume", made["uuid"]))


def test_tenants_have_budgets_and_tokens(kumo, nodes, provisioner):
    kumo("tenant", "create", "acme", "--id", "acme", "--capacity", 5)
    error = kumo.refused("--tenant", "acme", "volume", "create", "v", 3, "--replicas", 2)
    assert "OverBudget" in error
    assert kumo.json("tenant", "set", "acme", "--capacity", 6)["capacity"] == 6
    kumo("--tenant", "acme", "volume", "create", "v", 3, "--replicas", 2)
    (budget,) = [item for item in kumo.json("tenant", "list") if item["tenantId"] == "acme"]
    assert (budget["consumedCapacity"], budget["name"]) == (6, "acme")
    assert kumo.json("volume", "list") == []
    made = kumo.json("token", "create", "--name", "t", "--role", "storage", "--of-tenant", "acme")
    theirs = Operator(provisioner, made["token"])
    assert [item["alias"] for item in theirs.json("volume", "list")] == ["v"]
    assert "Forbidden" in theirs.refused("backend", "drain", nodes[0].model.name, "--yes")
    assert "InUse" in kumo.refused("tenant", "delete", "acme", "--yes")
    theirs("volume", "delete", "v", "--yes")
    kumo("token", "revoke", made["tokenId"])
    assert "Unauthorized" in theirs.refused("volume", "list")
    kumo("tenant", "delete", "acme", "--yes")
    assert [item["tenantId"] for item in kumo.json("tenant", "list")] == ["0"]


def test_garbage_is_found_kept_and_removed(kumo, nodes):
    node = nodes[0]
    spare, wanted = str(uuid.uuid4()), str(uuid.uuid4())
    for uid in (spare, wanted):
        spec = ReplicaSpec(volume_id=str(uuid.uuid4()), bytes=GIB, pool="ssd-a")
        node.model.put_replica(uid, spec)
    kumo("reconcile")
    found = {item["uuid"]: item for item in kumo.json("garbage", "list")}
    assert found.keys() == {spare, wanted}
    assert found[spare]["backendId"] == node.persistent_id
    kumo("garbage", "keep", wanted)
    assert "--yes is needed" in kumo.refused("garbage", "remove", spare, code=2)
    kumo("garbage", "remove", spare, "--yes")
    assert held(node) == {wanted}
    assert "garbage.found" in kumo.types()


def interrupted(process):
    """Press Ctrl-C until it ends; gives its exit code.

    Python drops a KeyboardInterrupt that is raised while a finalizer or a callback of C runs.
    """
    for _ in range(4):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(15)
    return process.wait(0)


def test_events_are_followed_while_things_happen(kumo, nodes):
    """In a process of its own, ended with Ctrl-C."""
    # A shell that runs the tests in the background lets them, and what they start, ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    last = kumo.json("event", "list")[-1]["seq"]
    argv = ["event", "list", "--follow", "--since", str(last), "-f", "json"]
    with subprocess.Popen(
        [sys.executable, "-m", "kumo_client.cli.main", *argv],
        env=os.environ | kumo.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as follower:
        watchdog = threading.Timer(120, follower.kill)
        watchdog.start()
        uid = kumo.json("volume", "create", "v", 1)["uuid"]
        kumo("volume", "delete", "v", "--yes")
        seen = []
        while not seen or seen[-1]["type"] != "volume.deleted":
            line = follower.stdout.readline()
            assert line, "it ended too early"
            seen.append(json.loads(line))
        assert interrupted(follower) == 0
        watchdog.cancel()
        assert "go on with --since" in follower.stderr.read()
    assert [event["type"] for event in seen if event["volumeId"] == uid] == [
        "volume.created",
        "volume.deleted",
    ]
    numbers = [event["seq"] for event in seen]
    assert numbers == sorted(set(numbers))
    assert numbers[0] > last


def test_what_the_server_says_of_itself(kumo, nodes):
    info = kumo.json("info")
    for name in ("drain", "dry-run", "events", "garbage", "paging", "tokens", "adopt-volume"):
        assert name in info["capabilities"]
    kumo("volume", "create", "v", 1)
    metrics = kumo("metrics")
    assert "ks_node_used_capacity_bytes" in metrics
    assert "# TYPE" in metrics
