# SPDX-License-Identifier: Apache-2.0
"""Volumes and snapshots, against a Kumo and against a KumoScale."""

import uuid

import pytest
import requests
from cinder import context as cinder_context
from cinder import exception

from tests.unit.driver import builders, kumoscale
from tests.unit.driver.kumoscale import Refused

HOST = builders.connector("compute-1")


@pytest.fixture
def old(make_driver):
    """A driver whose provisioner is a KumoScale."""
    return make_driver(state=kumoscale.KumoScale(capabilities=()))


def bodies(server, call):
    return [body for method, path, body in server.calls if f"{method} {path}" == call]


def test_create_volume(driver, server, make_volume):
    volume = make_volume(size=3)
    assert driver.create_volume(volume) is None
    [body] = bodies(server, "POST /volumes")
    assert body["uuid"] == volume.id
    assert body["alias"] == f"volume-{volume.id}"
    assert body["capacity"] == 3
    assert body["provisioningType"] == "THICK"
    assert body["protocol"] == "NVMeoF"
    assert body["storageClass"]["zones"] == ["nova"]
    assert body["storageClass"]["numReplicas"] == 1


def test_create_volume_without_zone(driver, server, make_volume):
    driver.create_volume(make_volume(availability_zone=None))
    [body] = bodies(server, "POST /volumes")
    assert body["storageClass"]["zones"] == []


def test_volume_type_of_two_replicas(driver, server, make_volume, volume_type):
    volume = make_volume(type=volume_type(kumo__num_replicas="2", kumo__block_size="512"))
    driver.create_volume(volume)
    made = server.volumes[volume.id]
    assert made["numReplicas"] == 2
    assert made["blockSize"] == 512
    assert made["alias"] == f"volume-{volume.id}"[:27]


def test_unknown_extra_spec_makes_nothing(driver, server, make_volume, volume_type):
    with pytest.raises(exception.InvalidVolumeType, match="kumo:replica"):
        driver.create_volume(make_volume(type=volume_type(kumo__replica="2")))
    assert server.calls == []


def test_request_of_cinder_is_followed(driver, make_volume):
    volume = make_volume()
    context = cinder_context.RequestContext()
    driver.create_volume(volume)
    sent = driver.adapter.requests[-1]
    assert sent.headers["X-Openstack-Request-Id"] == context.request_id


def test_no_space_is_said(driver, make_volume):
    volume = make_volume(size=101)
    with pytest.raises(exception.VolumeBackendAPIException) as caught:
        driver.create_volume(volume)
    assert "NoSpace" in str(caught.value)
    assert volume.id in str(caught.value)


def test_migrated_volume_goes_by_its_other_name(driver, server, make_volume, make_snapshot):
    volume = make_volume(name_id=str(uuid.uuid4()), status="available")
    driver.create_volume(volume)
    assert volume.name_id != volume.id
    assert set(server.volumes) == {volume.name_id}
    snapshot = make_snapshot(volume)
    driver.create_snapshot(snapshot)
    copy, clone = make_volume(size=2), make_volume()
    driver.create_volume_from_snapshot(copy, snapshot)
    driver.create_cloned_volume(clone, volume)
    driver.extend_volume(volume, 2)
    driver.delete_snapshot(snapshot)
    info = driver.initialize_connection(volume, HOST)
    assert info["data"]["vol_uuid"] == volume.name_id
    assert info["data"]["alias"] == f"volume-{volume.name_id}"
    driver.terminate_connection(volume, HOST)
    driver.delete_volume(volume)
    assert set(server.volumes) == {copy.id, clone.id}
    assert volume.id not in str(server.calls)


def test_migration_keeps_the_new_name(driver, make_volume):
    volume, new = make_volume(), make_volume(name_id=str(uuid.uuid4()))
    assert driver.update_migrated_volume(None, volume, new, "available") == {
        "_name_id": new.name_id,
        "provider_location": None,
    }


def test_extend(driver, server, make_volume):
    volume = make_volume(hosts=[HOST])
    driver.create_volume(volume)
    driver.initialize_connection(volume, HOST)
    driver.extend_volume(volume, 5)
    assert server.volumes[volume.id]["capacity"] == 5
    with pytest.raises(exception.VolumeBackendAPIException, match="to 101 GiB failed: NoSpace"):
        driver.extend_volume(volume, 101)
    with pytest.raises(exception.VolumeBackendAPIException, match="InvalidInput"):
        driver.extend_volume(volume, 1)


