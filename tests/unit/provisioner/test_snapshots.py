# SPDX-License-Identifier: Apache-2.0
"""Snapshots and copies of replicated volumes: legs are never mixed."""

import time

import pytest
from sqlalchemy import select

from kumo_client import errors
from kumo_client.schemas import task as wire
from kumo_client.schemas.snapshot import SnapshotVolumeCreate
from kumo_client.schemas.volume import CloneCreate
from kumo_provisioner import reconcile
from kumo_provisioner.db import models
from kumo_provisioner.services import backends, holding, snapshots, volumes
from tests.unit.provisioner.conftest import HOST, add_node, volume
from tests.unit.provisioner.live import (
    ABLE,
    Agent,
    data,
    freshness,
    killed,
    legs,
    note,
    note_volume,
    rows_of,
    write,
)
from tests.unit.provisioner.stories import T, made_snapshot, node_of, ports, published, rows, shown


@pytest.fixture
def quick(core):
    core.conf.set_override("hold_wait", 0.3, group="snapshots")


def from_snapshot(core, snap, alias="copy", **extra):
    request = SnapshotVolumeCreate(alias=alias, snapshot_id=snap, **extra)
    return snapshots.create_volume(core, T, request)


def cloned(core, uid, alias="clone", **extra):
    return snapshots.clone(core, T, CloneCreate(source_volume_id=uid, alias=alias, **extra))


def coherent(core, snap):
    return snapshots.get(core, T, snap)[0].coherent


def parts(core, snap):
    return [one for one in rows(core, models.SnapshotPart) if one.snapshot_id == snap]


# -- at rest --------------------------------------------------------------------------------------


def test_a_detached_volume_is_captured_on_all_legs(core, three):
    uid = volumes.create(core, T, volume(replicas=3))
    write(core, uid, "data")
    snap = made_snapshot(core, uid)
    write(core, uid, "later")
    copy = from_snapshot(core, snap)
    assert coherent(core, snap)
    assert data(core, copy) == ["data"] * 3
    assert {leg.array.uuid for leg in legs(core, copy)} == {copy}
    assert data(core, cloned(core, uid)) == ["later"] * 3


def test_a_leg_that_is_not_in_sync_is_not_captured(core, three):
    uid = volumes.create(core, T, volume(replicas=3))
    write(core, uid, "old")
    note(core, uid, 0, state="Missing", freshness=models.STALE)
    note(core, uid, 1, freshness=models.BLANK)
    write(core, uid, "new")
    snap = made_snapshot(core, uid)
    assert [one.replica_id for one in parts(core, snap)] == [rows_of(core, uid)[2].uuid]
    assert coherent(core, snap)
    for copy in (from_snapshot(core, snap), cloned(core, uid)):
        assert data(core, copy) == ["new"]
        assert sorted(freshness(core, copy)) == ["blank", "blank", "fresh"]
        assert {place.replica_state for place in shown(core, copy).location[1:]} == {"Unknown"}
        assert [leg.content for leg in legs(core, copy)] == ["new", 0, 0]


