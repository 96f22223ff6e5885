# SPDX-License-Identifier: Apache-2.0
"""The component size in the superblock of a leg that has grown while no host uses it."""

import os
import pathlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumo_client import errors
from kumo_client.schemas.node import ArrayIdentity, ReplicaSource
from kumo_node import md_superblock
from kumo_node.md_superblock import Outcome
from tests.unit.node.conftest import MIB, export, replica, snapshot, uid
from tests.unit.node.superblocks import (
    CHUNK,
    DATA_OFFSET,
    OLD,
    SECTORS,
    bitmap,
    bits_set,
    csum,
    superblock,
)

R1, R2, S1 = uid(1), uid(2), uid(0x51)
NEW = "aabbccdd-eeff-0011-2233-445566778899"
SMALL = (DATA_OFFSET + SECTORS) * 512
LARGE = 32 * MIB
GROWN = LARGE // 512 - DATA_OFFSET


def write(path, block=None, bits=None, size=LARGE):
    """A leg whose device has become larger than its superblock says."""
    image = bytearray(size)
    image[4096:8192] = superblock() if block is None else block
    image[8192:12288] = bitmap() if bits is None else bits
    pathlib.Path(path).write_bytes(image)


def sizes(path):
    """(size, data_size, sync_size of the bitmap), in sectors."""
    image = pathlib.Path(path).read_bytes()
    at = (4096 + 80, 4096 + 136, 8192 + 40)
    return tuple(struct.unpack_from("<Q", image, one)[0] for one in at)


@pytest.fixture
def leg(tmp_path):
    def make(*args, **options):
        write(tmp_path / "leg", *args, **options)
        return str(tmp_path / "leg")

    return make


