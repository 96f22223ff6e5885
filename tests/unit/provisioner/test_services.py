# SPDX-License-Identifier: Apache-2.0
"""Stories of volumes, snapshots, hosts and publications over a real database and node models."""

import uuid

import pytest
from sqlalchemy import select

from kumo_client import errors, naming
from kumo_client.naming import GIB
from kumo_client.schemas.backend import BackendCreate, BackendUpdate
from kumo_client.schemas.host import HostProbe, PublishRequest, UnpublishRequest
from kumo_client.schemas.node import ReplicaSpec
from kumo_client.schemas.snapshot import SnapshotCreate, SnapshotVolumeCreate
from kumo_client.schemas.volume import CloneCreate
from kumo_provisioner import reconcile
from kumo_provisioner.db import models
from kumo_provisioner.services import (
    backends,
    hosts,
    info,
    publish,
    snapshots,
    targets,
    tenants,
    volumes,
)
from tests.unit.provisioner.conftest import HOST, NQN, add_node, volume

T = "0"


def ports(core, model):
    return next(port for port, one in core.nodes.models.items() if one is model)


def shown(core, uid):
    return volumes.get(core, T, uid)[0]


def node_of(core, place):
    wanted = place.backend.persistent_id
    return next(one for one in core.nodes.models.values() if one.persistent_id == wanted)


def published(core, uid, host=HOST):
    request = PublishRequest(host_id=host.host_id, vol_id=uid, host=host)
    return publish.publish(core, T, request)


def rows(core, table):
    with core.db.read() as session:
        return session.scalars(select(table)).all()


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
    core.nodes.faults[ports(core, three[1]), "put_replica"] = fault
    with pytest.raises(errors.BackendUnavailableError) as caught:
        volumes.create(core, T, volume(replicas=3))
    assert caught.value.transient
    assert caught.value.node == three[1].persistent_id
    assert core.nodes.objects() == set()
    assert volumes.list_all(core, T) == []
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


@pytest.mark.parametrize("text", ["no-uuid", str(uuid.uuid4()), "", "x" * 500])
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
    assert reconcile.run(core).extended == 1
    assert shown(core, uid).capacity == 3
    assert reconcile.run(core).extended == 0


