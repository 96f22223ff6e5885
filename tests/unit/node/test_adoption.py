# SPDX-License-Identifier: Apache-2.0
"""Replicas made of existing volumes, and volumes that are given up without being deleted."""

import pytest

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_client.schemas.node import AdoptSpec, ReleaseSpec
from tests.unit.node import superblocks
from tests.unit.node.conftest import HOST_A, MIB, VOLUME, export, replica, snapshot, uid

# What a host writes to the first MiB of a leg.
LEG = bytes(4096) + superblocks.superblock() + superblocks.bitmap()
R1, R2, S1 = uid(1), uid(2), uid(0x51)


def adopt(name="data", pool="pool", volume=VOLUME):
    return AdoptSpec(name=name, pool=pool, volume_id=volume)


def names(node):
    return {item.name for item in node.adoption.adoptable().volumes}


def test_a_volume_of_others_becomes_a_replica(machine, node):
    machine.host.foreign_lv("data", size=GIB, tags={"theirs"})
    machine.host.file("data").write_bytes(b"pattern")
    (seen,) = node.adoption.adoptable().volumes
    assert (seen.name, seen.pool, seen.bytes, seen.in_use) == ("data", "pool", GIB, False)
    for _ in range(2):
        made = node.adoption.adopt(R1, adopt())
        assert made.volume_id == VOLUME
    assert node.ctx.spec.data.replicas[R1].bytes == GIB
    assert machine.host.names() == {f"r-{R1}"}
    assert "theirs" in machine.host.lv(f"r-{R1}").tags
    assert names(node) == set()
    node.exports.put(R1, export())
    assert set(machine.nvmet.visible()) == {(HOST_A, R1)}
    node.exports.delete(R1, None)
    node.replicas.delete(R1)
    assert machine.host.names() == set()


def test_what_is_ours_is_not_listed(machine, node):
    node.replicas.put(R1, replica())
    node.snapshots.put(S1, snapshot(R1))
    assert names(node) == set()
    for name in (f"r-{R1}", f"s-{S1}"):
        with pytest.raises(errors.ConflictError, match="is a replica"):
            node.adoption.adopt(R2, adopt(name))


def test_a_volume_in_another_pool_of_the_group_is_not_listed(machine, node):
    machine.host.foreign_lv("data")
    machine.host.lv("data").pool = "theirs"
    assert names(node) == set()
    with pytest.raises(errors.NotExistsError):
        node.adoption.adopt(R1, adopt())


@pytest.mark.parametrize(
    ("attribute", "value", "error", "why"),
    [
        ("opened", True, errors.InUseError, "holds it open"),
        ("opened", None, errors.InUseError, "could not be told"),
        ("writable", False, errors.ConflictError, "read-only"),
        ("bytes", GIB + 4096, errors.ConflictError, "multiple"),
    ],
)
def test_volumes_that_cannot_be_taken(machine, node, attribute, value, error, why):
    machine.host.foreign_lv("data", size=GIB)
    setattr(machine.host.lv("data"), attribute, value)
    (seen,) = node.adoption.adoptable().volumes
    assert why in seen.reason
    assert seen.in_use is (attribute == "opened")
    before = set(machine.host.lv("data").tags)
    with pytest.raises(error, match=why):
        node.adoption.adopt(R1, adopt())
    assert machine.host.lv("data").tags == before
    assert node.ctx.spec.data.replicas == {}


def test_a_volume_that_is_opened_meanwhile_gets_its_name_back(machine, node):
    machine.host.foreign_lv("data", size=GIB)

    def open_it(what):
        if what.startswith("lvrename"):
            machine.host.lv("data").opened = True
            machine.host.step = lambda what: None

    machine.host.step = open_it
    with pytest.raises(errors.InUseError):
        node.adoption.adopt(R1, adopt())
    assert machine.host.names() == {"data"}
    assert machine.host.lv("data").tags == set()
    assert node.ctx.spec.data.replicas == {}


