# SPDX-License-Identifier: Apache-2.0
"""A move whose first answer was lost is asked for again."""

import pytest

from kumo_client import errors
from kumo_client.schemas.host import PublishRequest
from kumo_client.schemas.volume import MigrateVolume
from kumo_provisioner.services import migration, publish, tasks, volumes
from tests.unit.provisioner.conftest import HOST, volume


@pytest.mark.parametrize("attached", [False, True])
def test_it_is_the_same_move(core, four, attached):
    uid = volumes.create(core, "0", volume(replicas=2))
    if attached:
        publish.publish(core, "0", PublishRequest(host_id="host-1", vol_id=uid, host=HOST))
    (found,) = volumes.get(core, "0", uid)
    old, other = found.location
    used = {place.backend.persistent_id for place in found.location}
    to, elsewhere = sorted({node.persistent_id for node in four} - used)
    ask = MigrateVolume(vol_id=uid, rep_id=old.uuid, destination_backend_id=to)
    begun = migration.migrate(core, "0", ask)
    assert migration.migrate(core, "0", ask) == begun
    assert migration.migrate(core, "0", MigrateVolume(vol_id=uid, rep_id=old.uuid)) == begun
    assert [task.task_id for task in tasks.list_all(core, None)] == [begun]
    for change in ({"rep_id": other.uuid}, {"destination_backend_id": elsewhere}):
        with pytest.raises(errors.BusyError, match="moving already"):
            migration.migrate(core, "0", ask.model_copy(update=change))
