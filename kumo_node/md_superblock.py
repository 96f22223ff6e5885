# SPDX-License-Identifier: Apache-2.0
"""A new identity for the md superblock on a copy of a leg.

Facts: ``struct mdp_superblock_1`` in include/uapi/linux/raid/md_p.h; checksum
``calc_sb_1_csum()`` in drivers/md/md.c; ``struct bitmap_super_s`` in drivers/md/md-bitmap.h.
Metadata 1.2 lies 4 KiB from the start of the device; all numbers are little-endian; ``set_uuid``
holds the bytes in the order in which mdadm prints them. The bitmap's superblock begins
``bitmap_offset`` sectors (signed) after it and repeats the array's uuid; the kernel refuses a
bitmap whose uuid is another.

Nothing is written unless what is there is definitely a sound superblock.
"""

from __future__ import annotations

import enum
import os
import struct
import uuid

from kumo_client import errors

OFFSET = 4096
MAGIC = 0xA92B4EFC
BITMAP_MAGIC = 0x6D746962
SECTOR = 512
# The kernel reads one page of superblock at most: 256 bytes and two for each device.
SB_SPACE = 4096
_FIXED = 256
_HEAD = struct.Struct("<IIII16s32s")
_NAME_AT, _UUID_AT = 32, 16
_BITMAP_OFFSET_AT = 96
_SUPER_OFFSET_AT = 144
_CSUM_AT, _MAX_DEV_AT = 216, 220
_FEATURE_BITMAP = 1
_BITMAP_HEAD = struct.Struct("<II16s")


class Outcome(enum.Enum):
    """What was found and done."""

    ABSENT = "no superblock"
    SAME = "already had that identity"
    STAMPED = "has the new identity"


def checksum(block: bytes) -> int:
    """``sb_csum`` of a superblock: 32-bit words summed, its own field taken as 0, carry folded."""
    (max_dev,) = struct.unpack_from("<I", block, _MAX_DEV_AT)
    size = _FIXED + max_dev * 2
    data = bytearray(block[:size])
    data[_CSUM_AT : _CSUM_AT + 4] = bytes(4)
    words = size // 4
    total = sum(struct.unpack_from(f"<{words}I", data))
    if size % 4 == 2:
        total += struct.unpack_from("<H", data, words * 4)[0]
    return ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF


def restamp(path: str, array_uuid: str, name: str) -> Outcome:
    """Give the superblock on a device another array uuid and name.

    Repeatable, also after a crash between its writes: the bitmap is written first, so that a
    superblock with the new identity means that all is done.

    :param name: at most 32 bytes in UTF-8.
    :raises InvalidInputError: the name is too long.
    :raises ConflictError: what is there is neither empty nor a sound superblock of version 1.2.
    """
    raw_name = name.encode()
    if len(raw_name) > 32:
        raise errors.InvalidInputError(f"Array name {name!r} has more than 32 bytes")
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        block = _read(handle, path, OFFSET, SB_SPACE)
        if struct.unpack_from("<I", block)[0] != MAGIC:
            return Outcome.ABSENT
        _verify(block, path)
        return _stamp(handle, path, block, uuid.UUID(array_uuid).bytes, raw_name.ljust(32, b"\0"))
    finally:
        os.close(handle)


def _stamp(handle: int, path: str, block: bytes, identity: bytes, name: bytes) -> Outcome:
    bitmap_at = _bitmap_at(block)
    if bitmap_at is not None:
        _stamp_bitmap(handle, path, bitmap_at, identity)
    if block[_UUID_AT:_NAME_AT] == identity and block[_NAME_AT : _NAME_AT + 32] == name:
        return Outcome.SAME
    new = bytearray(block)
    new[_UUID_AT:_NAME_AT] = identity
    new[_NAME_AT : _NAME_AT + 32] = name
    struct.pack_into("<I", new, _CSUM_AT, checksum(bytes(new)))
    _write(handle, path, OFFSET, bytes(new))
    return Outcome.STAMPED


def _verify(block: bytes, path: str) -> None:
    major, max_dev = struct.unpack_from("<4xI", block)[0], _u32(block, _MAX_DEV_AT)
    super_offset = struct.unpack_from("<Q", block, _SUPER_OFFSET_AT)[0]
    if major != 1 or super_offset * SECTOR != OFFSET:
        raise _unsound(path, f"version {major}, at sector {super_offset}")
    if _FIXED + max_dev * 2 > SB_SPACE:
        raise _unsound(path, f"it claims {max_dev} devices")
    if checksum(block) != _u32(block, _CSUM_AT):
        raise _unsound(path, "its checksum is wrong")


def _bitmap_at(block: bytes) -> int | None:
    """Byte offset of the bitmap's superblock; None without an internal bitmap."""
    if not _u32(block, 8) & _FEATURE_BITMAP:
        return None
    return OFFSET + struct.unpack_from("<i", block, _BITMAP_OFFSET_AT)[0] * SECTOR


def _stamp_bitmap(handle: int, path: str, at: int, identity: bytes) -> None:
    # Whole blocks of 4 KiB are written, so this also works where that is the block size.
    block = _read(handle, path, at, SB_SPACE)
    magic, _version, seen = _BITMAP_HEAD.unpack_from(block)
    if magic != BITMAP_MAGIC:
        raise _unsound(path, f"no bitmap at byte {at}")
    if seen != identity:
        _write(handle, path, at, block[:8] + identity + block[24:])


def _read(handle: int, path: str, at: int, size: int) -> bytes:
    if at < 0:
        raise _unsound(path, f"its bitmap would begin at byte {at}")
    block = os.pread(handle, size, at)
    if len(block) != size:
        raise _unsound(path, f"the device ends before byte {at + size}")
    return block


def _write(handle: int, path: str, at: int, block: bytes) -> None:
    if os.pwrite(handle, block, at) != len(block):
        raise errors.InternalError(f"A write to {path} at byte {at} was cut short")
    os.fsync(handle)


def _u32(block: bytes, at: int) -> int:
    value: int = struct.unpack_from("<I", block, at)[0]
    return value


def _unsound(path: str, why: str) -> errors.ConflictError:
    return errors.ConflictError(
        f"The md superblock on {path} is not sound: {why}",
        way_out="The source was not a leg in order; check it with mdadm --examine",
    )
