# SPDX-License-Identifier: Apache-2.0
"""Making a replica what a snapshot of it is."""

import pytest

from kumo_client import errors
from kumo_client.schemas.node import ArrayIdentity, Limits, RevertSpec
from kumo_node import md_superblock
from kumo_node.lvm import made_tag
from tests.unit.node import superblocks
from tests.unit.node.conftest import HOST_A, MIB, export, replica, snapshot, uid

# What a host writes to the first MiB of a leg.
LEG = bytes(4096) + superblocks.superblock() + superblocks.bitmap()
R1, R2, S1, S2 = uid(1), uid(2), uid(0x51), uid(0x52)


def wish(operation=0x70, of=S1, **kwargs):
    return RevertSpec(snapshot=of, operation=uid(operation), **kwargs)


def write(machine, text, at=0, uuid=R1):
    with open(machine.host.file(f"r-{uuid}"), "r+b") as device:
        device.seek(at)
        device.write(text)


def read(machine, uuid=R1):
    return machine.host.file(f"r-{uuid}").read_bytes()


@pytest.fixture
def taken(machine, node):
    """A replica of 16 MiB with a snapshot of an older content."""
    node.replicas.put(R1, replica(limits=Limits(max_iops=10)))
    write(machine, b"old")
    node.snapshots.put(S1, snapshot(R1))
    write(machine, b"new")
    return node


def test_the_contents_are_those_of_the_snapshot(machine, taken):
    made = taken.revert.put(R1, wish())
    assert (made.bytes, made.limits.max_iops) == (16 * MIB, 10)
    assert read(machine)[:3] == b"old"
    assert machine.host.names() == {f"r-{R1}", f"s-{S1}"}
    record = taken.ctx.spec.data.replicas[R1]
    assert made_tag(record.token) in machine.host.lv(f"r-{R1}").tags
    taken.exports.put(R1, export())
    assert set(machine.nvmet.visible()) == {(HOST_A, R1)}


def test_a_repetition_of_the_same_operation_changes_nothing(machine, taken):
    taken.revert.put(R1, wish())
    write(machine, b"later")
    generation = taken.ctx.spec.data.generation
    taken.exports.put(R1, export())
    taken.revert.put(R1, wish())
    assert read(machine)[:5] == b"later"
    taken.exports.delete(R1, None)
    assert taken.ctx.spec.data.generation > generation
    taken.revert.put(R1, wish(0x71))
    assert read(machine)[:5] == b"old\0\0"


def test_a_replica_that_has_grown_keeps_its_size_and_reads_zeros_behind(machine, taken):
    taken.replicas.resize(R1, 32 * MIB)
    write(machine, b"behind", at=20 * MIB)
    assert taken.revert.put(R1, wish()).bytes == 32 * MIB
    found = read(machine)
    assert (len(found), found[:3]) == (32 * MIB, b"old")
    assert not any(found[16 * MIB :])


def test_the_array_gets_the_identity_that_is_given(machine, node):
    node.replicas.put(R1, replica())
    write(machine, LEG)
    node.snapshots.put(S1, snapshot(R1))
    node.revert.put(R1, wish(array=ArrayIdentity(uuid=R2, name="again")))
    device = node.ctx.lvm_of(node.ctx.replica(R1)).device(f"r-{R1}")
    assert md_superblock.restamp(device, R2, "again") is md_superblock.Outcome.SAME


def test_an_unsound_superblock_leaves_the_replica_as_it_is(machine, node):
    node.replicas.put(R1, replica())
    broken = bytearray(LEG)
    broken[4096 + 100] ^= 0xFF
    write(machine, bytes(broken))
    node.snapshots.put(S1, snapshot(R1))
    write(machine, b"now")
    with pytest.raises(errors.ConflictError, match="not sound"):
        node.revert.put(R1, wish(array=ArrayIdentity(uuid=R2, name="x")))
    assert read(machine)[:3] == b"now"
    assert machine.host.names() == {f"r-{R1}", f"s-{S1}"}
    assert node.ctx.spec.data.replicas[R1].revert is None


def test_what_cannot_be_reverted(machine, taken):
    taken.replicas.put(R2, replica())
    taken.snapshots.put(S2, snapshot(R2))
    for replica_uuid, spec, error in (
        (uid(9), wish(), errors.NotExistsError),
        (R1, wish(of=uid(9)), errors.NotExistsError),
        (R1, wish(of=S2), errors.ConflictError),
    ):
        with pytest.raises(error):
            taken.revert.put(replica_uuid, spec)
    taken.exports.put(R1, export())
    with pytest.raises(errors.InUseError, match="exported"):
        taken.revert.put(R1, wish())
    assert read(machine)[:3] == b"new"


def test_a_volume_that_is_held_open_is_not_replaced(machine, taken):
    machine.host.lv(f"r-{R1}").opened = True
    with pytest.raises(errors.InUseError, match="held open"):
        taken.revert.put(R1, wish())
    assert read(machine)[:3] == b"new"
    assert machine.host.names() == {f"r-{R1}", f"s-{S1}"}
    machine.host.lv(f"r-{R1}").opened = False
    taken.revert.put(R1, wish())
    assert read(machine)[:3] == b"old"


def test_a_volume_of_others_in_the_place_stops_it(machine, taken):
    machine.host.foreign_lv(f"v-{R1}")
    with pytest.raises(errors.ConflictError, match="not ours"):
        taken.revert.put(R1, wish())
    assert f"v-{R1}" in machine.host.names()
    assert read(machine)[:3] == b"new"


def test_a_revert_that_was_cut_off_keeps_other_verbs_away_until_it_is_finished(machine, taken):
    machine.host.fail = [("^lvrename", "hang")]
    with pytest.raises(errors.BackendUnavailableError):
        taken.revert.put(R1, wish())
    for verb in (
        lambda: taken.exports.put(R1, export()),
        lambda: taken.snapshots.put(S2, snapshot(R1)),
        lambda: taken.replicas.resize(R1, 32 * MIB),
        lambda: taken.replicas.delete(R1),
        lambda: taken.replicas.put(R1, replica()),
        lambda: taken.revert.put(R1, wish(0x71)),
    ):
        with pytest.raises(errors.BusyError):
            verb()
    # Beyond the point where it could be undone: the old volume has gone.
    machine.host.fail = [("^lvrename", "no")]
    with pytest.raises(errors.InternalError):
        taken.revert.put(R1, wish())
    assert taken.restore.round() == []
    assert read(machine)[:3] == b"old"
    assert taken.ctx.spec.data.replicas[R1].revert is None


def test_a_snapshot_that_went_away_meanwhile_undoes_a_revert_that_was_cut_off(machine, taken):
    machine.host.fail = [("^lvcreate", "hang")]
    with pytest.raises(errors.BackendUnavailableError):
        taken.revert.put(R1, wish())
    taken.snapshots.delete(S1)
    assert len(taken.restore.round()) == 1
    assert taken.restore.round() == []
    assert read(machine)[:3] == b"new"
    assert taken.ctx.spec.data.replicas[R1].revert is None
