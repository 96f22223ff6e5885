# SPDX-License-Identifier: Apache-2.0
"""What an operator types, from arguments to output, over the fake network."""

import io
import json
import uuid

import pytest

from kumo_client import errors
from kumo_client.cli import event as event_command
from kumo_client.cli import output, progress, watch
from kumo_client.schemas.backend import BackendCreate, BackendPool
from kumo_client.schemas.host import HostProbe
from kumo_client.schemas.node import Ssd
from kumo_client.schemas.snapshot import SnapshotCreate
from kumo_client.schemas.volume import AdoptableVolume, StorageClass, VolumeCreate
from tests.fakes.http import Answer, ReadTimeout, Reset
from tests.unit.client.conftest import A

V1, V2, S1 = (str(uuid.UUID(int=number)) for number in range(1, 4))
H1 = "11111111-1111-1111-1111-111111111111"
NQN = "nqn.2014-08.org.nvmexpress:uuid:h1"

pytestmark = pytest.mark.usefixtures("operated", "_quiet_logging_afterwards")


@pytest.fixture
def filled(api, operated):
    """Two nodes, a replicated volume with a snapshot, and a host."""
    for number in (1, 2):
        api.add_backend(BackendCreate(mgmt_ips=[f"10.0.0.{number}"]))
    pool = BackendPool(
        name="ssd-1",
        total_bytes=3 << 30,
        sold_iops=5,
        max_iops=9,
        ssds=[Ssd(path="/dev/sdb", wear_percent=7), Ssd(path="/dev/sdc", state="failed")],
    )
    operated.backends["node-1"].pools = [pool]
    asked = StorageClass(num_replicas=2)
    api.create_volume(VolumeCreate(uuid=V1, alias="v1", capacity=12, storage_class=asked))
    api.create_snapshot(SnapshotCreate(alias="s1", volume_id=V1, snapshot_id=S1))
    api.probe_host(HostProbe(host_nqn=NQN, host_id=H1, name="compute-1"))
    api.session.close()
    return operated


@pytest.fixture
def slept(monkeypatch):
    """Sleeping takes no time; Ctrl-C is pressed in place of the last pause of ``slept.left``."""

    class Slept(list):
        left = 1000
        now = 0.0

        def __call__(self, seconds):
            self.append(seconds)
            self.now += seconds
            if len(self) >= self.left:
                raise KeyboardInterrupt

    found = Slept()
    monkeypatch.setattr(watch, "sleep", found)
    monkeypatch.setattr(progress, "sleep", found)
    monkeypatch.setattr(progress, "clock", lambda: found.now)
    return found


@pytest.fixture
def answering(monkeypatch):
    """A terminal at which somebody types this."""

    def make(text):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        monkeypatch.setattr("sys.stdin", Terminal(text))

    return make


def shown(result):
    """The JSON object that was printed."""
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


J = ("-f", "json")


# -- storage nodes --------------------------------------------------------------------------------


def test_the_pools_of_nodes(kumo, filled):
    out = kumo("backend", "pools")[1]
    assert "5/9" in out
    assert "/dev/sdb 7 % worn, /dev/sdc failed" in out
    (pool,) = shown(kumo("backend", "pools", "node-1", *J))
    assert (pool["backendId"], pool["totalBytes"]) == ("node-1", 3 << 30)
    assert shown(kumo("backend", "pools", "node-2", *J)) == []


def test_place_and_limits_of_a_node(kumo, filled):
    found = shown(
        kumo(
            *("backend", "set", "node-1", "--rack", "r2", "--max-iops", "99"),
            *("--pool", "ssd-1", "70", "80", *J),
        )
    )
    assert (found["rack"], found["zone"], found["totalIOPS"]) == ("r2", "", 99)
    assert (found["pools"][0]["maxIOPS"], found["pools"][0]["maxBW"]) == (70, 80)


def test_nothing_to_change_is_a_usage_error(kumo, filled, network):
    before = len(network.requests)
    for argv in (("backend", "set", "x"), ("volume", "set", "x"), ("tenant", "set", "x")):
        code, _, err = kumo(*argv)
        assert (code, err) == (2, "kumo: error: nothing to change was given\n")
    assert len(network.requests) == before


