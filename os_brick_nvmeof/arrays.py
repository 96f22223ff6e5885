# SPDX-License-Identifier: Apache-2.0
"""md arrays as the kernel shows them in sysfs (Documentation/admin-guide/md.rst).

An array is found by its UUID, never by a name: ``md/uuid`` has it, on kernels that know that
attribute and once the array has been started. Otherwise its members' superblocks tell.
"""

from __future__ import annotations

import errno
import os
import pathlib
import re
import uuid as uuidlib
from collections.abc import Collection, Iterable
from typing import NamedTuple

from os_brick_nvmeof import conf, errors, superblock, sysfs, waiting
from os_brick_nvmeof.context import Context
from os_brick_nvmeof.props import Volume

IN_SYNC = "in_sync"
FAULTY = "faulty"
INACTIVE = "inactive"
READ_ONLY = "readonly"
READ_AUTO = "read-auto"
# array_state of an array that serves reads (array_states[] in drivers/md/md.c).
RUNNING = (READ_ONLY, READ_AUTO, "clean", "active", "write-pending", "active-idle")
_ARRAY = re.compile(r"md[\w.-]+")
_ZERO = str(uuidlib.UUID(int=0))


class Member(NamedTuple):
    """A device of an array. ``flags``: of ``md/dev-*/state``."""

    name: str
    flags: frozenset[str]


class Array(NamedTuple):
    """An array.

    :ivar name: "md127".
    :ivar uuid: lower case with dashes; "" when the kernel does not tell.
    :ivar state: ``md/array_state``.
    :ivar places: ``md/raid_disks``.
    :ivar size: bytes.
    """

    name: str
    uuid: str
    state: str
    places: int
    size: int
    members: tuple[Member, ...]

    @property
    def running(self) -> bool:
        """It is started and has something to serve."""
        return self.state in RUNNING and bool(self.in_sync)

    @property
    def names(self) -> frozenset[str]:
        """Names of the devices that it holds."""
        return frozenset(member.name for member in self.members)

    @property
    def in_sync(self) -> frozenset[str]:
        """Names of the members that have all data."""
        return frozenset(
            member.name
            for member in self.members
            if IN_SYNC in member.flags and FAULTY not in member.flags
        )


def names(root: pathlib.Path) -> list[str]:
    """Names of all arrays."""
    return [
        name
        for name in sysfs.names(f"{root}/{sysfs.BLOCK}")
        if _ARRAY.fullmatch(name) and os.path.isdir(_home(root, name))
    ]


def look(root: pathlib.Path, name: str) -> Array | None:
    """An array; None when it is not there, or nothing but its name is left of it.

    :raises OSError: when the kernel could not tell.
    """
    try:
        return _look(root, name)
    except OSError as error:
        # What md answers for an array that was stopped and is being deleted (md_attr_show(),
        # drivers/md/md.c).
        if error.errno == errno.EBUSY:
            return None
        raise


def _look(root: pathlib.Path, name: str) -> Array | None:
    path = _home(root, name)
    state = sysfs.read(f"{path}/array_state")
    if state is None or state == "clear":
        return None
    return Array(
        name=name,
        uuid=_uuid(sysfs.read(f"{path}/uuid")),
        state=state,
        places=int((sysfs.read(f"{path}/raid_disks") or "0").split()[0]),
        size=sysfs.size(root, name) or 0,
        members=tuple(
            Member(entry.removeprefix("dev-"), _flags(f"{path}/{entry}"))
            for entry in sysfs.names(path)
            if entry.startswith("dev-")
        ),
    )


def everyone(root: pathlib.Path) -> list[Array]:
    """All arrays."""
    return _each(root, names(root))


def _each(root: pathlib.Path, every: Iterable[str]) -> list[Array]:
    return [array for name in every if (array := look(root, name))]


def _told(root: pathlib.Path, name: str) -> str:
    """UUID of an array; "" when the kernel does not tell it now."""
    try:
        return _uuid(sysfs.read(f"{_home(root, name)}/uuid"))
    except OSError as error:
        # It is being deleted: see look().
        if error.errno == errno.EBUSY:
            return ""
        raise


