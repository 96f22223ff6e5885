# SPDX-License-Identifier: Apache-2.0
"""What the client sends is what the published API takes, and the API has what KumoScale has.

A server ignores unknown fields and parameters, so a name that one side spells otherwise would be
lost without a word.
"""

import contextlib
import inspect
import pathlib
import re
import uuid

import pytest

from kumo_client import errors
from kumo_client.api.provisioner import Provisioner
from kumo_client.schemas import backend, event, host, info, node, snapshot, task, tenant, token
from kumo_client.schemas import volume as vol
from kumo_client.session import Session
from kumo_provisioner import app
from kumo_provisioner.services import info as info_service
from tests.fakes.http import Answer, Transport

A = "https://a.example:8090"
V1, V2 = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
DOC = pathlib.Path(__file__).resolve().parents[2] / "doc/source"
CAPABILITIES = {value for name, value in vars(info).items() if name.startswith("CAPABILITY_")}
PROBE = host.HostProbe(host_nqn="nqn.2014-08.org.x:h", host_id="h", duration=30)
CLASS = vol.StorageClass(num_replicas=2, zones=["z"])
CHANGE = vol.StorageClassUpdate(
    **dict.fromkeys(vol.StorageClassUpdate.model_fields, 1) | {"name": "n"}
)