def test_modes_of_a_node(kumo, filled):
    assert shown(kumo("backend", "cordon", "node-1", *J))["cordoned"] is True
    assert "Available, cordoned" in kumo("backend", "list")[1]
    assert shown(kumo("backend", "uncordon", "node-1", *J))["cordoned"] is False
    assert shown(kumo("backend", "maintenance", "node-1", "on", *J))["state"] == "Maintenance"
    assert shown(kumo("backend", "maintenance", "node-1", "off", *J))["state"] == "Available"


def test_draining_without_and_with_waiting(kumo, filled, slept):
    task = shown(kumo("backend", "drain", "node-1", "--yes", *J))
    assert (task["type"], task["backendId"], slept) == ("Drain", "node-1", [])
    assert shown(kumo("backend", "drain", "node-1", "--stop", *J))["state"] == "Available"
    filled.steps = 4
    code, out, err = kumo("backend", "drain", "node-2", "--yes", "--wait", *J)
    assert code == 0
    assert json.loads(out)["state"] == "FINISHED"
    assert "kumo: Drain node-2: RUNNING, " in err
    assert slept


def test_the_task_of_a_drain_is_found_when_the_answer_does_not_name_it(kumo, filled):
    begin = filled.begin
    filled.begin = lambda kind, **fields: begin(kind, **fields) and {"status": "Success"}
    task = shown(kumo("backend", "drain", "node-1", "-y", *J))
    assert task["backendId"] == "node-1"
    filled.begin = lambda kind, **fields: {"status": "Success"}
    code, _, err = kumo("backend", "drain", "node-2", "-y")
    assert code == 1
    assert "there is no task for it" in err


# -- questions ------------------------------------------------------------------------------------

DANGEROUS = [
    ("backend", "drain", "node-1"),
    ("volume", "delete", "v1"),
    ("volume", "revert", "v1", "s1"),
    ("volume", "unmanage", "v1"),
    ("volume", "unpublish", "v1", "--all-hosts"),
    ("replica", "remove", "v1", "node-1"),
    ("replica", "confirm", "v1", "node-1"),
    ("replica", "set-state", "v1", "node-1", "Available"),
    ("snapshot", "delete", "s1"),
    ("host", "delete", "compute-1"),
    ("tenant", "delete", "0"),
    ("task", "delete", "TASK"),
    ("garbage", "remove", V2),
]


@pytest.fixture
def deletable(filled, api):
    filled.found("node-1", V2)
    filled.begin("Drain", backend_id="node-1")
    (task,) = filled.tasks_.values()
    task.state = "FINISHED"
    api.session.close()
    return task.task_id


def _changes(network):
    return [request for request in network.requests if request.method != "GET"]


@pytest.mark.parametrize("argv", DANGEROUS, ids=" ".join)
def test_what_cannot_be_undone_is_asked_for(kumo, deletable, argv, answering, network, monkeypatch):
    argv = [deletable if part == "TASK" else part for part in argv]
    before = len(_changes(network))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    code, out, err = kumo(*argv)
    assert (code, out) == (2, "")
    assert "there is no terminal to ask on, so --yes is needed" in err
    for answer in ("\n", "no\n", ""):
        answering(answer)
        code, out, err = kumo(*argv)
        assert (code, out) == (1, "")
        assert "? [y/N] " in err
        assert err.endswith("kumo: error: nothing was done\n")
    assert len(_changes(network)) == before
    answering("yes\n")
    assert kumo(*argv)[0] == 0
    assert len(_changes(network)) == before + 1


@pytest.mark.parametrize("argv", DANGEROUS, ids=" ".join)
def test_yes_is_not_asked(kumo, deletable, argv):
    argv = [deletable if part == "TASK" else part for part in argv]
    code, _, err = kumo(*argv, "--yes")
    assert (code, err) == (0, "")


# -- volumes --------------------------------------------------------------------------------------


