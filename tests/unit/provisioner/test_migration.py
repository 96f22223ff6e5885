# SPDX-License-Identifier: Apache-2.0
"""Stories of replicas that move: between nodes, by a host, and all away from a node."""

import json

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
    TaskUpdate,
)
from kumo_client.schemas.volume import MigrateVolume, ReplicaAdd
from kumo_provisioner import reconcile
from kumo_provisioner.db import models
from kumo_provisioner.services import (
    backends,
    copying,
    drain,
    hosts,
    migration,
    probing,
    publish,
    replicas,
    snapshots,
    tasks,
    volumes,
)
from tests.unit.provisioner.conftest import HOST, NQN, add_node, volume
from tests.unit.provisioner.stories import (
    T,
    made_snapshot,
    node_of,
    ports,
    published,
    rows,
    shown,
)


@pytest.fixture
def four(core, three):
    return [*three, add_node(core)]


def places(core, uid):
    return {one.uuid: one for one in shown(core, uid).location}


def legs_of(core, uid):
    return list(places(core, uid))


def home(core, uid, leg=None):
    """The model of the node that has a leg, by default the only one."""
    found = places(core, uid)
    return node_of(core, found[leg or next(iter(found))])


def move(core, uid, leg=None, to=""):
    request = MigrateVolume(vol_id=uid, rep_id=leg, destination_backend_id=to)
    return migration.migrate(core, T, request)


def task(core, uid):
    return tasks.list_all(core, None, task_id=uid)[0]


def told(core, uid, state, **more):
    migration.update_task(core, TaskUpdate(task_id=uid, state=state, **more))


def detach(core, uid):
    publish.unpublish(core, T, UnpublishRequest(vol_id=uid))


def copies(core):
    return {uid for model in core.nodes.models.values() for uid in model.state.copies}


def down(core, model):
    """The node dies, and that is noticed."""
    core.nodes.down.add(ports(core, model))
    for _ in range(2):
        probing.probe(core)


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


# -- drain ----------------------------------------------------------------------------------------


def drained(core, model, rounds=8):
    """Rounds of a drain and of what it begins."""
    started = drain.start(core, model.persistent_id)
    for _ in range(rounds):
        drain.run(core)
        migration.run(core)
    reconcile.run(core)
    drain.run(core)
    return task(core, started)


def backend(core, model):
    return backends.list_all(core, model.persistent_id)[0]


def test_a_node_of_detached_volumes_is_emptied(core, four):
    for number in range(6):
        volumes.create(core, T, volume(f"one{number}"))
        volumes.create(core, T, volume(f"two{number}", replicas=2))
    victim = four[0]
    assert victim.state.replicas
    ended = drained(core, victim)
    assert (ended.state, ended.progress) == (FINISHED, 100)
    assert victim.state.replicas == {}
    assert "backend.drained" in [row.type for row in rows(core, models.Event)]
    parts = [one for one in tasks.list_all(core, None) if one.parent == ended.task_id]
    assert parts
    assert all(one.state == FINISHED for one in parts)
    # It stays empty until the drain is over.
    for number in range(4):
        volumes.create(core, T, volume(f"new{number}"))
    assert victim.state.replicas == {}
    assert backend(core, victim).state == "Draining"
    drain.stop(core, victim.persistent_id)
    assert backend(core, victim).state == "Available"
    with pytest.raises(errors.ConflictError):
        drain.stop(core, victim.persistent_id)


def test_at_most_so_many_replicas_leave_at_a_time(core, four):
    core.conf.set_override("drain_parallel", 2, group="tasks")
    for number in range(20):
        volumes.create(core, T, volume(f"v{number}"))
    victim = four[0]
    count = len(victim.state.replicas)
    assert count > 2
    started = drain.start(core, victim.persistent_id)
    assert drain.start(core, victim.persistent_id) == started
    while victim.state.replicas:
        drain.run(core)
        running = [one for one in tasks.list_all(core, None) if one.parent and one.state == RUNNING]
        assert len(running) <= 2
        migration.run(core)
    reconcile.run(core)
    drain.run(core)
    assert task(core, started).state == FINISHED


def test_what_holds_a_drain_up_is_named(core, four):
    uid = volumes.create(core, T, volume())
    published(core, uid)
    (leg,) = legs_of(core, uid)
    victim = home(core, uid)
    waiting = drained(core, victim, rounds=2)
    assert waiting.state == RUNNING
    assert leg in waiting.status_description
    assert "detach the volume" in waiting.status_description
    tags = {tag.name: tag.value for tag in waiting.task_configuration}
    assert leg in json.loads(tags["stuck"])
    with core.locks.hold(f"drain:{victim.persistent_id}"):
        drain.run(core)
    detach(core, uid)
    ended = drained(core, victim)
    assert ended.state == FINISHED
    assert leg not in ended.status_description


