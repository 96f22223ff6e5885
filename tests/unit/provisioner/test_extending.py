# SPDX-License-Identifier: Apache-2.0
"""Extending replicated volumes: the arrays on their legs stay of one size."""

import pytest

from kumo_client import errors, naming
from kumo_client.schemas.host import UnpublishRequest
from kumo_client.schemas.volume import CloneCreate
from kumo_provisioner import reconcile
from kumo_provisioner.db import models
from kumo_provisioner.services import publish, snapshots, volumes
from tests.unit.provisioner.conftest import HOST, NQN, volume
from tests.unit.provisioner.stories import T, node_of, ports, published, rows, shown

THREE = naming.replica_bytes(3, 2)


def legs(core, uid):
    """What the nodes hold of a volume."""
    return [node_of(core, place).state.replicas[place.uuid] for place in shown(core, uid).location]


def arrays(core, uid):
    """Sizes to which the nodes have grown the array of each leg."""
    return [leg.array_bytes for leg in legs(core, uid)]


def port_of(core, uid, number):
    return ports(core, node_of(core, shown(core, uid).location[number]))


@pytest.fixture
def pair(core, three):
    """A volume of 1 GiB with two replicas."""
    return volumes.create(core, T, volume(replicas=2))


def test_the_nodes_grow_the_array_that_no_host_uses(core, pair):
    volumes.extend(core, T, pair, 3)
    assert arrays(core, pair) == [THREE, THREE]


def test_the_host_grows_the_array_it_uses(core, pair):
    published(core, pair)
    volumes.extend(core, T, pair, 3)
    assert [leg.bytes for leg in legs(core, pair)] == [THREE, THREE]
    assert arrays(core, pair) == [0, 0]
    publish.unpublish(core, T, UnpublishRequest(host_id=HOST.host_id, vol_id=pair))
    volumes.extend(core, T, pair, 4)
    assert arrays(core, pair) == [naming.replica_bytes(4, 2)] * 2


def test_a_volume_of_one_replica_has_no_array(core, three):
    uid = volumes.create(core, T, volume())
    volumes.extend(core, T, uid, 3)
    assert arrays(core, uid) == [0]


def test_no_array_grows_before_all_legs_have(core, pair):
    core.nodes.faults[port_of(core, pair, 1), "resize_replica"] = errors.NoSpaceError("full")
    with pytest.raises(errors.NoSpaceError):
        volumes.extend(core, T, pair, 3)
    assert arrays(core, pair) == [0, 0]
    core.nodes.faults.clear()
    # The first leg has 3 GiB now; the other one follows, or their arrays would differ.
    volumes.extend(core, T, pair, 2)
    assert shown(core, pair).capacity == 2
    assert arrays(core, pair) == [THREE, THREE]
    assert {row.bytes for row in rows(core, models.Replica)} == {THREE}


def test_copies_of_unequal_legs_are_equal(core, pair):
    core.nodes.faults[port_of(core, pair, 1), "resize_replica"] = errors.NoSpaceError("full")
    with pytest.raises(errors.NoSpaceError):
        volumes.extend(core, T, pair, 3)
    core.nodes.faults.clear()
    copy = snapshots.clone(core, T, CloneCreate(source_volume_id=pair, alias="copy", capacity=2))
    assert [leg.bytes for leg in legs(core, copy)] == [THREE, THREE]


def test_an_array_that_every_node_refuses_ends_the_extension(core, pair):
    for number in range(2):
        fault = errors.ConflictError("not in sync")
        core.nodes.faults[port_of(core, pair, number), "grow_array"] = fault
    with pytest.raises(errors.ConflictError, match="not in sync"):
        volumes.extend(core, T, pair, 3)
    assert shown(core, pair).capacity == 1
    core.nodes.faults.clear()
    assert reconcile.run(core).settled == 0
    assert len(published(core, pair).replicas) == 2
    assert len(core.nodes.exports()) == 2


@pytest.mark.parametrize(
    "fault", ["lost request", "lost answer", errors.ConflictError("not in sync")]
)
def test_an_extension_of_which_one_array_knows_is_finished(core, pair, fault):
    core.nodes.faults[port_of(core, pair, 1), "grow_array"] = fault
    with pytest.raises(errors.KumoError):
        volumes.extend(core, T, pair, 3)
    assert shown(core, pair).capacity == 1
    assert arrays(core, pair)[0] == THREE
    core.nodes.faults.clear()
    assert reconcile.run(core).settled == 1
    assert shown(core, pair).capacity == 3
    assert arrays(core, pair) == [THREE, THREE]


@pytest.mark.parametrize("lost", ["resize_replica", "grow_array"])
@pytest.mark.parametrize("healed", [True, False])
def test_a_host_is_given_legs_of_one_size(core, pair, healed, lost):
    core.nodes.faults[port_of(core, pair, 1), lost] = "lost request"
    with pytest.raises(errors.BackendUnavailableError):
        volumes.extend(core, T, pair, 3)
    if healed:
        core.nodes.faults.clear()
    answer = published(core, pair)
    first, last = (place.uuid for place in shown(core, pair).location)
    if healed:
        assert arrays(core, pair) == [THREE, THREE]
        assert core.nodes.exports() == {(first, NQN), (last, NQN)}
        assert shown(core, pair).capacity == 3
    else:
        assert core.nodes.exports() == {(first, NQN)}
        assert arrays(core, pair) == [THREE, 0]
        assert last in answer.description


def test_a_host_is_given_nothing_while_no_leg_is_known_to_have_grown(core, pair):
    for number in range(2):
        core.nodes.faults[port_of(core, pair, number), "resize_replica"] = "lost answer"
    with pytest.raises(errors.BackendUnavailableError):
        volumes.extend(core, T, pair, 3)
    with pytest.raises(errors.BackendUnavailableError):
        published(core, pair)
    assert core.nodes.exports() == set()
    assert rows(core, models.Publication) == []
    core.nodes.faults.clear()
    published(core, pair)
    assert shown(core, pair).capacity == 3


def test_a_host_is_given_all_legs_after_an_extension_was_refused(core, pair):
    for number in range(2):
        core.nodes.faults[port_of(core, pair, number), "resize_replica"] = "lost answer"
    with pytest.raises(errors.BackendUnavailableError):
        volumes.extend(core, T, pair, 3)
    for number in range(2):
        port = port_of(core, pair, number)
        core.nodes.faults[port, "resize_replica"] = errors.NoSpaceError("full")
    published(core, pair)
    assert len(core.nodes.exports()) == 2
    assert shown(core, pair).capacity == 1


def test_an_export_left_behind_holds_an_extension_up(core, pair):
    published(core, pair)
    port = port_of(core, pair, 1)
    core.nodes.faults[port, "delete_export"] = "lost request"
    publish.unpublish(core, T, UnpublishRequest(host_id=HOST.host_id, vol_id=pair))
    core.nodes.faults.clear()
    core.wake.clear()
    with pytest.raises(errors.InUseError):
        volumes.extend(core, T, pair, 3)
    assert core.wake.is_set()
    # The first round takes the export away, if not before then after the extension was tried.
    for _ in range(2):
        reconcile.run(core)
    assert shown(core, pair).capacity == 3
    assert arrays(core, pair) == [THREE, THREE]


def test_a_volume_is_not_published_while_it_is_extended(core, pair):
    with core.locks.hold(pair), pytest.raises(errors.BusyError):
        published(core, pair)
    assert core.nodes.exports() == set()
