# SPDX-License-Identifier: Apache-2.0
"""Stories of replicas that move: between nodes, and by a host."""

import pytest

from kumo_client import errors, naming
from kumo_client.schemas.host import HostProbe, UnpublishRequest
from kumo_client.schemas.task import (
    FAILED,
    FINISHED,
    IDLE,
    OFFLINE_MIGRATION,
    REMOTE_MIGRATION,
    RUNNING,
    Tag,
)
from kumo_client.schemas.volume import MigrateVolume, ReplicaAdd
from kumo_provisioner import reconcile
from kumo_provisioner.db import models
from kumo_provisioner.services import (
    hosts,
    migration,
    probing,
    publish,
    replicas,
    tasks,
    volumes,
)
from tests.unit.provisioner.conftest import HOST, NQN, volume
from tests.unit.provisioner.stories import (
    T,
    detach,
    down,
    home,
    legs_of,
    places,
    published,
    task,
    told,
)


def move(core, uid, leg=None, to=""):
    request = MigrateVolume(vol_id=uid, rep_id=leg, destination_backend_id=to)
    return migration.migrate(core, T, request)


def copies(core):
    return {uid for model in core.nodes.models.values() for uid in model.state.copies}


def charged(core):
    with core.db.read() as session:
        return {one.backend_id: one.charged_bytes for one in session.query(models.Pool)}


# -- by the nodes ---------------------------------------------------------------------------------


def test_a_detached_volume_moves_with_its_data(core, three):
    uid = volumes.create(core, T, volume())
    (old,) = legs_of(core, uid)
    source = home(core, uid)
    source.write(old, "data")
    before = charged(core)
    done = move(core, uid)
    assert (task(core, done).type, task(core, done).state) == (OFFLINE_MIGRATION, RUNNING)
    migration.run(core)
    (new,) = set(legs_of(core, uid)) - {old}
    nqn = naming.node_host_nqn(places(core, uid)[new].backend.persistent_id)
    assert core.nodes.exports() == {(old, nqn)}
    # A reconcile knows of the export, and keeps it.
    assert reconcile.run(core).exports_removed == 0
    source.state.replicas[old].exports.clear()
    assert reconcile.run(core).exports_restored == 1
    migration.run(core)
    assert 0 < task(core, done).progress < 100
    migration.run(core)
    assert (task(core, done).state, task(core, done).progress) == (FINISHED, 100)
    assert legs_of(core, uid) == [new]
    place = places(core, uid)[new]
    assert (place.replica_state, place.freshness, place.replaces) == ("Available", "fresh", "")
    target = home(core, uid)
    assert target is not source
    assert target.state.replicas[new].content == "data"
    assert core.nodes.objects() == {new}
    assert core.nodes.exports() == copies(core) == set()
    assert sorted(charged(core).values()) == sorted(before.values())
    published(core, uid)


def test_a_leg_of_an_array_moves_and_keeps_what_is_known_of_it(core, four):
    uid = volumes.create(core, T, volume(replicas=2))
    old, other = legs_of(core, uid)
    with core.db.write() as session:
        session.get_one(models.Replica, old).events = 42
    with pytest.raises(errors.InvalidInputError, match="repId is needed"):
        move(core, uid)
    free = {one.persistent_id for one in four} - {
        place.backend.persistent_id for place in places(core, uid).values()
    }
    to = min(free)
    done = move(core, uid, old, to)
    with pytest.raises(errors.BusyError, match="moving already"):
        move(core, uid, other)
    for _ in range(3):
        migration.run(core)
    assert task(core, done).state == FINISHED
    (new,) = set(legs_of(core, uid)) - {other}
    assert legs_of(core, uid) == [new, other]
    assert places(core, uid)[new].events == 42
    assert places(core, uid)[new].backend.persistent_id == to
    assert {one.freshness for one in places(core, uid).values()} == {"fresh"}


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_a_copy_gives_way_to_a_publish(core, three, rounds):
    uid = volumes.create(core, T, volume())
    (old,) = legs_of(core, uid)
    done = move(core, uid)
    for _ in range(rounds):
        migration.run(core)
    answer = published(core, uid)
    assert [one.uuid for one in answer.replicas] == [old]
    assert task(core, done).state == FAILED
    assert "gave way" in task(core, done).status_description
    assert core.nodes.objects() == {old}
    assert core.nodes.exports() == {(old, NQN)}
    assert copies(core) == set()
    migration.run(core)
    with pytest.raises(errors.ConflictError, match="detach the volume"):
        move(core, uid)


