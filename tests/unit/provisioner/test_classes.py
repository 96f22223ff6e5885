# SPDX-License-Identifier: Apache-2.0
"""Changing what was asked of a volume, while it is attached."""

import pytest

from kumo_client import errors
from kumo_client.schemas.tenant import TenantWrite
from kumo_client.schemas.volume import REPLICA_TERMINATING, StorageClassUpdate, VolumeModify
from kumo_provisioner import reconcile, settling
from kumo_provisioner.db import models
from kumo_provisioner.services import (
    backends,
    caps,
    classes,
    replicas,
    snapshots,
    tenants,
    volumes,
)
from tests.unit.provisioner.conftest import add_node, volume
from tests.unit.provisioner.live import data, killed, legs, note, note_volume, rows_of, write
from tests.unit.provisioner.stories import T, made_snapshot, node_of, ports, published, rows, shown


@pytest.fixture
def fast(core):
    """Three nodes that deliver 1000 IOPS and KB/s each."""
    return [add_node(core, max_iops=1000, max_bw=1000) for _ in range(3)]


def modified(core, uid, tenant=T, **changes):
    top = {key: changes.pop(key) for key in ("alias", "allow_span") if key in changes}
    request = VolumeModify(storage_class=StorageClassUpdate(**changes), **top)
    return classes.modify(core, tenant, uid, request)


def limits(core, uid):
    return [(leg.limits.max_iops, leg.limits.max_bw) for leg in legs(core, uid)]


def sold(core):
    return sorted((one.sold_iops, one.sold_bw) for one in rows(core, models.Pool))


def kinds(core, uid):
    with core.db.read() as session:
        return settling.kinds(session.get_one(models.Volume, uid))


def events(core):
    return [one.type for one in rows(core, models.Event)]


# -- caps ---------------------------------------------------------------------------------------


def test_caps_change_while_attached_and_grow_with_the_volume(core, three):
    uid = volumes.create(core, T, volume(replicas=2, gib=2, asked={"max_iops_per_gb": 10}))
    published(core, uid)
    assert limits(core, uid) == [(20, 0), (20, 0)]
    assert modified(core, uid, max_iops_per_gb=50, max_bw_per_gb=7) == ""
    assert limits(core, uid) == [(100, 14), (100, 14)]
    assert (shown(core, uid).max_iops, shown(core, uid).max_bw) == (100, 14)
    volumes.extend(core, T, uid, 3)
    assert limits(core, uid) == [(150, 21), (150, 21)]
    modified(core, uid, max_iops_per_gb=0, max_bw_per_gb=0)
    assert limits(core, uid) == [(0, 0), (0, 0)]
    assert kinds(core, uid) == []
    assert events(core).count("volume.modified") == 2


@pytest.mark.parametrize("fault", ["lost request", "lost answer"])
def test_a_node_that_is_away_gets_its_caps_later(core, three, fault):
    uid = volumes.create(core, T, volume(replicas=2))
    last = node_of(core, shown(core, uid).location[1])
    core.nodes.faults[ports(core, last), "set_limits"] = fault
    assert last.persistent_id in modified(core, uid, max_iops_per_gb=5)
    assert kinds(core, uid) == [settling.LIMITS]
    assert limits(core, uid)[0] == (5, 0)
    # Nothing else waits for that.
    made_snapshot(core, uid)
    volumes.extend(core, T, uid, 2)
    assert limits(core, uid)[0] == (10, 0)
    assert reconcile.run(core).waiting == 1
    core.nodes.faults.clear()
    assert reconcile.run(core).settled == 1
    assert limits(core, uid) == [(10, 0), (10, 0)]
    assert kinds(core, uid) == []


@pytest.mark.parametrize("after", [False, True])
def test_caps_are_set_after_a_crash(core, three, monkeypatch, after):
    uid = volumes.create(core, T, volume())
    with killed(monkeypatch, caps, "apply", after=False):
        modified(core, uid, max_iops_per_gb=5)
    reconcile.run(core)
    assert limits(core, uid) == [(5, 0)]


