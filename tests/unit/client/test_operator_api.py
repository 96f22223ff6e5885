# SPDX-License-Identifier: Apache-2.0
"""The calls of an operator, an agent and a storage node against a server with state."""

import uuid

import pytest

from kumo_client import errors
from kumo_client.api.provisioner import Provisioner
from kumo_client.api.provisioner import base as api_base
from kumo_client.schemas.backend import BackendCreate, BackendPool, BackendUpdate, DeclaredPool
from kumo_client.schemas.event import ForwardLog
from kumo_client.schemas.host import ArrayReport, LegReport
from kumo_client.schemas.node import Heartbeat
from kumo_client.schemas.snapshot import SnapshotCreate
from kumo_client.schemas.task import ConnectRequest, TaskUpdate
from kumo_client.schemas.tenant import TenantWrite
from kumo_client.schemas.token import TokenCreate
from kumo_client.schemas.volume import (
    AdoptableVolume,
    AdoptVolume,
    MigrateVolume,
    ReplicaAdd,
    StorageClass,
    StorageClassUpdate,
    VolumeCreate,
    VolumeModify,
)
from tests.fakes.http import Answer, ReadTimeout, Script
from tests.unit.client.conftest import A

V1, V2, S1 = (str(uuid.UUID(int=number)) for number in range(1, 4))


@pytest.fixture
def nodes(api):
    return [api.add_backend(BackendCreate(mgmt_ips=[f"10.0.0.{n}"])).persistent_id for n in (1, 2)]


@pytest.fixture
def volume(api, nodes):
    asked = StorageClass(num_replicas=2)
    api.create_volume(VolumeCreate(uuid=V1, alias="v1", capacity=12, storage_class=asked))
    return V1


def test_a_node_tells_how_it_is(api, operated, nodes):
    beat = Heartbeat(persistent_id=nodes[0], name="a", version="1", portals=[], pools=[])
    assert api.heartbeat(beat, budget=3).status == "Success"
    assert operated.beats == [beat]
    with pytest.raises(errors.NotExistsError):
        api.heartbeat(beat.model_copy(update={"persistent_id": "other"}))


def test_the_modes_and_limits_of_a_node(api, operated, nodes):
    name = nodes[0]
    operated.backends[name].pools = [BackendPool(name="ssd-1")]
    api.update_backend(name, BackendUpdate(cordoned=True, max_iops=7, rack="r9"))
    api.update_backend(name, BackendUpdate(pools=[DeclaredPool(name="ssd-1", max_bw=5)]))
    found = api.backend(name)
    assert (found.cordoned, found.total_iops, found.rack, found.pools[0].max_bw) == (
        True,
        7,
        "r9",
        5,
    )
    api.update_backend(name, BackendUpdate(maintenance=True, cordoned=False))
    assert (api.backend(name).state, api.backend(name).cordoned) == ("Maintenance", False)


def test_draining_a_node(api, operated, nodes):
    begun = api.drain_backend(nodes[0])
    assert api.backend(nodes[0]).state == "Draining"
    assert api.task(begun.task_id).type == "Drain"
    operated.lose = 1
    api.stop_drain(nodes[0])
    assert api.backend(nodes[0]).state == "Available"
    with pytest.raises(errors.ConflictError):
        api.stop_drain(nodes[0])


def test_where_a_volume_would_go(api, operated, nodes):
    asked = VolumeCreate(alias="v", capacity=12)
    plan = api.plan_volume(asked)
    assert [(item.backend_id, item.chosen) for item in plan.nodes] == [
        (nodes[0], True),
        (nodes[1], False),
    ]
    operated.full = True
    refused = api.plan_volume(asked)
    assert refused.status == "NoSpace"
    assert {item.refused_by for item in refused.nodes} == {"capacity"}
    assert operated.volumes == {}


