# SPDX-License-Identifier: Apache-2.0
"""What the tests of the operator's commands share: a filled server, sleep without time, output."""

import json
import uuid

import pytest

from kumo_client.cli import progress, watch
from kumo_client.schemas.backend import BackendCreate, BackendPool
from kumo_client.schemas.host import HostProbe
from kumo_client.schemas.node import Ssd
from kumo_client.schemas.snapshot import SnapshotCreate
from kumo_client.schemas.volume import StorageClass, VolumeCreate

V1, V2, S1 = (str(uuid.UUID(int=number)) for number in range(1, 4))
H1 = "11111111-1111-1111-1111-111111111111"
NQN = "nqn.2014-08.org.nvmexpress:uuid:h1"


@pytest.fixture
def filled(api, operated):
    """Two nodes, a replicated volume with a snapshot, and a host."""
    for number in (1, 2):
        api.add_backend(BackendCreate(mgmt_ips=[f"10.0.0.{number}"]))
    pool = BackendPool(
        name="ssd-1",
        total_bytes=3 << 30,
        sold_iops=5,
        max_iops=9,
        ssds=[Ssd(path="/dev/sdb", wear_percent=7), Ssd(path="/dev/sdc", state="failed")],
    )
    operated.backends["node-1"].pools = [pool]
    asked = StorageClass(num_replicas=2)
    api.create_volume(VolumeCreate(uuid=V1, alias="v1", capacity=12, storage_class=asked))
    api.create_snapshot(SnapshotCreate(alias="s1", volume_id=V1, snapshot_id=S1))
    api.probe_host(HostProbe(host_nqn=NQN, host_id=H1, name="compute-1"))
    api.session.close()
    return operated


@pytest.fixture
def slept(monkeypatch):
    """Sleeping takes no time; Ctrl-C is pressed in place of the last pause of ``slept.left``."""

    class Slept(list):
        left = 1000
        now = 0.0

        def __call__(self, seconds):
            self.append(seconds)
            self.now += seconds
            if len(self) >= self.left:
                raise KeyboardInterrupt

    found = Slept()
    monkeypatch.setattr(watch, "sleep", found)
    monkeypatch.setattr(progress, "sleep", found)
    monkeypatch.setattr(progress, "clock", lambda: found.now)
    return found


def shown(result):
    """The JSON object that was printed."""
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


J = ("-f", "json")
