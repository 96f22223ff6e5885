# SPDX-License-Identifier: Apache-2.0
"""A node remembers the state of the provisioner's database; an older one takes nothing away."""

import json

import pytest
from fastapi.testclient import TestClient

from kumo_client import stamp
from kumo_node import app
from kumo_node.auth import Tokens
from kumo_node.following import takes_away
from tests.fakes.node import TOKEN
from tests.unit.node.conftest import HOST_A, MIB, VOLUME, uid

R1, R2 = uid(1), uid(2)
REPLICA = {"volumeId": VOLUME, "bytes": 16 * MIB}
EXPORT = {"hostNqn": HOST_A, "class": "plain"}
BASE, OTHER, A, B = uid(0xD1), uid(0xD2), uid(0xA), uid(0xB)


def told(*ends, database=BASE):
    return {stamp.HEADER: " ".join([database, *(f"{branch}:{number}" for branch, number in ends)])}


@pytest.fixture
def api(machine, node):
    made = app.make(node, Tokens(str(machine.root / "token")))
    with TestClient(made, raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client


def remembered(api):
    found = api.get("/v1/info").json().get("stamp")
    return found and (found["database"], found["branch"], found["number"])


def delete(api, uuid, *ends, **options):
    return api.delete(f"/v1/replicas/{uuid}", headers=told(*ends, **options)).json()["status"]


def test_who_tells_nothing_is_served_as_ever(api):
    api.put(f"/v1/replicas/{R1}", json=REPLICA)
    assert remembered(api) is None
    assert api.delete(f"/v1/replicas/{R1}").json()["status"] == "Success"
    api.get("/v1/info", headers=told((A, 1)))
    api.put(f"/v1/replicas/{R1}", json=REPLICA)
    assert api.delete(f"/v1/replicas/{R1}").json()["status"] == "Success"


def test_an_older_state_takes_nothing_away(api):
    api.put(f"/v1/replicas/{R1}", json=REPLICA, headers=told((A, 7)))
    api.put(f"/v1/replicas/{R1}/exports", json=EXPORT, headers=told((A, 8)))
    assert remembered(api) == (BASE, A, 8)
    for ends in ([(A, 7)], [(B, 9)], [(B, 9), (A, 7)]):
        for path in (f"/v1/replicas/{R1}/exports", f"/v1/replicas/{R1}"):
            answer = api.delete(path, headers=told(*ends))
            assert answer.status_code == 409
            assert (answer.json()["status"], answer.json()["transient"]) == (
                "OutdatedRecord",
                False,
            )
            assert "kumo restored accept" in answer.json()["wayOut"]
    assert delete(api, R1, (A, 8), database=OTHER) == "OutdatedRecord"
    assert len(api.get("/v1/inventory").json()["replicas"][0]["exports"]) == 1
    # What takes nothing away is served, and not remembered.
    made = api.put(f"/v1/replicas/{R2}", json=REPLICA, headers=told((B, 9), (A, 7)))
    assert made.status_code == 200
    assert remembered(api) == (BASE, A, 8)


def test_a_continuation_is_followed(api):
    api.put(f"/v1/replicas/{R1}", json=REPLICA, headers=told((A, 7)))
    api.get("/v1/inventory", headers=told((B, 0), (A, 7)))
    assert remembered(api) == (BASE, B, 0)
    assert delete(api, R1, (A, 9)) == "OutdatedRecord"
    assert delete(api, R1, (B, 0), (A, 7)) == "Success"


@pytest.mark.parametrize(
    ("method", "path", "taking"),
    [
        ("DELETE", f"/v1/snapshots/{R1}", True),
        ("DELETE", f"/v1/copies/{R1}", True),
        ("PUT", f"/v1/replicas/{R1}/revert", True),
        ("PUT", f"/v1/replicas/{R1}/release", True),
        ("PUT", f"/v1/copies/{R1}", True),
        ("GET", f"/v1/copies/{R1}", False),
        ("PUT", f"/v1/replicas/{R1}", False),
        ("PUT", f"/v1/replicas/{R1}/exports", False),
        ("PATCH", f"/v1/replicas/{R1}", False),
    ],
)
def test_what_takes_something_away(method, path, taking):
    assert takes_away(method, path) is taking


def test_another_database_is_followed_only_when_that_is_said(api):
    api.get("/v1/info", headers=told((A, 7)))
    old = {"database": BASE, "branch": A, "number": 7}
    new = {"database": OTHER, "branch": B, "number": 2}
    wrong = api.put("/v1/stamp", json={"stamp": new, "replaces": old | {"number": 6}})
    assert wrong.json()["status"] == "Conflict"
    for _ in range(2):
        assert api.put("/v1/stamp", json={"stamp": new, "replaces": old}).json() == new
    assert remembered(api) == (OTHER, B, 2)
    assert api.get("/v1/inventory").json()["stamp"] == new


def test_it_is_remembered_over_a_restart(api, machine):
    before = machine.node.ctx.spec.data.generation
    api.get("/v1/info", headers=told((A, 7)))
    # Nothing that an inventory tells has changed.
    assert machine.node.ctx.spec.data.generation == before
    machine.kill()
    saved = json.loads((machine.root / "state/spec.json").read_text())
    assert saved["stamp"] == {"database": BASE, "branch": A, "number": 7}
    machine.start()
    assert machine.node.following.wire().number == 7


def test_the_same_again_is_not_written_again(api, machine):
    path = machine.root / "state/spec.json"
    api.get("/v1/info", headers=told((A, 7)))
    before = path.stat().st_ino
    api.get("/v1/info", headers=told((A, 7)))
    api.get("/v1/info", headers=told((A, 6)))
    assert path.stat().st_ino == before


@pytest.mark.parametrize(
    "text", ["x", BASE, f"{BASE} {A}", f"{BASE} {A}:-1", f"{BASE} {A}:{1 << 63}", f"x {A}:1"]
)
def test_what_cannot_be_read_is_refused(api, text):
    answer = api.get("/v1/info", headers={stamp.HEADER: text})
    assert (answer.status_code, answer.json()["status"]) == (400, "InvalidInput")


def test_a_full_disk_does_not_make_the_node_look_dead(api, machine, monkeypatch):
    def full(_data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(machine.node.ctx.spec, "_write", full)
        assert api.get("/v1/info", headers=told((A, 7))).status_code == 200
        answer = api.put(f"/v1/replicas/{R1}", json=REPLICA, headers=told((A, 7)))
        assert (answer.status_code, "cannot be written" in answer.text) == (500, True)
    assert remembered(api) is None


def test_a_node_that_went_back_itself_follows_again(api, machine):
    """Its own record was restored from an old copy."""
    path = machine.root / "state/spec.json"
    api.get("/v1/info", headers=told((A, 3)))
    old = path.read_bytes()
    api.put(f"/v1/replicas/{R1}", json=REPLICA, headers=told((A, 9)))
    machine.kill()
    path.write_bytes(old)
    machine.start()
    assert machine.node.following.wire().number == 3
    line = stamp.parse(told((A, 9))[stamp.HEADER])
    machine.node.following.check(line)
    machine.node.following.remember(line)
    assert machine.node.following.wire().number == 9