@pytest.mark.parametrize("code", ["NotExists", "DeviceNotFound"])
def test_delete_of_a_volume_gone_is_success(driver, server, make_volume, code):
    server.fail("DELETE /volumes/*", Refused(code, "not here", 404))
    assert driver.delete_volume(make_volume()) is None
    assert len(server.calls) == 1


def test_delete_does_not_take_silence_for_gone(make_driver, server, make_volume):
    driver = make_driver()
    volume = make_volume()
    driver.create_volume(volume)
    driver.adapter.broken = requests.ConnectionError("no answer")
    with pytest.raises(exception.VolumeBackendAPIException, match="CommunicationError"):
        driver.delete_volume(volume)
    assert volume.id in server.volumes


def test_delete_of_an_attached_volume_is_busy(driver, server, make_volume):
    volume = make_volume(hosts=[HOST])
    driver.create_volume(volume)
    driver.initialize_connection(volume, HOST)
    with pytest.raises(exception.VolumeIsBusy) as caught:
        driver.delete_volume(volume)
    assert volume.id in str(caught.value)
    assert "req-in-use" in str(caught.value)
    assert server.published == {(HOST["uuid"], volume.id)}


def test_delete_takes_a_forgotten_publication_back(driver, server, make_volume):
    volume = make_volume()
    driver.create_volume(volume)
    driver.initialize_connection(volume, HOST)
    driver.delete_volume(volume)
    assert (server.published, server.volumes) == (set(), {})


def test_delete_of_a_volume_with_snapshots_is_busy(driver, server, make_volume, make_snapshot):
    volume = make_volume()
    driver.create_volume(volume)
    driver.create_snapshot(make_snapshot(volume))
    with pytest.raises(exception.VolumeIsBusy, match="has snapshots"):
        driver.delete_volume(volume)
    assert volume.id in server.volumes


def test_snapshot(make_driver, server, make_volume, make_snapshot):
    driver = make_driver("kioxia_snap_reserved_space_percentage = 30")
    volume = make_volume()
    driver.create_volume(volume)
    snapshot = make_snapshot(volume)
    driver.create_snapshot(snapshot)
    [body] = bodies(server, "POST /snapshots")
    assert body == {
        "alias": f"snapshot-{snapshot.id}",
        "volumeID": volume.id,
        "snapshotID": snapshot.id,
        "reservedSpacePercentage": 30,
    }
    driver.delete_snapshot(snapshot)
    assert server.snapshots == {}
    driver.delete_snapshot(snapshot)


def test_snapshot_in_use_is_busy(driver, server, make_volume, make_snapshot):
    server.fail("DELETE /snapshots/*", Refused("InUse", "a volume hangs on it"))
    with pytest.raises(exception.SnapshotIsBusy, match="a volume hangs on it"):
        driver.delete_snapshot(make_snapshot(make_volume()))


def test_attached_replicated_volume_has_no_snapshot(
    driver, make_volume, make_snapshot, volume_type
):
    volume = make_volume(type=volume_type(kumo__num_replicas="2"), hosts=[HOST])
    driver.create_volume(volume)
    driver.initialize_connection(volume, HOST)
    with pytest.raises(exception.VolumeDriverException) as caught:
        driver.create_snapshot(make_snapshot(volume))
    for part in ("NotCoherent", "Detach the volume first", volume.id, "req-coherent"):
        assert part in str(caught.value)


def test_volume_from_snapshot_larger_in_one_call(driver, server, make_volume, make_snapshot):
    volume, copy = make_volume(), make_volume(size=4)
    driver.create_volume(volume)
    snapshot = make_snapshot(volume)
    driver.create_snapshot(snapshot)
    server.calls.clear()
    driver.create_volume_from_snapshot(copy, snapshot)
    assert server.names() == ["POST /snapshot_volumes"]
    assert server.volumes[copy.id]["capacity"] == 4
    assert server.volumes[copy.id]["writable"] is True