def test_what_cannot_be_cleaned_up_at_once_is_later(core, three):
    uid = volumes.create(core, T, volume())
    (old,) = legs_of(core, uid)
    source = home(core, uid)
    move(core, uid)
    migration.run(core)
    for port in core.nodes.models:
        core.nodes.faults[port, "delete_export"] = "lost request"
        core.nodes.faults[port, "delete_replica"] = "lost request"
        core.nodes.faults[port, "delete_copy"] = "lost request"
    published(core, uid)
    assert len(core.nodes.objects()) == 2
    core.nodes.faults.clear()
    reconcile.run(core)
    assert core.nodes.objects() == {old}
    assert {nqn for _, nqn in source.state.exports} == {NQN}


def test_a_copy_waits_for_a_lost_answer_and_ends_with_a_refusal(core, three):
    uid = volumes.create(core, T, volume())
    (old,) = legs_of(core, uid)
    done = move(core, uid)
    for fault in ("lost request", "lost answer"):
        for port in core.nodes.models:
            for verb in ("put_copy", "put_export", "copy"):
                core.nodes.faults[port, verb] = fault
        migration.run(core)
        assert task(core, done).state == RUNNING
    core.nodes.faults.clear()
    with core.locks.hold(uid):
        migration.run(core)
    migration.run(core)
    (new,) = copies(core)
    home(core, uid, new).fail_copy(new, "the disk is full of sand")
    migration.run(core)
    assert task(core, done).state == FAILED
    assert "full of sand" in task(core, done).status_description
    assert core.nodes.objects() == {old}
    migration.advance(core, "no such task")


def test_a_copy_ends_when_one_of_its_nodes_dies(core, three):
    for which in ("source", "destination"):
        uid = volumes.create(core, T, volume(which))
        (old,) = legs_of(core, uid)
        done = move(core, uid)
        migration.run(core)
        (new,) = copies(core)
        dead = home(core, uid, old if which == "source" else new)
        down(core, dead)
        migration.run(core)
        assert task(core, done).state == FAILED
        assert "is Unavailable" in task(core, done).status_description
        assert legs_of(core, uid) == [old]
        core.nodes.down.clear()
        probing.probe(core)
        reconcile.run(core)
        assert copies(core) == set()
        volumes.delete(core, T, uid)
        assert core.nodes.objects() == set()


def test_a_copy_ends_with_its_volume(core, three):
    uid = volumes.create(core, T, volume())
    done = move(core, uid)
    migration.run(core)
    volumes.delete(core, T, uid)
    migration.run(core)
    assert task(core, done).state == FAILED
    assert "was deleted" in task(core, done).status_description
    assert core.nodes.objects() == set()


def test_a_stale_leg_is_no_source_and_an_empty_one_takes_its_place(core, four):
    uid = volumes.create(core, T, volume(replicas=2))
    lost, good = legs_of(core, uid)
    published(core, uid)
    replicas.report(core, T, uid, lost, "Missing")
    detach(core, uid)
    done = move(core, uid, lost)
    assert task(core, done).state == FINISHED
    (new,) = set(legs_of(core, uid)) - {good}
    assert places(core, uid)[new].freshness == "blank"
    assert core.nodes.objects() == {good, new}
    # Again, while the node that should take it fails, and when it does not.
    for port in core.nodes.models:
        core.nodes.faults[port, "put_replica"] = errors.NoSpaceError("full")
    with pytest.raises(errors.NoSpaceError):
        move(core, uid, new)
    assert set(legs_of(core, uid)) == {good, new}
    assert [one.state for one in tasks.list_all(core, None)] == [FINISHED, FAILED]
    core.nodes.faults.clear()
    move(core, uid, new)
    assert new not in legs_of(core, uid)
    assert len(legs_of(core, uid)) == len(core.nodes.objects()) == 2


def test_a_leg_whose_node_is_away_cannot_be_copied(core, three):
    uid = volumes.create(core, T, volume())
    model = home(core, uid)
    (old,) = legs_of(core, uid)
    kept = model.state.replicas.pop(old)
    reconcile.run(core)
    with pytest.raises(errors.BackendUnavailableError, match="does not have"):
        move(core, uid)
    model.state.replicas[old] = kept
    down(core, model)
    with pytest.raises(errors.BackendUnavailableError):
        move(core, uid)


# -- by a host ------------------------------------------------------------------------------------


@pytest.fixture
def attached(core, four):
    uid = volumes.create(core, T, volume(replicas=2))
    published(core, uid)
    return uid


