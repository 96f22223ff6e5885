# SPDX-License-Identifier: Apache-2.0
"""The API over its real wire format: errors, tokens, bad input."""

import hashlib
import json
import logging
import os

import pytest
from fastapi.testclient import TestClient

from kumo_client import errors
from kumo_node import app
from kumo_node.auth import Tokens
from tests.fakes.node import TOKEN
from tests.unit.node.conftest import HOST_A, MIB, VOLUME, uid

R1, R2, S1 = uid(1), uid(2), uid(0x51)
REPLICA = {"volumeId": VOLUME, "bytes": 16 * MIB}
EXPORT = {"hostNqn": HOST_A, "class": "plain"}


@pytest.fixture
def api(machine, node):
    made = app.make(node, Tokens(str(machine.root / "token")))
    with TestClient(made, raise_server_exceptions=False) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client


def test_a_life_over_the_wire(api):
    assert api.get("/v1/info").json()["pools"][0]["name"] == "pool"
    made = api.put(f"/v1/replicas/{R1}", json=REPLICA)
    assert made.status_code == 200
    assert made.json() == {
        "uuid": R1, "volumeId": VOLUME, "bytes": 16 * MIB, "blockSize": 512, "pool": "pool",
        "exports": [], "state": "ok", "limits": {"maxIOPS": 0, "maxBW": 0},
    }  # fmt: skip
    exported = api.put(f"/v1/replicas/{R1}/exports", json=EXPORT).json()
    assert exported["portals"] == [
        {"ip": "10.77.0.11", "port": 4420, "transport": "TCP"},
        {"ip": "fd00::11", "port": 4420, "transport": "RoCEv2"},
    ]
    assert api.patch(f"/v1/replicas/{R1}", json={"bytes": 32 * MIB}).json()["bytes"] == 32 * MIB
    body = {"replica": R1, "snapshotId": uid(9)}
    assert api.put(f"/v1/snapshots/{S1}", json=body).json()["bytes"] == 32 * MIB
    inventory = api.get("/v1/inventory").json()
    assert [item["exports"][0]["nsid"] for item in inventory["replicas"]] == [1]
    assert [item["uuid"] for item in inventory["snapshots"]] == [S1]
    assert api.delete(f"/v1/replicas/{R1}").json()["status"] == "InUse"
    for path in (
        f"/v1/replicas/{R1}/exports?hostNqn={HOST_A}", f"/v1/replicas/{R1}/exports",
        f"/v1/snapshots/{S1}", f"/v1/replicas/{R1}", f"/v1/replicas/{R1}",
    ):  # fmt: skip
        answer = api.delete(path)
        assert (answer.status_code, answer.json()["status"]) == (200, "Success")
    assert api.get(f"/v1/replicas/{R1}").status_code == 404


def test_uuids_are_taken_in_any_spelling(api):
    api.put(f"/v1/replicas/{R1.upper()}", json=REPLICA)
    assert api.get(f"/v1/replicas/{R1.replace('-', '')}").json()["uuid"] == R1


BAD = [
    ("PUT", f"/v1/replicas/{R1}", "", 400),
    ("PUT", f"/v1/replicas/{R1}", "{", 400),
    ("PUT", f"/v1/replicas/{R1}", "null", 400),
    ("PUT", f"/v1/replicas/{R1}", "[]", 400),
    ("PUT", f"/v1/replicas/{R1}", '"x"', 400),
    ("PUT", f"/v1/replicas/{R1}", b"\xff\xfe", 400),
    ("PUT", f"/v1/replicas/{R1}", "[" * 100000, 400),
    ("PUT", f"/v1/replicas/{R1}", {}, 400),
    ("PUT", f"/v1/replicas/{R1}", REPLICA | {"bytes": "many"}, 400),
    ("PUT", f"/v1/replicas/{R1}", REPLICA | {"bytes": -1}, 400),
    ("PUT", f"/v1/replicas/{R1}", REPLICA | {"bytes": 1.5}, 400),
    ("PUT", f"/v1/replicas/{R1}", REPLICA | {"bytes": 10**400}, 400),
    ("PUT", f"/v1/replicas/{R1}", REPLICA | {"bytes": 1 << 61}, 400),
    ("PUT", f"/v1/replicas/{R1}", REPLICA | {"bytes": 1 << 60}, 409),
    ("PUT", f"/v1/replicas/{R1}", '{"volumeId": "' + VOLUME + '", "bytes": NaN}', 400),
    ("PUT", f"/v1/replicas/{R1}", '{"volumeId": "\\ud800", "bytes": 1}', 400),
    ("PUT", f"/v1/replicas/{R1}", REPLICA | {"volumeId": "x"}, 400),
    ("PUT", f"/v1/replicas/{R1}", REPLICA | {"source": {"snapshot": "x"}}, 400),
    ("PUT", f"/v1/replicas/{R1}", REPLICA | {"source": {"snapshot": R2}}, 404),
    ("PUT", f"/v1/replicas/{R1}", REPLICA | {"pool": "x\ny"}, 400),
    ("PUT", "/v1/replicas/no-uuid", REPLICA, 400),
    ("PUT", "/v1/replicas/..%2f..%2fetc", REPLICA, 404),
    ("GET", f"/v1/replicas/{R1}", None, 404),
    ("PATCH", f"/v1/replicas/{R1}", {"bytes": 16 * MIB}, 404),
    ("PATCH", f"/v1/replicas/{R1}", {"bytes": None}, 400),
    ("PUT", f"/v1/replicas/{R1}/exports", EXPORT, 404),
    ("PUT", f"/v1/replicas/{R1}/exports", EXPORT | {"class": "fast"}, 400),
    ("PUT", f"/v1/replicas/{R1}/exports", EXPORT | {"hostNqn": "nqn."}, 400),
    ("PUT", f"/v1/replicas/{R1}/exports", EXPORT | {"hostNqn": "nqn.a/b/c/../../x"}, 400),
    ("PUT", f"/v1/replicas/{R1}/exports", EXPORT | {"hostNqn": "nqn." + "x" * 300}, 400),
    ("DELETE", f"/v1/replicas/{R1}/exports?hostNqn=" + "x" * 500, None, 400),
    ("PUT", f"/v1/snapshots/{S1}", {"replica": R1, "snapshotId": R2}, 404),
    ("PUT", f"/v1/snapshots/{S1}", {"replica": R1}, 400),
    ("GET", "/", None, 404),
    ("GET", "/v1/nothing", None, 404),
    ("GET", "/docs", None, 404),
    ("POST", "/v1/info", {}, 405),
    ("DELETE", "/v1/inventory", None, 405),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), BAD)