def test_creating_a_volume(kumo, filled, network):
    made = shown(
        kumo(
            *("volume", "create", "v2", "3", "--replicas", "2", "--thin", "--zone", "a"),
            *("--zone", "b", "--same-rack", "--no-span", "--desired-iops-per-gib", "10"),
            *("--max-replica-down-time", "30", "--block-size", "512", *J),
        )
    )
    assert (made["alias"], made["capacity"], made["numReplicas"]) == ("v2", 3, 2)
    (sent,) = [request.json for request in _changes(network) if request.json.get("alias") == "v2"]
    assert sent["provisioningType"] == "THIN"
    asked = sent["storageClass"]
    assert (asked["zones"], asked["sameRackAllowed"], asked["allowSpan"]) == (
        ["a", "b"],
        True,
        False,
    )
    assert (asked["desiredIOPSPerGB"], asked["maxReplicaDownTime"], asked["blockSize"]) == (
        10,
        30,
        512,
    )


def test_asking_where_a_volume_would_go(kumo, filled):
    code, out, err = kumo("volume", "create", "v2", "12", "--dry-run")
    assert (code, err) == (0, "")
    (first,) = [line for line in out.splitlines() if "node-1" in line]
    (second,) = [line for line in out.splitlines() if "node-2" in line]
    assert "yes" in first
    assert "capacity" in second
    assert "3 GiB free, 12 GiB needed" in second
    filled.full = True
    code, out, err = kumo("volume", "create", "v2", "12", "--dry-run", *J)
    assert (code, json.loads(out)["status"]) == (1, "NoSpace")
    assert "NoSpace: it cannot be placed." in err
    assert list(filled.volumes) == [V1]


def test_the_life_of_a_volume(kumo, filled):
    assert shown(kumo("volume", "extend", "v1", "20", *J))["capacity"] == 20
    found = shown(kumo("volume", "set", V1, "--alias", "w", "--max-bw-per-gib", "5", *J))
    assert (found["alias"], found["storageClass"]["maxBWPerGB"]) == ("w", 5)
    clone = shown(kumo("volume", "clone", "w", "copy", "--uuid", V2, "--size", "30", *J))
    assert (clone["uuid"], clone["capacity"], clone["sourceVolumeId"]) == (V2, 30, V1)
    assert kumo("volume", "publish", "w", "compute-1")[0] == 0
    assert filled.published == {V1: {H1}}
    assert shown(kumo("volume", "publish", "w", H1, *J))["status"] == "AlreadyPublished"
    assert kumo("volume", "unpublish", "w", "compute-1")[0] == 0
    assert filled.published == {V1: set()}
    assert shown(kumo("volume", "unpublish", "w", H1, *J))["status"] == "VolumeNotPublished"


@pytest.mark.parametrize("more", [(), (H1, "--all-hosts")])
def test_unpublish_needs_one_host_or_all(kumo, filled, more):
    code, _, err = kumo("volume", "unpublish", "v1", *more)
    assert code == 2
    assert "either a host or --all-hosts" in err


def test_volumes_of_a_node(kumo, filled):
    assert [v["alias"] for v in shown(kumo("volume", "list", "--backend", "node-2", *J))] == ["v1"]
    filled.volumes[V1].location.pop()
    assert shown(kumo("volume", "list", "--backend", "node-2", *J)) == []


def test_adopting(kumo, filled):
    filled.adoptable_ = [
        AdoptableVolume(backend_id="node-1", pool="p", name="lv1", bytes=4 << 30),
        AdoptableVolume(backend_id="node-2", pool="p", name="lv2", bytes=1, reason="in use"),
    ]
    out = kumo("volume", "adoptable")[1]
    assert "4.0" in out
    assert "in use" in out
    assert len(shown(kumo("volume", "adoptable", "node-2", *J))) == 1
    made = shown(kumo("volume", "adopt", "node-1", "p", "lv1", "old", "--uuid", V2, *J))
    assert (made["uuid"], made["alias"]) == (V2, "old")


def test_moving_a_replica(kumo, filled, slept, network):
    code, _, err = kumo("volume", "migrate", "v1")
    assert code == 2
    assert "volume v1 has 2 replicas; say --replica which one" in err
    argv = ("volume", "migrate", "v1", "--replica", "node-1", "--to", "node-2", "--wait")
    code, out, err = kumo(*argv, *J)
    assert (code, json.loads(out)["state"]) == (0, "FINISHED")
    (sent,) = [r.json for r in network.requests if r.path == "/migrate_volume"]
    assert sent == {
        "volId": V1,
        "repId": filled.volumes[V1].location[0].uuid,
        "destinationBackendId": "node-2",
    }