@pytest.mark.parametrize(("writable", "percent"), [("false", 0), ("true", 12)])
def test_kumoscale_makes_it_and_grows_it(
    make_driver, make_volume, make_snapshot, writable, percent
):
    server = kumoscale.KumoScale(capabilities=())
    driver = make_driver(
        f"kioxia_writable = {writable}",
        "kioxia_snap_vol_reserved_space_percentage = 12",
        "kioxia_snap_vol_span_allowed = false",
        state=server,
    )
    volume, copy = make_volume(), make_volume(size=4)
    driver.create_volume(volume)
    snapshot = make_snapshot(volume)
    driver.create_snapshot(snapshot)
    driver.create_volume_from_snapshot(copy, snapshot)
    [body] = bodies(server, "POST /snapshot_volumes")
    assert "capacity" not in body
    assert body["writable"] is (writable == "true")
    assert body["reservedSpacePercentage"] == percent
    assert body["allowSpan"] is False
    assert server.volumes[copy.id]["capacity"] == 4


def test_kumoscale_parent_grown_meanwhile(old, make_volume, make_snapshot):
    volume, copy = make_volume(), make_volume(size=2)
    old.create_volume(volume)
    snapshot = make_snapshot(volume)
    old.create_snapshot(snapshot)
    old.extend_volume(volume, 3)
    old.create_volume_from_snapshot(copy, snapshot)
    assert old.server.volumes[copy.id]["capacity"] == 3


def test_kumoscale_copy_that_cannot_grow_goes_again(old, make_volume, make_snapshot):
    volume, copy = make_volume(), make_volume(size=4)
    old.create_volume(volume)
    snapshot = make_snapshot(volume)
    old.create_snapshot(snapshot)
    old.server.fail("PATCH /volumes/*", Refused("NoSpace", "full"))
    with pytest.raises(exception.VolumeBackendAPIException, match="NoSpace"):
        old.create_volume_from_snapshot(copy, snapshot)
    assert set(old.server.volumes) == {volume.id}


def test_clone_larger(driver, server, make_volume):
    volume, clone = make_volume(), make_volume(size=6)
    driver.create_volume(volume)
    driver.create_cloned_volume(clone, volume)
    assert server.volumes[clone.id]["capacity"] == 6
    [body] = bodies(server, "POST /clone_volume")
    assert body["sourceVolumeId"] == volume.id


def test_copy_has_the_replicas_of_its_source(
    driver, server, make_volume, make_snapshot, volume_type
):
    one, two = volume_type(kumo__num_replicas="1"), volume_type(kumo__num_replicas="2")
    volume = make_volume(type=one)
    driver.create_volume(volume)
    snapshot = make_snapshot(volume)
    driver.create_snapshot(snapshot)
    with pytest.raises(exception.InvalidVolumeType, match="would have 1 replicas"):
        driver.create_cloned_volume(make_volume(type=two), volume)
    with pytest.raises(exception.InvalidVolumeType, match="kumo:num_replicas=1"):
        driver.create_volume_from_snapshot(make_volume(type=two), snapshot)
    driver.create_cloned_volume(make_volume(type=volume_type(kumo__num_replicas="1")), volume)
    assert len(server.volumes) == 2


def test_alias_of_a_replicated_clone_is_cut(driver, server, make_volume, volume_type):
    two = volume_type(kumo__num_replicas="2")
    volume, clone = make_volume(type=two), make_volume(type=two)
    driver.create_volume(volume)
    driver.create_cloned_volume(clone, volume)
    assert server.volumes[clone.id]["alias"] == f"volume-{clone.id}"[:27]


def test_exports_are_not_a_thing_of_their_own(driver, server, make_volume):
    volume = make_volume()
    assert driver.create_export(None, volume, HOST) is None
    assert driver.ensure_export(None, volume) is None
    assert driver.remove_export(None, volume) is None
    assert server.calls == []


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("create_group", 2),
        ("delete_group", 3),
        ("update_group", 2),
        ("create_group_from_src", 3),
        ("create_group_snapshot", 3),
        ("delete_group_snapshot", 3),
    ],
)
def test_groups_are_left_to_cinder(driver, method, arguments):
    """The manager runs its generic code when a driver raises this (cinder/volume/manager.py)."""
    with pytest.raises(NotImplementedError):
        getattr(driver, method)(*[None] * arguments)