def _holds(root: pathlib.Path, name: str, devices: Iterable[str]) -> bool:
    return any(os.path.isdir(f"{_home(root, name)}/dev-{device}") for device in devices)


def find(ctx: Context, volume: Volume, devices: Collection[str] = ()) -> Array | None:
    """The array of a volume.

    :param devices: names of its legs' block devices, as far as they are known.
    :raises UnknownDataError: an array holds one of them, and it cannot be told which it is.
    :raises OSError: when the kernel could not tell.
    """
    root = ctx.host.root
    # A host has many arrays, and most are of no interest here.
    others = []
    silent = []
    for name in names(root):
        told = _told(root, name)
        if told == volume.uuid and (array := look(root, name)):
            return array
        others.append(name)
        if not told:
            silent.append(name)
    held = _each(root, [name for name in others if _holds(root, name, devices)])
    for array in held or [each for each in _each(root, silent) if _likely(root, volume, each)]:
        seen = _content(ctx, array)
        if isinstance(seen, superblock.Superblock):
            if seen.of(volume):
                return array
        elif array in held:
            raise errors.UnknownDataError(
                f"{array.name} ({array.state}) holds a leg of it and cannot be told apart: {seen}",
                volume=volume.uuid,
                way_out="look at it with mdadm --detail, and stop it if nobody uses it",
            )
    return None


def _likely(root: pathlib.Path, volume: Volume, array: Array) -> bool:
    """Whether an array may be that of a volume: it has a leg of it, or its name."""
    legs = {leg.uuid for leg in volume.legs}
    return linked(root, volume) == array.name or any(
        (sysfs.read(f"{root}/{sysfs.BLOCK}/{name}/uuid") or "").lower() in legs
        for name in array.names
    )


def link(volume: Volume) -> str:
    """Where an array is found by its name; stock os-brick looks there, too."""
    return f"/dev/md/{volume.alias}"


def linked(root: pathlib.Path, volume: Volume) -> str:
    """Name of the device that the link of a volume leads to; "" without a link."""
    try:
        return os.path.basename(os.readlink(f"{root}{link(volume)}"))
    except OSError:
        return ""


def holding(root: pathlib.Path, devices: Iterable[str]) -> list[Array]:
    """Arrays that hold at least one device, and none but these."""
    wanted = frozenset(devices)
    return [array for array in everyone(root) if array.names and array.names <= wanted]


def _content(ctx: Context, array: Array) -> superblock.Content:
    """The superblock of a member that can be read in time."""
    seen: superblock.Content = superblock.Unknown("no member can be read")
    for member in array.members:
        size = sysfs.size(ctx.host.root, member.name) or 0
        seen = read(ctx, f"/dev/{member.name}", size)
        if isinstance(seen, superblock.Superblock):
            return seen
    return seen


def read(ctx: Context, device: str, size: int) -> superblock.Content:
    """What is on a device, within ``device_timeout``: a read of a silent node can block longer."""
    seconds = ctx.conf[conf.GROUP].device_timeout
    call = waiting.Call(ctx, lambda: content(ctx, device, size), f"kumo-read-{device}")
    return answer(call, device, waiting.Deadline(ctx.clock, seconds))


def content(ctx: Context, device: str, size: int) -> superblock.Content:
    """What is on a device, however long it takes."""
    return superblock.read(ctx.host, device, size)


def answer(
    call: waiting.Call[superblock.Content], device: str, deadline: waiting.Deadline
) -> superblock.Content:
    """Wait for a read; :class:`superblock.Unknown` when it takes too long."""
    if not call.wait(deadline):
        return superblock.Unknown(f"{device} gives no answer for {deadline.seconds:g} s")
    return call.result()


def _flags(path: str) -> frozenset[str]:
    return frozenset(filter(None, (sysfs.read(f"{path}/state") or "").split(",")))


def _home(root: pathlib.Path, name: str) -> str:
    return f"{root}/{sysfs.BLOCK}/{name}/md"


def _uuid(text: str | None) -> str:
    try:
        value = str(uuidlib.UUID(text or ""))
    except ValueError:
        return ""
    return "" if value == _ZERO else value