def test_the_task_of_a_move_is_found_when_the_answer_does_not_name_it(kumo, filled):
    filled.volumes[V1].location.pop()
    begin = filled.begin
    filled.begin = lambda kind, **fields: begin(kind, **fields) and {"status": "Success"}
    assert shown(kumo("volume", "migrate", "v1", *J))["volumeId"] == V1
    filled.begin = lambda kind, **fields: {"status": "Success"}
    filled.tasks_.clear()
    code, _, err = kumo("volume", "migrate", "v1")
    assert code == 1
    assert "there is no task for it" in err


# -- replicas, snapshots, hosts -------------------------------------------------------------------


def test_replicas(kumo, filled):
    filled.volumes[V1].location[0].current_state_time = 3_700_000
    out = kumo("replica", "list", "v1")[1]
    assert "1 h 1 min" in out
    added = shown(kumo("replica", "add", "v1", *J))
    assert added["freshness"] == "blank"
    changed = shown(kumo("replica", "set-state", "v1", added["uuid"], "Synchronizing", *J))
    assert changed["replicaState"] == "Synchronizing"
    assert kumo("replica", "remove", "v1", added["uuid"], "-y") == (0, "", "")
    states = [item["replicaState"] for item in shown(kumo("replica", "list", V1, *J))]
    assert states == ["Available", "Available", "Terminating"]
    assert kumo("replica", "confirm", "v1", added["uuid"], "-y") == (0, "", "")
    assert len(shown(kumo("replica", "list", V1, *J))) == 2
    code, _, err = kumo("replica", "remove", "v1", "node-7", "-y")
    assert code == 1
    assert "replica node-7 of volume v1 does not exist" in err
    assert shown(kumo("replica", "add", "v1", "--to", "node-1", *J))["freshness"] == "blank"


def test_snapshots(kumo, filled):
    made = shown(kumo("snapshot", "create", "v1", "s2", "--uuid", V2, *J))
    assert (made["snapshotID"], made["volumeID"]) == (V2, V1)
    assert len(shown(kumo("snapshot", "list", "--volume", "v1", *J))) == 2
    volume = shown(kumo("snapshot", "restore", "s2", "back", "--size", "13", *J))
    assert (volume["alias"], volume["capacity"], volume["snapshotID"]) == ("back", 13, V2)
    assert kumo("snapshot", "delete", "s2", "-y") == (0, "", "")


# -- tenants, tokens, garbage, the server ---------------------------------------------------------


def test_tenants(kumo, filled):
    made = shown(kumo("tenant", "create", "acme", "--id", "t1", "--capacity", "50", *J))
    assert (made["tenantId"], made["capacity"], made["totalIOPS"]) == ("t1", 50, 0)
    changed = shown(kumo("tenant", "set", "t1", "--iops", "7", "--bw", "8", *J))
    assert (changed["name"], changed["capacity"]) == ("acme", 50)
    assert (changed["totalIOPS"], changed["totalBW"]) == (7, 8)
    assert "acme" in kumo("tenant", "list")[1]
    assert kumo("tenant", "delete", "t1", "-y") == (0, "", "")
    assert kumo("tenant", "set", "t1", "--name", "x")[0] == 1


def test_the_tenant_of_a_command(kumo, network):
    network.servers[A] = lambda request: Answer([] if request.path != "/info" else {})
    kumo("--tenant", "acme", "volume", "list")
    kumo("snapshot", "list", KUMO_TENANT="blue")
    paths = [request.path for request in network.requests]
    assert paths == ["/info", "/acme/volumes", "/info", "/blue/snapshots"]


