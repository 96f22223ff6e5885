# SPDX-License-Identifier: Apache-2.0
"""Superblocks 1.2 as the kernel and mdadm write them, built field by field from struct
mdp_superblock_1 (include/uapi/linux/raid/md_p.h), apart from the reader."""

import struct
import uuid as uuidlib

MAX = 0xFFFFFFFFFFFFFFFF
# mdadm makes room for as many roles as fit in what its superblock is rounded up to: 512 bytes.
MAX_DEV = 128
SPARE, FAULTY = 0xFFFF, 0xFFFE
ARRAY = "6a1c2f40-0000-4000-8000-0000000000aa"
FIELDS = (
    # name, offset, struct format
    ("magic", 0, "<I"), ("major", 4, "<I"), ("features", 8, "<I"), ("set_uuid", 16, "16s"),
    ("name", 32, "32s"), ("ctime", 64, "<Q"), ("level", 72, "<i"), ("layout", 76, "<I"),
    ("size", 80, "<Q"), ("chunksize", 88, "<I"), ("raid_disks", 92, "<I"),
    ("bitmap_offset", 96, "<i"), ("data_offset", 128, "<Q"), ("data_size", 136, "<Q"),
    ("super_offset", 144, "<Q"), ("recovery_offset", 152, "<Q"), ("dev_number", 160, "<I"),
    ("device_uuid", 168, "16s"), ("devflags", 184, "<B"), ("bblog_shift", 185, "<B"),
    ("bblog_size", 186, "<H"), ("bblog_offset", 188, "<i"), ("utime", 192, "<Q"),
    ("events", 200, "<Q"), ("resync_offset", 208, "<Q"), ("csum", 216, "<I"),
    ("max_dev", 220, "<I"),
)  # fmt: skip
SIZE, DATA_OFFSET = 16384, 2048


def csum(block):
    """calc_sb_1_csum(), word by word as its C has it."""
    max_dev = int.from_bytes(block[220:224], "little")
    size, at, total = 256 + max_dev * 2, 0, 0
    while size >= 4:
        total += 0 if at == 216 else int.from_bytes(block[at : at + 4], "little")
        at, size = at + 4, size - 4
    if size == 2:
        total += int.from_bytes(block[at : at + 2], "little")
    return ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF


def superblock(number=0, events=42, roles=(0, 1), array=ARRAY, spoil=0, **changes):
    """4 KiB: of device ``number`` of a raid1 stopped in sync; ``roles`` by device number."""
    values = {
        "magic": 0xA92B4EFC, "major": 1, "features": 1, "set_uuid": uuidlib.UUID(array).bytes,
        "name": b"any:volume-1", "ctime": 1700000000, "level": 1, "layout": 0, "size": SIZE,
        "chunksize": 0, "raid_disks": 2, "bitmap_offset": 8, "data_offset": DATA_OFFSET,
        "data_size": SIZE, "super_offset": 8, "recovery_offset": 0, "dev_number": number,
        "device_uuid": bytes([number]) * 16, "devflags": 0, "bblog_shift": 9, "bblog_size": 8,
        "bblog_offset": 16, "utime": 1700000001, "events": events, "resync_offset": MAX,
        "csum": 0, "max_dev": MAX_DEV,
    }  # fmt: skip
    values.update(changes)
    block = bytearray(4096)
    for name, at, kind in FIELDS:
        struct.pack_into(kind, block, at, values[name])
    space = min(values["max_dev"], (4096 - 256) // 2)
    block[256 : 256 + 2 * space] = b"".join(
        struct.pack("<H", role) for role in (*roles, *[SPARE] * space)[:space]
    )
    if values["max_dev"] <= space:
        struct.pack_into("<I", block, 216, csum(block) ^ spoil)
    return bytes(block)
