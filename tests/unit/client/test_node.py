# SPDX-License-Identifier: Apache-2.0
"""The calls to a storage node: what is sent and how the answer is read."""

import uuid

import pytest

from kumo_client import errors
from kumo_client.api.node import Node
from kumo_client.schemas.node import ExportSpec, ReplicaSource, ReplicaSpec, SnapshotSpec
from tests.fakes.http import Answer, ReadTimeout, Script
from tests.unit.client.conftest import A

R, S, V = (str(uuid.UUID(int=number)) for number in range(1, 4))
NQN = "nqn.2014-08.org.nvmexpress:uuid:h1"
REPLICA = {"uuid": R, "volumeId": V, "bytes": 1 << 30, "pool": "pool"}
SNAPSHOT = {"uuid": S, "replica": R, "snapshotId": S, "bytes": 1 << 30, "pool": "pool"}
EXPORT = {"replica": R, "hostNqn": NQN, "class": "plain", "subsystemNqn": "nqn.x", "nsid": 1}
SPEC = ReplicaSpec(volume_id=V, bytes=1 << 30, source=ReplicaSource(snapshot=S))
INFO = {"persistentID": "n1", "name": "n1", "version": "1", "portals": [], "pools": []}
SUCCESS = {"status": "Success", "description": ""}

CALLS = [
    (lambda node: node.info(), "GET", "/v1/info", INFO),
    (lambda node: node.inventory(), "GET", "/v1/inventory", {"persistentID": "n1"}),
    (lambda node: node.put_replica(R, SPEC), "PUT", f"/v1/replicas/{R}", REPLICA),
    (lambda node: node.resize_replica(R, 2 << 30), "PATCH", f"/v1/replicas/{R}", REPLICA),
    (lambda node: node.replica(R), "GET", f"/v1/replicas/{R}", REPLICA),
    (lambda node: node.delete_replica(R), "DELETE", f"/v1/replicas/{R}", SUCCESS),
    (
        lambda node: node.put_snapshot(S, SnapshotSpec(replica=R, snapshot_id=S)),
        "PUT",
        f"/v1/snapshots/{S}",
        SNAPSHOT,
    ),
    (lambda node: node.delete_snapshot(S), "DELETE", f"/v1/snapshots/{S}", SUCCESS),
    (
        lambda node: node.put_export(R, ExportSpec(host_nqn=NQN)),
        "PUT",
        f"/v1/replicas/{R}/exports",
        EXPORT,
    ),
    (lambda node: node.delete_export(R, NQN), "DELETE", f"/v1/replicas/{R}/exports", SUCCESS),
]


@pytest.fixture
def node(network, connect):
    def make(*steps):
        network.servers[A] = Script(*steps)
        return Node(connect(A, budget=20, read_timeout=2))

    return make


@pytest.mark.parametrize(("call", "method", "path", "content"), CALLS)
def test_every_call_can_be_repeated(node, network, call, method, path, content):
    result = call(node(ReadTimeout, Answer(content)))
    assert {(sent.method, sent.path) for sent in network.requests} == {(method, path)}
    assert len(network.requests) == 2
    assert content.items() <= result.wire().items()


def test_bodies(node, network):
    api = node(Answer(REPLICA))
    api.put_replica(R, SPEC)
    assert network.requests[-1].json == {
        "volumeId": V,
        "bytes": 1 << 30,
        "source": {"snapshot": S},
    }
    api.resize_replica(R, 2 << 30)
    assert network.requests[-1].json == {"bytes": 2 << 30, "growArray": False}
    api.resize_replica(R, 2 << 30, grow_array=True)
    assert network.requests[-1].json == {"bytes": 2 << 30, "growArray": True}


def test_ending_exports_to_one_or_all_hosts(node, network):
    api = node(Answer(SUCCESS))
    api.delete_export(R, NQN)
    api.delete_export(R, None)
    assert [sent.params for sent in network.requests] == [{"hostNqn": NQN}, {}]


@pytest.mark.parametrize(("call", "method", "path", "content"), CALLS)
def test_errors_come_through(node, call, method, path, content):
    error = errors.ConflictError("another size", node="n1")
    with pytest.raises(errors.ConflictError) as caught:
        call(node(Answer(error.to_wire(), 409)))
    assert caught.value.node == "n1"


def test_a_wrong_object_is_named(node):
    with pytest.raises(errors.ProtocolError, match="wrong Replica: volumeId"):
        node(Answer({"uuid": R})).replica(R)
