# SPDX-License-Identifier: Apache-2.0
"""Cinder's in-tree KumoScale driver, as installed, over HTTPS: what is its own."""

import functools
import inspect

import pytest
from cinder import exception
from cinder.volume.drivers.kioxia import kumoscale as in_tree
from cinder.volume.drivers.kioxia import rest_client

from cinder_kumo.driver import KumoVolumeDriver
from tests.functional.driver.test_stories import ONE
from tests.unit.driver import builders

DRIVER = in_tree.KumoScaleBaseVolumeDriver


@pytest.fixture
def called(monkeypatch):
    """Names of the methods of the driver's class that a test called."""
    names = set()

    def recorded(name, function):
        @functools.wraps(function)
        def record(*args, **kwargs):
            names.add(name)
            return function(*args, **kwargs)

        return record

    for name, attribute in list(vars(DRIVER).items()):
        if inspect.isfunction(attribute):
            monkeypatch.setattr(DRIVER, name, recorded(name, attribute))
        elif isinstance(attribute, staticmethod):
            function = attribute.__func__
            monkeypatch.setattr(DRIVER, name, staticmethod(recorded(name, function)))
    return names


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("replicas", [1, 2])
def test_each_of_its_methods(cluster, called, replicas):
    methods = {
        name
        for name, attribute in vars(DRIVER).items()
        if inspect.isfunction(attribute) or isinstance(attribute, staticmethod)
    }
    driver = cluster.in_tree(replicas=replicas)
    assert driver.get_driver_options() is in_tree.KUMOSCALE_OPTS
    volume, copy, clone = (builders.volume() for _ in range(3))
    snapshot = builders.snapshot(volume)
    driver.create_volume(volume)
    driver.create_export(None, volume, ONE)
    driver.ensure_export(None, volume)
    driver.initialize_connection(volume, ONE)
    driver.extend_volume(volume, 2)
    driver.terminate_connection(volume, ONE)
    driver.remove_export(None, volume)
    driver.create_snapshot(snapshot)
    driver.create_volume_from_snapshot(copy, snapshot)
    clone.size = 2
    driver.create_cloned_volume(clone, volume)
    assert {len(cluster.replicas_of(one)) for one in (volume, copy, clone)} == {replicas}
    driver.get_volume_stats(refresh=True)
    driver.delete_snapshot(snapshot)
    for one in (volume, copy, clone):
        driver.delete_volume(one)
    assert len(methods) > 15
    assert called == methods


@pytest.mark.usefixtures("empty")
def test_all_its_options(cluster):
    driver = cluster.in_tree(
        "kioxia_max_iops_per_gb = 100",
        "kioxia_desired_iops_per_gb = 10",
        "kioxia_max_bw_per_gb = 2000",
        "kioxia_desired_bw_per_gb = 200",
        "kioxia_same_rack_allowed = true",
        "kioxia_block_size = 512",
        "kioxia_writable = true",
        "kioxia_provisioning_type = THIN",
        "kioxia_vol_reserved_space_percentage = 10",
        "kioxia_snap_reserved_space_percentage = 10",
        "kioxia_snap_vol_reserved_space_percentage = 10",
        "kioxia_max_replica_down_time = 30",
        "kioxia_span_allowed = false",
        "kioxia_snap_vol_span_allowed = false",
        replicas=3,
    )
    volume = builders.volume(size=2)
    driver.create_volume(volume)
    shown = cluster.provisioner.client.volume(volume.id)
    assert (shown.num_replicas, shown.block_size, shown.max_replica_down_time) == (3, 512, 30)
    assert (shown.max_iops, shown.desired_iops) == (200, 20)
    assert (shown.max_bw, shown.desired_bw) == (4000, 400)
    assert shown.provisioning_type == "THIN"
    driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
