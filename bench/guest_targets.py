# SPDX-License-Identifier: Apache-2.0
"""nvmet targets over TCP on this very machine: the far end of the connector benchmark.

Runs as root inside a virtual machine. Legs are sparse files in memory behind loop devices, because
a loop device can have 512-byte and 4096-byte blocks. The layout is that of
Documentation/nvme/nvme-target.rst and drivers/nvme/target/configfs.c.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

PORT = 4420
_NVMET = Path("/sys/kernel/config/nvmet")
_FILES = Path("/run/legs")
_EVENTS_AT = 4096 + 200


def run(*argv: str) -> str:
    """Run a command and return its output.

    :raises RuntimeError: it failed.
    """
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Targets:
    """Everything that is exported; made once, grown and wiped between measurements."""

    def __init__(self) -> None:
        run("modprobe", "-a", "nvmet-tcp", "nvme-tcp", "raid1", "loop")
        if not _NVMET.exists():
            run("mount", "-t", "configfs", "none", "/sys/kernel/config")
        _FILES.mkdir(exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", "size=1g", "none", str(_FILES))
        self._ports: dict[str, Path] = {}
        self._loops: dict[str, str] = {}
        self._namespaces: dict[str, Path] = {}

    def _port(self, address: str) -> Path:
        if address not in self._ports:
            path = _NVMET / "ports" / str(len(self._ports) + 1)
            path.mkdir()
            settings = {"trtype": "tcp", "adrfam": "ipv4", "traddr": address, "trsvcid": str(PORT)}
            for name, value in settings.items():
                (path / f"addr_{name}").write_text(value)
            self._ports[address] = path
        return self._ports[address]

    def add(self, leg: str, nqn: str, addresses: list[str], size: int, block: int = 512) -> None:
        """Export a leg, named by its uuid, in a subsystem that is made when it is not there.

        :param size: bytes.
        :param block: bytes of a logical block.
        """
        path = _FILES / leg
        with path.open("wb") as file:
            file.truncate(size)
        argv = ("losetup", "--find", "--show", "--sector-size", str(block), str(path))
        self._loops[leg] = run(*argv).strip()
        subsystem = _NVMET / "subsystems" / nqn
        fresh = not subsystem.exists()
        if fresh:
            subsystem.mkdir()
            (subsystem / "attr_allow_any_host").write_text("1")
        namespace = subsystem / "namespaces" / str(len(list(subsystem.glob("namespaces/*"))) + 1)
        namespace.mkdir()
        (namespace / "device_path").write_text(self._loops[leg])
        (namespace / "device_uuid").write_text(leg)
        (namespace / "enable").write_text("1")
        self._namespaces[leg] = namespace
        for address in addresses if fresh else []:
            (self._port(address) / "subsystems" / nqn).symlink_to(subsystem)

    def resize(self, leg: str, size: int) -> None:
        """Give a leg another size in bytes; hosts hear of it."""
        with (_FILES / leg).open("r+b") as file:
            file.truncate(size)
        run("losetup", "-c", self._loops[leg])
        (self._namespaces[leg] / "revalidate_size").write_text("1")

    def events(self, leg: str) -> int:
        """The event counter in a leg's md superblock (include/uapi/linux/raid/md_p.h)."""
        with (_FILES / leg).open("rb") as file:
            file.seek(_EVENTS_AT)
            return int.from_bytes(file.read(8), "little")

    def wipe(self, leg: str) -> None:
        """Make a leg that no host is connected to read as zeros."""
        run("blkdiscard", "-f", "-z", "-l", str(16 << 20), self._loops[leg])
