# SPDX-License-Identifier: Apache-2.0
"""The commands of LVM as :class:`tests.fakes.node_lvm.FakeHost` runs them."""

import dataclasses
import json
import os
import pathlib
import re

MIB = 1 << 20
EXTENT = 4 * MIB


@dataclasses.dataclass
class FakeLv:
    """A logical volume; ``number`` names its file."""

    name: str
    bytes: int
    tags: set
    kind: str
    number: int
    active: bool = False
    chunk: int = 65536
    metadata: int = 0
    zero: bool = True
    when_full: str = "queue"
    pool: str = "pool"
    writable: bool = True
    opened: bool | None = False


@dataclasses.dataclass
class FakeVg:
    name: str
    tags: set
    missing: int = 0
    mode: str = "rw"
    needs_check: bool = False
    data_percent: float | None = None
    autoactivation: bool = True
    lvs: dict = dataclasses.field(default_factory=dict)


class LvmCommands:
    """Groups, pools and volumes. What it needs of the host: disks, groups, files, failures."""

    def _common(self, args, flags=(), values=()):
        common = {"--config", "--devices", "--units", "--reportformat", "-o", "-S"}
        options, rest = parse(
            args, flags={"--nosuffix", *flags}, values=common | {"--addtag", *values}
        )
        allowed = options.get("--devices", [None])[0]
        self.allowed = None if allowed is None else set(allowed.split(","))
        return options, rest

    def _see(self, disk):
        return self.allowed is None or disk.path in self.allowed

    def _cmd_pvs(self, args):
        self._common(args)
        rows = [
            {"pv_name": disk.path, "vg_name": disk.pv}
            for disk in self.disks.values()
            if disk.pv is not None and self._see(disk)
        ]
        return _report("pv", rows)

    def _cmd_vgs(self, args):
        self._common(args)
        rows = []
        for vg in self.vgs.values():
            members = [disk for disk in self.disks.values() if disk.pv == vg.name]
            hidden = [disk for disk in members if not self._see(disk)]
            if len(hidden) == len(members):
                continue
            rows.append(
                {
                    "vg_name": vg.name,
                    "vg_tags": ",".join(sorted(vg.tags)),
                    "vg_free": str(self._free(vg)),
                    "vg_extent_size": str(EXTENT),
                    "vg_missing_pv_count": str(vg.missing + len(hidden)),
                }
            )
        return _report("vg", rows)

    def _free(self, vg):
        total = sum(disk.bytes - EXTENT for disk in self.disks.values() if disk.pv == vg.name)
        pools = [lv for lv in vg.lvs.values() if lv.kind == "pool"]
        used = sum(lv.bytes + 2 * lv.metadata for lv in pools)
        return (total - used) // EXTENT * EXTENT

    def _cmd_vgcreate(self, args):
        options, (name, *paths) = self._common(args, values={"--setautoactivation"})
        if name in self.vgs:
            raise ValueError(f"A volume group called {name} already exists.")
        self._take(paths, name)
        auto = options.get("--setautoactivation", ["y"])[0] == "y"
        self.vgs[name] = FakeVg(name, set(options.get("--addtag", [])), autoactivation=auto)
        return ""

    def _cmd_vgextend(self, args):
        _options, (name, *paths) = self._common(args)
        self._take(paths, self._vg(name).name)
        return ""

    def _take(self, paths, name):
        for path in paths:
            disk = self.disks[path]
            if not self._see(disk):
                raise ValueError(f"No device found for {path}.")
            if disk.signatures or disk.partitions or disk.pv:
                raise ValueError(f"WARNING: signature detected on {path}. Wipe it? [n]")
            disk.pv = name

    def _vg(self, name):
        seen = any(disk.pv == name and self._see(disk) for disk in self.disks.values())
        if name not in self.vgs or not seen:
            raise ValueError(f'Volume group "{name}" not found')
        return self.vgs[name]

    def _cmd_vgchange(self, args):
        _options, (name,) = self._common(args, flags={"-an"})
        vg = self._vg(name)
        for lv in vg.lvs.values():
            if self._is_open(vg, lv):
                raise ValueError(f"Logical volume {name}/{lv.name} in use.")
        for lv in vg.lvs.values():
            self._deactivate(vg, lv)
        self._hold(vg, False)
        vg.mode, vg.needs_check = "rw", False
        return ""

    # LVM: volumes.

    def _cmd_lvs(self, args):
        options, (name,) = self._common(args)
        rows = []
        vg = self._vg(name)
        for lv in self._selected(vg, options):
            pool = lv.kind == "pool"
            rows.append(
                {
                    "lv_name": lv.name,
                    "lv_size": str(lv.bytes),
                    "lv_tags": ",".join(sorted(lv.tags)),
                    "lv_active": "active" if lv.active else "",
                    "lv_when_full": lv.when_full if pool else "",
                    "zero": "zero" if pool and lv.zero else "",
                    "chunk_size": str(lv.chunk if pool else 0),
                    "lv_metadata_size": str(lv.metadata) if pool else "",
                    "data_percent": self._percent(vg, lv),
                    "metadata_percent": f"{self.metadata_percent:.2f}" if pool else "",
                    "pool_lv": "" if pool else lv.pool,
                    # A look into configfs: only for who asks.
                    "lv_device_open": self._open_text(vg, lv)
                    if "lv_device_open" in options["-o"][0]
                    else "",
                    "lv_permissions": "writeable" if lv.writable else "read-only",
                }
            )
        wanted = options["-o"][0].split(",")
        return _report("lv", [{key: row[key] for key in wanted} for row in rows])

    def _percent(self, vg, lv):
        used = self.data_percent if vg.data_percent is None else vg.data_percent
        return f"{used:.2f}" if lv.active else ""

    def _selected(self, vg, options):
        lvs = list(vg.lvs.values())
        for term in options.get("-S", [""])[0].split("&&"):
            term = term.strip()
            if match := re.fullmatch(r'lv_name="([^"]+)"', term):
                lvs = [lv for lv in lvs if lv.name == match[1]]
            elif match := re.fullmatch(r'lv_tags=\{"([^"]+)"\}', term):
                lvs = [lv for lv in lvs if match[1] in lv.tags]
            elif term:
                raise ValueError(f"Selection syntax error at {term!r}")
        return lvs

    def _cmd_lvcreate(self, args):
        values = {
            "--type", "-l", "-V", "-n", "--thinpool", "--chunksize", "--poolmetadatasize",
            "--poolmetadataspare", "--discards",
        }  # fmt: skip
        flags = {"-Zy", "-kn", "-Wn", "-s", "-ay", "-an"}
        options, (where,) = self._common(args, flags=flags, values=values)
        vg_name, _, origin = where.partition("/")
        vg = self._vg(vg_name)
        name, tags = options["-n"][0], set(options.get("--addtag", []))
        if not re.fullmatch(r"[a-zA-Z0-9+_.-]+", name) or name in vg.lvs:
            raise ValueError(f'Logical Volume "{name}" already exists in volume group "{vg_name}"')
        if "-s" in options:
            return self._snapshot(vg, origin, name, tags, "-an" not in options)
        if options["--type"] == ["thin-pool"]:
            return self._create_pool(vg, name, tags, options)
        size = _bytes(options["-V"][0])
        if options["--thinpool"][0] not in vg.lvs:
            raise ValueError("Thin pool not found")
        self._activate(vg, self._new_lv(vg, name, -(-size // EXTENT) * EXTENT, tags, "thin"))
        return ""

    def _create_pool(self, vg, name, tags, options):
        size = int(options["-l"][0]) * EXTENT
        metadata = _bytes(options["--poolmetadatasize"][0])
        if size + 2 * metadata > self._free(vg):
            raise ValueError(f'Volume group "{vg.name}" has insufficient free space')
        lv = self._new_lv(vg, name, size, tags, "pool")
        lv.metadata, lv.zero = metadata, "-Zy" in options
        self._activate(vg, lv)
        if "error_when_full=1" in options["--config"][0]:
            lv.when_full = "error"
        lv.chunk = int(options["--chunksize"][0].removesuffix("k")) * 1024
        return ""

    def _snapshot(self, vg, origin, name, tags, active):
        if origin not in vg.lvs:
            raise ValueError(f'Failed to find logical volume "{vg.name}/{origin}"')
        source = vg.lvs[origin]
        lv = self._new_lv(vg, name, source.bytes, tags, "thin")
        _copy_sparse(self.root / "store" / str(source.number), self.file(name, vg.name))
        if active:
            self._activate(vg, lv)
        return ""

    def _new_lv(self, vg, name, size, tags, kind):
        self.numbers += 1
        lv = FakeLv(name, size, tags, kind, self.numbers)
        vg.lvs[name] = lv
        path = self.root / "store" / str(lv.number)
        path.touch()
        if kind == "thin":
            os.truncate(path, size)
        return lv

    def _cmd_lvextend(self, args):
        options, (where,) = self._common(args, values={"-L", "-l", "--poolmetadatasize"})
        vg_name, _, name = where.partition("/")
        vg = self._vg(vg_name)
        if name not in vg.lvs:
            raise ValueError(f'Failed to find logical volume "{where}"')
        lv = vg.lvs[name]
        if "--poolmetadatasize" in options:
            lv.metadata += _bytes(options["--poolmetadatasize"][0].removeprefix("+"))
            return ""
        size = _bytes(options["-L"][0]) if "-L" in options else lv.bytes + _extents(options)
        if size <= lv.bytes:
            raise ValueError(f"New size ({size}) matches existing size or is smaller.")
        if lv.kind == "pool" and size - lv.bytes > self._free(vg):
            raise ValueError("Insufficient free space")
        lv.bytes = size
        if lv.kind == "thin":
            os.truncate(self.root / "store" / str(lv.number), size)
            if lv.active:
                self._show(lv)
        return ""

    def _cmd_lvremove(self, args):
        options, (name,) = self._common(args, flags={"-f"})
        vg = self._vg(name)
        for lv in self._selected(vg, options):
            if self._is_open(vg, lv):
                raise ValueError(f"Logical volume {name}/{lv.name} in use.")
            self._deactivate(vg, lv)
            (self.root / "store" / str(lv.number)).unlink()
            del vg.lvs[lv.name]
        return ""

    def _cmd_lvchange(self, args):
        options, paths = self._common(
            args, flags={"-ay", "-K", "--refresh"}, values={"--errorwhenfull", "--deltag"}
        )
        missing = []
        for path in paths:
            vg_name, _, name = path.partition("/")
            vg = self._vg(vg_name)
            if name in vg.lvs and "--errorwhenfull" in options:
                vg.lvs[name].when_full = "error"
            elif name in vg.lvs and ("--addtag" in options or "--deltag" in options):
                vg.lvs[name].tags |= set(options.get("--addtag", []))
                vg.lvs[name].tags -= set(options.get("--deltag", []))
            elif name in vg.lvs and "--refresh" in options:
                self.suspend(name, vg_name, "0")
            elif name in vg.lvs:
                self._activate(vg, vg.lvs[name])
            else:
                missing.append(path)
        if missing:
            raise ValueError(f"Failed to find logical volume {missing}")
        return ""

    def _cmd_lvrename(self, args):
        _options, (vg_name, name, new) = self._common(args)
        vg = self._vg(vg_name)
        if name not in vg.lvs or new in vg.lvs:
            raise ValueError(f'Failed to rename "{name}" to "{new}" in group "{vg_name}"')
        lv = vg.lvs[name]
        self._deactivate(vg, lv, node=False)
        lv.name = new
        vg.lvs = {one.name: one for one in vg.lvs.values()}
        if lv.active:
            self._activate(vg, lv)
        return ""

    def _open_text(self, vg, lv):
        if lv.opened is None:
            return "unknown"
        return "open" if self._is_open(vg, lv) else ""

    def _is_open(self, vg, lv):
        if lv.opened:
            return True
        device = str(self.root / "dev" / vg.name / lv.name)
        # Other calls remove exports meanwhile: os.walk() passes over what is gone.
        found = os.walk(self.root / "sys/kernel/config/nvmet/subsystems")
        return any(
            self._exports(pathlib.Path(base), device)
            for base, _, files in found
            if "device_path" in files
        )

    @staticmethod
    def _exports(namespace, device):
        try:
            path = (namespace / "device_path").read_text().strip()
            return path == device and (namespace / "enable").read_text().strip() == "1"
        except FileNotFoundError:
            # Removed by another call since it was listed.
            return False

    # Device nodes.

    def _activate(self, vg, lv):
        lv.active = True
        for pool in vg.lvs.values():
            if pool.kind == "pool" and not (pool.active and pool is not lv):
                pool.active = True
                self._hold(vg, True)
        if lv.kind == "pool":
            return
        node, link = self.root / "dev" / f"dm-{lv.number}", self.root / "dev" / vg.name / lv.name
        if not node.exists():
            os.link(self.root / "store" / str(lv.number), node)
        link.parent.mkdir(exist_ok=True)
        if not os.path.lexists(link):
            link.symlink_to(f"../dm-{lv.number}")
        self._show(lv)

    def _show(self, lv):
        base = self.root / "sys/class/block" / f"dm-{lv.number}"
        (base / "queue").mkdir(parents=True, exist_ok=True)
        (base / "dev").write_text(f"252:{lv.number}\n")
        (base / "size").write_text(f"{lv.bytes // 512}\n")
        (base / "queue/logical_block_size").write_text("512\n")

    def _deactivate(self, vg, lv, *, node=True):
        (self.root / "dev" / vg.name / lv.name).unlink(missing_ok=True)
        if not node:
            return
        lv.active = False
        (self.root / "dev" / f"dm-{lv.number}").unlink(missing_ok=True)


def parse(args, *, flags, values):
    """Split a command line; repeatable options give lists."""
    options, rest = {}, []
    words = iter(args)
    for word in words:
        if word in flags:
            options[word] = True
        elif word in values:
            options.setdefault(word, []).append(next(words))
        elif word.startswith("-"):
            raise ValueError(f"unrecognized option {word!r}")
        else:
            rest.append(word)
    return options, rest


def _report(kind, rows):
    return json.dumps({"report": [{kind: rows}]})


def _bytes(text):
    assert text.endswith("b"), text
    return int(text[:-1])


def _extents(options):
    return int(options["-l"][0].removeprefix("+")) * EXTENT


def _copy_sparse(source, target):
    with open(source, "rb") as reader, open(target, "r+b") as writer:
        at = 0
        while True:
            try:
                at = os.lseek(reader.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(reader.fileno(), at, os.SEEK_HOLE)
            reader.seek(at)
            writer.seek(at)
            writer.write(reader.read(end - at))
            at = end
