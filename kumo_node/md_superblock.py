# SPDX-License-Identifier: Apache-2.0
"""The md superblock of a leg: a new identity for a copy, a new size for a leg that has grown.

Facts: ``struct mdp_superblock_1`` in include/uapi/linux/raid/md_p.h; checksum
``calc_sb_1_csum()`` in drivers/md/md.c; ``struct bitmap_super_s`` in drivers/md/md-bitmap.h.
Metadata 1.2 lies 4 KiB from the start of the device; all numbers are little-endian; ``set_uuid``
holds the bytes in the order in which mdadm prints them. The bitmap's superblock begins
``bitmap_offset`` sectors (signed) after it and repeats the array's uuid; the kernel refuses a
bitmap whose uuid is another.

A host does not let an array grow when it assembles it: ``super_1_load()`` and
``super_1_validate()`` in drivers/md/md.c take the size of the component from the superblock
(``data_size``, ``size``), whatever the device has become. While the array runs, the host grows it
itself (``mdadm --grow --size max``); :func:`grow` is for a leg that nobody uses.

Nothing is written unless what is there is definitely a sound superblock.
"""

from __future__ import annotations

import contextlib
import enum
import os
import struct
import uuid
from collections.abc import Iterator

from kumo_client import errors

OFFSET = 4096
MAGIC = 0xA92B4EFC
BITMAP_MAGIC = 0x6D746962
SECTOR = 512
# The kernel reads one page of superblock at most: 256 bytes and two for each device.
SB_SPACE = 4096
_FIXED = 256
_HEAD = struct.Struct("<IIII16s32s")
_FEATURES_AT, _UUID_AT, _NAME_AT, _LEVEL_AT, _SIZE_AT = 8, 16, 32, 72, 80
_BITMAP_OFFSET_AT = 96
_DATA_OFFSET_AT, _DATA_SIZE_AT, _SUPER_OFFSET_AT = 128, 136, 144
_BBLOG_SIZE_AT, _BBLOG_OFFSET_AT = 186, 188
_RESYNC_OFFSET_AT, _CSUM_AT, _MAX_DEV_AT = 208, 216, 220
_FEATURE_BITMAP = 1
_MAX_SECTOR = 0xFFFFFFFFFFFFFFFF
_RAID1 = 1
# A component is a whole number of pages, so that the end of the array is never within a block.
_ROUND = 8
_BITMAP_HEAD = struct.Struct("<II16s")
# bitmap_super_t: magic, version, uuid, events, events_cleared, sync_size, state, chunksize,
# daemon_sleep, write_behind, sectors_reserved, nodes.
_BITMAP = struct.Struct("<II16sQQQIIIIII")
_SYNC_SIZE_AT, _RESERVED_AT = 40, 64
# sizeof(bitmap_super_t); the bits follow, the lowest first in each byte.
_BITMAP_BITS_AT = 256
# BITMAP_MAJOR_HI: the bits are little-endian and there is one host.
_BITMAP_VERSION = 4


class Outcome(enum.Enum):
    """What was found and done."""

    ABSENT = "no superblock"
    SAME = "already had that identity"
    STAMPED = "has the new identity"
    AS_LARGE = "already covered the leg"
    GROWN = "covers the whole leg now"


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
    with _opened(path) as handle:
        block = _superblock(handle, path)
        if block is None:
            return Outcome.ABSENT
        return _stamp(handle, path, block, uuid.UUID(array_uuid).bytes, raw_name.ljust(32, b"\0"))


def grow(path: str) -> Outcome:
    """Let the array of a leg that nobody uses cover all of a device that has become larger.

    All legs of the array have to be grown, to the same size, before it is assembled again: mdadm
    refuses legs whose superblocks give different sizes.

    The new part counts as in sync: it reads as zeros on every leg (:mod:`kumo_node.lvm`). So its
    bits in the bitmap, which mdadm has set beyond the old end, are cleared. Repeatable, also after
    a crash between the writes: until the superblock, which comes last, has the new size, the
    kernel looks at no bit beyond the old one and takes ``sync_size`` from the superblock
    (``md_bitmap_read_sb()``, drivers/md/md-bitmap.c).

    :raises ConflictError: what is there is neither empty nor a sound superblock of version 1.2, the
        array is not a raid1 in order, or the bitmap has no room for the new size.
    """
    with _opened(path) as handle:
        block = _superblock(handle, path)
        if block is None:
            return Outcome.ABSENT
        size, room = _u64(block, _SIZE_AT), _room(handle, path, block)
        if size >= room:
            return Outcome.AS_LARGE
        _check_in_order(block, path)
        bitmap_at = _bitmap_at(block)
        if bitmap_at is not None:
            _grow_bitmap(handle, path, block, bitmap_at, size, room)
        new = bytearray(block)
        struct.pack_into("<Q", new, _SIZE_AT, room)
        struct.pack_into("<Q", new, _DATA_SIZE_AT, room)
        struct.pack_into("<I", new, _CSUM_AT, checksum(bytes(new)))
        _write(handle, path, OFFSET, bytes(new))
        return Outcome.GROWN


def is_leg(path: str) -> bool:
    """Whether a device holds a sound superblock of version 1.2.

    :raises ConflictError: it holds one that is not sound.
    """
    with _opened(path) as handle:
        return _superblock(handle, path) is not None


