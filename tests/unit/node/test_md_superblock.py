# SPDX-License-Identifier: Apache-2.0
"""A new identity for the superblock on a copied leg."""

import pathlib
import struct
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumo_client import errors
from kumo_client.schemas.node import ArrayIdentity, ReplicaSource
from kumo_node import md_superblock
from kumo_node.md_superblock import Outcome
from tests.unit.node.conftest import replica, uid
from tests.unit.node.superblocks import OLD, bitmap, csum, superblock

NEW = "aabbccdd-eeff-0011-2233-445566778899"


def contents(path):
    return pathlib.Path(path).read_bytes()


@pytest.fixture
def leg(tmp_path):
    path = tmp_path / "leg"

    def write(block=None, bits=None, size=1 << 20):
        image = bytearray(b"\x5a" * size)
        image[4096:8192] = superblock() if block is None else block
        image[8192:12288] = bitmap() if bits is None else bits
        path.write_bytes(image)
        return str(path)

    return write


def test_a_copy_gets_the_new_identity_and_nothing_else_changes(leg):
    path = leg()
    before = contents(path)
    assert md_superblock.restamp(path, NEW, "new-volume") is Outcome.STAMPED
    after = contents(path)
    changed = {at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
    allowed = {*range(4096 + 16, 4096 + 64), *range(4096 + 216, 4096 + 220)}
    assert changed <= allowed | set(range(8192 + 8, 8192 + 24))
    assert (
        after[4096 + 16 : 4096 + 32]
        == after[8192 + 8 : 8192 + 24]
        == bytes.fromhex(NEW.replace("-", ""))
    )
    assert after[4096 + 32 : 4096 + 64] == b"new-volume".ljust(32, b"\0")
    assert csum(after[4096:8192]) == struct.unpack_from("<I", after, 4096 + 216)[0]


def test_again_changes_nothing(leg):
    path = leg()
    md_superblock.restamp(path, NEW, "n")
    before = contents(path)
    assert md_superblock.restamp(path, NEW, "n") is Outcome.SAME
    assert contents(path) == before


def test_a_crash_after_the_bitmap_is_finished_by_the_next_call(leg):
    path = leg(bits=bitmap(uuid.UUID(NEW)))
    assert md_superblock.restamp(path, NEW, "n") is Outcome.STAMPED
    assert contents(path)[8192 + 8 : 8192 + 24] == uuid.UUID(NEW).bytes


def test_without_superblock_nothing_is_written(leg):
    path = leg(block=bytes(4096))
    before = contents(path)
    assert md_superblock.restamp(path, NEW, "n") is Outcome.ABSENT
    assert contents(path) == before


def test_without_bitmap_only_the_superblock_changes(leg):
    path = leg(block=superblock(bitmap=None), bits=b"\x11" * 4096)
    assert md_superblock.restamp(path, NEW, "n") is Outcome.STAMPED
    assert contents(path)[8192:12288] == b"\x11" * 4096


def test_a_bitmap_before_the_superblock(leg):
    path = leg(block=superblock(bitmap=-8))
    with open(path, "r+b") as device:
        device.write(bitmap())
    assert md_superblock.restamp(path, NEW, "n") is Outcome.STAMPED
    assert contents(path)[8:24] == uuid.UUID(NEW).bytes


@pytest.mark.parametrize(
    ("block", "bits", "why"),
    [
        (superblock(spoil=1), None, "checksum"),
        (superblock(major=2), None, "version"),
        (superblock(super_offset=0), None, "sector 0"),
        (superblock(super_offset=1000), None, "sector 1000"),
        (superblock(), bitmap(magic=0), "no bitmap"),
        (superblock(bitmap=-16), None, "begin at byte"),
        (superblock(bitmap=1 << 20), None, "ends before"),
    ],
)
def test_what_is_not_sound_is_left_alone(leg, block, bits, why):
    path = leg(block, bits)
    before = contents(path)
    with pytest.raises(errors.ConflictError, match=why):
        md_superblock.restamp(path, NEW, "n")
    assert contents(path) == before


def test_too_many_devices_claimed_is_not_sound(leg):
    block = bytearray(superblock())
    struct.pack_into("<I", block, 220, 60000)
    with pytest.raises(errors.ConflictError, match="60000 devices"):
        md_superblock.restamp(leg(bytes(block)), NEW, "n")


def test_a_device_that_is_too_short(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(bytes(5000))
    with pytest.raises(errors.ConflictError, match="ends before"):
        md_superblock.restamp(str(path), NEW, "n")


def test_a_name_longer_than_md_allows(leg):
    with pytest.raises(errors.InvalidInputError):
        md_superblock.restamp(leg(), NEW, "ä" * 17)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1920), st.binary(min_size=16, max_size=16), st.binary(max_size=32))
def test_the_checksum_is_the_kernels(max_dev, identity, name):
    block = superblock(uuid.UUID(bytes=identity), name.ljust(32, b"\0"), max_dev)
    assert md_superblock.checksum(block) == csum(block)


@pytest.mark.parametrize("spoil", [0, 1])
def test_a_replica_made_from_a_leg(machine, node, spoil):
    node.replicas.put(uid(1), replica())
    with open(machine.host.file(f"r-{uid(1)}"), "r+b") as device:
        device.seek(4096)
        device.write(superblock(spoil=spoil) + bitmap())
    wish = replica(
        32, source=ReplicaSource(replica=uid(1)), array=ArrayIdentity(uuid=NEW, name="copy")
    )
    if spoil:
        with pytest.raises(errors.ConflictError, match="not sound"):
            node.replicas.put(uid(2), wish)
        assert machine.host.names() == {f"r-{uid(1)}"}
        return
    for _ in range(2):
        node.replicas.put(uid(2), wish)
    copied = machine.host.file(f"r-{uid(2)}").read_bytes()
    assert copied[4096 + 16 : 4096 + 32] == uuid.UUID(NEW).bytes
    origin = machine.host.file(f"r-{uid(1)}").read_bytes()
    assert origin[4096 + 16 : 4096 + 32] == OLD.bytes


def test_a_copy_that_cannot_be_opened_is_undone(machine, node, monkeypatch):
    node.replicas.put(uid(1), replica())
    wish = replica(source=ReplicaSource(replica=uid(1)), array=ArrayIdentity(uuid=NEW, name="c"))

    def refuse(path, *args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(md_superblock, "restamp", refuse)
    with pytest.raises(errors.InternalError, match="cannot be accessed"):
        node.replicas.put(uid(2), wish)
    assert machine.host.names() == {f"r-{uid(1)}"}
