# SPDX-License-Identifier: Apache-2.0
"""Legs built byte by byte from struct mdp_superblock_1 (include/uapi/linux/raid/md_p.h) and
bitmap_super_t (drivers/md/md-bitmap.h)."""

import struct
import uuid

OLD = uuid.UUID("01020304-0506-0708-090a-0b0c0d0e0f10")
BITMAP_SECTOR = 8
# Sectors before the data, and of the data: 1 MiB and 8 MiB.
DATA_OFFSET = 2048
SECTORS = 16384
# Bytes that one bit stands for.
CHUNK = 65536
MAX = 0xFFFFFFFFFFFFFFFF


def csum(block):
    """calc_sb_1_csum() of drivers/md/md.c, written again from its C."""
    (max_dev,) = struct.unpack_from("<I", block, 220)
    size, at, total = 256 + max_dev * 2, 0, 0
    while size >= 4:
        if at != 216:
            total += int.from_bytes(block[at : at + 4], "little")
        at += 4
        size -= 4
    if size == 2:
        total += int.from_bytes(block[at : at + 2], "little")
    return ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF


def superblock(identity=OLD, name=b"storage:old", max_dev=128, bitmap=BITMAP_SECTOR, **changes):
    """4 KiB with a superblock 1.2 of a two-leg raid1 that was stopped in sync."""
    size = changes.get("size", SECTORS)
    array = struct.pack(
        "<IIII16s32sQIIQIIi", 0xA92B4EFC, 1, (1 if bitmap else 0) | changes.get("features", 0), 0,
        identity.bytes, name, 1700000000, changes.get("level", 1) & 0xFFFFFFFF, 0, size, 0, 2,
        bitmap or 0,
    )  # fmt: skip
    reshape = struct.pack("<IQIIIi", 0, 0, 0, 0, 0, 0)
    device = struct.pack(
        "<QQQQII16sBBHi", DATA_OFFSET, size, changes.get("super_offset", 8), 0, 1, 0,
        bytes(range(16)), 0, 9, changes.get("bblog_size", 8), changes.get("bblog", 16),
    )  # fmt: skip
    state = struct.pack("<QQQII32x", 1700000001, 42, changes.get("resync", MAX), 0, max_dev)
    block = bytearray(array + reshape + device + state)
    assert len(block) == 256
    block += b"".join(struct.pack("<H", role) for role in (0, 1)).ljust(max_dev * 2, b"\xff")
    block[4:8] = struct.pack("<I", changes.get("major", 1))
    block = block.ljust(4096, b"\0")
    struct.pack_into("<I", block, 216, csum(block) ^ changes.get("spoil", 0))
    return bytes(block)


def bitmap(identity=OLD, magic=0x6D746962, **changes):
    """4 KiB with a clean bitmap as mdadm makes it: the bits beyond its end are set."""
    size, chunk = changes.get("size", SECTORS), changes.get("chunk", CHUNK)
    head = struct.pack(
        "<II16sQQQIIIIII", magic, changes.get("version", 4), identity.bytes, 42, 42, size,
        changes.get("state", 0), chunk, 5, 0, changes.get("reserved", 0), changes.get("nodes", 0),
    ).ljust(256, b"\0")  # fmt: skip
    bits = (1 << (4096 - 256) * 8) - 1
    bits &= ~((1 << -(-size * 512 // chunk)) - 1)
    return head + (bits | changes.get("dirty", 0)).to_bytes(4096 - 256, "little")


def bits_set(block, chunks):
    """Numbers of the first ``chunks`` bits that are set."""
    bits = int.from_bytes(block[256:], "little")
    return [number for number in range(chunks) if bits >> number & 1]
