# SPDX-License-Identifier: Apache-2.0
"""What holds for Cinder's in-tree KumoScale driver and for ours alike, over HTTPS."""

import pytest
from cinder import exception
from os_brick.initiator.connectors import nvmeof

from kumo_client import naming
from tests.unit.driver import builders

ONE, TWO = builders.connector("compute-1"), builders.connector("compute-2.example.org")
REPLICAS = pytest.mark.parametrize("replicas", [1, 2])
FAILURE = (exception.VolumeBackendAPIException, exception.VolumeDriverException)


@pytest.mark.usefixtures("empty")
@REPLICAS
def test_whole_life(make_driver, cluster, replicas):
    driver = make_driver(replicas=replicas)
    volume = builders.volume(size=2)
    driver.create_volume(volume)
    held = cluster.replicas_of(volume)
    assert len(held) == replicas
    assert {one.bytes for one in held.values()} == {naming.replica_bytes(2, replicas)}

    info = driver.initialize_connection(volume, ONE)
    assert info["driver_volume_type"] == "nvmeof"
    data = info["data"]
    assert {leg["vol_uuid"] for leg in data["volume_replicas"]} == set(held)
    for leg in data["volume_replicas"]:
        export = held[leg["vol_uuid"]].exports[ONE["nqn"]]
        assert leg["target_nqn"] == export.subsystem_nqn
        assert [tuple(portal) for portal in leg["portals"]] == [("127.0.0.1", "4420", "TCP")]
    assert data["vol_uuid"] == volume.id
    assert data["alias"] == (volume.name if replicas == 1 else volume.name[:27])
    assert data["writable"] is True
    props = nvmeof.NVMeOFConnProps(data)
    assert props.replica_count == replicas
    assert len(props.targets) == replicas
    assert driver.initialize_connection(volume, ONE) == info

    driver.extend_volume(volume, 5)
    assert {one.bytes for one in held.values()} == {naming.replica_bytes(5, replicas)}
    driver.terminate_connection(volume, ONE)
    driver.terminate_connection(volume, ONE)
    assert cluster.nodes.exports() == set()

    volume.size = 5
    snapshot = builders.snapshot(volume)
    driver.create_snapshot(snapshot)
    copy, clone = builders.volume(size=5), builders.volume(size=7)
    driver.create_volume_from_snapshot(copy, snapshot)
    driver.create_cloned_volume(clone, volume)
    for made, size in ((copy, 5), (clone, 7)):
        legs = cluster.replicas_of(made)
        assert {leg.bytes for leg in legs.values()} == {naming.replica_bytes(size, replicas)}
        assert all(leg.spec.source is not None for leg in legs.values())
        data = driver.initialize_connection(made, TWO)["data"]
        assert {leg["vol_uuid"] for leg in data["volume_replicas"]} == set(legs)
        if replicas > 1:
            # The array's name on the copied legs is the one that the connector looks for.
            assert {leg.spec.array.name for leg in legs.values()} == {data["alias"]}
            assert {leg.spec.array.uuid for leg in legs.values()} == {made.id}
        driver.terminate_connection(made, TWO)
    driver.delete_snapshot(snapshot)
    driver.delete_snapshot(snapshot)
    for gone in (volume, copy, clone):
        driver.delete_volume(gone)
        driver.delete_volume(gone)


@pytest.mark.usefixtures("empty")
@REPLICAS
def test_two_hosts_and_a_forced_detach(make_driver, cluster, replicas):
    driver = make_driver(replicas=replicas)
    volume = builders.volume()
    driver.create_volume(volume)
    first = driver.initialize_connection(volume, ONE)["data"]["volume_replicas"]
    second = driver.initialize_connection(volume, TWO)["data"]["volume_replicas"]
    assert {leg["vol_uuid"] for leg in first} == {leg["vol_uuid"] for leg in second}
    assert not {leg["target_nqn"] for leg in first} & {leg["target_nqn"] for leg in second}
    driver.terminate_connection(volume, ONE)
    assert {nqn for _, nqn in cluster.nodes.exports()} == {TWO["nqn"]}
    driver.initialize_connection(volume, ONE)
    driver.terminate_connection(volume, None, force=True)
    assert cluster.nodes.exports() == set()
    hosts = {host.uuid: host.name for host in cluster.provisioner.client.hosts()}
    assert (hosts[ONE["uuid"]], hosts[TWO["uuid"]]) == ("compute-1", "compute-2-example-org")
    driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
