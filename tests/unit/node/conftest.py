# SPDX-License-Identifier: Apache-2.0
import uuid

import pytest

from kumo_client.schemas.node import ExportSpec, ReplicaSpec, SnapshotSpec
from tests.fakes.node import FakeMachine

MIB = 1 << 20
VOLUME = str(uuid.UUID(int=0xA0))
HOST_A = "nqn.2014-08.org.nvmexpress:uuid:11111111-1111-1111-1111-111111111111"
HOST_B = "nqn.2014-08.org.nvmexpress:uuid:22222222-2222-2222-2222-222222222222"


def uid(number):
    return str(uuid.UUID(int=number))


def replica(mib=16, **kwargs):
    return ReplicaSpec(volume_id=VOLUME, bytes=mib * MIB, **kwargs)


def export(host=HOST_A, io_class="plain"):
    return ExportSpec(host_nqn=host, io_class=io_class)


def snapshot(of, snapshot_id=0xB0):
    return SnapshotSpec(replica=of, snapshot_id=uid(snapshot_id))


@pytest.fixture
def machine(tmp_path):
    made = FakeMachine(tmp_path)
    assert made.start() == []
    yield made
    made.kill()


@pytest.fixture
def node(machine):
    return machine.node
