# SPDX-License-Identifier: Apache-2.0
"""A volume's life over the real wire: real process, HTTPS, fake nodes."""

import pytest

from kumo_client import errors, naming
from kumo_client.schemas.host import PublishRequest, UnpublishRequest
from kumo_client.schemas.snapshot import SnapshotCreate, SnapshotVolumeCreate
from kumo_client.schemas.volume import CloneCreate
from tests.functional.provisioner.common import HOST, NQN, new_id, volume


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_whole_life(provisioner, fleet, replicas):
    for node in fleet.add(3):
        provisioner.register(node)
    client = provisioner.client
    create = volume(replicas)
    client.create_volume(create)

    seen = client.volume(create.uuid)
    assert seen.num_replicas == replicas == len(seen.location)
    assert len({place.backend.persistent_id for place in seen.location}) == replicas
    assert client.volume_by_alias(create.alias).uuid == create.uuid
    for place in seen.location:
        held = fleet.by_id(place.backend.persistent_id).state.replicas[place.uuid]
        assert held.bytes == naming.replica_bytes(1, replicas)

    answer = client.publish(PublishRequest(host_id="host-1", vol_id=create.uuid, host=HOST))
    assert answer.status == "Success"
    assert {one.uuid for one in answer.replicas} == {place.uuid for place in seen.location}
    assert fleet.exports() == {(place.uuid, NQN) for place in seen.location}
    for one in answer.replicas:
        export = fleet.by_id(one.backend_id).state.replicas[one.uuid].exports[NQN]
        assert export.subsystem_nqn == one.target_nqn
        assert [(p.ip, p.port) for p in one.portals] == [("127.0.0.1", 4420)]
    targets = client.targets(host_id="host-1", volume_id=create.uuid)
    assert {one.target_name for one in targets} == {one.target_nqn for one in answer.replicas}
    assert [one.num_namespaces for one in targets] == [1] * replicas

    client.extend_volume(create.uuid, 3)
    assert client.volume(create.uuid).capacity == 3
    with pytest.raises(errors.InvalidInputError):
        client.extend_volume(create.uuid, 2)
    with pytest.raises(errors.InUseError):
        client.delete_volume(create.uuid)
    client.unpublish(UnpublishRequest(vol_id=create.uuid))
    assert fleet.exports() == set()

    snapshot = SnapshotCreate(alias="snap", volume_id=create.uuid, snapshot_id=new_id())
    client.create_snapshot(snapshot)
    with pytest.raises(errors.InUseError):
        client.delete_volume(create.uuid)
    from_snapshot, clone = new_id(), new_id()
    client.create_snapshot_volume(
        SnapshotVolumeCreate(
            alias="from-snap", snapshot_id=snapshot.snapshot_id, volume_id=from_snapshot, capacity=5
        )
    )
    client.clone_volume(CloneCreate(source_volume_id=create.uuid, alias="clone", volume_id=clone))
    for copy, gib in ((from_snapshot, 5), (clone, 3)):
        there = client.volume(copy)
        assert there.capacity == gib
        for place in there.location:
            spec = fleet.by_id(place.backend.persistent_id).state.replicas[place.uuid].spec
            assert spec.source is not None
            assert (spec.array is None) == (replicas == 1)
    client.delete_snapshot(snapshot.snapshot_id)
    for uid in (create.uuid, from_snapshot, clone):
        client.delete_volume(uid)
    assert fleet.objects() == set()
    assert client.volumes() == client.snapshots() == []
    assert [one.in_use for one in client.backends()] == [False] * 3
    assert client.tenants()[0].consumed_capacity == 0
    assert client.info().total_free_space == 300
