# SPDX-License-Identifier: Apache-2.0
"""Bad input of every kind: always a 4xx that existing clients can read, never a change."""

import json
import uuid

import pytest

from kumo_client import errors
from kumo_client.schemas.backend import Backend
from kumo_client.schemas.host import Host, Target
from kumo_client.schemas.snapshot import Snapshot
from kumo_client.schemas.volume import Location, Volume
from kumo_provisioner.edge import MAX_BODY
from tests.unit.provisioner.conftest import NQN, READER, TOKEN, WRITER

UUID = "5f0c9a34-8d61-4b7e-9a52-1c3d7e60b482"
VOLUME = {"alias": "a", "capacity": 1}
HOST = {"hostNqn": NQN, "hostId": "h"}


def assert_error(answer, status, http_status):
    body = answer.json()
    assert (body["status"], answer.status_code) == (status, http_status), body
    assert body["description"]
    assert "detail" not in body
    assert body["requestId"] == answer.headers["X-Openstack-Request-Id"]
    assert isinstance(body["transient"], bool)
    credential = status in ("Unauthorized", "Forbidden")
    assert any(text in answer.text for text in errors.RESERVED_TEXTS) == credential


BAD_BODIES = [
    ("POST", "/volumes", {}),
    ("POST", "/volumes", []),
    ("POST", "/volumes", "text"),
    ("POST", "/volumes", None),
    ("POST", "/volumes", 7),
    ("POST", "/volumes", {"alias": "a"}),
    ("POST", "/volumes", VOLUME | {"capacity": "much"}),
    ("POST", "/volumes", VOLUME | {"capacity": 0}),
    ("POST", "/volumes", VOLUME | {"capacity": -1}),
    ("POST", "/volumes", VOLUME | {"capacity": 1.5}),
    ("POST", "/volumes", VOLUME | {"capacity": 10**30}),
    ("POST", "/volumes", VOLUME | {"capacity": {"a": 1}}),
    ("POST", "/volumes", VOLUME | {"alias": ""}),
    ("POST", "/volumes", VOLUME | {"alias": "x" * 256}),
    ("POST", "/volumes", VOLUME | {"alias": "a\u0000b"}),
    ("POST", "/volumes", VOLUME | {"alias": "Status 401"}),
    ("POST", "/volumes", VOLUME | {"alias": ["a"]}),
    ("POST", "/volumes", VOLUME | {"uuid": "no-uuid"}),
    ("POST", "/volumes", VOLUME | {"provisioningType": "FAT"}),
    ("POST", "/volumes", VOLUME | {"storageClass": 5}),
    ("POST", "/volumes", VOLUME | {"storageClass": {"numReplicas": 0}}),
    ("POST", "/volumes", VOLUME | {"storageClass": {"numReplicas": 99}}),
    ("POST", "/volumes", VOLUME | {"storageClass": {"blockSize": 1000}}),
    ("POST", "/volumes", VOLUME | {"storageClass": {"zones": "nova"}}),
    ("POST", "/volumes", VOLUME | {"storageClass": {"maxIOPSPerGB": 1 << 40}}),
    ("PATCH", f"/volumes/{UUID}", {}),
    ("PATCH", f"/volumes/{UUID}", {"newCapacity": "ten"}),
    ("PATCH", f"/volumes/{UUID}", {"newCapacity": "-1"}),
    ("POST", "/clone_volume", {"sourceVolumeId": "x", "alias": "a"}),
    ("POST", "/snapshots", {"alias": "a"}),
    ("POST", "/snapshots", {"alias": "a", "volumeID": 5}),
    ("POST", "/snapshot_volumes", {"alias": "a", "snapshotID": UUID, "maxBWPerGB": "x"}),
    ("POST", "/host_probe", {"hostNqn": "no nqn", "hostId": "h"}),
    ("POST", "/host_probe", HOST | {"hostNqn": "nqn." + "x" * 300}),
    ("POST", "/host_probe", {"hostNqn": NQN}),
    ("POST", "/host_probe", HOST | {"hostId": " \n"}),
    ("POST", "/host_probe", HOST | {"duration": 1 << 70}),
    ("POST", "/publish", {"hostId": "h"}),
    ("POST", "/publish", {"hostId": "h", "volId": UUID, "host": {"hostId": "h"}}),
    ("POST", "/unpublish", {"hostId": "h"}),
    ("POST", "/backends", {}),
    ("POST", "/backends", {"mgmtIPs": []}),
    ("POST", "/backends", {"mgmtIPs": ["a"], "mgmtPort": 99999}),
    ("POST", "/backends", {"mgmtIPs": ["a"] * 17}),
    ("PUT", "/backends/x", {"zone": {"a": "b"}}),
]


