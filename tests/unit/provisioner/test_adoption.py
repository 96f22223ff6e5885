# SPDX-License-Identifier: Apache-2.0
"""Adopting logical volumes and giving volumes up: data is never deleted on either way."""

import uuid

import pytest

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_client.schemas.tenant import TenantWrite
from kumo_client.schemas.volume import AdoptVolume, StorageClass
from kumo_provisioner import reconcile
from kumo_provisioner.db import models
from kumo_provisioner.services import adoption, backends, snapshots, tenants, volumes
from tests.unit.provisioner.conftest import add_node, volume
from tests.unit.provisioner.live import data, killed, write
from tests.unit.provisioner.stories import T, made_snapshot, node_of, ports, published, rows, shown


@pytest.fixture
def node(core):
    made = add_node(core, pools={"a": 20 * GIB, "b": 20 * GIB}, max_iops=1000, max_bw=1000)
    made.add_foreign("data", 2 * GIB, pool="b", content="theirs")
    return made


def wish(node, name="data", **extra):
    asked = StorageClass(**extra.pop("asked", {}))
    return AdoptVolume(
        alias="mine",
        backend_id=node.persistent_id,
        pool="b",
        name=name,
        storage_class=asked,
        **extra,
    )


def charged(core):
    return {(one.name): one.charged_bytes for one in rows(core, models.Pool) if one.charged_bytes}


def test_what_could_be_adopted_is_listed(core, node):
    node.add_foreign("busy", GIB, in_use=True)
    node.add_foreign("odd", GIB + 1)
    node.add_foreign("other", GIB, reason="it is a snapshot")
    add_node(core).add_foreign("more", GIB)
    found = {one.name: one.reason for one in adoption.list_adoptable(core)}
    assert found == {
        "busy": "it is in use",
        "odd": "its size is not whole GiB",
        "other": "it is a snapshot",
        "data": "",
        "more": "",
    }
    own = adoption.list_adoptable(core, node.persistent_id)
    assert [(one.pool, one.name) for one in own] == [
        ("a", "busy"),
        ("a", "odd"),
        ("a", "other"),
        ("b", "data"),
    ]
    with pytest.raises(errors.NotExistsError):
        adoption.list_adoptable(core, "nobody")


def test_a_node_that_is_not_asked_is_left_out_unless_it_was_named(core, node):
    add_node(core).add_foreign("more", GIB)
    core.nodes.down.add(ports(core, node))
    assert [one.name for one in adoption.list_adoptable(core)] == ["more"]
    with pytest.raises(errors.BackendUnavailableError):
        adoption.list_adoptable(core, node.persistent_id)
    for port in core.nodes.models:
        core.nodes.down.add(port)
    with pytest.raises(errors.BackendUnavailableError):
        adoption.list_adoptable(core)


def test_a_volume_is_adopted_used_and_given_back(core, node):
    uid = adoption.adopt(core, T, wish(node, asked={"desired_iops_per_gb": 100}))
    seen = shown(core, uid)
    assert (seen.alias, seen.capacity, rows(core, models.Replica)[0].pool) == ("mine", 2, "b")
    assert data(core, uid) == ["theirs"]
    assert charged(core) == {"b": 2 * GIB}
    assert next(one for one in rows(core, models.Pool) if one.name == "b").sold_iops == 200
    published(core, uid)
    with pytest.raises(errors.InUseError, match="published"):
        adoption.unmanage(core, T, uid)
    with core.db.write() as session:
        session.delete(session.get_one(models.Volume, uid).publications[0])
    node.delete_export(seen.location[0].uuid)
    write(core, uid, "more")
    names = adoption.unmanage(core, T, uid)
    name = f"unmanaged-mine-{seen.location[0].uuid}"
    assert names == {node.persistent_id: name}
    assert node.state.foreign["b", name].content == "more"
    assert node.state.replicas == {}
    assert (charged(core), rows(core, models.Removal)) == ({}, [])
    with pytest.raises(errors.NotExistsError):
        adoption.unmanage(core, T, uid)
    again = adoption.adopt(core, T, wish(node, name))
    assert data(core, again) == ["more"]
    kinds = [one.type for one in rows(core, models.Event) if one.volume_id]
    assert kinds == ["volume.adopted", "volume.unmanaged", "volume.adopted"]


