# SPDX-License-Identifier: Apache-2.0
"""Controllers, subsystems and namespaces as the kernel shows them in sysfs.

drivers/nvme/host/sysfs.c and multipath.c: controllers of fabrics are directories ``nvmeN`` under
/sys/class/nvme-fabrics/ctl. Without native multipath a namespace is a block device ``nvmeNnM`` in
its controller's directory. With it, the block device ``nvmeSnM`` (the head) is in the directory of
subsystem ``nvme-subsysS``, and each controller has a hidden path ``nvmeScNnM``.

Everything can vanish between two reads; what vanished is left out. Any other error is raised: it
means that nothing is known.
"""

from __future__ import annotations

import errno
import functools
import ipaddress
import os
import pathlib
import re
from collections.abc import Collection
from typing import NamedTuple

CONTROLLERS = "sys/class/nvme-fabrics/ctl"
BLOCK = "sys/class/block"

SECTOR = 512

NEW = "new"
LIVE = "live"
CONNECTING = "connecting"
RESETTING = "resetting"
# States on the way to live (nvme_sysfs_show_state). All others lead to the end of a controller.
COMING = (NEW, CONNECTING, RESETTING)

_GONE = (errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR)
_CONTROLLER = re.compile(r"nvme\d+")
# nvme0n1, or a path of a head: nvme0c3n1.
_NAMESPACE = re.compile(r"(nvme\d+)(?:c\d+)?(n\d+)")


class Controller(NamedTuple):
    """One connection to a subsystem.

    :ivar name: "nvme3".
    :ivar transport: "tcp", "rdma", ...
    :ivar address: of the portal, without brackets.
    :ivar port: decimal.
    :ivar host_nqn: as whom it connected; "" on kernels that do not tell (before 5.6).
    :ivar state: "live", "connecting", "resetting", "new", "deleting", "dead", ...
    """

    name: str
    nqn: str
    transport: str
    address: str
    port: str
    host_nqn: str
    state: str


class Namespace(NamedTuple):
    """One block device of a subsystem.

    :ivar name: of the block device, "nvme0n1"; the head where native multipath is on.
    :ivar uuid: lower case with dashes; of namespaces without UUID the kernel shows the NGUID.
    :ivar size: bytes; 0 while the kernel has not read it yet.
    :ivar block_size: bytes of a logical block.
    """

    name: str
    uuid: str
    nsid: int
    size: int
    block_size: int
    nqn: str


def read(path: str | os.PathLike[str]) -> str | None:
    """The text of an attribute, stripped; None when it or its device is not there.

    :raises OSError: when the kernel could not tell.
    """
    # Not pathlib: this is what a waiting attach does all the time.
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            parts = []
            while part := os.read(handle, 65536):
                parts.append(part)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    return b"".join(parts).decode().strip()


def names(path: str | os.PathLike[str]) -> list[str]:
    """What is in a directory, sorted; empty when it is not there."""
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise


def same_address(one: str, other: str) -> bool:
    """Whether two texts are the same address: IPv6 can be written in several ways."""
    return one == other or _address(one) == _address(other)


@functools.lru_cache(1024)
def _address(text: str) -> object:
    """What an address means; the text itself where it is none."""
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return text


class Subsystem(NamedTuple):
    """A subsystem at one moment.

    :ivar uuids: block device -> UUID of its namespace. Without native multipath each controller
        has one for each namespace.
    :ivar paths: block device -> names of the controllers that have a path to it.
    """

    nqn: str
    controllers: list[Controller]
    uuids: dict[str, str]
    paths: dict[str, list[str]]


def subsystem(root: pathlib.Path, nqn: str, only: Collection[str] = ()) -> Subsystem:
    """What is connected of a subsystem, in one pass.

    :param only: names of controllers to look at; all if empty.
    :raises OSError: when the kernel could not tell.
    """
    found = Subsystem(nqn, [], {}, {})
    base = f"{root}/{CONTROLLERS}"
    for name in only or names(base):
        each = controller(root, name, nqn)
        if not each:
            continue
        found.controllers.append(each)
        for entry in names(f"{base}/{name}"):
            device = device_name(entry)
            if not device:
                continue
            if device not in found.uuids:
                uuid = read(f"{base}/{name}/{entry}/uuid")
                # A path is shown before its head is: then there is no block device yet.
                if uuid is None or not os.path.exists(f"{root}/{BLOCK}/{device}"):
                    continue
                found.uuids[device] = uuid.lower()
            found.paths.setdefault(device, []).append(name)
    return found