def _room(handle: int, path: str, block: bytes) -> int:
    """Sectors that the device offers for data."""
    offers = os.lseek(handle, 0, os.SEEK_END) // SECTOR - _u64(block, _DATA_OFFSET_AT)
    if offers < max(_u64(block, _SIZE_AT), _u64(block, _DATA_SIZE_AT)):
        raise _unsound(path, "it claims more than the device has")
    return offers // _ROUND * _ROUND


def _check_in_order(block: bytes, path: str) -> None:
    level = struct.unpack_from("<i", block, _LEVEL_AT)[0]
    if level != _RAID1:
        raise _not_growable(path, f"its level is {level}, not 1")
    features = _u32(block, _FEATURES_AT) & ~_FEATURE_BITMAP
    if features:
        # A recovery, a reshape, bad blocks, a journal, or what is not known here.
        raise _not_growable(path, f"it is not in its normal state (feature map {features:#x})")
    if _u64(block, _RESYNC_OFFSET_AT) != _MAX_SECTOR:
        raise _not_growable(path, "it was not stopped cleanly or is not in sync")


def _grow_bitmap(handle: int, path: str, block: bytes, at: int, size: int, new_size: int) -> None:
    """Clear the bits of the chunks that come into use, and set ``sync_size``; sizes in sectors."""
    chunk, reserved = _bitmap_layout(handle, path, at, block[_UUID_AT:_NAME_AT])
    first, end = -(-size // chunk), -(-new_size // chunk)
    used, room = _BITMAP_BITS_AT + -(-end // 8), _bitmap_room(block)
    if used > room:
        raise _not_growable(path, f"its bitmap has {room} bytes and would need {used}")
    old = _read(handle, path, at, used)
    new = bytearray(old)
    for bit in range(first, end):
        new[_BITMAP_BITS_AT + bit // 8] &= ~(1 << bit % 8)
    struct.pack_into("<Q", new, _SYNC_SIZE_AT, new_size)
    if reserved * SECTOR < used and reserved:
        struct.pack_into("<I", new, _RESERVED_AT, -(-used // SECTOR))
    if new != old:
        _write(handle, path, at, bytes(new))


def _bitmap_room(block: bytes) -> int:
    """Bytes from the start of the bitmap to what comes next: superblock, bad block log or data.

    ``sectors_reserved`` does not tell: mdadm leaves it 0, and when the kernel has to grow a bitmap
    of which it does not know the room it records the sectors in use at that time
    (``md_bitmap_resize()``).
    """
    start, log = (
        struct.unpack_from("<i", block, at)[0] for at in (_BITMAP_OFFSET_AT, _BBLOG_OFFSET_AT)
    )
    ends = [0, _u64(block, _DATA_OFFSET_AT) - OFFSET // SECTOR]
    if struct.unpack_from("<H", block, _BBLOG_SIZE_AT)[0]:
        ends.append(log)
    return (min((end for end in ends if end > start), default=start) - start) * SECTOR


def _bitmap_layout(handle: int, path: str, at: int, identity: bytes) -> tuple[int, int]:
    """Sectors of a chunk, and ``sectors_reserved``."""
    head = _read(handle, path, at, _BITMAP_BITS_AT)
    magic, version, seen, _, _, _, state, chunk, _, _, reserved, nodes = _BITMAP.unpack_from(head)
    if magic != BITMAP_MAGIC or seen != identity:
        raise _unsound(path, f"no bitmap of this array at byte {at}")
    if version != _BITMAP_VERSION or nodes:
        raise _not_growable(path, f"its bitmap has version {version} for {nodes} nodes")
    if state:
        raise _not_growable(path, f"its bitmap is not in order (state {state:#x})")
    if chunk < SECTOR or chunk & (chunk - 1):
        raise _unsound(path, f"its bitmap has chunks of {chunk} bytes")
    return chunk // SECTOR, reserved


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        # Hosts write past this machine's page cache: what somebody read through it earlier, such
        # as udev while the leg was exported, may be old.
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        yield handle
    finally:
        os.close(handle)


def _superblock(handle: int, path: str) -> bytes | None:
    """The sound superblock of a device; None is a definite no."""
    block = _read(handle, path, OFFSET, SB_SPACE)
    if _u32(block, 0) != MAGIC:
        return None
    _verify(block, path)
    return block


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
    super_offset = _u64(block, _SUPER_OFFSET_AT)
    if major != 1 or super_offset * SECTOR != OFFSET:
        raise _unsound(path, f"version {major}, at sector {super_offset}")
    if _FIXED + max_dev * 2 > SB_SPACE:
        raise _unsound(path, f"it claims {max_dev} devices")
    if checksum(block) != _u32(block, _CSUM_AT):
        raise _unsound(path, "its checksum is wrong")


def _bitmap_at(block: bytes) -> int | None:
    """Byte offset of the bitmap's superblock; None without an internal bitmap."""
    if not _u32(block, _FEATURES_AT) & _FEATURE_BITMAP:
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


def _u64(block: bytes, at: int) -> int:
    value: int = struct.unpack_from("<Q", block, at)[0]
    return value


def _not_growable(path: str, why: str) -> errors.ConflictError:
    return errors.ConflictError(
        f"The array of {path} cannot be grown while it is detached: {why}",
        way_out="Attach the volume, let its array come in sync, and extend it there",
    )


def _unsound(path: str, why: str) -> errors.ConflictError:
    return errors.ConflictError(
        f"The md superblock on {path} is not sound: {why}",
        way_out="The source was not a leg in order; check it with mdadm --examine",
    )