def test_a_new_token_stands_alone_on_its_line(kumo, operated):
    code, out, err = kumo("token", "create", "--role", "node", "--name", "n1", "--hours", "24")
    assert (code, out) == (0, "new-token\n")
    assert err == "kumo: token id t1, expires 2025-10-10 08:53:20 UTC\n"
    asked = operated.tokens["t1"]
    assert (asked.role, asked.name, asked.life) == ("node", "n1", 86400)
    assert shown(kumo("token", "create", "--of-tenant", "t1", *J))["token"] == "new-token"
    assert kumo("token", "revoke", "t1") == (0, "", "")
    assert kumo("token", "create", "--hours", "10000")[0] == 2


def test_garbage(kumo, filled):
    filled.found("node-1", V1)
    filled.found("node-2", V1)
    filled.found("node-2", V2)
    code, _, err = kumo("garbage", "keep", V1)
    assert code == 2
    assert "was found on 2 nodes; give --backend" in err
    assert kumo("garbage", "keep", V1, "--backend", "node-2") == (0, "", "")
    (line,) = [line for line in kumo("garbage", "list")[1].splitlines() if "kept" in line]
    assert V1 in line
    assert kumo("garbage", "remove", V2.upper(), "-y") == (0, "", "")
    assert len(shown(kumo("garbage", "list", *J))) == 2
    code, _, err = kumo("garbage", "remove", V2, "-y")
    assert f"garbage {V2} does not exist" in err


def test_the_server(kumo):
    assert kumo("metrics")[1] == "kumo_volumes 3\n"
    assert shown(kumo("reconcile", *J)) == {"made": 1}
    assert "made" in kumo("reconcile")[1]


OLD = {
    "drain": [("backend", "cordon", "node-1"), ("backend", "drain", "node-1", "-y")],
    "dry-run": [("volume", "create", "v", "1", "--dry-run")],
    "modify-volume": [("volume", "set", "v1", "--alias", "w")],
    "revert-volume": [("volume", "revert", "v1", "s1", "-y")],
    "adopt-volume": [("volume", "adoptable"), ("volume", "unmanage", "v1", "-y")],
    "events": [("event", "list"), ("event", "list", "--follow")],
    "tokens": [("token", "create"), ("token", "revoke", "x")],
    "garbage": [("garbage", "list")],
    "reconcile": [("reconcile",)],
}


@pytest.mark.parametrize("capability", OLD)
def test_an_old_server_lacks_a_capability_and_the_error_names_it(kumo, filled, capability):
    filled.capabilities.clear()
    for argv in OLD[capability]:
        code, _, err = kumo(*argv)
        assert code == 1
        assert f"NotAvailable: this provisioner does not offer '{capability}'." in err
        assert "upgrade it" in err


# -- tasks ----------------------------------------------------------------------------------------


def begin(server, **fields):
    return server.begin("RemoteMigration", volume_id=V1, **fields)["taskId"]


def test_tasks(kumo, filled):
    task = begin(filled, host_id=H1)
    begin(filled, host_id="other")
    assert [item["taskId"] for item in shown(kumo("task", "list", "--host", "compute-1", *J))] == [
        task
    ]
    assert "RemoteMigration" in kumo("task", "list")[1]
    assert shown(kumo("task", "show", task, *J))["progress"] == 50
    filled.tasks_[task].state = "FINISHED"
    assert kumo("task", "delete", task, "-y") == (0, "", "")
    assert task not in filled.tasks_


def test_waiting_for_a_task(kumo, filled, slept):
    filled.steps = 4
    code, out, err = kumo("task", "wait", begin(filled), *J)
    assert (code, json.loads(out)["progress"]) == (0, 100)
    assert [line.rpartition(": ")[2] for line in err.splitlines()] == [
        "RUNNING, 50 %",
        "RUNNING, 75 %",
        "FINISHED, 100 %",
    ]
    assert slept == sorted(slept)


def test_a_task_that_fails(kumo, filled, slept):
    filled.fails = "no node\x1b[31m can take it"
    code, out, err = kumo("task", "wait", begin(filled))
    assert (code, out) == (1, "")
    assert "TaskFailed: task " in err
    assert "(RemoteMigration) failed: no node?[31m can take it" in err


def test_a_task_that_takes_too_long(kumo, filled, slept):
    filled.steps = 1000
    task = begin(filled)
    code, _, err = kumo("task", "wait", task, "--at-most", "10")
    assert code == 1
    assert f"it goes on; kumo task wait {task}" in err
    assert 10 <= sum(slept) < 20