def test_an_attached_leg_leaves_by_its_host(core, attached):
    old, other = legs_of(core, attached)
    victim = home(core, attached, old)
    started = drain.start(core, victim.persistent_id)
    drain.run(core)
    (part,) = [one for one in tasks.list_all(core, None) if one.parent == started]
    assert (part.type, part.host_id) == (REMOTE_MIGRATION, "host-1")
    new = replicas.add(core, T, attached, ReplicaAdd())
    told(core, part.task_id, RUNNING, progress=1)
    # The agent dies; the leg gets in sync later, and the drain goes on with it.
    with core.db.write() as session:
        session.get_one(models.Replica, new).state = "Synchronizing"
        row = session.get_one(models.Task, part.task_id)
        tasks.fail(session, row, "Failed", "the agent died")
    drain.run(core)
    assert "not in sync yet" in task(core, started).status_description
    replicas.report(core, T, attached, new, "Available")
    drain.run(core)
    assert places(core, attached)[old].replica_state == "Terminating"
    replicas.confirm(core, T, attached, old)
    (last,) = [one for one in tasks.list_all(core, None) if one.state == RUNNING and one.parent]
    told(core, last.task_id, FINISHED)
    assert drained(core, victim, rounds=1).state == FINISHED
    assert set(legs_of(core, attached)) == {new, other}


def test_a_node_that_dies_while_it_is_emptied(core, four):
    for number in range(4):
        volumes.create(core, T, volume(f"v{number}"))
    victim = four[0]
    started = drain.start(core, victim.persistent_id)
    drain.run(core)
    migration.run(core)
    down(core, victim)
    for _ in range(2):
        migration.run(core)
        drain.run(core)
    assert task(core, started).state == RUNNING
    assert "Unavailable" in task(core, started).status_description
    core.nodes.down.clear()
    probing.probe(core)
    assert drained(core, victim).state == FINISHED


def test_a_process_that_dies_in_a_drain_loses_nothing(core, four, monkeypatch):
    """Each step is cut off once, before or after it took effect."""
    for number in range(3):
        volumes.create(core, T, volume(f"v{number}", replicas=2))
    victim = four[0]
    data = {}
    for model in four:
        for uid in model.state.replicas:
            model.write(uid, f"data of {uid}")
    with core.db.read() as session:
        for row in session.query(models.Replica):
            data.setdefault(row.volume_id, set()).add(f"data of {row.uuid}")
    started = drain.start(core, victim.persistent_id)

    class DiedError(Exception):
        pass

    def dying(real, before):
        def call(*args, **options):
            monkeypatch.undo()
            if not before:
                real(*args, **options)
            raise DiedError

        return call

    deaths = [
        (module, name, before)
        for module, name in (
            (copying, "look"),
            (migration, "_commit"),
            (copying, "clean"),
            (tasks, "finish"),
            (migration.removals, "carry_out"),
        )
        for before in (True, False)
    ]
    for module, name, before in deaths:
        monkeypatch.setattr(module, name, dying(getattr(module, name), before))
        for _ in range(4):
            try:
                drain.run(core)
                migration.run(core)
            except DiedError:
                break
        monkeypatch.undo()
    assert drained(core, victim).state == FINISHED
    assert task(core, started).state == FINISHED
    assert victim.state.replicas == {}
    for uid, contents in data.items():
        legs = places(core, uid)
        assert len(legs) == 2
        found = {home(core, uid, leg).state.replicas[leg].content for leg in legs}
        assert found == contents
    assert core.nodes.exports() == set()


def test_parts_of_snapshots_leave_when_others_are_as_good(core, four):
    two = volumes.create(core, T, volume("two", replicas=2))
    snap = made_snapshot(core, two, "pair")
    victim = home(core, two)
    ended = drained(core, victim)
    assert ended.state == FINISHED, ended.status_description
    assert victim.state.snapshots == {}
    assert len(snapshots.get(core, T, snap)) == 1
    one = volumes.create(core, T, volume("one"))
    alone = made_snapshot(core, one, "alone")
    victim = home(core, one)
    held = drained(core, victim)
    assert held.state == RUNNING
    assert alone in held.status_description
    with core.locks.hold(alone):
        drain.run(core)
    snapshots.delete(core, T, alone)
    assert drained(core, victim).state == FINISHED


def test_a_drain_is_stopped(core, four):
    uid = volumes.create(core, T, volume())
    published(core, uid)
    victim = home(core, uid)
    started = drain.start(core, victim.persistent_id)
    with pytest.raises(errors.InUseError, match="--stop"):
        tasks.delete(core, started)
    drain.stop(core, victim.persistent_id)
    assert (task(core, started).state, task(core, started).task_status) == (FAILED, "Stopped")
    drain.run(core)
    tasks.delete(core, started)
    for call in (drain.start, drain.stop):
        with pytest.raises(errors.NotExistsError):
            call(core, "nobody")
