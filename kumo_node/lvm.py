# SPDX-License-Identifier: Apache-2.0
"""LVM through its JSON reports.

Why a new volume reads as zeros (lvmthin(7), "Zeroing"; Documentation/admin-guide/device-mapper/
thin-provisioning.rst, ``skip_block_zeroing``): a thin volume has no blocks until they are written,
unmapped blocks read as zeros, and a pool made with ``-Zy`` fills each newly provisioned block with
zeros before use, except where the write covers it whole. So neither a block freed by another
volume nor one of a disk that joined the pool with old data on it can be read. LVM keeps the mode
with the pool; :meth:`Lvm.pool` reports it and the daemon refuses a pool without it.

Further choices for the pool:

* ``activation/error_when_full``: a full pool fails writes at once. The default queues them for 60 s
  (dm_thin_pool ``no_space_timeout``) and then fails them all the same; meanwhile hosts hang.
  (lvcreate 2.03.16 refuses ``--errorwhenfull`` for a new pool and takes the setting instead.)
* ``--discards passdown``: blocks freed by hosts return to the pool and to the SSD.
* ``activation/monitoring=0``: no dmeventd is needed; the daemon watches the fill level itself.
* ``--setautoactivation n`` on the group: after a boot nothing is active until the daemon has
  seen to it that udev leaves the volumes alone (:mod:`kumo_node.kernel`).

Every command is restricted to our disks with ``--devices`` (lvm2 2.03.12 and later), so that it
neither scans nor changes others and never sees volume groups that tenants make inside volumes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_node.executor import CommandError, Executor

TAG = "kumo"
# Thin pool metadata cannot exceed 15.81 GiB (lvmthin(7)).
MAX_METADATA = 15 * GIB
# Bytes of metadata for a mapped chunk. thin_metadata_size(8) says 48 to 64 for one mapping; twice
# that leaves room for snapshots whose mappings are no longer shared.
METADATA_PER_CHUNK = 128
MIN_METADATA = 8 << 20
_ACTIVATE_AT_ONCE = 64
# lv_device_open of lvs(8); anything else is "unknown".
_IS_OPEN = {"open": True, "": False}


@dataclasses.dataclass(frozen=True)
class Group:
    """A volume group; sizes in bytes."""

    name: str
    tags: frozenset[str]
    free: int
    extent: int
    missing: int


@dataclasses.dataclass(frozen=True)
class Volume:
    """A logical volume; ``bytes`` is its (virtual) size."""

    name: str
    bytes: int
    tags: frozenset[str]
    active: bool


@dataclasses.dataclass(frozen=True)
class ThinVolume(Volume):
    """A thin volume. ``is_open``: something holds its device; None is could not tell."""

    is_open: bool | None = None
    writable: bool = True


@dataclasses.dataclass(frozen=True)
class PoolState:
    """The thin pool, sizes in bytes. Percentages are None while it is not active.

    ``zeroes``: new blocks are zeroed. ``queues``: writes wait when it is full.
    """

    bytes: int
    zeroes: bool
    queues: bool
    chunk: int
    metadata: int
    data_percent: float | None
    metadata_percent: float | None


def owner_tag(persistent_id: str) -> str:
    return f"kumo-owner-{persistent_id}"


def made_tag(token: str) -> str:
    return f"kumo-made-{token}"


def replica_name(uuid: str) -> str:
    return f"r-{uuid}"


def snapshot_name(uuid: str) -> str:
    return f"s-{uuid}"


def metadata_size(data: int, extent: int, chunk: int) -> int:
    """Bytes of metadata for a pool with ``data`` bytes in chunks of ``chunk`` bytes."""
    return -(-max(data // chunk * METADATA_PER_CHUNK, MIN_METADATA) // extent) * extent


def pool_layout(free: int, extent: int, chunk_kib: int, reserve: int = 0) -> tuple[int, int, int]:
    """Sizes of a new pool that fills a group, but for a reserve.

    :param free: bytes free in the group.
    :param extent: bytes of an extent.
    :param chunk_kib: wished chunk size in KiB.
    :param reserve: bytes to leave free.
    :returns: (extents of data, bytes of metadata, chunk size in KiB). The spare that LVM keeps for
        a repair of the metadata is as large as the metadata and is left free.
    :raises ConfigError: when the group is too small.
    """
    while True:
        metadata = metadata_size(free, extent, chunk_kib * 1024)
        if metadata <= MAX_METADATA:
            break
        chunk_kib *= 2
    data = (free - 2 * metadata - reserve) // extent
    if data * extent < 64 << 20:
        raise errors.ConfigError(f"The disks are too small for a pool: {free} bytes are free")
    return data, metadata, chunk_kib


class Lvm:
    """One volume group.

    :param devices: paths of the disks that commands may see. Without any, only reports over all
        disks of the host can be had.
    :param dev_root: where device nodes are, ``/dev``.
    :param sys_root: where sysfs is, ``/sys``.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        vg: str,
        pool: str,
        devices: Sequence[str] = (),
        dev_root: str = "/dev",
        sys_root: str = "/sys",
    ) -> None:
        self.executor = executor
        self.vg = vg
        self.pool_name = pool
        self.devices = list(devices)
        self.dev_root = pathlib.Path(dev_root)
        self.sys_root = pathlib.Path(sys_root)

    # Reports.

    def groups(self, *, everywhere: bool = False) -> dict[str, Group]:
        """All volume groups on our disks, or on all disks of the host."""
        fields = "vg_name,vg_tags,vg_free,vg_extent_size,vg_missing_pv_count"
        rows = self._report("vg", "vgs", fields, everywhere=everywhere)
        return {
            row["vg_name"]: Group(
                row["vg_name"],
                _tags(row["vg_tags"]),
                int(row["vg_free"]),
                int(row["vg_extent_size"]),
                int(row["vg_missing_pv_count"] or 0),
            )
            for row in rows
        }

    def physical(self) -> dict[str, str]:
        """Path of each physical volume of the host -> its volume group, "" when in none."""
        rows = self._report("pv", "pvs", "pv_name,vg_name", everywhere=True)
        return {os.path.realpath(row["pv_name"]): row["vg_name"] for row in rows}

    def volumes(self) -> dict[str, Volume]:
        """All visible volumes of the group, the pool included."""
        return {volume.name: volume for volume in self._volumes()}

    def find(self, name: str) -> Volume | None:
        """One volume; None is a definite no."""
        return next(iter(self._volumes("-S", f'lv_name="{name}"')), None)

    def thin_volumes(self, *select: str) -> dict[str, ThinVolume]:
        """The thin volumes of the pool, with what tells whether somebody uses them."""
        fields = "lv_name,lv_size,lv_tags,lv_active,pool_lv,lv_device_open,lv_permissions"
        rows = self._report("lv", "lvs", fields, *select, self.vg)
        return {
            row["lv_name"]: ThinVolume(
                row["lv_name"],
                int(row["lv_size"]),
                _tags(row["lv_tags"]),
                active=row["lv_active"] == "active",
                is_open=_IS_OPEN.get(row["lv_device_open"]),
                writable=str(row["lv_permissions"]) == "writeable",
            )
            for row in rows
            if row["pool_lv"] == self.pool_name
        }

    def find_thin(self, name: str) -> ThinVolume | None:
        """One thin volume of the pool; None is a definite no."""
        return self.thin_volumes("-S", f'lv_name="{name}"').get(name)

    def _volumes(self, *select: str) -> list[Volume]:
        fields = "lv_name,lv_size,lv_tags,lv_active"
        rows = self._report("lv", "lvs", fields, *select, self.vg)
        return [
            Volume(
                row["lv_name"],
                int(row["lv_size"]),
                _tags(row["lv_tags"]),
                row["lv_active"] == "active",
            )
            for row in rows
        ]

    def pool(self) -> PoolState | None:
        """The thin pool; None is a definite no."""
        fields = "lv_size,zero,lv_when_full,chunk_size,lv_metadata_size"
        fields += ",data_percent,metadata_percent"
        select = f'lv_name="{self.pool_name}"'
        for row in self._report("lv", "lvs", fields, "-S", select, self.vg):
            return PoolState(
                int(row["lv_size"]),
                row["zero"] in ("zero", "1"),
                row["lv_when_full"] == "queue",
                int(row["chunk_size"]),
                int(row["lv_metadata_size"]),
                float(row["data_percent"]) if row["data_percent"] else None,
                float(row["metadata_percent"]) if row["metadata_percent"] else None,
            )
        return None

    # Group and pool.

    def create_group(self, disks: Sequence[str], tags: Iterable[str]) -> None:
        """Make the group. Without ``--yes``: LVM itself refuses a disk with a signature."""
        add = [word for tag in tags for word in ("--addtag", tag)]
        self._change("vgcreate", "--setautoactivation", "n", *add, self.vg, *disks)

    def extend_group(self, disks: Sequence[str]) -> None:
        self._change("vgextend", self.vg, *disks)

    def create_pool(self, extents: int, metadata: int, chunk_kib: int) -> None:
        """Make the thin pool. See the head of this module for the modes."""
        self._change(
            "lvcreate", "--type", "thin-pool", "-l", str(extents), "--chunksize", f"{chunk_kib}k",
            "--poolmetadatasize", f"{metadata}b", "--poolmetadataspare", "y", "-Zy",
            "--discards", "passdown", "--addtag", TAG,
            "-n", self.pool_name, self.vg,
        )  # fmt: skip

    def fail_when_full(self) -> None:
        """Let a full pool fail writes instead of queueing them."""
        self._change("lvchange", "--errorwhenfull", "y", f"{self.vg}/{self.pool_name}")

    def extend_pool(self, extents: int) -> None:
        """Grow the data of the pool by that many extents."""
        self._change("lvextend", "-l", f"+{extents}", f"{self.vg}/{self.pool_name}")

    def extend_metadata(self, more: int) -> None:
        """Grow the metadata of the pool by that many bytes."""
        self._change("lvextend", "--poolmetadatasize", f"+{more}b", f"{self.vg}/{self.pool_name}")

    # Volumes.

    def create(self, name: str, size: int, tags: Iterable[str]) -> None:
        """Make an empty thin volume of ``size`` bytes and activate it."""
        # -Wn: there is nothing to wipe, and the look for signatures costs a read.
        self._change(
            "lvcreate", "--type", "thin", "-V", f"{size}b", "--thinpool", self.pool_name,
            "-kn", "-Wn", *_add(tags), "-n", name, self.vg,
        )  # fmt: skip

    def copy(self, name: str, source: str, tags: Iterable[str], *, active: bool) -> None:
        """Make a copy-on-write image of a thin volume, exact at one moment.

        LVM suspends an active source meanwhile, which flushes what is under way; writes of hosts
        wait, usually for some milliseconds. An inactive image needs no device node.
        """
        mode = "-ay" if active else "-an"
        self._change(
            "lvcreate", "-s", "-kn", mode, *_add(tags), "-n", name, f"{self.vg}/{source}"
        )  # fmt: skip

    def extend(self, name: str, size: int) -> None:
        """Grow to ``size`` bytes; to have that size already is success."""
        try:
            self._change("lvextend", "-L", f"{size}b", f"{self.vg}/{name}")
        except errors.InternalError:
            # lvextend also fails when nothing is to be done.
            volume = self.find(name)
            if volume is None or volume.bytes != size:
                raise

    def remove(self, name: str, token: str) -> None:
        """Remove the volume that was made with this token; success when there is none.

        Name and tag are selected by LVM itself under its lock, so that nothing made by others in
        between can be hit.

        :raises InUseError: something holds it open.
        """
        select = f'lv_name="{name}" && lv_tags={{"{made_tag(token)}"}}'
        try:
            self._run("lvremove", "-f", "-S", select, self.vg)
        except CommandError as error:
            if error.definite and "in use" in error.stderr:
                raise errors.InUseError(
                    f"Logical volume {self.vg}/{name} is held open on the node",
                    way_out="Find the holder with lsblk or fuser",
                ) from error
            raise self._translated(error) from error

    def rename(self, name: str, new: str) -> None:
        """Give a volume another name; one that is in use stays in use."""
        self._change("lvrename", self.vg, name, new)

    def retag(self, name: str, *, add: Iterable[str] = (), remove: Iterable[str] = ()) -> None:
        """Add and remove tags of a volume; those that are so already are no error."""
        words = [*_add(add), *(word for tag in remove for word in ("--deltag", tag))]
        if words:
            self._change("lvchange", *words, f"{self.vg}/{name}")

    def activate(self, names: Sequence[str]) -> None:
        """Activate volumes; those that are active stay as they are."""
        for start in range(0, len(names), _ACTIVATE_AT_ONCE):
            part = names[start : start + _ACTIVATE_AT_ONCE]
            self._change("lvchange", "-ay", "-K", *(f"{self.vg}/{name}" for name in part))

    def activate_pool(self) -> None:
        """Activate the pool, so that its state can be seen while no volume is active."""
        self._change("lvchange", "-ay", f"{self.vg}/{self.pool_name}")

    def deactivate(self) -> None:
        """Deactivate everything in the group; what is held open makes it fail."""
        self._change("vgchange", "-an", self.vg)

    def resume(self, name: str) -> None:
        """Reload and resume a volume, and its pool, that a killed command left suspended."""
        self._change("lvchange", "--refresh", f"{self.vg}/{name}", f"{self.vg}/{self.pool_name}")

    # Devices.

    def device(self, name: str) -> str:
        """Path of the device node (a link that udev makes)."""
        return os.path.join(self.dev_root, self.vg, name)

    def is_active(self, name: str) -> bool:
        return os.path.exists(self.device(name))

    def is_suspended(self, name: str) -> bool:
        """True when I/O to an active volume waits (Documentation/ABI/testing/sysfs-block-dm)."""
        device = os.path.basename(os.path.realpath(self.device(name)))
        path = os.path.join(self.sys_root, "class", "block", device, "dm", "suspended")
        try:
            with open(path) as stream:
                return stream.read().strip() == "1"
        except FileNotFoundError:
            return False

    def number(self, name: str) -> str | None:
        """Number of the device of a volume as ``major:minor``; None when it is not active."""
        device = os.path.basename(os.path.realpath(self.device(name)))
        try:
            return (self.sys_root / "class" / "block" / device / "dev").read_text().strip()
        except OSError:
            return None

    def block(self, name: str) -> tuple[int, int]:
        """Size in bytes and logical block size of an active volume, from sysfs.

        :raises BackendUnavailableError: when it is not active.
        """
        device = os.path.basename(os.path.realpath(self.device(name)))
        base = self.sys_root / "class" / "block" / device
        try:
            # The size is in units of 512 bytes whatever the block size (Documentation/ABI/stable/
            # sysfs-block).
            size = int((base / "size").read_text()) * 512
            return size, int((base / "queue" / "logical_block_size").read_text())
        except (OSError, ValueError) as error:
            raise errors.BackendUnavailableError(
                f"Logical volume {self.vg}/{name} is not active",
                way_out="The node activates it by itself; see its log if it does not",
            ) from error

    # Commands.

    def _report(
        self, kind: str, command: str, fields: str, *rest: str, everywhere: bool = False
    ) -> list[dict[str, Any]]:
        form = ("--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields)
        try:
            text = self._run(command, *form, *rest, everywhere=everywhere)
        except CommandError as error:
            raise self._translated(error) from error
        try:
            return [row for report in json.loads(text)["report"] for row in report[kind]]
        except (ValueError, KeyError, TypeError) as error:
            raise errors.InternalError(f"{command} gave no usable report: {error}") from error

    def _change(self, command: str, *args: str) -> None:
        try:
            self._run(command, *args)
        except CommandError as error:
            raise self._translated(error) from error

    def _run(self, command: str, *args: str, everywhere: bool = False) -> str:
        common = ["--config", "activation { monitoring=0 error_when_full=1 }"]
        if not everywhere:
            if not self.devices:
                raise errors.BackendUnavailableError(
                    f"No disk of volume group {self.vg} is there", way_out="Bring the disk back"
                )
            common += ["--devices", ",".join(self.devices)]
        return self.executor.run(command, *common, *args)

    def _translated(self, error: CommandError) -> errors.KumoError:
        if not error.definite:
            return errors.BackendUnavailableError(
                f"The outcome of {error.argv[0]} is unknown: {error.stderr}",
                way_out="Repeat the call; the node finds out what was done",
            )
        return errors.InternalError(f"{error.argv[0]} failed on the node: {error.stderr}")


def _tags(text: str) -> frozenset[str]:
    return frozenset(tag for tag in text.split(",") if tag)


def _add(tags: Iterable[str]) -> list[str]:
    return [word for tag in tags for word in ("--addtag", tag)]
