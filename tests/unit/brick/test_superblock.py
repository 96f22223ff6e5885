# SPDX-License-Identifier: Apache-2.0
"""What is on a leg: a superblock, nothing, something else, or it cannot be told."""

import errno
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from os_brick_nvmeof import superblock
from os_brick_nvmeof.superblock import FAULTY, SPARE, Blank, Foreign, Superblock, Unknown
from tests.unit.brick import superblocks
from tests.unit.brick.superblocks import ARRAY, MAX

SIZE = 10 << 20


class Device:
    """A block device of zeros but for what was written."""

    def __init__(self, **written):
        self.content = bytearray(SIZE)
        self.error = None
        self.short = None

    def write(self, at, data):
        self.content[at : at + len(data)] = data
        return self

    def read(self, device, offset, length):
        assert offset % 4096 == length % 4096 == 0
        if self.error and offset >= self.error[0]:
            raise OSError(self.error[1], "no")
        data = bytes(self.content[offset : offset + length])
        return data if self.short is None else data[: self.short]


def look(device, size=SIZE):
    return superblock.read(device, "/dev/nvme0n1", size)


def leg(**changes):
    return look(Device().write(4096, superblocks.superblock(**changes)))


def test_a_leg_that_was_stopped_in_order():
    seen = leg(number=1, events=77)
    assert isinstance(seen, Superblock)
    assert (seen.array_uuid, seen.name, seen.events) == (ARRAY, "any:volume-1", 77)
    assert (seen.number, seen.role, seen.active, seen.raid_disks) == (1, 1, {0, 1}, 2)
    assert (seen.level, seen.size, seen.data_offset, seen.data_size) == (1, 16384, 2048, 16384)
    assert seen.in_sync
    assert seen.clean
    assert seen.whole
    assert not seen.reshaping
    assert seen.device_uuid == "01010101-0101-0101-0101-010101010101"
    assert seen.update_time == 1700000001


@pytest.mark.parametrize("gone", [SPARE, FAULTY])
def test_a_leg_that_went_on_alone_says_so(gone):
    seen = leg(roles=(0, gone), resync_offset=0)
    assert seen.active == {0}
    assert seen.in_sync
    assert not seen.whole
    assert not seen.clean


def test_a_leg_that_is_being_filled_is_not_in_sync():
    assert not leg(features=1 | 2, recovery_offset=4096).in_sync
    assert leg(features=1 | 2, recovery_offset=MAX).in_sync


def test_a_spare_and_a_number_without_role_are_not_in_sync():
    assert not leg(number=1, roles=(0, SPARE)).in_sync
    outside = leg(number=200)
    assert outside.role == SPARE
    assert not outside.in_sync


def test_a_device_beside_another_in_one_place_does_not_make_the_array_whole():
    seen = leg(roles=(0, 0))
    assert seen.active == {0, 1}
    assert not seen.whole


def test_a_reshape_is_seen():
    assert leg(features=4).reshaping


def test_microseconds_of_the_update_time_are_left_out():
    assert leg(utime=1700000001 | 5 << 40).update_time == 1700000001


def test_zeros_are_blank():
    assert look(Device()) == Blank()
    assert str(Blank()) == "it is blank"


@pytest.mark.parametrize(
    ("at", "data", "what"),
    [
        (0, struct.pack("<I", 0xA92B4EFC), "version 1.1"),
        (510, b"\x55\xaa", "partition table"),
        (0, b"XFSB", "file system"),
        (1080, b"\x53\xef", "file system"),
        (4096, b"\x01", "no md superblock"),
        (8191, b"\x01", "no md superblock"),
        (65536 + 64, b"_BHRfS_M", "without a signature"),
        (SIZE - 65536, struct.pack("<I", 0xA92B4EFC), "without a signature"),
        (SIZE - 8192, struct.pack("<I", 0xA92B4EFC), "without a signature"),
        (SIZE - 1, b"\x01", "without a signature"),
    ],
)
def test_anything_else_is_foreign(at, data, what):
    seen = look(Device().write(at, data))
    assert isinstance(seen, Foreign)
    assert what in str(seen)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"spoil": 1}, "checksum"),
        ({"major": 2}, "version 2"),
        ({"super_offset": 0}, "sector 0"),
        ({"max_dev": 60000}, "60000 devices"),
        ({"data_size": SIZE // 512}, "more than the device has"),
        ({"size": SIZE // 512}, "more than the device has"),
    ],
)
def test_a_superblock_that_does_not_add_up_is_unknown(changes, why):
    seen = leg(**changes)
    assert isinstance(seen, Unknown)
    assert why in str(seen)


@pytest.mark.parametrize("at", [0, superblock.EDGE])
def test_a_leg_that_cannot_be_read_is_unknown(at):
    device = Device()
    device.error = (at, errno.EIO)
    assert isinstance(look(device), Unknown)


def test_a_read_that_is_cut_short_is_unknown():
    device = Device()
    device.short = 4096
    assert "4096 of 8192 bytes" in str(look(device))


def test_a_device_without_size_is_unknown():
    assert isinstance(look(Device(), 0), Unknown)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1920), st.binary(min_size=16, max_size=16), st.binary(max_size=32))
def test_the_checksum_is_the_kernels(max_dev, identity, name):
    block = superblocks.superblock(max_dev=max_dev, set_uuid=identity, name=name)
    assert superblock.checksum(block) == superblocks.csum(block)
    assert isinstance(superblock.parse(block, SIZE), Superblock)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 255), st.integers(1, 255))
def test_a_changed_byte_is_never_taken_for_sound(at, change):
    block = bytearray(superblocks.superblock())
    block[at] ^= change
    device = Device().write(4096, bytes(block))
    assert not isinstance(look(device), Superblock | Blank)