def test_a_refused_extension_ends(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    first, last = (node_of(core, place) for place in shown(core, uid).location)
    core.nodes.faults[ports(core, last), "resize_replica"] = errors.NoSpaceError("full")
    with pytest.raises(errors.NoSpaceError):
        volumes.extend(core, T, uid, 3)
    assert shown(core, uid).capacity == 1
    core.nodes.faults.clear()
    assert reconcile.run(core).extended == 0
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


def made_snapshot(core, uid, alias="snapshot"):
    return snapshots.create(core, T, SnapshotCreate(alias=alias, volume_id=uid))


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


def test_legs_of_an_attached_volume_are_not_captured(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    published(core, uid)
    for call in (
        lambda: made_snapshot(core, uid),
        lambda: snapshots.clone(core, T, CloneCreate(source_volume_id=uid, alias="c")),
    ):
        with pytest.raises(errors.NotCoherentError, match="detach the volume first"):
            call()
    single = volumes.create(core, T, volume("single"))
    published(core, single)
    made_snapshot(core, single)


def test_a_snapshot_of_a_volume_with_a_missing_leg_is_refused(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    place = shown(core, uid).location[0]
    del node_of(core, place).state.replicas[place.uuid]
    assert reconcile.run(core).missing == 1
    assert [one.replica_state for one in shown(core, uid).location] == ["Missing", "Available"]
    with pytest.raises(errors.NotCoherentError, match="is Missing"):
        made_snapshot(core, uid)


def test_a_failed_snapshot_leaves_nothing(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    last = node_of(core, shown(core, uid).location[1])
    core.nodes.faults[ports(core, last), "put_snapshot"] = "lost answer"
    with pytest.raises(errors.BackendUnavailableError):
        made_snapshot(core, uid)
    assert snapshots.list_all(core, T) == []
    assert core.nodes.objects() == {place.uuid for place in shown(core, uid).location}
    core.nodes.faults.clear()
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
    calls = len(core.nodes.calls)
    for call in (lambda: made_snapshot(core, uid), lambda: volumes.extend(core, T, uid, 3)):
        with pytest.raises(errors.BackendUnavailableError, match="is Unavailable"):
            call()
    assert len(core.nodes.calls) == calls


# -- publish --------------------------------------------------------------------------------------


def test_publish_is_incremental_and_answers_all_an_attach_needs(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    first, second = published(core, uid), published(core, uid)
    assert (first.status, second.status) == ("Success", "AlreadyPublished")
    assert first.volume.uuid == uid
    assert first.volume.published_hosts == ["host-1"]
    assert core.nodes.exports() == {(one.uuid, NQN) for one in first.replicas}
    for one in first.replicas:
        assert one.target_nqn == naming.subsystem_nqn(one.backend_id, NQN, "replicated")
        assert one.portals[0].port == 4420


def test_publish_with_a_node_down_succeeds_and_is_completed_later(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    place = shown(core, uid).location[0]
    port = ports(core, node_of(core, place))
    core.nodes.down.add(port)
    answer = published(core, uid)
    assert answer.status == "Success"
    assert place.uuid in answer.description
    assert len(answer.replicas) == len(targets.list_all(core, "host-1", uid)) == 2
    assert len(core.nodes.exports()) == 1
    core.nodes.down.clear()
    assert reconcile.run(core).exports_restored == 1
    assert len(core.nodes.exports()) == 2


@pytest.mark.parametrize("fault", ["lost request", "lost answer"])
def test_publish_with_no_node_fails_and_leaves_nothing(core, three, fault):
    uid = volumes.create(core, T, volume())
    port = ports(core, node_of(core, shown(core, uid).location[0]))
    core.nodes.faults[port, "put_export"] = fault
    with pytest.raises(errors.BackendUnavailableError):
        published(core, uid)
    core.nodes.faults.clear()
    reconcile.run(core)
    assert core.nodes.exports() == set()
    assert shown(core, uid).published_hosts == []
    volumes.delete(core, T, uid)


def test_unpublish_from_a_dead_node_is_finished_when_it_is_back(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    published(core, uid)
    core.nodes.down.add(ports(core, node_of(core, shown(core, uid).location[0])))
    publish.unpublish(core, T, UnpublishRequest(vol_id=uid, host_id="host-1"))
    assert targets.list_all(core, "host-1", uid) == []
    assert len(core.nodes.exports()) == 1
    with pytest.raises(errors.VolumeNotPublishedError):
        publish.unpublish(core, T, UnpublishRequest(vol_id=uid, host_id="host-1"))
    core.nodes.down.clear()
    assert reconcile.run(core).exports_removed == 1
    assert core.nodes.exports() == set()


def test_a_volume_deleted_with_an_export_left_on_a_dead_node_goes_too(core, three):
    uid = volumes.create(core, T, volume())
    published(core, uid)
    core.nodes.down.add(ports(core, node_of(core, shown(core, uid).location[0])))
    publish.unpublish(core, T, UnpublishRequest(vol_id=uid))
    volumes.delete(core, T, uid)
    core.nodes.down.clear()
    assert len(core.nodes.exports()) == 1
    reconcile.run(core)
    assert core.nodes.objects() == set()


def test_a_replica_that_its_node_lacks_is_no_missing_volume(core, three):
    uid = volumes.create(core, T, volume())
    for model in three:
        model.state.replicas.clear()
    for call in (
        lambda: published(core, uid),
        lambda: volumes.extend(core, T, uid, 2),
        lambda: made_snapshot(core, uid),
        lambda: snapshots.clone(core, T, CloneCreate(source_volume_id=uid, alias="c")),
    ):
        with pytest.raises(errors.ConflictError, match="lacks what it should hold"):
            call()
    volumes.delete(core, T, uid)


def test_publish_needs_a_known_host_and_a_volume(core, three):
    uid = volumes.create(core, T, volume())
    request = PublishRequest(host_id="stranger", vol_id=uid)
    with pytest.raises(errors.NotExistsError, match="probe the host first"):
        publish.publish(core, T, request)
    for vol_id in ("no-uuid", str(uuid.uuid4())):
        with pytest.raises(errors.NotExistsError):
            published(core, vol_id)
        with pytest.raises(errors.NotExistsError):
            publish.unpublish(core, T, UnpublishRequest(vol_id=vol_id))
    with pytest.raises(errors.InvalidInputError, match="not the same"):
        publish.publish(core, T, PublishRequest(host_id="other", vol_id=uid, host=HOST))
    with pytest.raises(errors.VolumeNotPublishedError, match="any host"):
        publish.unpublish(core, T, UnpublishRequest(vol_id=uid))


def test_a_reboot_that_lost_exports_is_repaired(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    published(core, uid)
    for model in three:
        for held in model.state.replicas.values():
            held.exports.clear()
    assert reconcile.run(core).exports_restored == 2
    assert len(core.nodes.exports()) == 2


def test_targets_count_what_the_host_finds_there(core, three):
    other = HostProbe(host_nqn="nqn.2014-08.org.x:other", host_id="host-2")
    ids = [volumes.create(core, T, volume(f"v{number}", replicas=3)) for number in range(2)]
    for uid in ids:
        published(core, uid)
    published(core, ids[0], other)
    of_host = targets.list_all(core, " host-1\n", None)
    assert [one.num_namespaces for one in of_host] == [2, 2, 2]
    assert {one.alias for one in of_host} == {""}
    assert len(targets.list_all(core, None, ids[0])) == 6
    assert [one.alias for one in targets.list_all(core, "host-2", ids[0])] == ["v0"] * 3
    assert targets.list_all(core, "stranger", None) == []
    with pytest.raises(errors.InvalidInputError):
        targets.list_all(core, " ", None)


# -- hosts ----------------------------------------------------------------------------------------


def test_a_cloned_host_is_refused_while_the_first_has_volumes(core, three):
    uid = volumes.create(core, T, volume())
    published(core, uid)
    twin = HostProbe(host_nqn="nqn.2014-08.org.x:twin", host_id=HOST.host_id)
    renamed = HostProbe(host_nqn=NQN, host_id="host-2")
    for probe in (twin, renamed):
        with pytest.raises(errors.ConflictError, match="cannot take its place"):
            hosts.probe(core, probe)
    with pytest.raises(errors.InUseError):
        hosts.delete(core, "host-1")
    publish.unpublish(core, T, UnpublishRequest(vol_id=uid))
    hosts.probe(core, twin)
    assert [one.nqn for one in hosts.list_all(core)] == [twin.host_nqn]
    hosts.probe(core, HostProbe(host_nqn=twin.host_nqn, host_id="host-2"))
    assert [one.uuid for one in hosts.list_all(core)] == ["host-2"]
    hosts.delete(core, "host-2\n")
    assert hosts.list_all(core) == []


def test_hosts_are_found_by_name_and_silent_ones_are_down(core):
    hosts.probe(core, HOST)
    assert [one.state for one in hosts.list_all(core, "compute-1")] == ["Available"]
    assert hosts.list_all(core, "compute-2") == []
    with core.db.write() as session:
        session.get_one(models.Host, "host-1").last_probe -= 91_000
    assert hosts.list_all(core)[0].state == "Unavailable"


# -- backends -------------------------------------------------------------------------------------


def test_a_backend_is_what_its_node_says(core):
    model = add_node(core, total_bytes=7 * GIB + 5, rack="r", zone="z")
    shown_one = backends.list_all(core)[0]
    assert (shown_one.persistent_id, shown_one.name) == (model.persistent_id, model.name)
    assert (shown_one.total_capacity, shown_one.available_capacity) == (7, 7)
    assert (shown_one.rack, shown_one.zone, shown_one.state) == ("r", "z", "Available")
    backends.update(core, model.persistent_id, BackendUpdate(zone="z2"))
    assert backends.list_all(core)[0].zone == "z2"
    assert backends.list_all(core)[0].rack == "r"
    with pytest.raises(errors.InvalidLocationValueError):
        backends.update(core, model.persistent_id, BackendUpdate(rack="x" * 256))


def test_unusable_nodes_are_not_registered(core):
    model = add_node(core)
    with pytest.raises(errors.AlreadyExistsError):
        backends.add(core, BackendCreate(mgmt_ips=["node"], mgmt_port=1000))
    core.nodes.models[2000] = model
    with pytest.raises(errors.AlreadyExistsError):
        backends.add(core, BackendCreate(mgmt_ips=["node"], mgmt_port=2000))
    backends.delete(core, model.persistent_id)
    for change, error in (
        ({"has_pool": False}, errors.NoGroupsError),
        ({"persistent_id": "a/b"}, errors.NotAvailableError),
        ({"persistent_id": ""}, errors.NotAvailableError),
        ({"portals": []}, errors.NotAvailableError),
    ):
        old = {key: getattr(model, key) for key in change}
        vars(model).update(change)
        with pytest.raises(error):
            backends.add(core, BackendCreate(mgmt_ips=["node"], mgmt_port=2000))
        vars(model).update(old)
    core.nodes.down.add(2000)
    with pytest.raises(errors.BackendUnavailableError):
        backends.add(core, BackendCreate(mgmt_ips=["node"], mgmt_port=2000))
    assert backends.list_all(core) == []


def test_a_backend_in_use_stays(core):
    model = add_node(core)
    uid = volumes.create(core, T, volume())
    snap = made_snapshot(core, uid)
    with pytest.raises(errors.InUseError, match="replicas"):
        backends.delete(core, model.persistent_id)
    snapshots.delete(core, T, snap)
    core.nodes.faults[1000, "delete_replica"] = "lost request"
    volumes.delete(core, T, uid)
    with pytest.raises(errors.BusyError):
        backends.delete(core, model.persistent_id)
    core.nodes.down.add(1000)
    for _ in range(2):
        backends.probe(core)
    backends.delete(core, model.persistent_id)
    # It returns with what it could not remove, and that is still known as ours.
    core.nodes.down.clear()
    core.nodes.faults.clear()
    backends.add(core, BackendCreate(mgmt_ips=["node"], mgmt_port=1000))
    assert reconcile.run(core).removed == 1
    assert core.nodes.objects() == set()


def test_one_lost_probe_tells_nothing_and_a_return_is_noticed(core):
    model = add_node(core)
    core.nodes.down.add(1000)
    assert not backends.probe(core)
    assert backends.list_all(core)[0].state == "Available"
    backends.probe(core)
    assert backends.list_all(core)[0].state == "Unavailable"
    core.nodes.down.clear()
    assert backends.probe(core)
    assert not backends.probe(core)
    model.boot_id = "another boot"
    assert backends.probe(core)
    core.nodes.models[1000] = type(model)("impostor")
    backends.probe(core)
    assert backends.list_all(core)[0].state == "Unavailable"


def test_probing_an_empty_fleet(core):
    assert not backends.probe(core)
    assert tenants.list_all(core)[0].capacity == 0
    with pytest.raises(errors.NotExistsError):
        tenants.check("1")


# -- reconcile ------------------------------------------------------------------------------------


def test_strange_objects_are_reported_and_kept(core, three):
    strange = str(uuid.uuid4())
    three[0].put_replica(strange, ReplicaSpec(volume_id=strange, bytes=GIB))
    counts = reconcile.run(core)
    assert (counts.unknown, counts.removed) == (1, 0)
    assert strange in three[0].state.replicas


def test_an_object_that_appears_after_its_removal_goes(core, three):
    uid = volumes.create(core, T, volume())
    place = shown(core, uid).location[0]
    model = node_of(core, place)
    late = model.state.replicas[place.uuid]
    volumes.delete(core, T, uid)
    model.state.replicas[place.uuid] = late
    assert reconcile.run(core).removed == 1
    assert core.nodes.objects() == set()


def test_a_missing_replica_is_noted_and_its_return_too(core, three):
    uid = volumes.create(core, T, volume())
    place = shown(core, uid).location[0]
    held = node_of(core, place).state.replicas
    kept = held.pop(place.uuid)
    assert reconcile.run(core).missing == 1
    assert shown(core, uid).location[0].replica_state == "Missing"
    assert reconcile.run(core).missing == 0
    held[place.uuid] = kept
    reconcile.run(core)
    assert shown(core, uid).location[0].replica_state == "Available"


def test_a_reconcile_leaves_objects_at_work_alone(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    with core.db.write() as session:
        session.get_one(models.Volume, uid).status = models.CREATING
    with core.locks.hold(uid):
        counts = reconcile.run(core)
    assert (counts.skipped, counts.undone) == (1, 0)
    assert len(core.nodes.objects()) == 2
    assert reconcile.run(core).undone == 1
    assert core.nodes.objects() == set()


def test_old_removals_are_forgotten(core, three):
    uid = volumes.create(core, T, volume())
    volumes.delete(core, T, uid)
    assert len(rows(core, models.Removal)) == 1
    with core.db.write() as session:
        for row in session.scalars(select(models.Removal)):
            row.done -= 91 * reconcile.DAY_MS
    reconcile.run(core)
    assert rows(core, models.Removal) == []


def test_a_node_that_gives_no_inventory_is_left_alone(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    published(core, uid)
    for port in core.nodes.models:
        core.nodes.faults[port, "inventory"] = "lost answer"
    for model in three:
        for held in model.state.replicas.values():
            held.exports.clear()
    counts = reconcile.run(core)
    assert (counts.exports_restored, counts.missing) == (0, 0)
    assert all(one.replica_state == "Available" for one in shown(core, uid).location)