def test_changing_and_reverting_a_volume(api, operated, volume):
    change = StorageClassUpdate(desired_iops_per_gb=3)
    api.modify_volume(volume, VolumeModify(alias="new", storage_class=change))
    found = api.volume_by_alias("new")
    assert (found.storage_class.desired_iops_per_gb, found.storage_class.num_replicas) == (3, 1)
    api.create_snapshot(SnapshotCreate(alias="s", volume_id=volume, snapshot_id=S1))
    api.revert_volume(volume, S1)
    assert operated.events_[-1].type == "volume.reverted"
    with pytest.raises(errors.NotExistsError):
        api.revert_volume(volume, V2)


@pytest.mark.parametrize("lost", [0, 1])
def test_adopting_and_giving_up(api, operated, nodes, lost):
    operated.adoptable_ = [
        AdoptableVolume(backend_id=name, pool="p", name="lv", bytes=4 << 30) for name in nodes
    ]
    assert len(api.adoptable_volumes()) == 2
    (found,) = api.adoptable_volumes(nodes[1])
    operated.lose = lost
    adopt = AdoptVolume(alias="old", backend_id=nodes[0], pool=found.pool, name=found.name)
    made = api.adopt_volume(adopt)
    assert (made.alias, made.capacity) == ("old", 4)
    operated.lose = lost
    api.unmanage_volume(made.uuid)
    with pytest.raises(errors.NotExistsError):
        api.unmanage_volume(made.uuid)


def test_replicas_come_and_go(api, operated, volume):
    added = api.add_replica(volume, ReplicaAdd(backend_id="node-9"))
    assert (added.backend.persistent_id, added.freshness) == ("node-9", "blank")
    with pytest.raises(errors.TooManyReplicasError):
        api.add_replica(volume)
    api.report_replica(volume, added.uuid, "Synchronizing")
    assert api.volume(volume).location[2].replica_state == "Synchronizing"
    api.delete_replica(volume, added.uuid)
    assert api.volume(volume).location[2].replica_state == "Terminating"
    operated.lose = 1
    api.confirm_replica(volume, added.uuid)
    with pytest.raises(errors.NotExistsError):
        api.delete_replica(volume, added.uuid)
    assert len(api.volume(volume).location) == 2


def test_a_new_replica_whose_answer_was_lost_is_not_made_twice(api, operated, volume, network):
    network.servers[A] = _losing(operated, "POST")
    added = api.add_replica(volume)
    assert [item.uuid for item in api.volume(volume).location][2:] == [added.uuid]


def test_a_replica_that_goes_at_once_and_whose_answer_was_lost(connect, network):
    gone = Answer(errors.NotExistsError("there is no such replica").to_wire(), 404)
    network.servers[A] = Script(ReadTimeout, gone)
    Provisioner(connect(A)).delete_replica(V1, V2)
    assert [one.method for one in network.requests] == ["PATCH", "PATCH"]


def _losing(server, method):
    """The server, but the first answer to this method is lost."""
    left = [method]

    def answer(request):
        if request.method in left:
            left.remove(request.method)
            server.lose = 1
        return server(request)

    return answer


def test_a_replica_that_the_server_only_says_to_have_made(connect, network):
    found = {"uuid": V1, "alias": "v", "capacity": 1}
    network.servers[A] = Script(Answer([found]), Answer(), Answer([found]))
    with pytest.raises(errors.ProtocolError, match="no new replica"):
        Provisioner(connect(A)).add_replica(V1)


def test_moving_a_replica_is_a_task(api, volume):
    begun = api.migrate_volume(MigrateVolume(vol_id=volume))
    assert [item.task_id for item in api.tasks()] == [begun.task_id]
    assert api.task(begun.task_id).progress == 50
    with pytest.raises(errors.InUseError):
        api.delete_task(begun.task_id)
    api.update_task(TaskUpdate(task_id=begun.task_id, state="FINISHED", progress=100))
    api.delete_task(begun.task_id)
    with pytest.raises(errors.NotExistsError, match=r"task .* does not exist"):
        api.task(begun.task_id)


def test_asking_the_agent_of_a_host(api, volume):
    request = ConnectRequest(host_id="h1", vol_id=volume)
    begun = [api.connect(request).task_id, api.disconnect(request).task_id]
    assert [item.task_id for item in api.tasks("h1")] == begun
    assert api.tasks("h2") == []


