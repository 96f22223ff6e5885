# SPDX-License-Identifier: Apache-2.0
"""Storage nodes inside one virtual machine: a network namespace each, joined by a bridge.

nvmet makes the listening socket of a port in the network namespace of the process that links the
first subsystem to it (``nvmet_tcp_add_port()``, drivers/nvme/target/tcp.c: ``sock_create()``), so
a node's port is linked from inside its namespace and answers there alone. A node whose end of the
link is down is as silent as one without power: the bridge keeps its carrier, and nothing answers.
"""

from __future__ import annotations

from pathlib import Path

from bench.guest_targets import run
from os_brick_nvmeof.props import Portal

PORT = 4420
HERE = "10.66.0.254"
_BRIDGE = "storage"
_NVMET = Path("/sys/kernel/config/nvmet")
_FILES = Path("/run/legs")
_SECTOR = 512


def prepare(size_mib: int) -> None:
    """Load modules and make the bridge and the memory for all legs.

    :param size_mib: that all legs together may take.
    """
    run("modprobe", "-a", "nvmet-tcp", "nvme-tcp", "raid1", "loop", "veth", "bridge", "dummy")
    if not _NVMET.exists():
        run("mount", "-t", "configfs", "none", "/sys/kernel/config")
    _FILES.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "none", str(_FILES))
    run("ip", "link", "add", _BRIDGE, "type", "bridge")
    # A bridge has a carrier as long as one of its ports has.
    run("ip", "link", "add", "other", "type", "dummy")
    run("ip", "link", "set", "other", "master", _BRIDGE, "up")
    run("ip", "address", "add", f"{HERE}/24", "dev", _BRIDGE)
    run("ip", "link", "set", _BRIDGE, "up")


class Node:
    """A storage node with one portal and one subsystem. Made once.

    :param number: from 1. :param nqn: of its subsystem.
    """

    def __init__(self, number: int, nqn: str) -> None:
        self.name, self.nqn = f"node{number}", nqn
        self.address = f"10.66.0.{number}"
        self._loops: dict[str, str] = {}
        self._subsystem = _NVMET / "subsystems" / nqn
        self._subsystem.mkdir()
        (self._subsystem / "attr_allow_any_host").write_text("1")
        self._link(number)
        self._export(number)

    @property
    def portal(self) -> Portal:
        """Where it answers."""
        return Portal(self.address, str(PORT), "tcp")

    def _inside(self, *argv: str) -> None:
        # "ip netns exec" would mount another /sys, without configfs.
        run("nsenter", f"--net=/run/netns/{self.name}", *argv)

    def _link(self, number: int) -> None:
        outer = f"port{number}"
        run("ip", "netns", "add", self.name)
        peer = ("peer", "name", "eth0", "netns", self.name)
        run("ip", "link", "add", outer, "type", "veth", *peer)
        run("ip", "link", "set", outer, "master", _BRIDGE, "up")
        self._inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.restore()

    def _export(self, number: int) -> None:
        port = _NVMET / "ports" / str(number)
        port.mkdir()
        settings = {"trtype": "tcp", "adrfam": "ipv4", "traddr": self.address}
        for name, value in (settings | {"trsvcid": str(PORT)}).items():
            (port / f"addr_{name}").write_text(value)
        self._inside("ln", "-s", str(self._subsystem), str(port / "subsystems" / self.nqn))

    def cut(self) -> None:
        """Lose power: nothing is answered any more."""
        self._inside("ip", "link", "set", "eth0", "down")

    def restore(self) -> None:
        """Be back, with all data."""
        self._inside("ip", "link", "set", "eth0", "up")

    def delay(self, seconds: float) -> None:
        """Answer late: each packet leaves so much later (tc-netem(8)); 0: at once again."""
        where = ("root", "netem")
        if seconds:
            late = ("delay", f"{1000 * seconds:.0f}ms", "limit", "100000")
            self._inside("tc", "qdisc", "add", "dev", "eth0", *where, *late)
        else:
            self._inside("tc", "qdisc", "del", "dev", "eth0", *where)

    def add(self, leg: str, size: int) -> None:
        """Export a new leg that reads as zeros; hosts hear of it.

        :param size: bytes.
        """
        path = _FILES / leg
        with path.open("wb") as file:
            file.truncate(size)
        self._loops[leg] = run("losetup", "--find", "--show", str(path)).strip()
        names = {int(one.name) for one in (self._subsystem / "namespaces").iterdir()}
        namespace = self._subsystem / "namespaces" / str(max(names, default=0) + 1)
        namespace.mkdir()
        (namespace / "device_path").write_text(self._loops[leg])
        (namespace / "device_uuid").write_text(leg)
        (namespace / "enable").write_text("1")

    def written(self, leg: str) -> int:
        """Bytes that were written to a leg since it is there."""
        stat = Path("/sys/block") / Path(self._loops[leg]).name / "stat"
        return int(stat.read_text().split()[6]) * _SECTOR

    def clear(self) -> None:
        """Remove all legs."""
        for namespace in (self._subsystem / "namespaces").iterdir():
            (namespace / "enable").write_text("0")
            namespace.rmdir()
        for leg, loop in self._loops.items():
            run("losetup", "-d", loop)
            (_FILES / leg).unlink()
        self._loops.clear()
