# SPDX-License-Identifier: Apache-2.0
"""Reverting a volume to its snapshot: all legs or none, whatever dies on the way."""

import pytest

from kumo_client import errors, naming
from kumo_client.schemas.host import UnpublishRequest
from kumo_client.schemas.volume import CloneCreate, Revert
from kumo_provisioner import reconcile, settling
from kumo_provisioner.db import models
from kumo_provisioner.services import backends, publish, removals, revert, snapshots, volumes
from tests.unit.provisioner.conftest import volume
from tests.unit.provisioner.live import (
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


def reverted(core, uid, snap):
    revert.revert(core, T, Revert(volume_id=uid, snapshot_id=snap))


def unsettled(core, uid):
    with core.db.read() as session:
        return settling.kinds(session.get_one(models.Volume, uid))


def array_state(core, uid):
    with core.db.read() as session:
        return session.get_one(models.Volume, uid).array_state


def port(core, uid, number):
    return ports(core, node_of(core, shown(core, uid).location[number]))


@pytest.fixture
def pair(core, three):
    """A volume of two replicas with "new", and its snapshot with "old"."""
    uid = volumes.create(core, T, volume(replicas=2))
    write(core, uid, "old")
    snap = made_snapshot(core, uid)
    write(core, uid, "new")
    return uid, snap


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_all_legs_become_what_the_snapshot_is(core, three, replicas):
    uid = volumes.create(core, T, volume(replicas=replicas))
    write(core, uid, "first")
    note_volume(core, uid, array_state="clean")
    first = made_snapshot(core, uid, "first")
    write(core, uid, "second")
    second = made_snapshot(core, uid, "second")
    write(core, uid, "third")
    volumes.extend(core, T, uid, 3)
    reverted(core, uid, first)
    assert data(core, uid) == ["first"] * replicas
    assert shown(core, uid).capacity == 3
    assert {leg.bytes for leg in legs(core, uid)} == {naming.replica_bytes(3, replicas)}
    assert {leg.array and leg.array.uuid for leg in legs(core, uid)} == {
        uid if replicas > 1 else None
    }
    # The later snapshot is still there, and the volume can go to it again.
    reverted(core, uid, second)
    assert data(core, uid) == ["second"] * replicas
    assert array_state(core, uid) == "clean"
    published(core, uid)
    assert [one.type for one in rows(core, models.Event)].count("volume.reverted") == 2


def test_before_the_first_array_there_is_none_again(core, three):
    uid = volumes.create(core, T, volume(replicas=2))
    empty = made_snapshot(core, uid)
    write(core, uid, "data")
    note_volume(core, uid, array_state="clean")
    reverted(core, uid, empty)
    assert array_state(core, uid) == "new"
    assert [leg.array for leg in legs(core, uid)] == [None, None]


def test_legs_without_a_part_are_not_kept(core, three):
    uid = volumes.create(core, T, volume(replicas=3))
    write(core, uid, "old")
    note(core, uid, 1, state="Missing", freshness=models.STALE)
    published(core, uid)
    snap = made_snapshot(core, uid)
    assert not snapshots.get(core, T, snap)[0].coherent
    publish.unpublish(core, T, UnpublishRequest(vol_id=uid, host_id="host-1"))
    note(core, uid, 1, state="Available", freshness=models.FRESH)
    before = {place.uuid for place in shown(core, uid).location}
    reverted(core, uid, snap)
    assert data(core, uid) == ["old"]
    after = [one.uuid for one in rows_of(core, uid) if one.in_sync]
    assert len(after) == 1
    assert set(after) < before
    reconcile.run(core)
    assert not (before - set(after)) & core.nodes.objects()
    assert {one for one in freshness(core, uid) if one != "fresh"} <= {"blank"}


@pytest.mark.parametrize("fault", ["lost request", "lost answer"])
def test_a_revert_cut_off_on_one_node_is_finished_later(core, pair, fault):
    uid, snap = pair
    last = port(core, uid, 1)
    core.nodes.faults[last, "revert_replica"] = fault
    with pytest.raises(errors.BackendUnavailableError):
        reverted(core, uid, snap)
    assert legs(core, uid)[0].content == "old"
    for call in (
        lambda: published(core, uid),
        lambda: made_snapshot(core, uid, "other"),
        lambda: snapshots.clone(core, T, CloneCreate(source_volume_id=uid, alias="c")),
        lambda: snapshots.delete(core, T, snap),
        lambda: volumes.extend(core, T, uid, 2),
    ):
        with pytest.raises(errors.BusyError, match="a revert to a snapshot"):
            call()
    assert reconcile.run(core).waiting == 1
    core.nodes.faults.clear()
    assert reconcile.run(core).settled == 1
    assert data(core, uid) == ["old", "old"]
    assert unsettled(core, uid) == []
    write(core, uid, "newer")
    reconcile.run(core)
    assert data(core, uid) == ["newer", "newer"], "one revert happens once"
    published(core, uid)


def test_the_same_call_again_goes_on(core, pair):
    uid, snap = pair
    core.nodes.faults[port(core, uid, 1), "revert_replica"] = "lost answer"
    with pytest.raises(errors.BackendUnavailableError):
        reverted(core, uid, snap)
    core.nodes.faults.clear()
    later = rows(core, models.Volume)[0].wish
    reverted(core, uid, snap)
    assert data(core, uid) == ["old", "old"]
    assert later["revert"]["snapshot"] == snap
    assert rows(core, models.Volume)[0].wish == {}


def test_another_snapshot_waits_for_the_first(core, pair):
    uid, snap = pair
    other = made_snapshot(core, uid, "other")
    core.nodes.faults[port(core, uid, 1), "revert_replica"] = "lost request"
    with pytest.raises(errors.BackendUnavailableError):
        reverted(core, uid, snap)
    with pytest.raises(errors.BusyError):
        reverted(core, uid, other)


def test_a_refusal_of_all_nodes_changes_nothing(core, pair):
    uid, snap = pair
    for number in range(2):
        core.nodes.faults[port(core, uid, number), "revert_replica"] = errors.ConflictError("bad")
    with pytest.raises(errors.ConflictError, match="bad"):
        reverted(core, uid, snap)
    assert data(core, uid) == ["new", "new"]
    assert unsettled(core, uid) == []
    core.nodes.faults.clear()
    published(core, uid)


def test_a_leg_whose_node_refuses_is_replaced(core, pair):
    uid, snap = pair
    refused = shown(core, uid).location[1].uuid
    core.nodes.faults[port(core, uid, 1), "revert_replica"] = errors.ConflictError("bad")
    reverted(core, uid, snap)
    assert data(core, uid) == ["old"]
    assert refused not in {place.uuid for place in shown(core, uid).location}
    core.nodes.faults.clear()
    reconcile.run(core)
    assert refused not in core.nodes.objects()


def test_an_export_left_behind_is_taken_away_first(core, pair):
    uid, snap = pair
    published(core, uid)
    core.nodes.down.add(port(core, uid, 0))
    publish.unpublish(core, T, UnpublishRequest(vol_id=uid, host_id="host-1"))
    core.nodes.down.clear()
    with pytest.raises(errors.InUseError):
        reverted(core, uid, snap)
    reconcile.run(core)
    assert data(core, uid) == ["old", "old"]
    assert unsettled(core, uid) == []


def test_what_cannot_be_reverted(core, three, pair):
    uid, snap = pair
    other = volumes.create(core, T, volume("other", replicas=2))
    with pytest.raises(errors.ConflictError, match="is of volume"):
        reverted(core, other, snap)
    with pytest.raises(errors.NotExistsError, match="no snapshot"):
        reverted(core, uid, other)
    with pytest.raises(errors.NotExistsError, match="no volume"):
        reverted(core, snap, snap)
    published(core, uid)
    with pytest.raises(errors.InUseError, match="unpublish it first"):
        reverted(core, uid, snap)
    publish.unpublish(core, T, UnpublishRequest(vol_id=uid, host_id="host-1"))
    with core.db.write() as session:
        session.add(
            models.Task(
                uuid=snap,
                type="OfflineMigration",
                state="RUNNING",
                volume_id=uid,
                created=0,
                updated=0,
            )
        )
    with pytest.raises(errors.BusyError, match="migrated"):
        reverted(core, uid, snap)
    with core.db.write() as session:
        session.delete(session.get_one(models.Task, snap))
        for part in session.get_one(models.Snapshot, snap).parts:
            part.replica_id = other
    with pytest.raises(errors.ConflictError, match="has a part"):
        reverted(core, uid, snap)


def test_a_node_that_is_down_is_seen_before(core, pair):
    uid, snap = pair
    core.nodes.down.add(port(core, uid, 1))
    for _ in range(2):
        backends.probe(core)
    with pytest.raises(errors.BackendUnavailableError, match="is Unavailable"):
        reverted(core, uid, snap)
    assert unsettled(core, uid) == []
    assert legs(core, uid)[0].content == "new"


@pytest.mark.parametrize(
    ("target", "name", "after"),
    [
        ("revert", "finish", False),
        ("nodes", "call_all", False),
        ("nodes", "call_all", True),
        ("revert", "_commit", False),
        ("revert", "_commit", True),
        ("removals", "carry_out", False),
    ],
)
def test_a_revert_is_finished_after_a_crash(core, pair, monkeypatch, target, name, after):
    uid, snap = pair
    owner = {"nodes": core.nodes, "revert": revert, "removals": removals}[target]
    with killed(monkeypatch, owner, name, after=after):
        reverted(core, uid, snap)
    reconcile.run(core)
    assert data(core, uid) == ["old", "old"]
    assert unsettled(core, uid) == []
    published(core, uid)


@pytest.mark.parametrize("number", [1, 2])
def test_a_revert_cut_off_between_two_nodes(core, pair, monkeypatch, number):
    uid, snap = pair
    with killed(monkeypatch, core.nodes, "call", number=number):
        reverted(core, uid, snap)
    if unsettled(core, uid):
        with pytest.raises(errors.BusyError):
            published(core, uid)
    reconcile.run(core)
    assert data(core, uid) == ["old", "old"]


def test_over_the_wire(web, core):
    uid = volumes.create(core, T, volume(replicas=2))
    snap = made_snapshot(core, uid)
    body = {"volumeID": uid, "snapshotID": snap}
    assert web.post("/revert_volume", json=body).json()["status"] == "Success"
    assert web.post("/0/revert_volume", json=body).json()["status"] == "Success"
    assert "revert-volume" in web.get("/info").json()["capabilities"]