def test_all_legs_of_a_replicated_volume_are_given_up(core, three):
    uid = volumes.create(core, T, volume("a/b_tdata", replicas=3))
    write(core, uid, "data")
    snap = made_snapshot(core, uid)
    with pytest.raises(errors.InUseError, match="delete its snapshots first"):
        adoption.unmanage(core, T, uid)
    snapshots.delete(core, T, snap)
    places = shown(core, uid).location
    adoption.unmanage(core, T, uid)
    for place in places:
        found = node_of(core, place).state.foreign["pool", f"unmanaged-a-b-tdata-{place.uuid}"]
        assert found.content == "data"
    assert volumes.list_all(core, T) == []


def test_what_cannot_be_adopted(core, node):
    node.add_foreign("busy", GIB, pool="b", in_use=True)
    node.add_foreign("odd", GIB + 1, pool="b")
    node.add_foreign("large", 21 * GIB, pool="b")
    taken = volumes.create(core, T, volume("taken"))
    for request, error, match in (
        (wish(node, "busy"), errors.InUseError, "in use"),
        (wish(node, "odd"), errors.ConflictError, "whole GiB"),
        (wish(node, "none"), errors.NotExistsError, "no logical volume none"),
        (wish(node, "large"), errors.NoSpaceError, "capacity"),
        (wish(node, asked={"num_replicas": 2}), errors.InvalidInputError, "one replica"),
        (wish(node, asked={"desired_iops_per_gb": 501}), errors.NoSpaceError, "guarantee"),
        (wish(node, uuid=taken), errors.AlreadyExistsError, "exists already"),
        (wish(node).model_copy(update={"alias": "taken"}), errors.AlreadyExistsError, "alias"),
        (wish(node).model_copy(update={"backend_id": "x"}), errors.NotExistsError, "backend x"),
    ):
        with pytest.raises(error, match=match):
            adoption.adopt(core, T, request)
    assert len(node.state.foreign) == 4
    assert [one.uuid for one in volumes.list_all(core, T)] == [taken]
    node.pools["b"].spans = True
    backends.probe(core)
    with pytest.raises(errors.ConflictError, match="several disks"):
        adoption.adopt(core, T, wish(node, asked={"allow_span": False}))


def test_a_budget_is_kept(core, node):
    tenant = tenants.create(core, TenantWrite(name="small", capacity=3), frozenset())
    uid = adoption.adopt(core, tenant, wish(node))
    assert tenants.list_all(core, tenant)[0].consumed_capacity == 2
    node.add_foreign("second", 2 * GIB, pool="b")
    second = wish(node, "second").model_copy(update={"alias": "second"})
    with pytest.raises(errors.OverBudgetError):
        adoption.adopt(core, tenant, second)
    with pytest.raises(errors.NotExistsError):
        adoption.unmanage(core, T, uid)
    adoption.unmanage(core, tenant, uid)
    assert tenants.list_all(core, tenant)[0].consumed_capacity == 0


@pytest.mark.parametrize("fault", ["lost request", "lost answer"])
def test_an_adoption_cut_off_is_finished_later(core, node, fault):
    request = wish(node, uuid=str(uuid.uuid4()))
    core.nodes.faults[ports(core, node), "adopt_replica"] = fault
    with pytest.raises(errors.BackendUnavailableError):
        adoption.adopt(core, T, request)
    assert volumes.list_all(core, T) == []
    assert reconcile.run(core).waiting == 1
    core.nodes.faults.clear()
    if fault == "lost answer":
        adoption.adopt(core, T, request)
    else:
        reconcile.run(core)
    assert data(core, request.uuid) == ["theirs"]
    with pytest.raises(errors.AlreadyExistsError):
        adoption.adopt(core, T, request)


