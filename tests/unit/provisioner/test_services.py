# SPDX-License-Identifier: Apache-2.0
"""Stories of volumes, snapshots and copies over a real database and node models."""

import pytest
from sqlalchemy import delete

from kumo_client import errors, naming
from kumo_client.naming import GIB
from kumo_client.schemas.backend import BackendUpdate
from kumo_client.schemas.snapshot import SnapshotVolumeCreate
from kumo_client.schemas.volume import CloneCreate
from kumo_provisioner import reconcile
from kumo_provisioner.db import models
from kumo_provisioner.services import (
    backends,
    hosts,
    info,
    snapshots,
    tenants,
    volumes,
)
from tests.unit.provisioner.conftest import add_node, volume
from tests.unit.provisioner.stories import T, made_snapshot, node_of, ports, published, rows, shown

# -- volumes ------------------------------------------------------------------------------------


def test_replicas_are_on_different_nodes_and_large_enough(core, three):
    uid = volumes.create(core, T, volume(replicas=3, gib=2))
    places = shown(core, uid).location
    assert {node_of(core, place).name for place in places} == {one.name for one in three}
    for place in places:
        held = node_of(core, place).state.replicas[place.uuid]
        assert held.bytes == naming.replica_bytes(2, 3) > 2 * GIB
        assert held.spec.volume_id == uid


def test_uuid_and_alias_are_unique(core, three):
    uid = volumes.create(core, T, volume("a"))
    with pytest.raises(errors.AlreadyExistsError, match=uid):
        volumes.create(core, T, volume("b", uuid=uid))
    with pytest.raises(errors.AlreadyExistsError, match="alias a"):
        volumes.create(core, T, volume("a"))
    volumes.delete(core, T, uid)
    assert volumes.create(core, T, volume("a", uuid=uid)) == uid


@pytest.mark.parametrize("fault", ["lost request", "lost answer"])
def test_a_create_whose_answer_is_lost_leaves_nothing(core, three, fault):
    node = ports(core, three[1])
    core.nodes.faults[node, "put_replica"] = fault
    core.nodes.calls.clear()
    with pytest.raises(errors.BackendUnavailableError) as caught:
        volumes.create(core, T, volume(replicas=3))
    assert caught.value.transient
    assert caught.value.node == three[1].persistent_id
    assert volumes.list_all(core, T) == []
    assert [name for port, name in core.nodes.calls if port == node] == ["put_replica"], (
        "who has just not answered is not waited for a second time"
    )
    assert len(core.nodes.objects()) == (fault == "lost answer")
    assert core.wake.is_set(), "what the node may have is removed soon"
    assert reconcile.run(core).removed == 1
    assert core.nodes.objects() == set()
    assert tenants.list_all(core)[0].consumed_capacity == 0


def test_a_refused_create_that_cannot_be_undone_is_undone_later(core, three):
    core.nodes.faults[ports(core, three[0]), "put_replica"] = errors.NoSpaceError("full")
    core.nodes.faults[ports(core, three[1]), "delete_replica"] = "lost request"
    with pytest.raises(errors.NoSpaceError):
        volumes.create(core, T, volume("a", replicas=3))
    assert len(core.nodes.objects()) == 1
    assert tenants.list_all(core)[0].consumed_capacity > 0, "its space is not free yet"
    assert reconcile.run(core).waiting == 1
    core.nodes.faults.clear()
    assert reconcile.run(core).removed == 1
    assert core.nodes.objects() == set()
    assert tenants.list_all(core)[0].consumed_capacity == 0
    volumes.create(core, T, volume("a", replicas=3))


def test_a_defect_of_ours_is_undone_too(core, three, monkeypatch):
    core.nodes.faults[ports(core, three[0]), "put_replica"] = errors.InternalError("broken")
    with pytest.raises(errors.BackendUnavailableError) as caught:
        volumes.create(core, T, volume(replicas=3))
    assert not caught.value.transient
    assert core.nodes.objects() == set()


def test_a_record_that_went_while_a_volume_was_made_is_not_passed_over(core, three, monkeypatch):
    def gone(call):
        with core.db.write() as session:
            session.execute(delete(models.Replica))
            session.execute(delete(models.Volume))
        return whole(call)

    whole = core.nodes._call
    monkeypatch.setattr(core.nodes, "_call", gone)
    with pytest.raises(errors.InternalError, match="not being made any more"):
        volumes.create(core, T, volume())
    assert volumes.list_all(core, T) == []


def test_capacity_is_never_sold_twice(core):
    add_node(core, total_bytes=10 * GIB)
    for number in range(10):
        volumes.create(core, T, volume(f"v{number}"))
    with pytest.raises(errors.NoSpaceError):
        volumes.create(core, T, volume("more"))
    assert info.get(core).total_free_space == 0