def test_the_array_covers_the_leg_and_nothing_else_changes(leg):
    path = leg(bits=bitmap(dirty=0b101))
    before = pathlib.Path(path).read_bytes()
    assert md_superblock.grow(path) is Outcome.GROWN
    after = pathlib.Path(path).read_bytes()
    assert sizes(path) == (GROWN, GROWN, GROWN)
    assert csum(after[4096:8192]) == struct.unpack_from("<I", after, 4096 + 216)[0]
    assert bits_set(after[8192:12288], GROWN * 512 // CHUNK) == [0, 2], "of the old part only"
    beyond = 256 + GROWN * 512 // CHUNK // 8
    assert after[8192 + beyond : 12288] == before[8192 + beyond : 12288]
    changed = {at for at in range(len(before)) if before[at] != after[at]}
    fields = {*range(4096 + 80, 4096 + 88), *range(4096 + 136, 4096 + 144)}
    fields |= {*range(4096 + 216, 4096 + 220), *range(8192 + 40, 8192 + 48)}
    assert changed <= fields | set(range(8192 + 256, 8192 + beyond))


def test_again_changes_nothing(leg):
    path = leg()
    md_superblock.grow(path)
    before = pathlib.Path(path).read_bytes()
    assert md_superblock.grow(path) is Outcome.AS_LARGE
    assert pathlib.Path(path).read_bytes() == before


def test_a_leg_without_superblock_is_left_alone(leg):
    path = leg(block=bytes(4096))
    before = pathlib.Path(path).read_bytes()
    assert md_superblock.grow(path) is Outcome.ABSENT
    assert pathlib.Path(path).read_bytes() == before


@pytest.mark.parametrize("extra", [0, 7 * 512 + 511])
def test_a_leg_that_has_not_grown_needs_no_order(leg, extra):
    path = leg(superblock(resync=0, features=2), size=SMALL + extra)
    before = pathlib.Path(path).read_bytes()
    assert md_superblock.grow(path) is Outcome.AS_LARGE
    assert pathlib.Path(path).read_bytes() == before


def test_without_bitmap(leg):
    path = leg(superblock(bitmap=None), bits=b"\x11" * 4096)
    assert md_superblock.grow(path) is Outcome.GROWN
    assert sizes(path)[:2] == (GROWN, GROWN)
    assert pathlib.Path(path).read_bytes()[8192:12288] == b"\x11" * 4096


def test_a_crash_between_the_writes_leaves_the_old_array(leg, monkeypatch):
    path = leg()
    before = pathlib.Path(path).read_bytes()
    written = []

    def stop(handle, block, at):
        if written:
            raise KeyboardInterrupt
        written.append(at)
        return real(handle, block, at)

    real = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", stop)
        with pytest.raises(KeyboardInterrupt):
            md_superblock.grow(path)
    assert written == [8192], "the bitmap first"
    after = pathlib.Path(path).read_bytes()
    assert after[4096:8192] == before[4096:8192]
    chunks = SECTORS * 512 // CHUNK
    assert bits_set(after[8192:12288], chunks) == bits_set(before[8192:12288], chunks) == []
    assert md_superblock.grow(path) is Outcome.GROWN
    assert sizes(path) == (GROWN, GROWN, GROWN)


@pytest.mark.parametrize(
    ("block", "bits", "why"),
    [
        (superblock(level=10), None, "level is 10"),
        (superblock(level=-1), None, "level is -1"),
        (superblock(features=2), None, "0x2"),
        (superblock(features=4), None, "0x4"),
        (superblock(features=8), None, "0x8"),
        (superblock(features=512), None, "0x200"),
        (superblock(features=1 << 31), None, "0x80000000"),
        (superblock(resync=0), None, "not in sync"),
        (superblock(resync=SECTORS), None, "not in sync"),
        (superblock(), bitmap(version=5), "version 5"),
        (superblock(), bitmap(nodes=2), "2 nodes"),
        (superblock(), bitmap(state=2), "state 0x2"),
    ],
)
def test_an_array_that_is_not_in_order_is_refused(leg, block, bits, why):
    path = leg(block, bits)
    before = pathlib.Path(path).read_bytes()
    with pytest.raises(errors.ConflictError, match=why) as caught:
        md_superblock.grow(path)
    assert "Attach the volume" in caught.value.way_out
    assert pathlib.Path(path).read_bytes() == before


@pytest.mark.parametrize(
    ("block", "bits", "why"),
    [
        (superblock(spoil=1), None, "checksum"),
        (superblock(size=GROWN + 1), None, "more than the device has"),
        (superblock(), bitmap(magic=0), "no bitmap of this array"),
        (superblock(), bitmap(identity=type(OLD)(NEW)), "no bitmap of this array"),
        (superblock(), bitmap(chunk=256), "chunks of 256 bytes"),
        (superblock(), bitmap(chunk=65537), "chunks of 65537 bytes"),
    ],
)
def test_what_is_not_sound_is_left_alone(leg, block, bits, why):
    path = leg(block, bits)
    before = pathlib.Path(path).read_bytes()
    with pytest.raises(errors.ConflictError, match=why):
        md_superblock.grow(path)
    assert pathlib.Path(path).read_bytes() == before


def test_the_bitmap_must_have_room_for_every_chunk(tmp_path):
    """The log begins 8 sectors after it: room for (4096 - 256) * 8 bits; a chunk is a sector."""
    chunks = (4096 - 256) * 8
    for more, fits in ((0, True), (8, False)):
        path = tmp_path / str(more)
        write(path, bits=bitmap(chunk=512), size=(DATA_OFFSET + chunks + more) * 512)
        if fits:
            assert md_superblock.grow(str(path)) is Outcome.GROWN
            assert bits_set(path.read_bytes()[8192:12288], chunks) == []
        else:
            with pytest.raises(errors.ConflictError, match="has 4096 bytes and would need 4097"):
                md_superblock.grow(str(path))


def test_a_bitmap_of_more_than_a_page(tmp_path):
    path = tmp_path / "leg"
    block = superblock(bblog=8 + 128)
    write(path, block, bitmap(chunk=512), size=(DATA_OFFSET + 65536) * 512)
    with path.open("r+b") as device:
        device.seek(12288)
        device.write(b"\xff" * 61440)
    assert md_superblock.grow(str(path)) is Outcome.GROWN
    image = path.read_bytes()
    assert bits_set(image[8192 : 8192 + 65536], 65536) == []
    assert set(image[8192 + 256 + 8192 : 8192 + 65536]) == {0xFF}


@pytest.mark.parametrize(
    ("bitmap_at", "changes", "sectors"),
    [
        (8, {}, 8),
        (8, {"bblog": 136}, 128),
        (8, {"bblog_size": 0}, DATA_OFFSET - 16),
        (8, {"bblog": -8}, DATA_OFFSET - 16),
        (-8, {}, 8),
        (-8, {"bblog": -2}, 6),
        (DATA_OFFSET, {}, 0),
    ],
)
def test_the_room_of_a_bitmap_ends_where_something_else_begins(bitmap_at, changes, sectors):
    block = superblock(bitmap=bitmap_at, **changes)
    assert md_superblock._bitmap_room(block) == sectors * 512


@pytest.mark.parametrize(("reserved", "after"), [(0, 0), (1, 2), (8, 8)])
def test_the_sectors_reserved_are_those_in_use_at_least(leg, reserved, after):
    path = leg(bits=bitmap(chunk=8192, reserved=reserved))
    assert md_superblock.grow(path) is Outcome.GROWN
    assert struct.unpack_from("<I", pathlib.Path(path).read_bytes(), 8192 + 64)[0] == after


@settings(max_examples=30, deadline=None)
@given(
    st.integers(SECTORS, 4 * SECTORS),
    st.integers(0, 30000),
    st.sampled_from([512, 1024, 4096, CHUNK]),
    st.integers(0, (1 << 64) - 1),
)
def test_any_growth(tmp_path_factory, sectors, more, chunk, dirty):
    chunks = -(-sectors * 512 // chunk)
    dirty &= (1 << chunks) - 1
    path = tmp_path_factory.mktemp("grow") / "leg"
    bits = bitmap(size=sectors, chunk=chunk, dirty=dirty)
    write(
        path,
        superblock(size=sectors, bblog_size=0),
        bits,
        size=(DATA_OFFSET + sectors + more) * 512,
    )
    room = (sectors + more) // 8 * 8
    grown = md_superblock.grow(str(path))
    assert grown is (Outcome.GROWN if room > sectors else Outcome.AS_LARGE)
    if grown is Outcome.GROWN:
        assert sizes(path) == (room, room, room)
        seen = bits_set(path.read_bytes()[8192 : 8192 + 32768], -(-room * 512 // chunk))
        assert sum(1 << bit for bit in seen) == dirty
        assert md_superblock.grow(str(path)) is Outcome.AS_LARGE


# -- the verbs ------------------------------------------------------------------------------------


def make_leg(machine, node, block=None):
    """A replica of 16 MiB with an array that covers it, as a host leaves it."""
    node.replicas.put(R1, replica(16))
    with open(machine.host.file(f"r-{R1}"), "r+b") as device:
        device.seek(4096)
        size = 16 * MIB // 512 - DATA_OFFSET
        device.write((block or superblock(size=size)) + bitmap(size=size))
    return machine.host.file(f"r-{R1}")


def test_a_detached_leg_grows_with_its_array(machine, node):
    path = make_leg(machine, node)
    for _ in range(2):
        assert node.replicas.resize(R1, LARGE, grow_array=True).bytes == LARGE
        assert sizes(path) == (GROWN, GROWN, GROWN)


def test_an_attached_leg_grows_without_its_array(machine, node):
    path = make_leg(machine, node)
    before = path.read_bytes()
    node.exports.put(R1, export())
    with pytest.raises(errors.InUseError, match="exported"):
        node.replicas.resize(R1, LARGE, grow_array=True)
    assert node.replicas.get(R1).bytes == 16 * MIB, "refused before anything was done"
    assert node.replicas.resize(R1, LARGE).bytes == LARGE
    assert path.read_bytes()[: len(before)] == before
    node.exports.delete(R1, None)
    node.replicas.resize(R1, LARGE, grow_array=True)
    assert sizes(path)[0] == GROWN


def test_a_leg_that_was_never_attached_has_no_array(machine, node):
    node.replicas.put(R1, replica(16))
    assert node.replicas.resize(R1, LARGE, grow_array=True).bytes == LARGE
    assert not any(machine.host.file(f"r-{R1}").read_bytes())


def test_an_array_that_is_refused_leaves_a_larger_leg(machine, node):
    path = make_leg(machine, node, superblock(size=SECTORS, resync=0))
    for _ in range(2):
        with pytest.raises(errors.ConflictError, match="not in sync"):
            node.replicas.resize(R1, LARGE, grow_array=True)
    assert node.replicas.get(R1).bytes == LARGE
    assert sizes(path)[0] == SECTORS


def test_a_leg_that_cannot_be_read(machine, node, monkeypatch):
    make_leg(machine, node)

    def refuse(path):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(md_superblock, "grow", refuse)
        with pytest.raises(errors.InternalError, match="cannot be accessed"):
            node.replicas.resize(R1, LARGE, grow_array=True)
    node.replicas.resize(R1, LARGE, grow_array=True)


@pytest.mark.parametrize("source", ["snapshot", "replica"])
def test_a_larger_copy_has_a_larger_array_of_its_own(machine, node, source):
    path = make_leg(machine, node)
    node.snapshots.put(S1, snapshot(R1))
    before = path.read_bytes()
    origin = ReplicaSource(snapshot=S1) if source == "snapshot" else ReplicaSource(replica=R1)
    wish = replica(32, source=origin, array=ArrayIdentity(uuid=NEW, name="copy"))
    for _ in range(2):
        node.replicas.put(R2, wish)
    copied = machine.host.file(f"r-{R2}")
    assert sizes(copied) == (GROWN, GROWN, GROWN)
    identity = bytes.fromhex(NEW.replace("-", ""))
    image = copied.read_bytes()
    assert image[4096 + 16 : 4096 + 32] == image[8192 + 8 : 8192 + 24] == identity
    assert path.read_bytes() == before


@pytest.mark.parametrize("mib", [16, 32])
def test_a_copy_of_an_array_that_was_not_stopped(machine, node, mib):
    size = 16 * MIB // 512 - DATA_OFFSET
    make_leg(machine, node, superblock(size=size, resync=0))
    identity = ArrayIdentity(uuid=NEW, name="copy")
    wish = replica(mib, source=ReplicaSource(replica=R1), array=identity)
    if mib == 16:
        assert node.replicas.put(R2, wish).bytes == 16 * MIB
        return
    with pytest.raises(errors.ConflictError, match="not stopped cleanly"):
        node.replicas.put(R2, wish)
    assert machine.host.names() == {f"r-{R1}"}