def test_an_adoption_that_the_node_refuses_is_forgotten(core, node):
    core.nodes.faults[ports(core, node), "adopt_replica"] = errors.ConflictError("no")
    with pytest.raises(errors.ConflictError, match="no"):
        adoption.adopt(core, T, wish(node))
    core.nodes.faults.clear()
    reconcile.run(core)
    assert (charged(core), rows(core, models.Volume)) == ({}, [])
    assert node.state.foreign["b", "data"].content == "theirs"
    core.nodes.faults[ports(core, node), "adoptable"] = "lost request"
    with pytest.raises(errors.BackendUnavailableError):
        adoption.adopt(core, T, wish(node))


@pytest.mark.parametrize("fault", ["lost request", "lost answer"])
def test_a_release_cut_off_is_finished_later(core, three, fault):
    uid = volumes.create(core, T, volume(replicas=2))
    write(core, uid, "data")
    last = node_of(core, shown(core, uid).location[1])
    core.nodes.faults[ports(core, last), "release_replica"] = fault
    with pytest.raises(errors.BackendUnavailableError):
        adoption.unmanage(core, T, uid)
    assert volumes.list_all(core, T) == []
    assert reconcile.run(core).waiting == 1
    core.nodes.faults.clear()
    if fault == "lost answer":
        assert len(adoption.unmanage(core, T, uid)) == 2
    else:
        assert reconcile.run(core).settled == 1
    assert core.nodes.objects() == set()
    found = [one.content for model in three for one in model.state.foreign.values()]
    assert found == ["data", "data"]
    assert (charged(core), rows(core, models.Volume)) == ({}, [])


def test_a_release_that_all_nodes_refuse_changes_nothing(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    for model in three:
        core.nodes.faults[ports(core, model), "release_replica"] = errors.ConflictError("no")
    with pytest.raises(errors.ConflictError):
        adoption.unmanage(core, T, uid)
    assert [one.unsettled for one in rows(core, models.Volume)] == [""]
    core.nodes.faults.clear()
    volumes.delete(core, T, uid)


def test_a_node_that_is_down_keeps_its_replica(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    core.nodes.down.add(ports(core, node_of(core, shown(core, uid).location[1])))
    for _ in range(2):
        backends.probe(core)
    with pytest.raises(errors.BackendUnavailableError, match="is Unavailable"):
        adoption.unmanage(core, T, uid)
    assert shown(core, uid).uuid == uid


@pytest.mark.parametrize(
    ("name", "after"),
    [("_examine", True), ("finish_adoption", False), ("_adopted", False), ("_adopted", True)],
)
def test_a_crash_never_costs_adopted_data(core, node, monkeypatch, name, after):
    request = wish(node, uuid=str(uuid.uuid4()))
    with killed(monkeypatch, adoption, name, after=after):
        adoption.adopt(core, T, request)
    reconcile.run(core)
    if name == "_examine":
        assert node.state.foreign["b", "data"].content == "theirs"
        assert volumes.list_all(core, T) == []
    else:
        assert data(core, request.uuid) == ["theirs"]


@pytest.mark.parametrize(("name", "after"), [("finish_release", False), ("_released", False)])
def test_a_crash_never_costs_released_data(core, three, monkeypatch, name, after):
    uid = volumes.create(core, T, volume(replicas=2))
    write(core, uid, "data")
    with killed(monkeypatch, adoption, name, after=after):
        adoption.unmanage(core, T, uid)
    reconcile.run(core)
    found = [one.content for model in three for one in model.state.foreign.values()]
    assert found == ["data", "data"]
    assert (charged(core), rows(core, models.Volume)) == ({}, [])


def test_over_the_wire(web, core, three):
    three[0].add_foreign("data", GIB)
    listed = web.get("/adoptable_volumes").json()
    assert [(one["name"], one["bytes"]) for one in listed] == [("data", GIB)]
    assert web.get("/adoptable_volumes", params={"backendId": "x"}).json()["status"] == "NotExists"
    body = {"alias": "a", "backendId": three[0].persistent_id, "pool": "pool", "name": "data"}
    answer = web.post("/adopt_volume", json=body).json()
    assert answer["status"] == "Success"
    gone = web.post("/unmanage_volume", json={"volumeId": answer["uuid"]}).json()
    assert list(gone["names"]) == [three[0].persistent_id]
    assert "adopt-volume" in web.get("/info").json()["capabilities"]
