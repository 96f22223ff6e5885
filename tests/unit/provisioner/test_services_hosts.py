# SPDX-License-Identifier: Apache-2.0
"""Stories of publications, hosts, backends and reconciles over a real database and node models."""

import uuid

import pytest
from sqlalchemy import select

from kumo_client import errors, naming
from kumo_client.naming import GIB
from kumo_client.schemas.backend import BackendCreate, BackendUpdate
from kumo_client.schemas.host import HostProbe, PublishRequest, UnpublishRequest
from kumo_client.schemas.node import ReplicaSpec
from kumo_client.schemas.volume import CloneCreate
from kumo_provisioner import reconcile
from kumo_provisioner.db import models
from kumo_provisioner.services import (
    backends,
    hosts,
    publish,
    removals,
    snapshots,
    targets,
    tenants,
    volumes,
)
from tests.unit.provisioner.conftest import HOST, NQN, add_node, volume
from tests.unit.provisioner.stories import T, made_snapshot, node_of, ports, published, rows, shown

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


def test_a_host_is_told_its_volumes(core, three):
    mine = volumes.create(core, T, volume(replicas=2))
    other = volumes.create(core, T, volume(alias="other"))
    published(core, mine)
    assert [one.uuid for one in hosts.volumes(core, "host-1")] == [mine]
    legs = {one.uuid for one in shown(core, mine).location}
    assert {one.uuid for one in hosts.volumes(core, "host-1")[0].location} == legs
    assert hosts.volumes(core, "host-2") == []
    assert shown(core, other).published_hosts == []


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
        tenants.check(core, "1")


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
            row.done -= 91 * removals.DAY_MS
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


def test_what_a_node_can_do_is_shown_and_followed(core):
    model = add_node(core)
    assert "limits" in backends.list_all(core)[0].abilities
    model.abilities = ["copy"]
    backends.probe(core)
    assert backends.list_all(core)[0].abilities == ["copy"]