@pytest.mark.parametrize(("method", "path", "body"), BAD_BODIES)
def test_wrong_bodies(web, method, path, body):
    assert_error(web.request(method, path, json=body), "InvalidInput", 400)
    assert web.get("/volumes").json() == web.get("/hosts").json() == []
    assert len(web.get("/backends").json()) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"\x00",
        b'{"alias": "\\ud800", "capacity": 1}',
        b"[" * 100_000,
        b'{"alias": "a", "capacity": NaN}',
        b'{"alias": "a", "capacity": 1e999}',
        b'{"alias": "a", "capacity": ' + b"9" * 5000 + b"}",
        b"<html></html>",
        "{'alias': 'é'}".encode("latin-1"),
    ],
)
def test_bodies_that_are_no_json(web, content):
    headers = {"Content-Type": "application/json"}
    for path in ("/volumes", "/host_probe", "/publish"):
        assert_error(web.post(path, content=content, headers=headers), "InvalidInput", 400)


def test_other_content_types_and_sizes(web):
    answer = web.post("/volumes", content=b"alias=a", headers={"Content-Type": "text/plain"})
    assert_error(answer, "InvalidInput", 400)
    assert_error(web.post("/volumes", content=b" " * (MAX_BODY + 1)), "InvalidInput", 413)

    def parts():
        for _ in range(20):
            yield b" " * (MAX_BODY // 10)

    assert_error(web.post("/volumes", content=parts()), "InvalidInput", 413)


UNKNOWN = [
    ("GET", f"/volumes/{UUID}"),
    ("GET", "/volumes/no-uuid"),
    ("GET", "/volumes_by_alias/nothing"),
    ("GET", "/volumes_by_alias/a/b"),
    ("GET", f"/snapshots/{UUID}"),
    ("GET", f"/snapshots_by_vol/{UUID}"),
    ("GET", "/snapshots_by_alias/nothing"),
    ("GET", "/backends/aa:bb:cc"),
    ("GET", "/backends/Status 404"),
    ("GET", "/7/volumes"),
    ("GET", f"/7/volumes/{UUID}"),
    ("GET", "/nothing"),
    ("GET", "/"),
    ("GET", "//volumes"),
    ("GET", "/volumes/"),
    ("GET", "/Status 401/x"),
    ("GET", "/no%0Anewline"),
    ("DELETE", f"/volumes/{UUID}"),
    ("DELETE", f"/snapshots/{UUID}"),
    ("DELETE", "/hosts/nobody"),
    ("DELETE", "/backends/nothing"),
]


@pytest.mark.parametrize(("method", "path"), UNKNOWN)
def test_what_does_not_exist(web, method, path):
    assert_error(web.request(method, path), "NotExists", 404)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/clone_volume", {"sourceVolumeId": UUID, "alias": "a"}),
        ("POST", "/snapshots", {"volumeID": UUID, "alias": "a"}),
        ("POST", "/snapshot_volumes", {"snapshotID": UUID, "alias": "a"}),
        ("POST", "/publish", {"hostId": "h", "volId": UUID}),
        ("POST", "/unpublish", {"volId": "x"}),
        ("PATCH", f"/volumes/{UUID}", {"newCapacity": "5"}),
        ("PUT", "/backends/nothing", {"zone": "z"}),
        ("POST", "/7/volumes", VOLUME),
        ("POST", "/7/publish", {"hostId": "h", "volId": UUID}),
    ],
)
def test_requests_about_what_does_not_exist(web, method, path, body):
    assert_error(web.request(method, path, json=body), "NotExists", 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/volumes"),
        ("DELETE", "/info"),
        ("POST", "/targets"),
        ("PATCH", "/backends/x"),
        ("OPTIONS", "/volumes"),
        ("TRACE", "/volumes"),
    ],
)
def test_methods_that_are_not_possible(web, method, path):
    assert_error(web.request(method, path), "MethodNotAllowed", 405)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        "Bearer Unknown",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer \xff",
        f"Bearer {TOKEN}x",
    ],
)
@pytest.mark.parametrize("path", ["/hosts", "/volumes", "/nothing", "/openapi.json"])
def test_without_a_good_token(web, header, path):
    del web.headers["Authorization"]
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = web.get(path, headers=headers)
    assert_error(answer, "Unauthorized", 401)
    assert "Status 401" in answer.json()["description"]
    assert_error(web.post("/volumes", json=VOLUME, headers=headers), "Unauthorized", 401)


def test_roles(web):
    web.headers["Authorization"] = f"Bearer {READER}"
    assert web.get("/volumes").json() == []
    for method, path in (("POST", "/volumes"), ("DELETE", f"/volumes/{UUID}")):
        assert_error(web.request(method, path, json=VOLUME), "Forbidden", 403)
    web.headers["Authorization"] = f"Bearer {WRITER}"
    assert web.post("/volumes", json=VOLUME).json()["status"] == "Success"
    for path in ("/backends", "/reconcile"):
        assert_error(web.post(path, json={}), "Forbidden", 403)