def test_the_size_is_whole_gib_or_that_of_a_leg(machine, node):
    machine.host.foreign_lv("data", size=16 * MIB)
    with pytest.raises(errors.InvalidInputError, match="whole GiB"):
        node.adoption.adopt(R1, adopt())
    assert machine.host.names() == {"data"}
    with open(machine.host.file("data"), "r+b") as device:
        device.write(LEG)
    assert node.adoption.adopt(R1, adopt()).bytes == 16 * MIB


def test_a_volume_that_cannot_be_read_is_not_adopted(machine, node, monkeypatch):
    machine.host.foreign_lv("data", size=16 * MIB)

    def broken(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("kumo_node.md_superblock.is_leg", broken)
    with pytest.raises(errors.InternalError, match="cannot be read"):
        node.adoption.adopt(R1, adopt())
    assert machine.host.names() == {"data"}


def test_wishes_that_contradict_what_is(machine, node):
    machine.host.foreign_lv("data", size=GIB)
    machine.host.foreign_lv("other", size=GIB)
    node.adoption.adopt(R1, adopt())
    for uuid, spec, error in (
        (R1, adopt("other"), errors.ConflictError),
        (R1, adopt(volume=uid(7)), errors.ConflictError),
        (R2, adopt("none"), errors.NotExistsError),
        (R2, adopt("other", "nowhere"), errors.InvalidInputError),
    ):
        with pytest.raises(error):
            node.adoption.adopt(uuid, spec)
    assert machine.host.names() == {f"r-{R1}", "other"}


def test_a_replica_is_given_up_with_its_data(machine, node):
    node.replicas.put(R1, replica())
    machine.host.file(f"r-{R1}").write_bytes(b"pattern")
    for _ in range(2):
        node.adoption.release(R1, ReleaseSpec(name="volume-1"))
    assert machine.host.names() == {"volume-1"}
    assert machine.host.lv("volume-1").tags == set()
    assert machine.host.file("volume-1").read_bytes()[:7] == b"pattern"
    assert node.ctx.spec.data.replicas == {}
    assert names(node) == {"volume-1"}


def test_what_cannot_be_given_up(machine, node):
    node.replicas.put(R1, replica())
    machine.host.foreign_lv("theirs")
    for name, error in (
        ("theirs", errors.ConflictError),
        ("-a", errors.InvalidInputError),
        ("..", errors.InvalidInputError),
        ("a b", errors.InvalidInputError),
        ("a_tmeta", errors.InvalidInputError),
        (f"s-{S1}", errors.InvalidInputError),
    ):
        with pytest.raises(error):
            node.adoption.release(R1, ReleaseSpec(name=name))
    machine.host.lv(f"r-{R1}").opened = True
    with pytest.raises(errors.InUseError, match="held open"):
        node.adoption.release(R1, ReleaseSpec(name="good"))
    machine.host.lv(f"r-{R1}").opened = False
    node.exports.put(R1, export())
    with pytest.raises(errors.InUseError, match="exported"):
        node.adoption.release(R1, ReleaseSpec(name="good"))
    assert machine.host.names() == {f"r-{R1}", "theirs"}


def test_a_cut_off_adoption_or_release_keeps_other_verbs_away(machine, node):
    machine.host.foreign_lv("data", size=GIB)
    machine.host.fail = [("^lvrename", "lost")]
    with pytest.raises(errors.BackendUnavailableError):
        node.adoption.adopt(R1, adopt())
    for verb in (
        lambda: node.replicas.put(R1, replica()),
        lambda: node.replicas.delete(R1),
        lambda: node.adoption.release(R1, ReleaseSpec(name="x")),
    ):
        with pytest.raises((errors.BusyError, errors.NotExistsError)):
            verb()
    # The volume has its new name already; the repetition finds it.
    assert node.adoption.adopt(R1, adopt()).uuid == R1
    machine.host.fail = [("^lvrename", "hang")]
    with pytest.raises(errors.BackendUnavailableError):
        node.adoption.release(R1, ReleaseSpec(name="x"))
    with pytest.raises(errors.BusyError, match="being released"):
        node.adoption.release(R1, ReleaseSpec(name="y"))
    with pytest.raises(errors.BusyError):
        node.adoption.adopt(R1, adopt())
    assert node.restore.round() == []
    assert machine.host.names() == {"x"}