def test_waiting_is_interrupted(kumo, filled, slept):
    filled.steps = 1000
    slept.left = 2
    task = begin(filled)
    code, _, err = kumo("task", "wait", task)
    assert code == 130
    assert f"kumo: the task goes on; kumo task wait {task}\n" in err


def test_a_provisioner_that_is_away_for_a_while_does_not_end_the_wait(kumo, filled, slept, network):
    task = begin(filled)
    fake = network.servers[A]
    looks = []

    def sometimes(request):
        looks.append(request.path)
        if len(looks) in (2, 3):
            raise Reset
        return fake(request)

    filled.steps = 6
    network.servers[A] = sometimes
    code, _, err = kumo("task", "wait", task, KUMO_TIMEOUT="0.01")
    assert code == 0
    assert "CommunicationError" in err
    assert "FINISHED, 100 %" in err


def test_a_task_that_vanishes(kumo, filled, monkeypatch):
    filled.steps = 5
    task = begin(filled)
    filled.tasks_[task].type = "Drain"
    monkeypatch.setattr(progress, "sleep", lambda seconds: filled.tasks_.clear())
    code, _, err = kumo("task", "wait", task)
    assert code == 1
    assert "does not exist any more" in err


def test_bars_on_a_terminal(kumo, filled, slept, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    filled.steps = 4
    task = filled.begin("Drain", backend_id="node-1")["taskId"]
    for number in range(2):
        filled.begin("OfflineMigration", volume_id=f"part-{number}", parent=task)
    code, _, err = kumo("task", "wait", task)
    assert code == 0
    assert "Drain node-1" in err
    assert "part-1" in err
    assert "100%" in err


# -- looking again and again ----------------------------------------------------------------------


def test_watching_without_a_terminal_prints_again(kumo, filled, slept):
    slept.left = 3
    code, out, err = kumo("volume", "list", "--watch")
    assert (code, err) == (0, "")
    assert out.count("| UUID") == 3
    assert slept == [2, 2, 2]


def test_watching_as_json_gives_a_line_for_each_object(kumo, filled, slept):
    slept.left = 2
    code, out, _ = kumo("backend", "list", "--watch=0.5", *J)
    names = [json.loads(line)["persistentID"] for line in out.splitlines()]
    assert (code, names) == (0, ["node-1", "node-2"] * 2)
    assert slept == [0.5, 0.5]
    slept.clear()
    assert json.loads(kumo("volume", "show", "v1", "--watch", *J)[1].splitlines()[1])["uuid"] == V1


@pytest.mark.parametrize("what", [("volume", "list"), ("volume", "show", "v1")])
def test_watching_on_a_terminal_keeps_one_place(kumo, filled, slept, monkeypatch, what):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    slept.left = 3
    code, out, err = kumo(*what, "--watch")
    assert (code, err) == (0, "")
    assert out.startswith("\x1b[?25l")
    assert out.endswith("\x1b[?25h")
    assert "\x1b[1A" in out


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_goes_on_while_the_provisioner_is_away(
    kumo, filled, slept, monkeypatch, network, terminal
):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "200")
    fake = network.servers[A]
    calls = []

    def sometimes(request):
        calls.append(request)
        if len(calls) == 2:
            raise ReadTimeout
        return fake(request)

    network.servers[A] = sometimes
    slept.left = 3
    code, out, err = kumo("backend", "list", "--watch", KUMO_TIMEOUT="0.01")
    assert code == 0
    assert "CommunicationError" in (out if terminal else err)
    assert len(calls) == 3


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_ends_when_the_object_is_gone(kumo, filled, slept, monkeypatch, terminal):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(watch, "sleep", lambda seconds: filled.volumes.clear())
    code, _, err = kumo("volume", "show", "v1", "--watch")
    assert code == 1
    assert "volume v1 does not exist" in err


@pytest.mark.parametrize("value", ["x", "0", "-1", "nan", "1e9"])
def test_a_wrong_period(kumo, value):
    with pytest.raises(SystemExit) as caught:
        kumo("volume", "list", f"--watch={value}")
    assert caught.value.code == 2