def test_wrong_token_is_bad_credentials(cluster):
    driver = cluster.in_tree("kioxia_token = wrong")
    assert driver.kumoscale.get_tenants().status == "Bad credentials"
    with pytest.raises(exception.VolumeBackendAPIException):
        driver.create_volume(builders.volume())
    stats = driver.get_volume_stats(refresh=True)
    assert stats["total_capacity_gb"] == "unknown"


def test_unreadable_client_certificate_is_a_communication_error(cluster):
    driver = cluster.in_tree("kioxia_cafile = /nonexistent.pem")
    with pytest.raises(exception.VolumeBackendAPIException, match="Communication Error"):
        driver.create_volume(builders.volume())


@pytest.mark.usefixtures("empty")
def test_two_drivers_in_one_process_share_addresses(cluster):
    """POST goes to the address of whichever client was made last; ours is the same for both."""
    first, second = cluster.in_tree(), cluster.in_tree(replicas=2)
    assert rest_client.KioxiaProvisioner.mgmt_ips is second.kumoscale.mgmt_ips
    for driver, count in ((first, 1), (second, 2)):
        volume = builders.volume()
        driver.create_volume(volume)
        assert len(cluster.replicas_of(volume)) == count
        driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("cls", [DRIVER, KumoVolumeDriver])
def test_section_that_fits_both_drivers(cluster, tmp_path, cls):
    """One pem has the client's certificate and key, and the CA that only ours looks at."""
    pem = tmp_path / "ssdtoolbox.pem"
    directory = cluster.provisioner.directory
    pem.write_bytes(
        (directory / "provisioner.pem").read_bytes() + (directory / "ca.pem").read_bytes()
    )
    driver = cluster.in_tree(f"kioxia_cafile = {pem}", replicas=2, cls=cls)
    assert type(driver) is cls
    volume = builders.volume()
    driver.create_volume(volume)
    assert len(cluster.replicas_of(volume)) == 2
    assert driver.initialize_connection(volume, ONE)["data"]["replica_count"] == 2
    driver.terminate_connection(volume, ONE)
    driver.delete_volume(volume)


def test_our_driver_does_not_trust_what_the_in_tree_one_does(cluster):
    with pytest.raises(exception.VolumeBackendAPIException, match="certificate is not trusted"):
        cluster.in_tree(cls=KumoVolumeDriver)


@pytest.mark.usefixtures("empty")
def test_volume_of_one_driver_is_a_volume_of_the_other(cluster):
    """Only ``volume_driver`` changes in cinder.conf; what there is stays attached and known."""
    theirs, ours = cluster.in_tree(replicas=2), cluster.ours(replicas=2)
    volume = builders.volume(hosts=[ONE])
    theirs.create_volume(volume)
    before = theirs.initialize_connection(volume, ONE)["data"]
    after = ours.initialize_connection(volume, ONE)["data"]
    assert after.pop("kumo")["class"] == "replicated"
    assert sorted(after.pop("volume_replicas"), key=str) == sorted(
        before.pop("volume_replicas"), key=str
    )
    assert after == before
    ours.terminate_connection(volume, ONE)
    ours.delete_volume(volume)


def test_unwritable_copy_is_kept_apart_from_ours(cluster):
    """The in-tree default makes volumes from snapshots read-only; ours never are."""
    theirs, ours = cluster.in_tree(), cluster.ours()
    volume, their_copy, our_copy = (builders.volume() for _ in range(3))
    snapshot = builders.snapshot(volume)
    theirs.create_volume(volume)
    theirs.create_snapshot(snapshot)
    theirs.create_volume_from_snapshot(their_copy, snapshot)
    ours.create_volume_from_snapshot(our_copy, snapshot)
    shown = {one.uuid: one.writable for one in cluster.provisioner.client.volumes()}
    assert (shown[their_copy.id], shown[our_copy.id]) == (False, True)
    theirs.delete_snapshot(snapshot)
    for one in (volume, their_copy, our_copy):
        ours.delete_volume(one)