def test_events_are_read_on_from_the_last_one(api, operated, network):
    for number in range(3):
        operated.say("volume.created", volume_id=(V1, V2, V1)[number])
    first = api.events(limit=2)
    assert ([item.seq for item in first.events], first.last) == ([1, 2], 2)
    assert [item.seq for item in api.events(first.last, wait=20).events] == [3]
    assert [item.seq for item in api.events(volume_id=V1, host_id=None).events] == [1, 3]
    assert network.requests[-2].params == {"since": "2", "wait": "20"}
    assert network.requests[-2].timeout[1] > 20
    api.events(3, wait=1000)
    assert network.requests[-1].params["wait"] == "50"
    assert api.last_event() == 3


def test_whoever_waits_little_for_answers_still_waits_for_events(operated, connect, network):
    # As the agent of a host does.
    api = Provisioner(connect(A, budget=20, read_timeout=20))
    api.events(3, wait=50)
    assert network.requests[-1].timeout[1] == 70
    api.events(3)
    assert network.requests[-1].timeout[1] == 20


def test_what_hosts_tell(api, operated, volume):
    api.forward_log(ForwardLog(message="m", host="h1", parameters_list={"a": 1}))
    assert operated.logs[0].parameters_list == {"a": 1}
    legs = [LegReport(replica=V2, state="Available", events=7)]
    api.report_array(ArrayReport(host_id="h1", vol_id=volume, state="open", legs=legs))
    assert operated.reports[0].legs == legs


@pytest.mark.parametrize("lost", [0, 1])
def test_tenants(api, operated, lost):
    api.info()
    operated.lose = lost
    made = api.add_tenant(TenantWrite(name="acme", capacity=50))
    assert (made.name, made.capacity) == ("acme", 50)
    api.update_tenant(made.tenant_id, TenantWrite(name="acme", capacity=60))
    assert api.find_tenant(made.tenant_id).capacity == 60
    with pytest.raises(errors.AlreadyExistsError):
        api.add_tenant(TenantWrite(tenant_id=made.tenant_id, name="acme", capacity=60))
    operated.lose = lost
    api.delete_tenant(made.tenant_id)
    with pytest.raises(errors.NotExistsError):
        api.find_tenant(made.tenant_id)


def test_a_lost_tenant_that_another_made_otherwise(connect, network):
    exists = Answer(errors.AlreadyExistsError("it exists").to_wire(), 409)
    other = Answer([{"tenantId": "t", "name": "b", "totalIOPS": 1}])
    network.servers[A] = Script(ReadTimeout, exists, other)
    with pytest.raises(errors.AlreadyExistsError, match="differs in name, totalIOPS"):
        Provisioner(connect(A)).add_tenant(TenantWrite(tenant_id="t", name="a"))


def test_tokens(api, operated):
    made = api.create_token(TokenCreate(name="node-1", role="node"))
    assert (made.token, made.token_id) == ("new-token", "t1")
    assert operated.tokens["t1"].role == "node"
    api.create_token()
    api.revoke_token("t1")
    with pytest.raises(errors.NotExistsError):
        api.revoke_token("t1")


def test_garbage(api, operated):
    operated.found("n1", V1)
    operated.found("n1", V2)
    api.keep_garbage("n1", V1)
    assert {item.uuid: item.kept for item in api.garbage()} == {V1: True, V2: False}
    api.remove_garbage("n1", V2)
    with pytest.raises(errors.NotExistsError):
        api.remove_garbage("n1", V2)


def test_the_metrics_are_a_text(api, operated, network):
    assert api.metrics() == "kumo_volumes 3\n"
    assert network.requests[-1].headers["Accept"] == "text/plain"
    operated.metrics = None
    network.servers[A] = Script(Answer(errors.ForbiddenError("not yours").to_wire(), 403), Answer())
    with pytest.raises(errors.ForbiddenError):
        api.metrics()
    with pytest.raises(errors.ProtocolError, match="JSON instead of text"):
        api.metrics()