# -- events ---------------------------------------------------------------------------------------


def numbers(result):
    return [event["seq"] for event in shown(result)]


def test_listing_events(kumo, filled):
    filled.say("volume.created", volume_id=V1, message="made\x1b[2J it")
    filled.say("backend.cordoned", backend_id="node-1", level="WARN")
    out = kumo("event", "list")[1]
    assert "made?[2J it" in out
    (event,) = shown(kumo("event", "list", "--volume", "v1", "--limit", "5", *J))
    assert event["type"] == "volume.created"
    assert shown(kumo("event", "list", "--since", "2", "--host", "compute-1", *J)) == []
    assert len(shown(kumo("event", "list", "--volume", V2.upper(), *J))) == 0
    assert kumo("event", "list", "--limit", "0")[0] == 2


def test_the_newest_events_or_all_since_one(kumo, filled, monkeypatch):
    monkeypatch.setattr(event_command, "AT_ONCE", 2)
    for number in range(7):
        filled.say("volume.created", volume_id=(V1, V2)[number % 2])
    assert numbers(kumo("event", "list", "--limit", "3", *J)) == [5, 6, 7]
    assert numbers(kumo("event", "list", "--volume", "v1", "--limit", "2", *J)) == [5, 7]
    assert numbers(kumo("event", "list", "--since", "1", *J)) == [2, 3, 4, 5, 6, 7]
    assert numbers(kumo("event", "list", "--since", "1", "--limit", "3", *J)) == [2, 3, 4]
    filled.forgotten = 3
    assert "have been forgotten" in kumo("event", "list", "--since", "2")[2]
    assert kumo("event", "list")[2] == ""


class Polls(list):
    """Does the next of these things before each long poll, then presses Ctrl-C."""

    def __init__(self, network, *steps):
        super().__init__()
        self.steps, self.fake = list(steps), network.servers[A]
        network.servers[A] = self

    def __call__(self, request):
        if "wait" in request.params:
            self.append(request.params)
            if not self.steps:
                raise KeyboardInterrupt
            answer = self.steps.pop(0)()
            if answer is not None:
                return answer
        return self.fake(request)


@pytest.mark.parametrize("form", ["table", "json"])
def test_following_events(kumo, filled, network, form):
    filled.say("volume.created", volume_id=V1)
    polls = Polls(
        network,
        lambda: filled.say("volume.deleted", volume_id=V1, host_id=H1, message="gone\nfor good"),
        lambda: None,
    )
    code, out, err = kumo("event", "list", "--follow", "--level", "INFO", "-f", form)
    assert (code, err) == (0, "kumo: go on with --since 2\n")
    lines = out.splitlines()
    assert len(lines) == 2
    assert [params["since"] for params in polls] == ["1", "2", "2"]
    assert polls[1]["wait"] == "20"
    if form == "json":
        assert [json.loads(line)["type"] for line in lines] == ["volume.created", "volume.deleted"]
    else:
        assert lines[1].endswith(f"volume.deleted gone for good volume={V1} host={H1}")


def test_following_survives_a_provisioner_that_restarts(kumo, filled, network, slept):
    def lost():
        raise ReadTimeout

    network.clock = None
    polls = Polls(
        network,
        lost,
        lambda: filled.say("volume.created"),
        lambda: Answer(errors.ForbiddenError("not any more").to_wire(), 403),
    )
    code, out, err = kumo("event", "list", "--follow", "--since", "0", KUMO_TIMEOUT="0.01")
    assert code == 1
    assert "volume.created" in out
    assert "Forbidden" in err
    assert [params["since"] for params in polls] == ["0", "0", "1"]


def test_following_that_is_interrupted_before_anything_came(kumo, network):
    def interrupt(request):
        raise KeyboardInterrupt

    network.servers[A] = interrupt
    assert kumo("event", "list", "--follow") == (0, "", "")
    assert kumo("event", "list")[0] == 130


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0 s"),
        (999, "0 s"),
        (61_000, "1 min 1 s"),
        (90_061_000, "1 d 1 h"),
        (86_460_000, "1 d 1 min"),
    ],
)
def test_durations(milliseconds, text):
    assert output.lasting(milliseconds) == text