def test_the_agent_of_a_host_moves_a_leg(core, attached):
    """The calls of the agents of the second generation, in their order."""
    old, other = legs_of(core, attached)
    done = move(core, attached, old)
    (seen,) = tasks.list_all(core, None, host_id="host-1")
    tags = {tag.name: tag.value for tag in seen.task_configuration}
    assert (seen.type, seen.state) == (REMOTE_MIGRATION, IDLE)
    assert (tags["volId"], tags["replicaId"], tags["volumeAlias"]) == (attached, old, "volume")
    new = replicas.add(core, T, attached, ReplicaAdd())
    assert places(core, attached)[new].replaces == old
    published(core, attached)
    wrong = [Tag(name="addedReplicaId", value=old), Tag(name="replicaId", value="N/A")]
    told(core, done, RUNNING, progress=0, task_configuration=wrong)
    assert places(core, attached)[new].replica_state == "Synchronizing"
    tags = {tag.name: tag.value for tag in task(core, done).task_configuration}
    assert (tags["replicaId"], tags["newReplicaId"]) == (old, new)
    with pytest.raises(errors.ConflictError, match="not in sync yet"):
        replicas.terminate(core, T, attached, old)
    told(core, done, RUNNING, progress=50.5)
    assert task(core, done).progress == 50.5
    replicas.report(core, T, attached, new, "Available")
    replicas.report(core, T, attached, new, "Available")
    replicas.terminate(core, T, attached, old)
    replicas.confirm(core, T, attached, old)
    told(core, done, FINISHED, progress=100, task_status="Success")
    assert task(core, done).state == FINISHED
    told(core, done, RUNNING, progress=3)
    assert (task(core, done).state, task(core, done).progress) == (FINISHED, 100)
    assert set(legs_of(core, attached)) == {new, other}


def test_an_agent_that_fails_leaves_no_spare(core, attached):
    old, _ = legs_of(core, attached)
    done = move(core, attached, old)
    new = replicas.add(core, T, attached, ReplicaAdd())
    told(core, done, FAILED, task_status="ConnectionFailed", status_description="no path")
    assert task(core, done).task_status == "ConnectionFailed"
    assert places(core, attached)[new].replica_state == "Terminating"
    replicas.confirm(core, T, attached, new)
    assert len(legs_of(core, attached)) == 2


def test_a_spare_stays_while_another_leg_is_on_its_way_out(core, attached):
    old, other = legs_of(core, attached)
    done = move(core, attached, old)
    new = replicas.add(core, T, attached, ReplicaAdd())
    replicas.report(core, T, attached, other, "Missing")
    replicas.terminate(core, T, attached, other)
    told(core, done, FAILED)
    assert places(core, attached)[new].replica_state == "Unknown"


@pytest.mark.parametrize("added", [False, True])
def test_a_detach_ends_the_migration_of_a_host(core, attached, added):
    old, other = legs_of(core, attached)
    done = move(core, attached, old)
    if added:
        replicas.add(core, T, attached, ReplicaAdd())
    detach(core, attached)
    assert task(core, done).state == FAILED
    assert legs_of(core, attached) == [old, other]
    assert core.nodes.objects() == {old, other}


def test_a_detach_finishes_what_a_host_had_nearly_done(core, attached):
    old, other = legs_of(core, attached)
    done = move(core, attached, old)
    new = replicas.add(core, T, attached, ReplicaAdd())
    for state in ("Synchronizing", "Available"):
        replicas.report(core, T, attached, new, state)
    replicas.terminate(core, T, attached, old)
    detach(core, attached)
    assert task(core, done).state == FINISHED
    assert set(legs_of(core, attached)) == {other, new}


def test_a_host_that_says_nothing_is_given_up(core, attached):
    old, _ = legs_of(core, attached)
    done = move(core, attached, old)
    new = replicas.add(core, T, attached, ReplicaAdd())
    migration.give_up(core)
    with core.db.write() as session:
        session.get_one(models.Task, done).updated -= 901_000
    with core.locks.hold(attached):
        migration.give_up(core)
    assert task(core, done).state == IDLE
    migration.give_up(core)
    assert task(core, done).task_status == "HostSilent"
    assert places(core, attached)[new].replica_state == "Terminating"


def test_who_cannot_move_a_leg_is_not_asked(core, attached):
    old, _ = legs_of(core, attached)
    other = HostProbe(host_nqn="nqn.2014-08.org.x:other", host_id="host-2")
    published(core, attached, other)
    with pytest.raises(errors.BusyError, match="several hosts"):
        move(core, attached, old)
    publish.unpublish(core, T, UnpublishRequest(vol_id=attached, host_id="host-2"))
    with core.db.write() as session:
        session.get_one(models.Host, "host-1").last_probe -= 91_000
    with pytest.raises(errors.ConflictError, match="no agent"):
        move(core, attached, old)
    hosts.probe(core, HOST)
    with pytest.raises(errors.NoSpaceError):
        move(core, attached, old, home(core, attached, old).persistent_id)