def test_targets_needs_a_question(web):
    assert_error(web.get("/targets"), "InvalidInput", 400)
    assert_error(web.get("/targets?hostId="), "InvalidInput", 400)
    assert web.get("/targets?hostId=nobody").json() == []
    assert web.get("/targets?volId=no-uuid").json() == []


def names(model):
    return {field.alias or name for name, field in model.model_fields.items()}


def test_every_answer_has_every_field_and_lists_are_lists(web):
    created = web.post("/volumes", json=VOLUME | {"storageClass": {"zones": [None]}}).json()
    uid = created["uuid"]
    snapshot = web.post("/snapshots", json={"alias": "s", "volumeID": uid}).json()
    published = web.post(
        "/publish", json={"hostId": "h \n", "volId": uid, "host": HOST, "later": 1}
    ).json()
    assert published["status"] == "Success"
    for path, model in (
        ("/volumes", Volume),
        (f"/volumes/{uid.upper()}", Volume),
        ("/volumes_by_alias/a", Volume),
        (f"/0/volumes/{uid}", Volume),
        ("/snapshots", Snapshot),
        (f"/snapshots/{snapshot['snapshotID']}", Snapshot),
        (f"/snapshots_by_vol/{uid}", Snapshot),
        ("/snapshots_by_alias/s", Snapshot),
        ("/hosts?hostName=", Host),
        (f"/targets?hostId=h&volId={uid}", Target),
    ):
        items = web.get(path).json()
        assert len(items) == 1, path
        assert set(items[0]) == names(model)
        assert None not in items[0].values()
        assert not any(text in json.dumps(items) for text in errors.RESERVED_TEXTS)
    shown = web.get(f"/volumes/{uid}").json()[0]
    assert set(shown["location"][0]) == names(Location)
    target = web.get("/targets?hostId=h").json()[0]
    assert target["name"] == target["targetName"] == published["replicas"][0]["targetNqn"]
    one = web.get("/backends").json()[0]
    assert set(one) == names(Backend)
    assert web.get(f"/backends/{one['persistentID']}").json()[0]["portals"]
    assert set(web.get("/info").json()) >= {"totalFreeSpace", "version", "syslogsBackend"}
    assert web.get("/tenants").json()[0]["tenantId"] == "0"


def test_mutations_answer_status_and_description(web):
    uid = web.post("/0/volumes", json=VOLUME).json()["uuid"]
    request = {"hostId": "h", "volId": uid}
    answers = [
        web.post("/host_probe", json=HOST),
        web.patch(f"/volumes/{uid}", json={"newCapacity": "2"}),
        web.post("/publish", json=request),
        web.post("/publish", json=request),
        web.post("/0/unpublish", json=request),
        web.post("/unpublish", json=request),
        web.delete(f"/volumes/{uid}"),
        web.delete(f"/volumes/{uid}"),
        web.delete("/hosts/h"),
        web.post("/reconcile"),
    ]
    assert [answer.json()["status"] for answer in answers] == [
        "Success",
        "Success",
        "Success",
        "AlreadyPublished",
        "Success",
        "VolumeNotPublished",
        "Success",
        "NotExists",
        "Success",
        "Success",
    ]
    for answer in answers:
        assert isinstance(answer.json()["description"], str)


def test_the_request_id_of_the_caller_is_kept_when_it_is_one(web):
    given = f"req-{uuid.uuid4()}"
    answer = web.get("/info", headers={"X-Openstack-Request-Id": given})
    assert answer.headers["X-Openstack-Request-Id"] == given
    forged = web.get("/info", headers={"X-Openstack-Request-Id": "req-x\tINFO forged"})
    assert forged.headers["X-Openstack-Request-Id"].startswith("req-")
    assert "forged" not in forged.headers["X-Openstack-Request-Id"]


def test_a_defect_is_a_readable_500(web, core, monkeypatch):
    def broken():
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(core.db, "read", broken)
    answer = web.get("/volumes")
    assert_error(answer, "InternalError", 500)
    assert "ZeroDivisionError" in answer.text
    assert "secret detail" not in answer.text


def test_the_openapi_document_names_every_path(web):
    document = web.get("/openapi.json").json()
    assert {"/info", "/volumes", "/{tenantId}/volumes", "/publish", "/targets"} <= set(
        document["paths"]
    )
    identifiers = [
        operation["operationId"]
        for path in document["paths"].values()
        for operation in path.values()
    ]
    assert len(identifiers) == len(set(identifiers))
