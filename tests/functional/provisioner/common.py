# SPDX-License-Identifier: Apache-2.0
"""What the functional tests of the provisioner share."""

import sqlite3
import uuid

from kumo_client import naming
from kumo_client.schemas.backend import BackendCreate
from kumo_client.schemas.host import HostProbe, PublishRequest, UnpublishRequest
from kumo_client.schemas.snapshot import SnapshotCreate, SnapshotVolumeCreate
from kumo_client.schemas.volume import CloneCreate, StorageClass, VolumeCreate
from tests.fakes.fleet import ADDRESS

NQN = "nqn.2014-08.org.nvmexpress:uuid:host-1"
HOST = HostProbe(host_nqn=NQN, host_id="host-1", name="compute-1")


def new_id():
    return str(uuid.uuid4())


def volume(replicas=1, gib=1, **extra):
    uid = new_id()
    return VolumeCreate(
        uuid=uid,
        alias=f"volume-{uid}"[:27],
        capacity=gib,
        storage_class=StorageClass(num_replicas=replicas, zones=["nova"]),
        **extra,
    )


def made_volume(client, replicas=1, gib=1):
    """uuid of a new volume."""
    create = volume(replicas, gib)
    client.create_volume(create)
    return create.uuid


def made_snapshot(client, volume_id):
    uid = new_id()
    client.create_snapshot(SnapshotCreate(alias=uid, volume_id=volume_id, snapshot_id=uid))
    return uid


def clone_of(volume_id, uid):
    return CloneCreate(source_volume_id=volume_id, alias=uid, volume_id=uid)


def volume_from(snapshot_id, uid):
    return SnapshotVolumeCreate(alias=uid, snapshot_id=snapshot_id, volume_id=uid)


def publish(client, uid):
    return client.publish(PublishRequest(host_id="host-1", vol_id=uid, host=HOST))


def unpublish(client, uid):
    client.unpublish(UnpublishRequest(host_id="host-1", vol_id=uid))


def record(provisioner, query):
    """Rows of the provisioner's database."""
    path = provisioner.directory / "provisioner.db"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        return database.execute(query).fetchall()


def assert_consistent(provisioner, fleet):
    """The nodes hold exactly what the record says, and users see exactly that."""
    client = provisioner.client
    rows = record(provisioner, "SELECT uuid, backend_id FROM replicas")
    rows += record(provisioner, "SELECT uuid, backend_id FROM snapshot_parts")
    held = {
        (uid, node.persistent_id)
        for node in fleet.nodes
        for uid in (*node.state.replicas, *node.state.snapshots)
    }
    assert held == set(rows)
    unfinished = "SELECT uuid FROM {} WHERE status != 'available'"
    assert record(provisioner, unfinished.format("volumes")) == []
    assert record(provisioner, unfinished.format("snapshots")) == []
    assert record(provisioner, "SELECT 1 FROM publications WHERE status != 'published'") == []
    exports = set()
    for one in client.volumes():
        size = naming.replica_bytes(one.capacity, one.num_replicas)
        for place in one.location:
            node = fleet.by_id(place.backend.persistent_id)
            assert node.state.replicas[place.uuid].bytes == size
            exports |= {(place.uuid, NQN) for _ in one.published_hosts}
    assert fleet.exports() == exports
    for node in fleet.nodes:
        assert node.model.provisioned() <= node.model.total_bytes


def backend_of(node):
    return BackendCreate(mgmt_ips=[ADDRESS], mgmt_port=node.port)