def test_unknown_volume(make_driver):
    driver = make_driver()
    volume, other = builders.volume(), builders.volume()
    snapshot = builders.snapshot(volume)
    driver.delete_volume(volume)
    driver.delete_snapshot(snapshot)
    for call in (
        lambda: driver.extend_volume(volume, 2),
        lambda: driver.create_snapshot(snapshot),
        lambda: driver.create_cloned_volume(other, volume),
        lambda: driver.create_volume_from_snapshot(other, snapshot),
        lambda: driver.initialize_connection(volume, ONE),
    ):
        with pytest.raises(FAILURE) as caught:
            call()
        assert volume.id in str(caught.value) or snapshot.id in str(caught.value)


@pytest.mark.usefixtures("empty")
@REPLICAS
def test_no_space(make_driver, cluster, replicas):
    driver = make_driver(replicas=replicas)
    with pytest.raises(FAILURE, match="GiB"):
        driver.create_volume(builders.volume(size=101))
    volume = builders.volume()
    driver.create_volume(volume)
    with pytest.raises(FAILURE):
        driver.extend_volume(volume, 101)
    with pytest.raises(FAILURE):
        driver.create_cloned_volume(builders.volume(size=101), volume)
    held = cluster.replicas_of(volume)
    assert {one.bytes for one in held.values()} == {naming.replica_bytes(1, replicas)}
    driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
def test_delete_of_a_published_volume(make_driver, cluster):
    driver = make_driver()
    volume = builders.volume(hosts=[ONE])
    driver.create_volume(volume)
    driver.initialize_connection(volume, ONE)
    with pytest.raises((*FAILURE, exception.VolumeIsBusy), match=volume.id):
        driver.delete_volume(volume)
    assert len(cluster.nodes.exports()) == 1
    driver.terminate_connection(volume, ONE)
    driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
def test_delete_of_a_volume_with_a_snapshot(make_driver):
    driver = make_driver()
    volume = builders.volume()
    snapshot = builders.snapshot(volume)
    driver.create_volume(volume)
    driver.create_snapshot(snapshot)
    with pytest.raises((*FAILURE, exception.VolumeIsBusy), match="snapshot"):
        driver.delete_volume(volume)
    driver.delete_snapshot(snapshot)
    driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
def test_attached_replicated_volume_is_captured_on_one_leg(make_driver, cluster):
    """Nobody holds the writes, so one leg is the source and the others are never mixed with it."""
    driver = make_driver(replicas=2)
    volume = builders.volume(hosts=[ONE])
    driver.create_volume(volume)
    driver.initialize_connection(volume, ONE)
    snapshot, clone = builders.snapshot(volume), builders.volume()
    driver.create_snapshot(snapshot)
    driver.create_cloned_volume(clone, volume)
    client = cluster.provisioner.client
    assert not client.snapshot(snapshot.id).coherent
    legs = client.volume(clone.id).location
    assert sorted(leg.freshness for leg in legs) == ["blank", "fresh"]
    driver.terminate_connection(volume, ONE)
    driver.delete_volume(clone)
    driver.delete_snapshot(snapshot)
    driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
def test_volume_exists_already(make_driver, cluster):
    driver = make_driver()
    volume = builders.volume()
    driver.create_volume(volume)
    with pytest.raises(FAILURE, match=volume.id):
        driver.create_volume(volume)
    assert len(cluster.replicas_of(volume)) == 1
    driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
def test_no_zone(make_driver, cluster):
    driver = make_driver()
    volume = builders.volume(availability_zone=None)
    driver.create_volume(volume)
    assert len(cluster.replicas_of(volume)) == 1
    driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
def test_statistics(make_driver):
    driver = make_driver()
    stats = driver.get_volume_stats(refresh=True)
    [pool] = stats.get("pools") or [stats]
    assert (pool["total_capacity_gb"], pool["free_capacity_gb"]) == (300, 300)
    volume = builders.volume(size=40)
    driver.create_volume(volume)
    stats = driver.get_volume_stats(refresh=True)
    [pool] = stats.get("pools") or [stats]
    assert (pool["total_capacity_gb"], pool["free_capacity_gb"]) == (300, 260)
    driver.delete_volume(volume)
