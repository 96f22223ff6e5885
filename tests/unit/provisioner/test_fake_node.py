# SPDX-License-Identifier: Apache-2.0
"""The fake node does what the node API promises, called through the client."""

import json
import uuid

import pytest

from kumo_client import errors, naming
from kumo_client.api.node import Node
from kumo_client.naming import GIB
from kumo_client.schemas import node as wire
from tests.fakes.fleet import FakeNode
from tests.fakes.node_model import NodeModel

HOST = "nqn.2014-08.org.nvmexpress:uuid:host-1"


class Direct(FakeNode):
    """Routes without a server."""

    def __init__(self, model):
        self.model = model

    def request(self, method, path, *, json=None, **_options):
        return self._route(method, path, None, dumped(json)).wire()


def dumped(body):
    return json.dumps(body).encode()


@pytest.fixture
def model():
    return NodeModel("n", pools={"a": 10 * GIB, "b": 20 * GIB}, max_iops=1000, spans=True)


@pytest.fixture
def node(model):
    return Node(Direct(model))


def uid():
    return str(uuid.uuid4())


def made(node, **extra):
    one = uid()
    node.put_replica(one, wire.ReplicaSpec(volume_id=uid(), bytes=GIB, **extra))
    return one


def test_pools_are_told_apart(node, model):
    assert {pool.name: pool.max_iops for pool in node.info().pools} == {"a": 1000, "b": 1000}
    first, second = made(node), made(node, pool="b")
    assert {one.uuid: one.pool for one in node.inventory().replicas} == {first: "a", second: "b"}
    model.pools["b"].state = wire.STATE_FAILED
    assert node.replica(second).state == wire.STATE_FAILED
    with pytest.raises(errors.NoSpaceError, match="is failed"):
        made(node, pool="b")
    with pytest.raises(errors.InvalidInputError):
        made(node, pool="c")


def test_a_revert_happens_once_per_operation(node, model):
    one, part, array = made(node), uid(), wire.ArrayIdentity(uuid=uid(), name="mine")
    model.write(one, "old", wire.ArrayIdentity(uuid=uid(), name="other"))
    node.put_snapshot(part, wire.SnapshotSpec(replica=one, snapshot_id=uid()))
    model.write(one, "new")
    spec = wire.RevertSpec(snapshot=part, operation=uid(), array=array)
    node.revert_replica(one, spec)
    assert (model.state.replicas[one].content, model.state.replicas[one].array) == ("old", array)
    model.write(one, "newer")
    node.revert_replica(one, spec)
    assert model.state.replicas[one].content == "newer"
    model.put_export(one, wire.ExportSpec(host_nqn=HOST))
    again = spec.model_copy(update={"operation": uid()})
    with pytest.raises(errors.InUseError):
        node.revert_replica(one, again)


def test_limits_and_generation(node):
    one = made(node, limits=wire.Limits(max_iops=5))
    assert node.replica(one).limits.max_iops == 5
    before = node.info().generation
    node.set_limits(one, wire.Limits(max_bw=7))
    assert node.replica(one).limits == wire.Limits(max_bw=7)
    assert node.info().generation == node.inventory().generation == before + 1


def test_a_volume_is_adopted_and_released(node, model):
    model.add_foreign("data", 2 * GIB, pool="b", content="theirs")
    model.add_foreign("busy", GIB, in_use=True)
    assert {one.name: one.in_use for one in node.adoptable().volumes} == {
        "data": False,
        "busy": True,
    }
    one, volume_id = uid(), uid()
    spec = wire.AdoptSpec(name="data", pool="b", volume_id=volume_id)
    for _ in range(2):
        assert node.adopt_replica(one, spec).bytes == 2 * GIB
    for _ in range(2):
        node.release_replica(one, wire.ReleaseSpec(name="back"))
    assert model.state.foreign["b", "back"].content == "theirs"
    with pytest.raises(errors.InUseError):
        node.adopt_replica(uid(), wire.AdoptSpec(name="busy", pool="a", volume_id=uid()))


def test_a_copy_gets_on_and_ends(node, model):
    source = NodeModel("source")
    origin, target = uid(), made(node)
    source.put_replica(origin, wire.ReplicaSpec(volume_id=uid(), bytes=GIB))
    source.write(origin, "data")
    own = naming.node_host_nqn(model.persistent_id)
    export = source.put_export(origin, wire.ExportSpec(host_nqn=own))
    spec = wire.CopySpec(
        source_replica=origin,
        subsystem_nqn=export.subsystem_nqn,
        host_nqn=own,
        portals=source.portals,
        bytes=GIB,
    )
    assert node.put_copy(target, spec).state == "running"
    assert [node.copy(target).copied for _ in range(2)] == [GIB // 2, GIB]
    assert node.put_copy(target, spec).state == "done"
    assert model.state.replicas[target].content == "data"
    node.delete_copy(target)
    with pytest.raises(errors.NotExistsError):
        node.copy(target)
    source.delete_export(origin, own)
    assert node.put_copy(target, spec).reason == "the source is not exported to this node"
