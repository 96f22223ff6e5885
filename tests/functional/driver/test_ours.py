# SPDX-License-Identifier: Apache-2.0
"""Our driver on the real provisioner: what the in-tree one does not do."""

import uuid

import pytest
from cinder import exception

from kumo_client import naming
from kumo_provisioner import init
from tests.functional.driver.test_stories import ONE, TWO
from tests.unit.driver import builders


@pytest.mark.usefixtures("empty")
def test_two_replicas_by_volume_type(cluster):
    driver = cluster.ours()
    plain = builders.volume()
    replicated = builders.volume(type=builders.volume_type(kumo__num_replicas="2"))
    for volume, count in ((plain, 1), (replicated, 2)):
        driver.create_volume(volume)
        assert len(cluster.replicas_of(volume)) == count
        driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("replicas", [1, 2])
def test_sequence_and_one_call_give_the_same(cluster, replicas, monkeypatch):
    driver = cluster.ours(replicas=replicas)
    volume = builders.volume(hosts=[ONE])
    driver.create_volume(volume)
    in_one_call = driver.initialize_connection(volume, ONE)
    monkeypatch.setattr(driver.client, "supports", lambda capability: False)
    in_steps = driver.initialize_connection(volume, ONE)
    only_in_one_call = {"node", "freshness", "events"}
    for info in (in_one_call, in_steps):
        data = info["data"]
        data["volume_replicas"].sort(key=str)
        legs = [
            {key: value for key, value in leg.items() if key not in only_in_one_call}
            for leg in data["kumo"]["replicas"]
        ]
        data["kumo"]["replicas"] = sorted(legs, key=str)
    assert in_one_call["data"]["kumo"]["array_state"] == ("new" if replicas > 1 else "")
    assert in_one_call["data"]["kumo"]["publication"] > 0
    in_one_call["data"]["kumo"] |= {"array_state": "", "publication": 0}
    assert in_steps == in_one_call
    driver.terminate_connection(volume, ONE)
    driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("replicas", [1, 2])
def test_volume_from_snapshot_may_be_larger(cluster, replicas):
    driver = cluster.ours(replicas=replicas)
    volume, copy = builders.volume(), builders.volume(size=4)
    snapshot = builders.snapshot(volume)
    driver.create_volume(volume)
    driver.create_snapshot(snapshot)
    driver.create_volume_from_snapshot(copy, snapshot)
    sizes = {one.bytes for one in cluster.replicas_of(copy).values()}
    assert sizes == {naming.replica_bytes(4, replicas)}
    driver.delete_snapshot(snapshot)
    driver.delete_volume(volume)
    driver.delete_volume(copy)


@pytest.mark.usefixtures("empty")
def test_a_lost_node_keeps_a_volume_from_stock_hosts_alone(cluster):
    driver = cluster.ours(replicas=2)
    volume = builders.volume()
    driver.create_volume(volume)
    place = cluster.provisioner.client.volume(volume.id).location[0].backend.persistent_id
    node = next(one for one in cluster.nodes.nodes if one.persistent_id == place)
    knowing = ONE | {"kumo": {"version": 1, "abilities": ["freshness"]}}
    node.down()
    try:
        with pytest.raises(exception.VolumeBackendAPIException, match="needs every replica"):
            driver.initialize_connection(volume, ONE)
        ours = driver.initialize_connection(volume, knowing)["data"]
        assert {leg["freshness"] for leg in ours["kumo"]["replicas"]} == {"fresh"}
        driver.terminate_connection(volume, knowing)
    finally:
        node.up()
    cluster.provisioner.reconcile()
    # Nothing was assumed of the leg that was away.
    assert len(driver.initialize_connection(volume, ONE)["data"]["volume_replicas"]) == 2
    driver.terminate_connection(volume, ONE)
    driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
def test_a_clone_of_an_attached_volume_is_for_stock_hosts_too(cluster):
    driver = cluster.ours(replicas=2)
    volume, clone = builders.volume(hosts=[TWO]), builders.volume()
    driver.create_volume(volume)
    driver.initialize_connection(volume, TWO)
    driver.create_cloned_volume(clone, volume)
    legs = cluster.provisioner.client.volume(clone.id).location
    fresh = [leg.uuid for leg in legs if leg.freshness == "fresh"]
    data = driver.initialize_connection(clone, ONE)["data"]
    assert [leg["vol_uuid"] for leg in data["volume_replicas"]] == fresh
    driver.terminate_connection(clone, ONE)
    driver.terminate_connection(volume, TWO)
    driver.delete_volume(clone)
    driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
