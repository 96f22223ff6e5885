# SPDX-License-Identifier: Apache-2.0
"""The disks given to this node, and whether they may be taken.

Answers are three-valued. A disk is taken only when it is definitely empty, definitely ours already,
or named in ``wipe_disks`` and definitely not in use. Whatever could not be told is a refusal.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from kumo_client import errors
from kumo_node import kernel
from kumo_node.executor import CommandError, Executor
from kumo_node.spec import DiskRecord


class State(enum.Enum):
    """What a disk is."""

    OURS = "in our volume group"
    ORPHAN = "an LVM physical volume in no group"
    EMPTY = "empty"
    DATA = "holding data"
    IN_USE = "in use"
    MISSING = "missing"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Disk:
    """A disk and the verdict on it. ``path`` is as configured, ``device`` its real node.

    ``group`` is the volume group it is in, "" for none.
    """

    path: str
    device: str
    state: State
    reason: str
    serial: str = ""
    bytes: int = 0
    block_size: int = 512
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be done with the disks. ``refused``: those left alone, each with the reason."""

    keep: tuple[Disk, ...] = ()
    add: tuple[Disk, ...] = ()
    wipe: tuple[Disk, ...] = ()
    refused: tuple[tuple[Disk, str], ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(reason for _disk, reason in self.refused)


def plan(disks: Sequence[Disk], wipe: Iterable[str], recorded: Mapping[str, DiskRecord]) -> Plan:
    """Decide; pure.

    :param wipe: paths whose contents may be destroyed, as configured.
    :param recorded: what the node's record says of disks, by path.
    """
    may_wipe = set(wipe)
    keep, add, wiped, refused = [], [], [], []
    for disk in disks:
        record = recorded.get(disk.path)
        # After a crash in the middle of taking a disk its header may be written already.
        begun = record is not None and not record.ready
        if disk.state is State.OURS:
            keep.append(disk)
        elif record is not None and record.ready and record.serial == disk.serial:
            # Never wiped again, also when it is still named in wipe_disks.
            now = f"{disk.path} was in our volume group and is now {disk.state.value}"
            refused.append((disk, f"{now}: {disk.reason}"))
        elif disk.state is State.EMPTY or (disk.state is State.ORPHAN and begun):
            add.append(disk)
        elif disk.state in (State.DATA, State.ORPHAN) and disk.path in may_wipe:
            wiped.append(disk)
        else:
            refused.append((disk, f"{disk.path} is {disk.state.value}: {disk.reason}"))
    return Plan(tuple(keep), tuple(add), tuple(wiped), tuple(refused))


class Disks:
    """Looks at disks.

    :param is_held: whether the kernel has a device claimed, True, False or None for unknown.
    """

    def __init__(
        self, executor: Executor, is_held: Callable[[str], bool | None] = kernel.is_held
    ) -> None:
        self.executor = executor
        self.is_held = is_held

    def inspect(
        self, paths: Sequence[str], physical: Mapping[str, str], ours: Collection[str]
    ) -> list[Disk]:
        """A verdict on each disk; one that is not there or cannot be looked at has one, too.

        :param physical: real path of each physical volume of the host -> its group, "" for none.
        :param ours: names of the groups that the caller has found to be ours.
        """
        return _each_once([self._inspect(path, physical, ours) for path in paths])

    def wipe(self, disk: Disk) -> None:
        """Destroy all signatures on a disk.

        :raises UnsafeDiskError: when that fails.
        """
        try:
            self.executor.run("wipefs", "--all", disk.device)
        except CommandError as error:
            raise errors.UnsafeDiskError(f"{disk.path} cannot be wiped: {error.stderr}") from error

    def _lsblk(self, path: str) -> dict[str, Any] | None:
        """What lsblk says of a disk; None when it does not know it.

        One call for each: with several, lsblk tells nothing of those that are there beside one that
        is not in a way that all versions share.
        """
        columns = "PATH,TYPE,SIZE,SERIAL,LOG-SEC,RO,MOUNTPOINTS"
        text = self.executor.run("lsblk", "--json", "--bytes", "-o", columns, path)
        rows = {row["path"]: row for row in json.loads(text)["blockdevices"]}
        found = rows.get(os.path.realpath(path)) or rows.get(path)
        return dict(found) if found is not None else None

    def _inspect(self, path: str, physical: Mapping[str, str], ours: Collection[str]) -> Disk:
        device = os.path.realpath(path)
        if not os.path.exists(device):
            return Disk(path, device, State.MISSING, "there is no such device")
        try:
            row = self._lsblk(path)
        except (CommandError, ValueError, KeyError, TypeError) as error:
            return Disk(path, device, State.UNKNOWN, f"it could not be looked at ({error})")
        if row is None:
            return Disk(path, device, State.UNKNOWN, "lsblk does not know it")
        state, reason = self._verdict(device, row, physical.get(device), ours)
        return Disk(
            path,
            device,
            state,
            reason,
            serial=str(row.get("serial") or ""),
            bytes=int(row.get("size") or 0),
            block_size=int(row.get("log-sec") or 512),
            group=physical.get(device) or "",
        )

    def _verdict(
        self, device: str, row: Mapping[str, Any], group: str | None, ours: Collection[str]
    ) -> tuple[State, str]:
        if group in ours:
            return State.OURS, "it is in our volume group"
        if row.get("type") not in ("disk", "loop", "mpath"):
            return State.UNKNOWN, f"it is a {row.get('type')}, not a whole disk"
        mounts = [name for name in row.get("mountpoints") or [] if name]
        if mounts:
            return State.IN_USE, f"it is mounted on {', '.join(mounts)}"
        if row.get("ro") not in (False, 0, "0"):
            return State.UNKNOWN, "it is read-only"
        if group:
            return State.IN_USE, f"it is in volume group {group}"
        held = self._used_below(row) or self.is_held(device)
        if held:
            return State.IN_USE, "the kernel or a partition of it holds it"
        if held is None:
            return State.UNKNOWN, "it cannot be opened"
        if group == "":
            return State.ORPHAN, "it is an LVM physical volume without a group"
        return self._contents(device, row)

    def _used_below(self, row: Mapping[str, Any]) -> bool:
        """True when a partition is mounted or something is stacked on one."""
        for child in row.get("children") or []:
            if child.get("type") != "part" or any(child.get("mountpoints") or []):
                return True
            if self._used_below(child):
                return True
        return False

    def _contents(self, device: str, row: Mapping[str, Any]) -> tuple[State, str]:
        if row.get("children"):
            names = ", ".join(str(child.get("path")) for child in row["children"])
            return State.DATA, f"it has partitions ({names})"
        try:
            # Unlike blkid, whose exit code 2 stands for both, this tells "none" from "failed".
            text = self.executor.run("wipefs", "--json", "--no-act", device)
            found = json.loads(text)["signatures"] if text.strip() else []
        except (CommandError, ValueError, KeyError, TypeError) as error:
            return State.UNKNOWN, f"wipefs could not read it ({error})"
        if found:
            types = ", ".join(str(item.get("type")) for item in found)
            return State.DATA, f"it has signatures ({types})"
        return State.EMPTY, "no partition and no signature"


def device_of(path: str) -> str | None:
    """Real path of a disk's device node; None when there is none."""
    device = os.path.realpath(path)
    return device if os.path.exists(device) else None


def identity(device: str, sys_root: pathlib.Path) -> str:
    """Changes when a disk is taken away and given back, even under the same name.

    ``diskseq`` rises with each disk that the kernel finds (Documentation/ABI/stable/sysfs-block,
    Linux 5.15).
    """
    try:
        return (sys_root / "class/block" / os.path.basename(device) / "diskseq").read_text().strip()
    except OSError:
        return device


def has_holders(device: str, sys_root: pathlib.Path) -> bool | None:
    """Whether something active is stacked on a disk: yes, no, or None for could not tell.

    A disk that was taken away and given back has none, while what was active keeps the lost one.
    """
    try:
        return bool(os.listdir(sys_root / "class/block" / os.path.basename(device) / "holders"))
    except OSError:
        return None


def _each_once(disks: list[Disk]) -> list[Disk]:
    seen: dict[str, str] = {}
    for disk in disks:
        other = seen.setdefault(disk.device, disk.path)
        if other != disk.path:
            raise errors.ConfigError(f"Option disks: {other} and {disk.path} are the same disk")
    return disks
