# SPDX-License-Identifier: Apache-2.0
"""What is on a leg, told from its bytes: an md superblock, nothing at all, or something else.

Facts: ``struct mdp_superblock_1`` in include/uapi/linux/raid/md_p.h, ``calc_sb_1_csum()`` and
``super_1_sync()`` in drivers/md/md.c. Metadata 1.2 lies 4 KiB from the start of the device; all
numbers are little-endian.

Four answers, and "could not tell" is one of them: a leg that cannot be read, or whose superblock
does not add up, is :class:`Unknown`, never :class:`Blank`.

A leg is blank when its first and its last 128 KiB read as zeros. There lie the superblocks of
metadata 1.1 (0), 1.2 (4 KiB), 1.0 (8 to 12 KiB before the end) and 0.90 (64 to 128 KiB before the
end), partition tables of both kinds, and the superblocks of the usual file systems, LVM, LUKS and
btrfs (64 KiB). More is not looked at: what a node makes reads as zeros as a whole.
"""

from __future__ import annotations

import dataclasses
import functools
import struct
import uuid

from os_brick_nvmeof.host import Host
from os_brick_nvmeof.props import Volume

OFFSET = 4096
MAGIC = 0xA92B4EFC
SECTOR = 512
# What has to be zero at both ends of a leg that is blank.
EDGE = 128 * 1024
# Sectors: "all of it is in sync".
MAX_SECTOR = 0xFFFFFFFFFFFFFFFF
SPARE, FAULTY = 0xFFFF, 0xFFFE
_ROLE_MAX = 0xFF00
_FIXED = 256
_BLOCK = 4096
_FEATURE_RECOVERY_OFFSET = 2
_FEATURE_RESHAPE = 4
_FEATURE_BAD_BLOCKS = 8
# magic, major_version, feature_map, pad0, set_uuid, set_name, ctime, level, layout, size,
# chunksize, raid_disks, bitmap_offset
_ARRAY = struct.Struct("<IIII16s32sQiIQIIi")
_ARRAY_AT = 0
# data_offset, data_size, super_offset, recovery_offset, dev_number, cnt_corrected_read,
# device_uuid, devflags
_DEVICE = struct.Struct("<QQQQII16sB")
_DEVICE_AT = 128
# utime, events, resync_offset, sb_csum, max_dev
_STATE = struct.Struct("<QQQII")
_STATE_AT = 192
_CSUM_AT = 216


@dataclasses.dataclass(frozen=True)
class Superblock:
    """A sound superblock of version 1.2.

    :ivar array_uuid: of the array.
    :ivar name: as mdadm wrote it, "host:name" or "name".
    :ivar events: the event counter: it rises when members fail, join or are in sync, and with
        each change from clean to dirty; a change back to clean may take the last rise back while
        no member is missing (``md_update_sb()``).
    :ivar number: of this device in the array, for good; index into ``roles``.
    :ivar roles: what the array said of each of its devices: below 0xff00 its place in the array,
        else that it has none. One with a place may still be on its way to be in sync.
    :ivar size: sectors that the array uses of each device.
    :ivar data_size: sectors that this device has for data.
    :ivar resync_offset: sectors in sync after a crash; :data:`MAX_SECTOR` when the array is clean.
    :ivar recovery_offset: sectors that this device has got while it is filled.
    :ivar update_time: seconds since the epoch.
    """

    array_uuid: str
    name: str
    events: int
    number: int
    device_uuid: str
    roles: tuple[int, ...]
    raid_disks: int
    level: int
    size: int
    data_offset: int
    data_size: int
    resync_offset: int
    recovery_offset: int
    feature_map: int
    update_time: int

    def of(self, volume: Volume) -> bool:
        """Whether its array is that of a volume.

        Ours have the volume's UUID. Stock os-brick lets mdadm make one up, and gives the array
        the alias for its name, on home host "any" (``create_raid()`` in nvmeof.py); mdadm leaves
        the home host out where both do not fit.
        """
        return self.array_uuid == volume.uuid or self.name in (volume.alias, f"any:{volume.alias}")

    @property
    def role(self) -> int:
        """The place of this device in the array, or :data:`SPARE` or :data:`FAULTY`."""
        return self.roles[self.number] if self.number < len(self.roles) else SPARE

    @functools.cached_property
    def active(self) -> frozenset[int]:
        """Numbers of the devices that had a place when this was written."""
        return frozenset(
            number for number, role in enumerate(self.roles) if role < min(self.raid_disks, 0xFF00)
        )

    @property
    def in_sync(self) -> bool:
        """This device has a place, and had all writes when this was written."""
        recovering = self.feature_map & _FEATURE_RECOVERY_OFFSET
        return self.number in self.active and (not recovering or self.recovery_offset == MAX_SECTOR)

    @property
    def whole(self) -> bool:
        """No place of the array was empty when this was written."""
        return len({self.roles[number] for number in self.active}) >= self.raid_disks

    @property
    def clean(self) -> bool:
        """No write was under way when this was written."""
        return self.resync_offset == MAX_SECTOR

    @property
    def reshaping(self) -> bool:
        """The array is being changed to another form."""
        return bool(self.feature_map & _FEATURE_RESHAPE)

    @property
    def bad_blocks(self) -> bool:
        """The log of bad blocks of this device had entries."""
        return bool(self.feature_map & _FEATURE_BAD_BLOCKS)


