# SPDX-License-Identifier: Apache-2.0
"""A storage host as its commands show it: disks, LVM with a thin pool, udev, modprobe.

:class:`FakeHost` is an executor. Active volumes are sparse files under ``dev/``, so what a verb
writes to a device can be read back; sysfs tells their sizes. Options that LVM does not know are
refused as LVM does.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import uuid

from kumo_node.executor import CommandError
from tests.fakes.node_lvm_commands import (
    MIB,
    LvmCommands,
    parse,
)


@dataclasses.dataclass
class FakeDisk:
    """A disk. ``pv``: None for no physical volume, "" for one without group."""

    path: str
    bytes: int = 1024 * MIB
    serial: str = "SN1"
    signatures: list = dataclasses.field(default_factory=list)
    partitions: list = dataclasses.field(default_factory=list)
    mountpoints: list = dataclasses.field(default_factory=list)
    pv: str | None = None
    held: bool | None = False
    readonly: bool = False
    type: str = "disk"
    unreadable: bool = False
    dead: bool = False
    smart: dict | None = None


class FakeHost(LvmCommands):
    """Executor with a memory.

    :ivar log: every command line that was run.
    :ivar fail: list of (regular expression, how); the first that matches a command is used up.
        ``how``: a text is an error with exit code 5; "lost" does it and then gives no answer;
        "hang" does not do it and gives no answer.
    :ivar step: called before each changing command; may raise.
    """

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.disks = {}
        self.gone = {}
        self.discarded = []
        self.sequence = 0
        self.vgs = {}
        self.log = []
        self.fail = []
        self.step = lambda what: None
        self.data_percent = 1.0
        self.metadata_percent = 1.0
        self.numbers = 0
        for name in ("dev", "store", "sys/class/block", "sys/module", "sys/kernel/config"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.boot()

    # The host.

    def add_disk(self, name, **kwargs):
        path = self.root / "dev" / name
        path.touch()
        disk = FakeDisk(str(path), serial=f"SN-{name}", **kwargs)
        self.disks[str(path)] = disk
        self._number(name)
        return disk

    def _number(self, name):
        self.sequence += 1
        path = self.root / "sys/class/block" / name / "diskseq"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{self.sequence}\n")
        (path.parent / "holders").mkdir(exist_ok=True)

    def _hold(self, vg, held):
        """The pool of a group holds its disks, or not any more."""
        for disk in self.disks.values():
            path = self.root / "sys/class/block" / os.path.basename(disk.path) / "holders/dm-99"
            if disk.pv == vg.name and held:
                path.touch()
            elif disk.pv == vg.name:
                path.unlink(missing_ok=True)

    def unplug(self, name):
        """A disk is gone; what is on it comes back with it."""
        path = str(self.root / "dev" / name)
        self.gone[path] = self.disks.pop(path)
        pathlib.Path(path).unlink()
        shutil.rmtree(self.root / "sys/class/block" / name)

    def plug(self, name):
        """An unplugged disk is back."""
        path = str(self.root / "dev" / name)
        self.disks[path] = self.gone.pop(path)
        pathlib.Path(path).touch()
        self._number(name)

    def boot(self):
        """As after a start: nothing is active, nothing below /run."""
        for vg in self.vgs.values():
            vg.mode, vg.needs_check = "rw", False
            self._hold(vg, False)
            for lv in vg.lvs.values():
                self._deactivate(vg, lv)
        for path in self.root.glob("run/udev/rules.d/*"):
            path.unlink()
        for path in self.root.glob("sys/module/*"):
            path.rmdir()
        path = self.root / "proc/sys/kernel/random/boot_id"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{uuid.uuid4()}\n")
        mounts = self.root / "proc/self/mounts"
        mounts.parent.mkdir(parents=True, exist_ok=True)
        mounts.write_text("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n")

    def is_held(self, path):
        return self.disks[path].held

    def names(self, vg=None):
        """Names of the thin volumes, without the pools, of one group or all."""
        groups = [group for name, group in self.vgs.items() if vg in (None, name)]
        return {lv.name for group in groups for lv in group.lvs.values() if lv.kind == "thin"}

    def lv(self, name, vg=None):
        """A volume of that name in a group, or in the first that has one."""
        return self.vgs[vg or self.group_of(name)].lvs[name]

    def group_of(self, name):
        return next(group.name for group in self.vgs.values() if name in group.lvs)

    def file(self, name, vg=None):
        """Path of the contents of a volume, active or not."""
        return self.root / "store" / str(self.lv(name, vg).number)

    def foreign_lv(self, name, vg=None, size=8 * MIB, tags=()):
        """A volume that somebody else made, in a group or the first."""
        self._new_lv(self.vgs[vg or next(iter(self.vgs))], name, size, set(tags), "thin")

    def suspend(self, name, vg=None, value="1"):
        """I/O to a volume waits, or not any more."""
        path = self.root / "sys/class/block" / f"dm-{self.lv(name, vg).number}" / "dm/suspended"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")

    # Running.

    def run(self, *argv):
        self.log.append(" ".join(argv))
        how = self._failure(" ".join(argv))
        if how == "hang":
            raise CommandError(argv, None, "no end after 120 s")
        if how not in (None, "lost"):
            raise CommandError(argv, 5, how)
        try:
            command = getattr(self, f"_cmd_{argv[0]}")
        except AttributeError:
            raise CommandError(argv, None, "cannot be started: not found") from None
        if argv[0] not in ("lvs", "vgs", "pvs", "lsblk", "dmsetup", "dd", "nvme"):
            self.step(" ".join(argv))
        try:
            text = command(list(argv[1:]))
        except ValueError as error:
            raise CommandError(argv, 5, str(error)) from error
        if how == "lost":
            raise CommandError(argv, None, "no end after 120 s")
        return text

    def _failure(self, line):
        for index, (pattern, how) in enumerate(self.fail):
            if re.search(pattern, line):
                del self.fail[index]
                return how
        return None

    def _cmd_modprobe(self, args):
        if "-n" in args:
            return ""
        for name in args:
            if not name.startswith("-"):
                (self.root / "sys/module" / name.replace("-", "_")).mkdir(exist_ok=True)
        return ""

    def _cmd_mount(self, args):
        path = pathlib.Path(args[-1])
        path.mkdir(parents=True, exist_ok=True)
        if args[1] == "cgroup":
            where = f"/{path.relative_to(self.root)}"
            with open(self.root / "proc/self/mounts", "a") as mounts:
                mounts.write(f"{args[4]} {where} cgroup rw,relatime,{args[3]} 0 0\n")
        return ""

    def _cmd_umount(self, args):
        path = self.root / "proc/self/mounts"
        where = f" /{pathlib.Path(args[0]).relative_to(self.root)} "
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if where not in line))
        return ""

    def _cmd_nsenter(self, args):
        assert args[:2] == ["--mount=/proc/1/ns/mnt", "--"]
        return getattr(self, f"_cmd_{args[2]}")(args[3:])

    def _cmd_udevadm(self, args):
        return ""

    # Disks.

    def _cmd_lsblk(self, args):
        _options, paths = parse(args, flags={"--json", "--bytes"}, values={"-o"})
        rows = []
        for path in paths:
            disk = self.disks.get(os.path.realpath(path))
            if disk is None:
                raise ValueError(f"lsblk: {path}: not a block device")
            rows.append(
                {
                    "path": disk.path,
                    "type": disk.type,
                    "size": disk.bytes,
                    "serial": disk.serial,
                    "log-sec": 512,
                    "ro": disk.readonly,
                    "mountpoints": disk.mountpoints or [None],
                    **({"children": disk.partitions} if disk.partitions else {}),
                }
            )
        return json.dumps({"blockdevices": rows})

    def _cmd_wipefs(self, args):
        options, paths = parse(args, flags={"--json", "--no-act", "--all"}, values=set())
        disk = self.disks[paths[0]]
        if disk.unreadable:
            raise ValueError(f"wipefs: error: {disk.path}: probing initialization failed")
        if "--all" in options:
            disk.signatures, disk.partitions = [], []
            disk.pv = None
            return ""
        if not disk.signatures:
            return ""
        return json.dumps({"signatures": [{"type": name} for name in disk.signatures]})

    def _cmd_dd(self, args):
        words = dict(arg.split("=", 1) for arg in args)
        if words["of"] != "/dev/null":
            raise AssertionError(args)
        disk = self.disks.get(words["if"])
        if disk is None:
            raise ValueError(f"dd: failed to open '{words['if']}': No such file or directory")
        if disk.dead:
            raise ValueError(f"dd: error reading '{disk.path}': Input/output error")
        return ""

    def _cmd_blkdiscard(self, args):
        options, (path,) = parse(args, flags=set(), values={"-o", "-l"})
        start, size = int(options["-o"][0]), int(options["-l"][0])
        with open(path, "r+b") as device:
            device.seek(start)
            device.write(bytes(size))
        self.discarded.append((os.path.basename(path), start, size))
        return ""

    def _cmd_nvme(self, args):
        options, (_what, path) = parse(args, flags=set(), values={"-o"})
        assert options == {"-o": ["json"]}
        smart = self.disks[path].smart
        if smart is None:
            raise ValueError("smart log: Inappropriate ioctl for device")
        return json.dumps(smart)

    def _cmd_dmsetup(self, args):
        assert args == ["status", "--noflush", "--target", "thin-pool"], args
        lines = []
        for vg in self.vgs.values():
            for lv in vg.lvs.values():
                if lv.kind == "pool" and lv.active:
                    used = any(other.kind == "thin" and other.active for other in vg.lvs.values())
                    name = f"{vg.name}-{lv.name}{'-tpool' if used else ''}"
                    lines.append(f"{name}: 0 1 thin-pool {self._mode(vg)}")
        return "\n".join(lines) or "No devices found\n"

    def _mode(self, vg):
        if vg.mode == "Fail":
            return "Fail"
        data = int(100 * (self.data_percent if vg.data_percent is None else vg.data_percent))
        check = "needs_check" if vg.needs_check else "-"
        return (
            f"1 {int(100 * self.metadata_percent)}/10000 {data}/10000 - {vg.mode} "
            f"discard_passdown error_if_no_space {check} 1024"
        )

    # LVM: groups.
