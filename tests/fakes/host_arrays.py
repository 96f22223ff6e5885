# SPDX-License-Identifier: Apache-2.0
"""An array of a faked host as its kernel has it, and as the superblock of a leg tells it."""

import dataclasses
import struct
import uuid as uuidlib

from tests.unit.brick import superblocks


@dataclasses.dataclass
class Sb:
    """What is in the superblock of a leg."""

    array: str
    name: str
    events: int
    number: int
    roles: tuple
    places: int
    size: int
    features: int
    resync_offset: int
    ctime: int

    @property
    def active(self):
        return {number for number, role in enumerate(self.roles) if role < self.places}


def load(volume):
    """The superblock of a namespace; None without one."""
    block = volume.blocks.get(4096)
    if not block or block[:4] != struct.pack("<I", 0xA92B4EFC):
        return None
    value = {name: struct.unpack_from(kind, block, at)[0] for name, at, kind in superblocks.FIELDS}
    return Sb(
        array=str(uuidlib.UUID(bytes=value["set_uuid"])),
        name=value["name"].rstrip(b"\0").decode(),
        events=value["events"],
        number=value["dev_number"],
        roles=struct.unpack_from(f"<{value['max_dev']}H", block, 256),
        places=value["raid_disks"],
        size=value["size"],
        features=value["features"],
        resync_offset=value["resync_offset"],
        ctime=value["ctime"],
    )


@dataclasses.dataclass
class Member:
    number: int
    role: int
    in_sync: bool = True
    faulty: bool = False
    # Being filled.
    filling: bool = False


@dataclasses.dataclass
class Array:
    name: str
    uuid: str
    title: str
    places: int
    size: int
    ctime: int
    members: dict = dataclasses.field(default_factory=dict)
    events: int = 0
    state: str = "inactive"
    dirty: bool = False
    can_decrease: bool = False
    delay: str = "0.204"
    # What sysfs has now.
    shown: dict = dataclasses.field(default_factory=dict)
    shown_members: dict = dataclasses.field(default_factory=dict)

    @property
    def alias(self):
        return self.title.rpartition(":")[2]

    def sound(self):
        return {name: one for name, one in self.members.items() if not one.faulty}

    def in_sync(self):
        return {name: one for name, one in self.sound().items() if one.in_sync}