@dataclasses.dataclass(frozen=True)
class Blank:
    """Definitely nothing: zeros at both ends."""

    def __str__(self) -> str:
        return "it is blank"


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Definitely something that is no superblock of version 1.2; ``what`` in words."""

    what: str

    def __str__(self) -> str:
        return self.what


@dataclasses.dataclass(frozen=True)
class Unknown:
    """It could not be told; ``why`` in words."""

    why: str

    def __str__(self) -> str:
        return self.why


Content = Superblock | Blank | Foreign | Unknown


def read(host: Host, device: str, size: int) -> Content:
    """Tell what is on a leg.

    :param device: path of the block device.
    :param size: of the device, in bytes.
    """
    if size < 2 * EDGE:
        return Unknown(f"{device} has {size} bytes")
    try:
        head = _read(host, device, 0, OFFSET + _BLOCK)
        if head[OFFSET : OFFSET + 4] == struct.pack("<I", MAGIC):
            return parse(head[OFFSET:], size)
        if not _zeros(head):
            return Foreign(_what(head))
        end = size // _BLOCK * _BLOCK
        rest = _read(host, device, 0, EDGE) + _read(host, device, end - EDGE, EDGE)
    except OSError as error:
        return Unknown(f"{device} cannot be read: {error}")
    return Blank() if _zeros(rest) else Foreign("it holds data without a signature that is known")


def parse(block: bytes, size: int) -> Superblock | Unknown:
    """Read the superblock in a block of 4 KiB that begins with its magic number.

    :param size: of the device, in bytes.
    """
    array = _ARRAY.unpack_from(block, _ARRAY_AT)
    device = _DEVICE.unpack_from(block, _DEVICE_AT)
    state = _STATE.unpack_from(block, _STATE_AT)
    _, major, features, _, identity, name, _, level, _, sectors, _, raid_disks, _ = array
    data_offset, data_size, super_offset, recovery, number, _, device_uuid, _ = device
    update_time, events, resync, csum, max_dev = state
    if major != 1 or super_offset * SECTOR != OFFSET:
        return Unknown(f"its superblock has version {major} and claims sector {super_offset}")
    if _FIXED + 2 * max_dev > _BLOCK:
        return Unknown(f"its superblock claims {max_dev} devices")
    if checksum(block) != csum:
        return Unknown("the checksum of its superblock is wrong")
    if (data_offset + max(sectors, data_size)) * SECTOR > size:
        return Unknown("its superblock claims more than the device has")
    return Superblock(
        array_uuid=str(uuid.UUID(bytes=identity)),
        name=name.rstrip(b"\0").decode(errors="replace"),
        events=events,
        number=number,
        device_uuid=str(uuid.UUID(bytes=device_uuid)),
        roles=struct.unpack_from(f"<{max_dev}H", block, _FIXED),
        raid_disks=raid_disks,
        level=level,
        size=sectors,
        data_offset=data_offset,
        data_size=data_size,
        resync_offset=resync,
        recovery_offset=recovery,
        feature_map=features,
        # The lower 40 bits are seconds.
        update_time=update_time & ((1 << 40) - 1),
    )


def checksum(block: bytes) -> int:
    """``sb_csum`` of a superblock: its 32-bit words summed, its own field as 0, carry folded."""
    (max_dev,) = struct.unpack_from("<I", block, _CSUM_AT + 4)
    length = _FIXED + 2 * max_dev
    data = bytearray(block[:length])
    data[_CSUM_AT : _CSUM_AT + 4] = bytes(4)
    # An odd number of roles leaves a half word, which counts as it is.
    data += bytes(-length % 4)
    total = sum(struct.unpack(f"<{len(data) // 4}I", data))
    return ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF


def _zeros(data: bytes) -> bool:
    # Compared as a whole: any() takes each byte in turn.
    return data == bytes(len(data))


def _read(host: Host, device: str, offset: int, length: int) -> bytes:
    data = host.read(device, offset, length)
    if len(data) != length:
        raise OSError(f"{len(data)} of {length} bytes came at {offset}")
    return data


def _what(head: bytes) -> str:
    """Name what the first 8 KiB show, for a message."""
    if head[:4] == struct.pack("<I", MAGIC):
        return "it holds an md superblock of version 1.1"
    if head[510:512] == b"\x55\xaa":
        return "it holds a partition table"
    if head[:4] == b"XFSB" or head[1080:1082] == b"\x53\xef":
        return "it holds a file system"
    return "it holds data that is no md superblock"