def test_migrated_volume(cluster):
    driver = cluster.ours(replicas=2)
    volume = builders.volume(name_id=str(uuid.uuid4()))
    driver.create_volume(volume)
    assert [one.uuid for one in cluster.provisioner.client.volumes()] == [volume.name_id]
    data = driver.initialize_connection(volume, ONE)["data"]
    assert data["vol_uuid"] == volume.name_id
    assert data["alias"] == f"volume-{volume.name_id}"[:27]
    driver.terminate_connection(volume, ONE)
    driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
def test_instances_of_one_host(cluster):
    driver = cluster.ours()
    volume = builders.volume(multiattach=True, hosts=[ONE, ONE, TWO])
    driver.create_volume(volume)
    for host in (ONE, ONE, TWO):
        driver.initialize_connection(volume, host)
    assert driver.terminate_connection(volume, ONE) is True
    assert len(cluster.nodes.exports()) == 2
    volume.volume_attachment.objects.pop(0)
    assert driver.terminate_connection(volume, ONE) is False
    assert {nqn for _, nqn in cluster.nodes.exports()} == {TWO["nqn"]}
    driver.terminate_connection(volume, TWO)
    driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
def test_delete_after_an_interrupted_detach(cluster):
    driver = cluster.ours()
    volume = builders.volume()
    driver.create_volume(volume)
    driver.initialize_connection(volume, ONE)
    driver.delete_volume(volume)
    assert cluster.nodes.exports() == set()


@pytest.mark.usefixtures("empty")
def test_copy_of_another_number_of_replicas(cluster):
    driver = cluster.ours()
    volume = builders.volume()
    driver.create_volume(volume)
    two = builders.volume(type=builders.volume_type(kumo__num_replicas="2"))
    with pytest.raises(exception.InvalidVolumeType, match="would have 1 replicas"):
        driver.create_cloned_volume(two, volume)
    driver.delete_volume(volume)


@pytest.mark.usefixtures("empty")
def test_more_replicas_than_nodes_in_reach(cluster):
    driver = cluster.ours(replicas=3)
    [*_, last] = cluster.nodes.nodes
    last.down()
    try:
        with pytest.raises(exception.VolumeBackendAPIException) as caught:
            driver.create_volume(builders.volume())
    finally:
        last.up()
    assert "create volume" in str(caught.value)
    cluster.provisioner.reconcile()


@pytest.mark.usefixtures("empty")
def test_next_endpoint_is_tried(cluster):
    driver = cluster.ours(f"kumo_urls = https://127.0.0.1:1, {cluster.provisioner.url}")
    volume = builders.volume()
    driver.create_volume(volume)
    assert volume.name_id in {item.uuid for item in cluster.provisioner.client.volumes()}
    driver.delete_volume(volume)
    assert volume.name_id not in {item.uuid for item in cluster.provisioner.client.volumes()}


def test_refused_token_is_named_at_start(cluster, tmp_path):
    path = tmp_path / "token"
    path.write_text("wrong-token\n")
    with pytest.raises(exception.VolumeBackendAPIException, match="Unauthorized") as caught:
        cluster.ours(f"kumo_token_file = {path}")
    assert "wrong-token" not in str(caught.value)


def test_untrusted_provisioner_is_named_at_start(cluster, tmp_path):
    init.make(tmp_path / "foreign", ["127.0.0.1"], [], 8090)
    with pytest.raises(exception.VolumeBackendAPIException, match="certificate is not trusted"):
        cluster.ours(f"kumo_ca_file = {tmp_path}/foreign/ca.pem")


def test_absent_provisioner_is_named_at_start(cluster):
    with pytest.raises(exception.VolumeBackendAPIException, match=r"https://127\.0\.0\.1:1"):
        cluster.ours("kumo_urls = https://127.0.0.1:1", "kumo_request_budget = 5")


def test_no_answer_is_not_taken_for_gone(provisioner, fleet, tmp_path, cluster):
    """``provisioner`` is another one than that of ``cluster``."""
    mine = type(cluster)(provisioner, fleet, tmp_path)
    provisioner.register(*fleet.add(1))
    driver = mine.ours("kumo_request_budget = 5")
    volume = builders.volume()
    driver.create_volume(volume)
    provisioner.kill()
    with pytest.raises(exception.VolumeBackendAPIException, match="CommunicationError"):
        driver.delete_volume(volume)
    stats = driver.get_volume_stats(refresh=True)
    assert stats["pools"][0]["backend_state"] == "down"
    provisioner.start()
    assert len(mine.replicas_of(volume)) == 1
    driver.delete_volume(volume)
    assert fleet.objects() == set()
