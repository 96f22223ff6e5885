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
import ipaddress
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

CONTROLLERS = "sys/class/nvme-fabrics/ctl"
SUBSYSTEMS = "sys/class/nvme-subsystem"
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
_SUBSYSTEM = re.compile(r"nvme-subsys\d+")
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


def read(path: pathlib.Path) -> str | None:
    """The text of an attribute, stripped; None when it or its device is not there.

    :raises OSError: when the kernel could not tell.
    """
    try:
        return path.read_text().strip()
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise


def names(path: pathlib.Path) -> list[str]:
    """What is in a directory, sorted; empty when it is not there."""
    try:
        return sorted(os.listdir(path))
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise


def same_address(one: str, other: str) -> bool:
    """Whether two texts are the same address: IPv6 can be written in several ways."""
    try:
        return ipaddress.ip_address(one.strip("[]")) == ipaddress.ip_address(other.strip("[]"))
    except ValueError:
        return one == other


def controllers(root: pathlib.Path, nqn: str = "") -> list[Controller]:
    """Controllers of fabrics on this host, of one subsystem if ``nqn`` is given.

    :raises OSError: when the kernel could not tell.
    """
    found = (controller(root, name, nqn) for name in names(root / CONTROLLERS))
    return [each for each in found if each]


def controller(root: pathlib.Path, name: str, nqn: str = "") -> Controller | None:
    """One controller; None when it is not there, or not of the subsystem ``nqn`` if given."""
    if not _CONTROLLER.fullmatch(name):
        return None
    path = root / CONTROLLERS / name
    own = read(path / "subsysnqn")
    if own is None or nqn not in ("", own):
        return None
    state = read(path / "state")
    if state is None:
        return None
    # "traddr=10.0.0.1,trsvcid=4420,src_addr=10.0.0.9" (nvmf_get_address in fabrics.c).
    address = dict(
        part.split("=", 1) for part in (read(path / "address") or "").split(",") if "=" in part
    )
    return Controller(
        name=name,
        nqn=own,
        transport=read(path / "transport") or "",
        address=address.get("traddr", ""),
        port=address.get("trsvcid", ""),
        host_nqn=read(path / "hostnqn") or "",
        state=state,
    )


def state(root: pathlib.Path, name: str) -> str:
    """State of a controller; "" when it is not there."""
    return read(root / CONTROLLERS / name / "state") or ""


def namespaces(root: pathlib.Path, nqn: str) -> list[Namespace]:
    """Block devices of a subsystem that are there, sorted by name.

    Without native multipath two controllers of a subsystem have one for each namespace.

    :raises OSError: when the kernel could not tell.
    """
    found: dict[str, Namespace] = {}
    for directory in _homes(root, nqn):
        for entry in names(directory):
            name = device_name(entry)
            if name and name not in found:
                namespace = _namespace(root, directory / entry, name, nqn)
                if namespace:
                    found[name] = namespace
    return [found[name] for name in sorted(found)]


def find(root: pathlib.Path, nqn: str, uuid: str) -> Namespace | None:
    """The namespace of a UUID in a subsystem, on a live controller where there is a choice."""
    found = [each for each in namespaces(root, nqn) if each.uuid == uuid.lower()]
    for each in found[1:] and found:
        if any(state(root, name) == LIVE for name in controllers_of(root, nqn, each.name)):
            return each
    return found[0] if found else None


def controllers_of(root: pathlib.Path, nqn: str, device: str) -> list[str]:
    """Names of the controllers of a subsystem that have a path to a block device."""
    return [
        each.name
        for each in controllers(root, nqn)
        if any(device_name(entry) == device for entry in names(root / CONTROLLERS / each.name))
    ]


def size(root: pathlib.Path, name: str) -> int | None:
    """Bytes of a block device; None when it is not there.

    The kernel counts sectors of 512 bytes, whatever the logical blocks are (block/genhd.c).
    """
    text = read(root / BLOCK / name / "size")
    return int(text) * SECTOR if text else None


def holders(root: pathlib.Path, name: str) -> list[str]:
    """Block devices that are made of this one: "md127", "dm-0"."""
    return names(root / BLOCK / name / "holders")


def device_name(entry: str) -> str:
    """Name of the block device that an entry "nvme0n1" or "nvme0c1n1" stands for; "" for others."""
    match = _NAMESPACE.fullmatch(entry)
    return match.group(1) + match.group(2) if match else ""


def _homes(root: pathlib.Path, nqn: str) -> Iterator[pathlib.Path]:
    """Directories in which namespaces of a subsystem are found."""
    for name in names(root / SUBSYSTEMS):
        path = root / SUBSYSTEMS / name
        if _SUBSYSTEM.fullmatch(name) and read(path / "subsysnqn") == nqn:
            yield path
    for each in controllers(root, nqn):
        yield root / CONTROLLERS / each.name


def _namespace(root: pathlib.Path, path: pathlib.Path, name: str, nqn: str) -> Namespace | None:
    uuid = read(path / "uuid")
    nsid = read(path / "nsid")
    sectors = size(root, name)
    # A path is shown before its head is: then there is no block device yet.
    if uuid is None or nsid is None or sectors is None:
        return None
    block_size = read(root / BLOCK / name / "queue" / "logical_block_size")
    return Namespace(name, uuid.lower(), int(nsid), sectors, int(block_size or SECTOR), nqn)