def test_bad_input_is_a_4xx_with_status_and_description(api, node, method, path, body, status):
    if isinstance(body, dict):
        body = json.dumps(body)
    headers = {"Content-Type": "application/json"}
    answer = api.request(method, path, content=body, headers=headers)
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert told["status"] in errors.known_codes()
    assert told["description"]
    assert told["transient"] is False
    assert told["requestId"].startswith("req-")
    assert node.ctx.spec.data.replicas == {}


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer \xe4\xf6\xfc"],
)
@pytest.mark.parametrize("path", ["/v1/info", "/nothing", "/openapi.json"])
def test_without_the_token_nothing_is_told(api, path, header):
    headers = {"Authorization": header.encode("latin-1")}
    answer = api.get(path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["status"] == "Unauthorized"
    assert "Status 401" in answer.json()["description"]


def test_a_token_kept_as_digest(machine, api):
    digest = hashlib.sha256(b"another-token-for-tests").hexdigest()
    (machine.root / "token").write_text(f"sha256:{digest}\n")
    headers = {"Authorization": "bearer another-token-for-tests"}
    assert api.get("/v1/info", headers=headers).status_code == 200
    assert api.get("/v1/info").status_code == 401


def test_a_token_file_that_went_away_keeps_the_old_tokens(machine, api, caplog):
    os.unlink(machine.root / "token")
    assert api.get("/v1/info").status_code == 200
    assert "token_file" in caplog.text


@pytest.mark.parametrize("text", ["", "# none\n", "short\n", b"\xff\xff"])
def test_token_files_that_cannot_be(tmp_path, text):
    path = tmp_path / "token"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(errors.ConfigError, match="token_file"):
        Tokens(str(path))


def test_no_secret_is_logged(api, caplog):
    caplog.set_level(logging.DEBUG)
    api.get("/v1/info")
    api.get("/v1/info", headers={"Authorization": "Bearer some-wrong-secret"})
    assert TOKEN not in caplog.text
    assert "some-wrong-secret" not in caplog.text


def test_the_callers_request_id_comes_back(api):
    sent = "req-12345678-1234-1234-1234-123456789012"
    headers = {"X-Openstack-Request-Id": sent}
    assert api.get("/v1/nothing", headers=headers).json()["requestId"] == sent
    assert api.get("/v1/info", headers=headers).headers["X-Openstack-Request-Id"] == sent
    evil = {"X-Openstack-Request-Id": "req-\x1b[31m"}
    assert api.get("/v1/nothing", headers=evil).json()["requestId"] != evil


def test_a_body_without_end_or_too_long_is_refused(api):
    def endless():
        yield b"{}"

    assert api.put(f"/v1/replicas/{R1}", content=endless()).status_code == 400
    assert api.put(f"/v1/replicas/{R1}", content=b" " * (2 << 20)).status_code == 400


def test_lvm_that_fails_is_told_with_its_words(api, machine):
    machine.host.fail = [("^lvcreate", "device-mapper: message ioctl on failed")]
    answer = api.put(f"/v1/replicas/{R1}", json=REPLICA)
    assert answer.status_code == 500
    assert "message ioctl" in answer.json()["description"]
    assert api.put(f"/v1/replicas/{R1}", json=REPLICA).status_code == 200


def test_a_command_without_end_is_transient(api, machine):
    machine.host.fail = [("^lvcreate", "hang")]
    answer = api.put(f"/v1/replicas/{R1}", json=REPLICA)
    assert (answer.status_code, answer.json()["transient"]) == (503, True)


def test_a_defect_is_told_without_its_inside(api, node, monkeypatch, caplog):
    def broken():
        raise ZeroDivisionError("secret inside")

    monkeypatch.setattr(node, "info", broken)
    answer = api.get("/v1/info")
    assert answer.status_code == 500
    assert answer.json()["status"] == "InternalError"
    assert "secret inside" not in answer.text
    assert "secret inside" in caplog.text


def test_the_api_describes_itself(api):
    described = api.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/v1/info", "/v1/inventory", "/v1/replicas/{uuid}", "/v1/replicas/{uuid}/exports",
        "/v1/replicas/{uuid}/limits", "/v1/replicas/{uuid}/revert", "/v1/adoptable",
        "/v1/replicas/{uuid}/adopt", "/v1/replicas/{uuid}/release", "/v1/snapshots/{uuid}",
        "/v1/copies/{uuid}", "/v1/stamp", "/metrics",
    }  # fmt: skip
    assert json.loads(app.openapi(api.app)) == described
