# SPDX-License-Identifier: Apache-2.0
"""What an operator types, from arguments to output, over the fake network."""

import io
import json

import pytest

from kumo_client.schemas.restored import Difference, Restored, Sight, Uncertain
from kumo_client.schemas.volume import AdoptableVolume
from tests.fakes.http import Answer
from tests.unit.client.conftest import A
from tests.unit.client.operator import H1, V1, V2, J, shown

pytestmark = pytest.mark.usefixtures("operated", "_quiet_logging_afterwards")


@pytest.fixture
def answering(monkeypatch):
    """A terminal at which somebody types this."""

    def make(text):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        monkeypatch.setattr("sys.stdin", Terminal(text))

    return make


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
    ("restored", "accept", "--exports", "drop"),
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


DOUBT = Restored(
    doubt="older",
    reason="node-1 was told of more",
    since=1_800_000_000_000,
    stamp="db branch:3",
    backends=[
        Sight(backend_id="node-1", name="storage-1", judgement="older"),
        Sight(backend_id="node-2", name="storage-2", judgement="fine"),
        Sight(backend_id="node-3", name="storage-3", judgement="silent", reason="No answer."),
    ],
    differences=[
        Difference(
            action="unexport", kind="replica", uuid=V1, backend_id="node-1", alias="v1", host_nqn=H1
        ),
        Difference(action="remove", kind="snapshot", uuid=V2, backend_id="node-1", bytes=3 << 30),
        Difference(action="finish", kind="volume", uuid=V2, volume_id=V2, detail="revert"),
    ],
    uncertain=[Uncertain(volume_id=V2, alias="v2")],
)


def test_a_database_that_is_an_old_copy_is_shown(kumo, filled):
    code, out, err = kumo("restored", "show")
    assert (code, "The database is not in doubt." in err) == (0, True)
    filled.restored_ = DOUBT
    code, out, err = kumo("restored", "show")
    assert code == 0
    assert "In doubt since 2027-01-15 08:00:00 UTC (older): node-1 was told of more" in err
    assert "Node node-1 (storage-1): older" in err
    assert "Node node-3 (storage-3): silent No answer." in err
    assert "node-2" not in err
    assert f"v2 ({V2})" in err
    lines = out.splitlines()
    assert any("unexport" in line and "v1" in line and H1 in line for line in lines)
    assert any("remove" in line and "3.0" in line for line in lines)
    assert any("finish" in line and "revert" in line for line in lines)
    assert shown(kumo("restored", "show", *J)) == DOUBT.wire()


def test_it_is_accepted_after_a_question(kumo, filled, answering):
    filled.restored_ = DOUBT
    with pytest.raises(SystemExit):
        kumo("restored", "accept")
    answering("n\n")
    code, _, err = kumo("restored", "accept", "--exports", "drop")
    assert (code, filled.accepted) == (1, "")
    assert "Let the record count again, remove 1 objects and end 1 exports? [y/N]" in err
    answering("y\n")
    code, out, err = kumo("restored", "accept", "--exports", "keep", *J)
    assert "remove 1 objects and keep 1 exports? [y/N]" in err
    assert (json.loads(out)["left"], filled.accepted) == (["node-3"], "keep")
    assert shown(kumo("restored", "accept", "--exports", "drop", "-y", *J))["arrays"] == 2


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
    "restored": [("restored", "show"), ("restored", "accept", "--exports", "keep", "-y")],
}


@pytest.mark.parametrize("capability", OLD)
def test_an_old_server_lacks_a_capability_and_the_error_names_it(kumo, filled, capability):
    filled.capabilities.clear()
    for argv in OLD[capability]:
        code, _, err = kumo(*argv)
        assert code == 1
        assert f"NotAvailable: this provisioner does not offer '{capability}'." in err
        assert "upgrade it" in err