def controllers(root: pathlib.Path, nqn: str = "") -> list[Controller]:
    """Controllers of fabrics on this host, of one subsystem if ``nqn`` is given.

    :raises OSError: when the kernel could not tell.
    """
    found = (controller(root, name, nqn) for name in names(f"{root}/{CONTROLLERS}"))
    return [each for each in found if each]


def states(root: pathlib.Path) -> dict[str, str]:
    """States of the controllers of fabrics, by name.

    :raises OSError: when the kernel could not tell.
    """
    found = ((name, state(root, name)) for name in names(f"{root}/{CONTROLLERS}"))
    return {name: now for name, now in found if now and _CONTROLLER.fullmatch(name)}


def controller(root: pathlib.Path, name: str, nqn: str = "") -> Controller | None:
    """One controller; None when it is not there, or not of the subsystem ``nqn`` if given."""
    if not _CONTROLLER.fullmatch(name):
        return None
    path = f"{root}/{CONTROLLERS}/{name}"
    own = read(f"{path}/subsysnqn")
    if own is None or nqn not in ("", own):
        return None
    state = read(f"{path}/state")
    if state is None:
        return None
    # "traddr=10.0.0.1,trsvcid=4420,src_addr=10.0.0.9" (nvmf_get_address in fabrics.c).
    address = dict(
        part.split("=", 1) for part in (read(f"{path}/address") or "").split(",") if "=" in part
    )
    return Controller(
        name=name,
        nqn=own,
        transport=read(f"{path}/transport") or "",
        address=address.get("traddr", ""),
        port=address.get("trsvcid", ""),
        host_nqn=read(f"{path}/hostnqn") or "",
        state=state,
    )


def state(root: pathlib.Path, name: str) -> str:
    """State of a controller; "" when it is not there."""
    return read(f"{root}/{CONTROLLERS}/{name}/state") or ""


def namespaces(root: pathlib.Path, nqn: str) -> list[Namespace]:
    """Block devices of a subsystem that are there, sorted by name.

    :raises OSError: when the kernel could not tell.
    """
    seen = subsystem(root, nqn)
    found = (namespace(root, seen, device) for device in sorted(seen.uuids))
    return [each for each in found if each]


def namespace(root: pathlib.Path, seen: Subsystem, device: str) -> Namespace | None:
    """What the kernel knows of one block device; None when it is gone."""
    path = f"{root}/{BLOCK}/{device}"
    bytes_ = size(root, device)
    nsid = read(f"{path}/nsid")
    if bytes_ is None or nsid is None:
        return None
    block_size = read(f"{path}/queue/logical_block_size")
    uuid = seen.uuids[device]
    return Namespace(device, uuid, int(nsid), bytes_, int(block_size or SECTOR), seen.nqn)


def find(root: pathlib.Path, nqn: str, uuid: str) -> Namespace | None:
    """The namespace of a UUID in a subsystem, on a live controller where there is a choice."""
    seen = subsystem(root, nqn)
    live = {each.name for each in seen.controllers if each.state == LIVE}
    found = [device for device in sorted(seen.uuids) if seen.uuids[device] == uuid.lower()]
    found.sort(key=lambda device: live.isdisjoint(seen.paths[device]))
    return namespace(root, seen, found[0]) if found else None


def size(root: pathlib.Path, name: str) -> int | None:
    """Bytes of a block device; None when it is not there.

    The kernel counts sectors of 512 bytes, whatever the logical blocks are (block/genhd.c).
    """
    text = read(f"{root}/{BLOCK}/{name}/size")
    return int(text) * SECTOR if text else None


def holders(root: pathlib.Path, name: str) -> list[str]:
    """Block devices that are made of this one: "md127", "dm-0"."""
    return names(f"{root}/{BLOCK}/{name}/holders")


def device_name(entry: str) -> str:
    """Name of the block device that an entry "nvme0n1" or "nvme0c1n1" stands for; "" for others."""
    match = _NAMESPACE.fullmatch(entry)
    return match.group(1) + match.group(2) if match else ""