CALLS = {
    "info": lambda api: api.info(),
    "reconcile": lambda api: api.reconcile(),
    "metrics": lambda api: api.metrics(),
    "heartbeat": lambda api: api.heartbeat(
        node.Heartbeat(persistent_id="n", name="n", version="1", portals=[], pools=[])
    ),
    "add_backend": lambda api: api.add_backend(
        backend.BackendCreate(mgmt_ips=["10.0.0.1"], host_id="h")
    ),
    "backends": lambda api: api.backends(),
    "backend": lambda api: api.backend("n"),
    "update_backend": lambda api: api.update_backend(
        "n",
        backend.BackendUpdate(
            rack="r",
            zone="z",
            region="g",
            cordoned=True,
            maintenance=True,
            max_iops=1,
            max_bw=1,
            pools=[backend.DeclaredPool(name="p")],
        ),
    ),
    "delete_backend": lambda api: api.delete_backend("n"),
    "drain_backend": lambda api: api.drain_backend("n"),
    "stop_drain": lambda api: api.stop_drain("n"),
    "create_volume": lambda api: api.create_volume(
        vol.VolumeCreate(uuid=V1, alias="a", capacity=1, storage_class=CLASS)
    ),
    "plan_volume": lambda api: api.plan_volume(vol.VolumeCreate(alias="a", capacity=1)),
    "volumes": lambda api: api.volumes(),
    "each_volume": lambda api: list(api.each_volume()),
    "volume": lambda api: api.volume(V1),
    "volume_by_alias": lambda api: api.volume_by_alias("a"),
    "extend_volume": lambda api: api.extend_volume(V1, 2),
    "modify_volume": lambda api: api.modify_volume(
        V1, vol.VolumeModify(alias="b", allow_span=True, storage_class=CHANGE)
    ),
    "revert_volume": lambda api: api.revert_volume(V1, V2),
    "adoptable_volumes": lambda api: api.adoptable_volumes("n"),
    "adopt_volume": lambda api: api.adopt_volume(
        vol.AdoptVolume(alias="a", backend_id="n", pool="p", name="l", storage_class=CLASS)
    ),
    "unmanage_volume": lambda api: api.unmanage_volume(V1),
    "delete_volume": lambda api: api.delete_volume(V1),
    "clone_volume": lambda api: api.clone_volume(
        vol.CloneCreate(source_volume_id=V1, alias="a", volume_id=V2, capacity=2)
    ),
    "create_snapshot": lambda api: api.create_snapshot(
        snapshot.SnapshotCreate(alias="a", volume_id=V1, snapshot_id=V2)
    ),
    "snapshots": lambda api: api.snapshots(),
    "snapshots_of": lambda api: api.snapshots_of(V1),
    "snapshot": lambda api: api.snapshot(V1),
    "snapshot_by_alias": lambda api: api.snapshot_by_alias("a"),
    "delete_snapshot": lambda api: api.delete_snapshot(V1),
    "create_snapshot_volume": lambda api: api.create_snapshot_volume(
        snapshot.SnapshotVolumeCreate(
            alias="a",
            snapshot_id=V1,
            volume_id=V2,
            capacity=2,
            max_iops_per_gb=1,
            max_bw_per_gb=1,
        )
    ),
    "add_replica": lambda api: api.add_replica(V1, vol.ReplicaAdd(backend_id="n")),
    "delete_replica": lambda api: api.delete_replica(V1, V2),
    "confirm_replica": lambda api: api.confirm_replica(V1, V2),
    "report_replica": lambda api: api.report_replica(V1, V2, "Available"),
    "migrate_volume": lambda api: api.migrate_volume(
        vol.MigrateVolume(vol_id=V1, rep_id=V2, destination_backend_id="n")
    ),
    "probe_host": lambda api: api.probe_host(PROBE),
    "hosts": lambda api: api.hosts("h"),
    "host_volumes": lambda api: api.host_volumes("h"),
    "delete_host": lambda api: api.delete_host("h"),
    "publish": lambda api: api.publish(host.PublishRequest(host_id="h", vol_id=V1, host=PROBE)),
    "unpublish": lambda api: api.unpublish(host.UnpublishRequest(host_id="h", vol_id=V1)),
    "report_array": lambda api: api.report_array(
        host.ArrayReport(
            host_id="h",
            vol_id=V1,
            state="open",
            legs=[host.LegReport(replica=V2, state="Available")],
        )
    ),
    "targets": lambda api: api.targets("h", V1),
    "tasks": lambda api: api.tasks("h"),
    "task": lambda api: api.task(V1),
    "update_task": lambda api: api.update_task(
        task.TaskUpdate(
            task_id=V1,
            host_id="h",
            state="RUNNING",
            progress=1,
            task_status="Success",
            status_description="d",
            task_configuration=[task.Tag(name="a", value="b")],
        )
    ),
    "delete_task": lambda api: api.delete_task(V1, "h"),
    "connect": lambda api: api.connect(task.ConnectRequest(host_id="h", vol_id=V1)),
    "disconnect": lambda api: api.disconnect(task.ConnectRequest(host_id="h", vol_id=V1)),
    "events": lambda api: api.events(1, wait=1, limit=1, host_id="h", volume_id=V1, level="WARN"),
    "last_event": lambda api: api.last_event(),
    "forward_log": lambda api: api.forward_log(event.ForwardLog(parameters_list={"a": 1})),
    "tenants": lambda api: api.tenants(),
    "find_tenant": lambda api: api.find_tenant("t"),
    "add_tenant": lambda api: api.add_tenant(tenant.TenantWrite(name="t", tenant_id="t")),
    "update_tenant": lambda api: api.update_tenant("t", tenant.TenantWrite(name="t")),
    "delete_tenant": lambda api: api.delete_tenant("t"),
    "create_token": lambda api: api.create_token(
        token.TokenCreate(name="n", role="node", tenant_id="t")
    ),
    "revoke_token": lambda api: api.revoke_token("x"),
    "garbage": lambda api: api.garbage(),
    "restored": lambda api: api.restored(),
    "accept_restored": lambda api: api.accept_restored("keep"),
    "keep_garbage": lambda api: api.keep_garbage("n", V1),
    "remove_garbage": lambda api: api.remove_garbage("n", V1),
}
NO_CALLS = {"supports", "need"}