def test_caps_do_not_wait_for_a_leg_that_goes_and_is_not_there(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    published(core, uid)
    stays, goes = shown(core, uid).location
    replicas.terminate(core, T, uid, goes.uuid)
    assert [one.state for one in rows_of(core, uid)][1] == REPLICA_TERMINATING
    del node_of(core, goes).state.replicas[goes.uuid]
    note_volume(core, uid, unsettled=settling.LIMITS)
    caps.apply(core, uid)
    assert kinds(core, uid) == []
    del node_of(core, stays).state.replicas[stays.uuid]
    with pytest.raises(errors.ConflictError, match=stays.uuid):
        caps.apply(core, uid)


# -- guarantees ---------------------------------------------------------------------------------


def test_guarantees_are_admitted_like_new_ones(core, fast):
    uid = volumes.create(core, T, volume(replicas=2, gib=2))
    published(core, uid)
    modified(core, uid, desired_iops_per_gb=400, desired_bw_per_gb=100)
    assert sold(core) == [(0, 0), (800, 200), (800, 200)]
    with pytest.raises(errors.NoSpaceError, match="guarantee"):
        modified(core, uid, desired_iops_per_gb=501, max_iops_per_gb=900)
    assert sold(core) == [(0, 0), (800, 200), (800, 200)]
    assert limits(core, uid) == [(0, 0), (0, 0)], "all or nothing"
    assert shown(core, uid).desired_iops == 800
    modified(core, uid, desired_iops_per_gb=10, desired_bw_per_gb=0)
    assert sold(core) == [(0, 0), (20, 0), (20, 0)]
    modified(core, uid, desired_iops_per_gb=0)
    assert sold(core) == [(0, 0), (0, 0), (0, 0)]


def test_nothing_is_guaranteed_by_pools_that_nobody_measured(core, three):
    uid = volumes.create(core, T, volume())
    with pytest.raises(errors.NoSpaceError, match="nobody declared"):
        modified(core, uid, desired_iops_per_gb=1)


def test_budgets_are_kept(core, fast):
    tenant = tenants.create(
        core, TenantWrite(name="small", capacity=5, total_iops=100), frozenset()
    )
    uid = volumes.create(core, tenant, volume(replicas=2, gib=2))
    with core.db.write() as session:
        tenants.recount(session, tenant)
    with pytest.raises(errors.OverBudgetError, match="operations"):
        modified(core, uid, tenant, desired_iops_per_gb=51)
    modified(core, uid, tenant, desired_iops_per_gb=50)
    before = tenants.list_all(core, tenant)[0].consumed_capacity
    with pytest.raises(errors.OverBudgetError, match="GiB"):
        modified(core, uid, tenant, num_replicas=3)
    assert len(rows_of(core, uid)) == 2
    assert tenants.list_all(core, tenant)[0].consumed_capacity == before


# -- replicas -----------------------------------------------------------------------------------


def test_one_more_replica_is_a_blank_leg(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    write(core, uid, "data")
    published(core, uid)
    note_volume(core, uid, array_state="open")
    assert modified(core, uid, num_replicas=3) == ""
    assert [one.freshness for one in rows_of(core, uid)] == ["fresh", "fresh", "blank"]
    assert [leg.content for leg in legs(core, uid)] == ["data", "data", 0]
    assert len({place.backend.persistent_id for place in shown(core, uid).location}) == 3
    assert kinds(core, uid) == []


def test_without_room_for_one_more_nothing_changes(core):
    for _ in range(2):
        add_node(core)
    uid = volumes.create(core, T, volume(replicas=2))
    with pytest.raises(errors.NoSpaceError):
        modified(core, uid, num_replicas=3, max_iops_per_gb=7)
    assert (shown(core, uid).max_iops, kinds(core, uid)) == (0, [])


def test_a_leg_that_cannot_be_made_is_tried_again(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    used = {place.backend.persistent_id for place in shown(core, uid).location}
    free = next(model for model in three if model.persistent_id not in used)
    core.nodes.faults[ports(core, free), "put_replica"] = "lost request"
    assert "later" in modified(core, uid, num_replicas=3)
    core.nodes.faults.clear()
    reconcile.run(core)
    assert len(rows_of(core, uid)) == 3
    assert kinds(core, uid) == []


def test_one_replica_less_is_never_the_last_in_sync(core, three):
    uid = volumes.create(core, T, volume(replicas=3))
    write(core, uid, "data")
    for number in (0, 2):
        note(core, uid, number, state="Missing", freshness=models.STALE)
    keeper = rows_of(core, uid)[1].uuid
    modified(core, uid, num_replicas=2)
    assert keeper in {one.uuid for one in rows_of(core, uid)}
    assert len(rows_of(core, uid)) == 2
    reconcile.run(core)
    assert len(rows_of(core, uid)) == 2
    assert data(core, uid) == ["data"]


@pytest.mark.parametrize(("replicas", "wanted"), [(1, 2), (1, 3), (2, 1), (3, 1)])
@pytest.mark.parametrize("attached", [False, True])
def test_plain_stays_plain_and_an_array_an_array(core, three, replicas, wanted, attached):
    uid = volumes.create(core, T, volume(replicas=replicas))
    write(core, uid, "data")
    if attached:
        published(core, uid)
    with pytest.raises(errors.ConflictError, match="copy the data"):
        modified(core, uid, num_replicas=wanted)
    assert data(core, uid) == ["data"] * replicas


# -- the rest -----------------------------------------------------------------------------------


def test_span_is_given_up_only_where_nothing_spans(core, three):
    uid = volumes.create(core, T, volume())
    modified(core, uid, allow_span=False)
    modified(core, uid, allow_span=True)
    node_of(core, shown(core, uid).location[0]).pools["pool"].spans = True
    backends.probe(core)
    with pytest.raises(errors.ConflictError, match="migrate the replica"):
        modified(core, uid, allow_span=False)


def test_an_alias_changes_unless_an_array_has_it(core, three):
    plain = volumes.create(core, T, volume("plain"))
    published(core, plain)
    modified(core, plain, alias="renamed")
    assert volumes.by_alias(core, T, "renamed")[0].uuid == plain
    uid = volumes.create(core, T, volume("array", replicas=2))
    modified(core, uid, alias="before")
    with pytest.raises(errors.AlreadyExistsError, match=plain):
        modified(core, uid, alias="renamed")
    note_volume(core, uid, array_state="clean")
    with pytest.raises(errors.ConflictError, match="make a clone"):
        modified(core, uid, alias="after")
    note_volume(core, uid, array_state="new")
    published(core, uid)
    with pytest.raises(errors.ConflictError, match="name of its alias"):
        modified(core, uid, alias="after")
    assert shown(core, uid).alias == "before"


def test_the_time_to_heal_and_the_name_are_only_recorded(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    calls = len(core.nodes.calls)
    modified(core, uid, max_replica_down_time=30, name="gold")
    assert shown(core, uid).max_replica_down_time == 30
    assert len(core.nodes.calls) == calls
    before = rows(core, models.Volume)[0].generation
    assert modified(core, uid, max_replica_down_time=30) == ""
    assert rows(core, models.Volume)[0].generation == before
    copy = made_snapshot(core, uid)
    assert snapshots.get(core, T, copy)


def test_it_waits_for_what_is_unfinished(core, three):
    uid = volumes.create(core, T, volume())
    core.nodes.down.add(ports(core, node_of(core, shown(core, uid).location[0])))
    with pytest.raises(errors.BackendUnavailableError):
        volumes.extend(core, T, uid, 2)
    with pytest.raises(errors.BusyError, match="an extension"):
        modified(core, uid, max_iops_per_gb=1)
    for text in ("x", "00000000-0000-0000-0000-000000000000"):
        with pytest.raises(errors.NotExistsError):
            modified(core, text, max_iops_per_gb=1)


def test_over_the_wire(web, core, three):
    uid = volumes.create(core, T, volume(gib=2))
    body = {"storageClass": {"maxIOPSPerGB": 4}, "alias": "other", "allowSpan": False}
    assert web.put(f"/volumes/{uid}", json=body).json()["status"] == "Success"
    seen = web.get(f"/0/volumes/{uid}").json()[0]
    assert (seen["maxIOPS"], seen["alias"]) == (8, "other")
    core.nodes.down.add(ports(core, node_of(core, shown(core, uid).location[0])))
    answer = web.put(f"/volumes/{uid}", json={"storageClass": {"maxIOPSPerGB": 5}}).json()
    assert (answer["status"], "later" in answer["description"]) == ("Success", True)
    bad = web.put(f"/volumes/{uid}", json={"storageClass": {"numReplicas": 9}}).json()
    assert bad["status"] == "InvalidInput"
    assert "modify-volume" in web.get("/info").json()["capabilities"]