def test_without_a_leg_in_sync_there_is_no_source(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    for number in range(2):
        note(core, uid, number, freshness=models.STALE)
    for call in (made_snapshot, cloned):
        with pytest.raises(errors.StaleError, match="stale"):
            call(core, uid)
    assert snapshots.list_all(core, T) == []


def test_a_node_that_is_down_has_no_part(core, three):
    uid = volumes.create(core, T, volume(replicas=3))
    write(core, uid, "data")
    core.nodes.down.add(ports(core, node_of(core, shown(core, uid).location[0])))
    for _ in range(2):
        backends.probe(core)
    snap = made_snapshot(core, uid)
    assert coherent(core, snap)
    assert len(parts(core, snap)) == 2
    # A third node for the third leg is not there.
    with pytest.raises(errors.NoSpaceError):
        from_snapshot(core, snap)
    add_node(core)
    assert data(core, from_snapshot(core, snap)) == ["data", "data"]
    for port in core.nodes.models:
        core.nodes.down.add(port)
    for _ in range(2):
        backends.probe(core)
    for call in (lambda: made_snapshot(core, uid, "more"), lambda: from_snapshot(core, snap, "x")):
        with pytest.raises(errors.BackendUnavailableError, match="is Unavailable"):
            call()


@pytest.mark.parametrize(
    ("before", "after"), [("new", "new"), ("clean", "clean"), ("open", "clean")]
)
def test_a_copy_knows_whether_its_array_can_exist(core, three, before, after):
    uid = volumes.create(core, T, volume(replicas=2))
    note_volume(core, uid, array_state=before)
    snap = made_snapshot(core, uid)
    # What happened to an array that was left open is not known: its legs may differ.
    assert coherent(core, snap) is (before != "open")
    note_volume(core, uid, array_state="clean")
    copy = from_snapshot(core, snap)
    with core.db.read() as session:
        assert session.get_one(models.Volume, copy).array_state == after
    assert freshness(core, copy) == ["fresh", "blank" if before == "open" else "fresh"]


# -- attached -------------------------------------------------------------------------------------


def test_one_leg_is_the_source_while_a_host_writes(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    published(core, uid)
    note(core, uid, 1, events=5)
    write(core, uid, "a", "b")
    snap = made_snapshot(core, uid)
    assert not coherent(core, snap)
    assert [one.replica_id for one in parts(core, snap)] == [rows_of(core, uid)[1].uuid]
    for copy in (from_snapshot(core, snap), cloned(core, uid)):
        assert data(core, copy) == ["b"]
        assert freshness(core, copy) == ["fresh", "blank"]
        nodes = {place.backend.persistent_id for place in shown(core, copy).location}
        assert len(nodes) == 2
    assert rows(core, models.Task) == []


def test_the_last_leg_in_sync_is_the_whole_truth(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    published(core, uid, ABLE)
    note(core, uid, 0, state="Missing", freshness=models.STALE)
    write(core, uid, "data")
    snap = made_snapshot(core, uid)
    assert coherent(core, snap)
    assert data(core, from_snapshot(core, snap)) == ["data"]


def test_a_plain_volume_is_captured_while_attached(core, three):
    uid = volumes.create(core, T, volume())
    write(core, uid, "data")
    published(core, uid)
    snap = made_snapshot(core, uid)
    assert coherent(core, snap)
    assert data(core, from_snapshot(core, snap)) == data(core, cloned(core, uid)) == ["data"]


def test_blank_legs_are_on_other_racks(core):
    for rack in ("a", "b", "b"):
        add_node(core, rack=rack)
    uid = volumes.create(core, T, volume(replicas=2))
    published(core, uid)
    racks = {place.backend.rack for place in shown(core, cloned(core, uid)).location}
    assert racks == {"a", "b"}


# -- writes held ----------------------------------------------------------------------------------


def held_volume(core):
    uid = volumes.create(core, T, volume(replicas=2))
    published(core, uid, ABLE)
    write(core, uid, "a", "b")
    return uid


def test_held_writes_make_the_legs_alike(core, three):
    uid = held_volume(core)
    with Agent(core, on_held=lambda: write(core, uid, "held")) as agent:
        snap = made_snapshot(core, uid)
    assert coherent(core, snap)
    assert data(core, from_snapshot(core, snap)) == ["held", "held"]
    tags = {tag["name"]: tag["value"] for tag in agent.seen[0].configuration}
    assert (tags["volId"], tags["snapshotId"], tags["holdSeconds"]) == (uid, snap, "10")
    assert sorted(tags["legs"].split(",")) == sorted(one.uuid for one in rows_of(core, uid))
    told = [one.type for one in rows(core, models.Event) if one.host_id and one.volume_id]
    assert told == ["task.created", "task.finished"]
    assert rows(core, models.Task)[0].state == wire.FINISHED


@pytest.mark.parametrize(
    ("agent", "status"),
    [
        ({"last": 0.0}, "HoldExpired"),
        ({"answer": None}, "GivenUp"),
        ({"dies": True}, "GivenUp"),
        ({"answer": wire.FAILED}, ""),
    ],
    ids=["late", "silent", "dying", "unable"],
)
def test_without_the_agents_word_one_leg_is_the_source(core, three, quick, agent, status):
    uid = held_volume(core)
    began = time.monotonic()
    with Agent(core, **agent):
        snap = made_snapshot(core, uid)
    assert time.monotonic() - began < 3
    assert not coherent(core, snap)
    assert len(parts(core, snap)) == 1
    assert data(core, from_snapshot(core, snap)) == ["a"]
    reconcile.run(core)
    held = {uid for model in core.nodes.models.values() for uid in model.state.snapshots}
    assert held == {one.uuid for one in parts(core, snap)}, "the other part was dropped"
    task = rows(core, models.Task)[0]
    assert task.state in (wire.FAILED, wire.FINISHED)
    assert task.task_status == status or agent.get("answer") == wire.FAILED


def test_no_agent_at_all(core, three, quick):
    uid = held_volume(core)
    assert not coherent(core, made_snapshot(core, uid))
    assert rows(core, models.Task)[0].task_status == "GivenUp"


def test_a_part_that_fails_while_writes_are_held(core, three):
    uid = held_volume(core)
    first, last = (ports(core, node_of(core, place)) for place in shown(core, uid).location)
    core.nodes.faults[first, "put_snapshot"] = "lost answer"
    with Agent(core) as agent:
        snap = made_snapshot(core, uid)
        assert not coherent(core, snap)
        assert data(core, from_snapshot(core, snap)) == ["b"]
        core.nodes.faults[last, "put_snapshot"] = errors.NoSpaceError("full")
        with pytest.raises(errors.NoSpaceError):
            made_snapshot(core, uid, "more")
    assert [one.snapshot_id for one in snapshots.list_all(core, T)] == [snap]
    assert len(agent.seen) == 2
    core.nodes.faults.clear()
    reconcile.run(core)
    held = [uid for model in core.nodes.models.values() for uid in model.state.snapshots]
    assert held == [one.uuid for one in parts(core, snap)]


def test_two_hosts_are_not_asked_to_hold(core, three):
    uid = held_volume(core)
    published(core, uid, HOST)
    assert not coherent(core, made_snapshot(core, uid))
    assert rows(core, models.Task) == []


def test_a_hold_of_a_dead_provisioner_is_ended(core, three, monkeypatch):
    uid = held_volume(core)
    with killed(monkeypatch, holding, "wait_held"):
        made_snapshot(core, uid)
    assert reconcile.run(core).undone == 1
    assert snapshots.list_all(core, T) == []
    holding.end_abandoned(core)
    assert rows(core, models.Task)[0].state == wire.IDLE, "somebody may be waiting yet"
    with core.db.write() as session:
        session.scalars(select(models.Task)).one().created -= 120_000
    holding.end_abandoned(core)
    assert rows(core, models.Task)[0].state == wire.FAILED


def test_a_task_that_is_deleted_is_no_word(core, three, quick):
    uid = held_volume(core)

    def forget():
        with core.db.write() as session:
            session.delete(session.scalars(select(models.Task)).one())

    with Agent(core, answer=None, on_held=forget):
        assert not coherent(core, made_snapshot(core, uid))


# -- crashes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "name", "after"),
    [("nodes", "call_all", False), ("nodes", "call_all", True), ("snapshots", "_commit", False)],
)
def test_a_snapshot_cut_off_is_undone(core, three, monkeypatch, target, name, after):
    uid = volumes.create(core, T, volume(replicas=2))
    owner = core.nodes if target == "nodes" else snapshots
    with killed(monkeypatch, owner, name, after=after):
        made_snapshot(core, uid)
    reconcile.run(core)
    assert snapshots.list_all(core, T) == []
    assert core.nodes.objects() == {place.uuid for place in shown(core, uid).location}
    made_snapshot(core, uid)


def test_a_held_snapshot_cut_off_before_its_parts_are_dropped(core, three, monkeypatch, quick):
    uid = held_volume(core)
    with Agent(core, last=0.0), killed(monkeypatch, snapshots, "_commit", after=True):
        made_snapshot(core, uid)
    snap = snapshots.list_all(core, T)[0].snapshot_id
    reconcile.run(core)
    held = {uid for model in core.nodes.models.values() for uid in model.state.snapshots}
    assert held == {one.uuid for one in parts(core, snap)}