# Section by section what public KumoScale clients can call, with the tenant that may be before it.
KUMOSCALE = """
GET /info
POST /backends
GET /backends
GET /backends/{}
PUT /backends/{}
DELETE /backends/{}
POST /volumes +
GET /volumes +
GET /volumes/{} +
GET /volumes_by_alias/{} +
PATCH /volumes/{} +
PUT /volumes/{} +
DELETE /volumes/{} +
POST /clone_volume +
POST /snapshots +
GET /snapshots +
GET /snapshots/{} +
GET /snapshots_by_vol/{} +
GET /snapshots_by_alias/{} +
DELETE /snapshots/{} +
POST /snapshot_volumes +
POST /host_probe
GET /hosts
DELETE /hosts/{}
GET /targets
POST /publish +
POST /unpublish +
POST /connect +
POST /disconnect +
POST /replica/{} +
PATCH /replica/{}/{} +
PATCH /replica/{}/{}/{} +
DELETE /replica/{}/{} +
POST /migrate_volume +
GET /tasks
PUT /tasks
DELETE /tasks
POST /tenants
GET /tenants
PUT /tenants/{}
DELETE /tenants/{}
POST /forward_log
GET /syslog
POST /license
GET /license
GET /inventory
DELETE /reset_inventory
GET /metrics
GET /auth_server
POST /auth_server
DELETE /auth_server
"""
MISSING = {
    "GET /auth_server",
    "POST /auth_server",
    "DELETE /auth_server",
}


@pytest.fixture(scope="module")
def document():
    return app.describe().openapi()


@pytest.fixture
def network():
    """A server that lists all capabilities and otherwise has nothing."""

    def answer(request):
        if request.path == "/info":
            return Answer({"capabilities": sorted(CAPABILITIES)})
        return Answer([] if request.method == "GET" else {"status": "Success"})

    return Transport({A: answer})


@pytest.fixture
def api(network):
    return Provisioner(Session([A], token="t", ca_file=None, transport=network))


def operation(document, method, path):
    """What the document says of a request; among several paths the one with the most fixed text."""
    found = []
    for template, operations in document["paths"].items():
        pattern = re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path) and method.lower() in operations:
            found.append((template.count("{"), template, operations[method.lower()]))
    assert found, f"the API has no {method} {path}"
    return min(found, key=lambda entry: entry[0])[2]


def resolved(document, schema):
    if "$ref" in schema:
        return document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for part in schema.get("anyOf", ()):
        if part.get("type") != "null":
            return resolved(document, part)
    return schema


def assert_takes(document, schema, value, place):
    """Every name in ``value`` is a property of the schema."""
    schema = resolved(document, schema)
    if isinstance(value, list):
        for item in value:
            assert_takes(document, schema.get("items", {}), item, place)
    elif isinstance(value, dict) and "properties" in schema:
        for name, item in value.items():
            assert name in schema["properties"], f"{place} does not take {name}"
            assert_takes(document, schema["properties"][name], item, f"{place}.{name}")


def test_every_call_is_looked_at():
    known = {
        name
        for name, _ in inspect.getmembers(Provisioner, inspect.isfunction)
        if not name.startswith("_")
    }
    assert known - NO_CALLS == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_what_is_sent_is_taken(api, network, document, name):
    if name != "info":
        api.info()
        network.requests.clear()
    with contextlib.suppress(errors.NotExistsError, errors.ProtocolError):
        CALLS[name](api)
    assert network.requests
    for request in network.requests:
        found = operation(document, request.method, request.path)
        taken = {each["name"] for each in found.get("parameters", ()) if each["in"] == "query"}
        assert request.params.keys() <= taken
        content = found.get("requestBody", {}).get("content", {})
        if request.body:
            schema = content["application/json"]["schema"]
            assert_takes(document, schema, request.json, f"{request.method} {request.path}")


@pytest.mark.parametrize("line", KUMOSCALE.split("\n")[1:-1])
def test_the_paths_of_kumoscale(document, line):
    method, path, *tenants = line.split()
    wanted = [path, *([f"/{{}}{path}"] if tenants else [])]
    there = {
        (method.upper(), re.sub(r"\{[^}]*\}", "{}", template))
        for template, operations in document["paths"].items()
        for method in operations
    }
    if f"{method} {path}" in MISSING:
        assert (method, path) not in there
        assert f"``{path}``" in (DOC / "api/index.rst").read_text()
    else:
        assert {(method, each) for each in wanted} <= there


def test_all_extensions_are_offered_and_described():
    assert set(info_service.CAPABILITIES) == CAPABILITIES
    page = (DOC / "api/index.rst").read_text()
    assert [name for name in sorted(CAPABILITIES) if f"``{name}``" not in page] == []