def test_reconcile_gives_counts(api):
    assert api.reconcile() == {"made": 1}


def test_lists_are_asked_in_pages(api, operated, network, monkeypatch, nodes):
    monkeypatch.setattr(api_base, "PAGE", 2)
    for number in range(5):
        api.create_volume(VolumeCreate(alias=f"v{number}", capacity=1))
    api.info()
    before = len(network.requests)
    assert sorted(item.alias for item in api.volumes()) == ["v0", "v1", "v2", "v3", "v4"]
    assert len(network.requests) - before == 3
    assert api.snapshots() == []


def test_a_server_that_gives_the_same_page_for_ever(connect, network, monkeypatch):
    monkeypatch.setattr(api_base, "PAGE", 1)
    network.servers[A] = Script(
        Answer({"capabilities": ["paging"]}), Answer([{"uuid": V1, "alias": "v", "capacity": 1}])
    )
    with pytest.raises(errors.ProtocolError, match="same page of /volumes again"):
        Provisioner(connect(A)).volumes()


EXTENSIONS = {
    "drain": [
        lambda api: api.drain_backend("n"),
        lambda api: api.stop_drain("n"),
        lambda api: api.update_backend("n", BackendUpdate(cordoned=True)),
        lambda api: api.update_backend("n", BackendUpdate(pools=[DeclaredPool(name="p")])),
    ],
    "dry-run": [lambda api: api.plan_volume(VolumeCreate(alias="a", capacity=1))],
    "modify-volume": [lambda api: api.modify_volume(V1, VolumeModify(alias="b"))],
    "revert-volume": [lambda api: api.revert_volume(V1, S1)],
    "adopt-volume": [
        lambda api: api.adoptable_volumes(),
        lambda api: api.unmanage_volume(V1),
        lambda api: api.adopt_volume(AdoptVolume(alias="a", backend_id="n", pool="p", name="l")),
    ],
    "events": [lambda api: api.events()],
    "array-report": [
        lambda api: api.report_array(ArrayReport(host_id="h", vol_id=V1, state="open"))
    ],
    "tokens": [lambda api: api.create_token(), lambda api: api.revoke_token("t")],
    "garbage": [
        lambda api: api.garbage(),
        lambda api: api.keep_garbage("n", V1),
        lambda api: api.remove_garbage("n", V1),
    ],
    "reconcile": [lambda api: api.reconcile()],
    "restored": [lambda api: api.restored(), lambda api: api.accept_restored("drop")],
}


@pytest.mark.parametrize("capability", EXTENSIONS)
def test_an_old_server_is_not_asked_for_what_it_cannot_do(provisioner, network, capability):
    for call in EXTENSIONS[capability]:
        with pytest.raises(errors.NotAvailableError, match=f"does not offer '{capability}'"):
            call(provisioner)
    assert {request.path for request in network.requests} == {"/info"}


def test_the_place_of_a_node_is_for_old_servers_too(provisioner):
    provisioner.add_backend(BackendCreate(mgmt_ips=["10.0.0.1"]))
    provisioner.update_backend("node-1", BackendUpdate(rack="r"))
    assert provisioner.backend("node-1").rack == "r"


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (lambda api: api.volumes(), "/volumes"),
        (lambda api: api.snapshots_of(V1), f"/snapshots_by_vol/{V1}"),
        (lambda api: api.adoptable_volumes(), "/adoptable_volumes"),
        (lambda api: api.delete_volume(V1), f"/volumes/{V1}"),
        (lambda api: api.delete_snapshot(S1), f"/snapshots/{S1}"),
        (lambda api: api.confirm_replica(V1, V2), f"/replica/{V1}/{V2}"),
    ],
)
def test_the_tenant_stands_before_the_path(connect, network, call, path):
    info = Answer({"capabilities": ["adopt-volume"]})
    network.servers[A] = lambda request: info if request.path == "/info" else Answer([])
    call(Provisioner(connect(A), tenant="acme"))
    assert network.requests[-1].path == f"/acme{path}"
