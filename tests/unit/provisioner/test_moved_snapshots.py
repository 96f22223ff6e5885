# SPDX-License-Identifier: Apache-2.0
"""A replica that has moved since a snapshot was taken, and a revert to that snapshot."""

import pytest

from kumo_client import errors
from kumo_client.schemas.snapshot import SnapshotVolumeCreate
from kumo_client.schemas.task import FINISHED
from kumo_client.schemas.volume import CloneCreate, MigrateVolume, Revert
from kumo_provisioner import reconcile
from kumo_provisioner.services import migration, revert, snapshots, tasks, volumes
from tests.unit.provisioner.conftest import volume
from tests.unit.provisioner.live import data, freshness, note_volume, write
from tests.unit.provisioner.stories import T, made_snapshot, shown


def moved(core, uid):
    """Move the first replica by its nodes; gives uuid of the old and of the new one."""
    before = [place.uuid for place in shown(core, uid).location]
    request = MigrateVolume(vol_id=uid, rep_id=before[0])
    task = migration.migrate(core, T, request)
    for _ in range(4):
        migration.run(core)
    (found,) = tasks.list_all(core, None, task_id=task)
    assert found.state == FINISHED
    (new,) = {place.uuid for place in shown(core, uid).location} - set(before)
    return before[0], new


def reverted(core, uid, snap):
    revert.revert(core, T, Revert(volume_id=uid, snapshot_id=snap))


def test_the_replicas_that_stayed_are_reverted_and_the_moved_one_is_made_anew(core, four):
    uid = volumes.create(core, T, volume(replicas=2))
    note_volume(core, uid, array_state="clean")
    write(core, uid, "old")
    snap = made_snapshot(core, uid)
    write(core, uid, "new")
    _, new = moved(core, uid)
    assert data(core, uid) == ["new", "new"]
    reverted(core, uid, snap)
    # Nothing that could be taken for the volume's data holds what was discarded.
    assert data(core, uid) == ["old"]
    assert new not in {place.uuid for place in shown(core, uid).location}
    reconcile.run(core)
    assert new not in core.nodes.objects()
    assert freshness(core, uid) == ["fresh", "blank"]


def test_a_volume_whose_only_replica_moved_is_not_reverted_and_loses_nothing(core, four):
    uid = volumes.create(core, T, volume())
    write(core, uid, "old")
    snap = made_snapshot(core, uid)
    write(core, uid, "new")
    moved(core, uid)
    with pytest.raises(errors.ConflictError, match="any more") as caught:
        reverted(core, uid, snap)
    assert "make a volume from the snapshot" in caught.value.way_out
    assert data(core, uid) == ["new"]
    copy = snapshots.clone(core, T, CloneCreate(source_volume_id=uid, alias="now"))
    assert data(core, copy) == ["new"]
    copy = snapshots.create_volume(core, T, SnapshotVolumeCreate(snapshot_id=snap, alias="copy"))
    assert data(core, copy) == ["old"]