def test_thin_volumes_are_charged_by_the_ratio(core):
    add_node(core, total_bytes=10 * GIB)
    volumes.create(core, T, volume("thin", gib=40, provisioning_type="thin"))
    with pytest.raises(errors.NoSpaceError):
        volumes.create(core, T, volume("more", provisioning_type="THIN"))


def test_delete_is_done_for_users_while_a_node_is_down(core, three):
    uid = volumes.create(core, T, volume(replicas=3))
    core.nodes.down.add(ports(core, three[0]))
    volumes.delete(core, T, uid)
    with pytest.raises(errors.NotExistsError):
        volumes.get(core, T, uid)
    assert len(core.nodes.objects()) == 1
    assert reconcile.run(core).waiting == 1
    core.nodes.down.clear()
    assert reconcile.run(core).waiting == 0
    assert core.nodes.objects() == set()


@pytest.mark.parametrize("text", ["no-uuid", "5f0c9a34-8d61-4b7e-9a52-1c3d7e60b482", "", "x" * 500])
def test_unknown_ids_do_not_exist(core, text):
    calls = [
        lambda: volumes.get(core, T, text),
        lambda: volumes.delete(core, T, text),
        lambda: volumes.extend(core, T, text, 5),
        lambda: snapshots.get(core, T, text),
        lambda: snapshots.delete(core, T, text),
        lambda: snapshots.of_volume(core, T, text),
        lambda: snapshots.by_alias(core, T, text),
        lambda: volumes.by_alias(core, T, text),
        lambda: hosts.delete(core, text),
        lambda: backends.list_all(core, text),
        lambda: backends.update(core, text, BackendUpdate(zone="z")),
        lambda: backends.delete(core, text),
    ]
    for call in calls:
        with pytest.raises(errors.NotExistsError):
            call()


def test_a_volume_at_work_is_busy(core, three):
    uid = volumes.create(core, T, volume())
    with core.locks.hold(uid):
        for call in (
            lambda: volumes.delete(core, T, uid),
            lambda: volumes.extend(core, T, uid, 2),
            lambda: published(core, uid),
        ):
            with pytest.raises(errors.BusyError) as caught:
                call()
            assert caught.value.transient
    assert core.locks.held() == 0


def test_what_a_dead_process_began_gives_way_to_a_repeat(core, three):
    uid = volumes.create(core, T, volume("a", replicas=2))
    with core.db.write() as session:
        session.get_one(models.Volume, uid).status = models.CREATING
    assert volumes.list_all(core, T) == []
    volumes.create(core, T, volume("a", uuid=uid, replicas=2))
    reconcile.run(core)
    assert core.nodes.objects() == {place.uuid for place in shown(core, uid).location}


# -- extend -------------------------------------------------------------------------------------


