# SPDX-License-Identifier: Apache-2.0
"""Stories of nodes that all replicas leave."""

import json

import pytest

from kumo_client import errors
from kumo_client.schemas.task import FAILED, FINISHED, REMOTE_MIGRATION, RUNNING
from kumo_client.schemas.volume import ReplicaAdd
from kumo_provisioner import reconcile
from kumo_provisioner.db import models
from kumo_provisioner.services import (
    backends,
    copying,
    drain,
    migration,
    probing,
    replicas,
    snapshots,
    tasks,
    volumes,
)
from tests.unit.provisioner.conftest import volume
from tests.unit.provisioner.stories import (
    T,
    detach,
    down,
    home,
    legs_of,
    made_snapshot,
    places,
    published,
    rows,
    task,
    told,
)


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


def test_an_attached_leg_leaves_by_its_host(core, four):
    attached = volumes.create(core, T, volume(replicas=2))
    published(core, attached)
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
