# SPDX-License-Identifier: Apache-2.0
"""What an operator reads of the life of a volume."""

from kumo_client.schemas.snapshot import SnapshotCreate
from kumo_provisioner.services import events, snapshots, volumes
from tests.unit.provisioner.conftest import volume


def test_the_life_of_a_volume_is_told(core, three):
    uid = volumes.create(core, "0", volume("v", gib=2, replicas=2))
    volumes.extend(core, "0", uid, 3)
    taken = snapshots.create(core, "0", SnapshotCreate(alias="s", volume_id=uid))
    snapshots.delete(core, "0", taken)
    volumes.delete(core, "0", uid)
    told = events.page(core, events.Ask(volume_id=uid)).events
    assert [event.type for event in told] == [
        "volume.created",
        "volume.extended",
        "snapshot.created",
        "snapshot.deleted",
        "volume.deleted",
    ]
    assert told[0].message == "volume v of 2 GiB was created"
    assert told[1].message == "volume v was extended to 3 GiB"