def test_extend_grows_all_replicas_and_repeats(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    for _ in range(2):
        volumes.extend(core, T, uid, 5)
        assert shown(core, uid).capacity == 5
    for place in shown(core, uid).location:
        held = node_of(core, place).state.replicas[place.uuid]
        assert held.bytes == naming.replica_bytes(5, 2)
    with pytest.raises(errors.InvalidInputError, match="cannot shrink"):
        volumes.extend(core, T, uid, 4)


@pytest.mark.parametrize("fault", ["lost request", "lost answer"])
def test_an_extension_cut_off_is_finished_later(core, three, fault):
    uid = volumes.create(core, T, volume(replicas=2))
    last = node_of(core, shown(core, uid).location[1])
    core.nodes.faults[ports(core, last), "resize_replica"] = fault
    with pytest.raises(errors.BackendUnavailableError):
        volumes.extend(core, T, uid, 3)
    assert shown(core, uid).capacity == 1, "not before all have grown"
    with pytest.raises(errors.ConflictError, match="under way"):
        volumes.extend(core, T, uid, 2)
    with pytest.raises(errors.BusyError, match="under way"):
        made_snapshot(core, uid)
    with pytest.raises(errors.BusyError, match="under way"):
        snapshots.clone(core, T, CloneCreate(source_volume_id=uid, alias="c"))
    core.nodes.faults.clear()
    assert reconcile.run(core).settled == 1
    assert shown(core, uid).capacity == 3
    assert reconcile.run(core).settled == 0


def test_a_refused_extension_ends(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    first, last = (node_of(core, place) for place in shown(core, uid).location)
    core.nodes.faults[ports(core, last), "resize_replica"] = errors.NoSpaceError("full")
    with pytest.raises(errors.NoSpaceError):
        volumes.extend(core, T, uid, 3)
    assert shown(core, uid).capacity == 1
    core.nodes.faults.clear()
    assert reconcile.run(core).settled == 0
    # The leg that has grown already is still the source of a copy that fits.
    copy = snapshots.clone(core, T, CloneCreate(source_volume_id=uid, alias="copy"))
    assert shown(core, copy).capacity == 1
    volumes.extend(core, T, uid, 2)
    assert shown(core, uid).capacity == 2
    assert first.name != last.name


def test_an_extension_without_room_changes_nothing(core):
    node = add_node(core, total_bytes=4 * GIB)
    uid = volumes.create(core, T, volume())
    with pytest.raises(errors.NoSpaceError, match=node.name):
        volumes.extend(core, T, uid, 5)
    volumes.extend(core, T, uid, 4)


# -- snapshots and copies -------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [1, 2])
def test_copies_live_beside_their_sources(core, three, replicas):
    uid = volumes.create(core, T, volume(replicas=replicas))
    snap = made_snapshot(core, uid)
    parts = {part.uuid: part.backend_id for part in rows(core, models.SnapshotPart)}
    copy = snapshots.create_volume(
        core, T, SnapshotVolumeCreate(alias="copy", snapshot_id=snap, capacity=4, max_iops_per_gb=7)
    )
    clone = snapshots.clone(core, T, CloneCreate(source_volume_id=uid, alias="clone"))
    assert shown(core, copy).snapshot_id == snap
    assert shown(core, copy).max_iops == 28
    assert not shown(core, copy).writable
    assert shown(core, clone).source_volume_id == uid
    for copied, gib in ((copy, 4), (clone, 1)):
        for place in shown(core, copied).location:
            spec = node_of(core, place).state.replicas[place.uuid].spec
            assert spec.bytes == naming.replica_bytes(gib, replicas)
            if copied == copy:
                assert parts[spec.source.snapshot] == place.backend.persistent_id
            if replicas == 1:
                assert spec.array is None
            else:
                assert (spec.array.uuid, spec.array.name) == (copied, shown(core, copied).alias)


def test_a_copy_is_not_smaller_than_its_source(core, three):
    uid = volumes.create(core, T, volume(gib=3))
    snap = made_snapshot(core, uid)
    with pytest.raises(errors.InvalidInputError):
        snapshots.create_volume(
            core, T, SnapshotVolumeCreate(alias="c", snapshot_id=snap, capacity=2)
        )
    with pytest.raises(errors.InvalidInputError):
        snapshots.clone(core, T, CloneCreate(source_volume_id=uid, alias="c", capacity=2))
    with pytest.raises(errors.AlreadyExistsError):
        snapshots.clone(core, T, CloneCreate(source_volume_id=uid, alias="c", volume_id=uid))


def test_a_failed_snapshot_leaves_nothing(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    last = node_of(core, shown(core, uid).location[1])
    core.nodes.faults[ports(core, last), "put_snapshot"] = "lost answer"
    with pytest.raises(errors.BackendUnavailableError):
        made_snapshot(core, uid)
    assert snapshots.list_all(core, T) == []
    core.nodes.faults.clear()
    reconcile.run(core)
    assert core.nodes.objects() == {place.uuid for place in shown(core, uid).location}
    made_snapshot(core, uid)
    with pytest.raises(errors.AlreadyExistsError):
        made_snapshot(core, uid)


def test_a_volume_with_snapshots_stays(core, three):
    uid = volumes.create(core, T, volume())
    snap = made_snapshot(core, uid)
    with pytest.raises(errors.InUseError, match=snap):
        volumes.delete(core, T, uid)
    assert [one.snapshot_id for one in snapshots.of_volume(core, T, uid)] == [snap]
    assert snapshots.by_alias(core, T, "snapshot") == snapshots.get(core, T, snap)
    snapshots.delete(core, T, snap)
    assert snapshots.of_volume(core, T, uid) == []
    volumes.delete(core, T, uid)


def test_snapshots_are_charged_and_refused_without_room(core):
    add_node(core, total_bytes=3 * GIB)
    uid = volumes.create(core, T, volume(gib=2))
    with pytest.raises(errors.NoSpaceError):
        made_snapshot(core, uid)
    core.conf.set_override("snapshot_reserve_percent", 20, group="placement")
    made_snapshot(core, uid)
    assert tenants.list_all(core)[0].consumed_capacity == 3


def test_what_needs_a_node_that_is_down_is_refused_at_once(core, three):
    uid = volumes.create(core, T, volume(replicas=3))
    core.nodes.down.add(ports(core, three[0]))
    backends.probe(core)
    assert backends.list_all(core, three[0].persistent_id)[0].state == "Available"
    backends.probe(core)
    assert backends.list_all(core, three[0].persistent_id)[0].state == "Unavailable"
    single = volumes.create(core, T, volume("single"))
    core.nodes.down.add(ports(core, node_of(core, shown(core, single).location[0])))
    backends.probe(core)
    backends.probe(core)
    calls = len(core.nodes.calls)
    for call in (lambda: made_snapshot(core, single), lambda: volumes.extend(core, T, uid, 3)):
        with pytest.raises(errors.BackendUnavailableError, match="is Unavailable"):
            call()
    assert len(core.nodes.calls) == calls
