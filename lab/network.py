# SPDX-License-Identifier: Apache-2.0
"""The lab's network: one namespace with a bridge, and a tap for each machine.

The control plane runs in the namespace and owns the bridge's address; nothing is routed out.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.errors import LabError

PREFIX = "10.77.0"
CONTROL_ADDRESS = f"{PREFIX}.1"
_BASE = {"storage": 10, "compute": 100}
# Of the second address of a storage machine, for a second path to it.
_SECOND = 180
_MAX = 70
BRIDGE = "br0"

Runner = Callable[[Sequence[str]], None]


def address(role: str, number: int) -> str:
    """Address of the ``number``-th machine (from 1) of a role."""
    if not 1 <= number <= _MAX:
        raise LabError(f"a lab has 1 to {_MAX} {role} machines, not number {number}")
    return f"{PREFIX}.{_BASE[role] + number}"


def second_address(number: int) -> str:
    """Second address of the ``number``-th storage machine (from 1)."""
    address("storage", number)
    return f"{PREFIX}.{_SECOND + number}"


def mac(role: str, number: int) -> str:
    """Hardware address of a machine, locally administered."""
    return f"52:54:00:77:{_BASE[role]:02x}:{number:02x}"


def run_ip(argv: Sequence[str]) -> None:
    """Run one ``ip`` command.

    :raises LabError: it failed.
    """
    done = subprocess.run(["ip", *argv], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"ip {' '.join(argv)}: {done.stderr.strip()}")


class Network:
    """The namespace of one lab.

    :param name: of the namespace.
    :param run: executes an ``ip`` command given without its first word.
    """

    def __init__(self, name: str, run: Runner = run_ip, root: Path = Path("/run/netns")) -> None:
        self.name = name
        self._run = run
        self._root = root

    def exists(self) -> bool:
        """Is the namespace there?"""
        return (self._root / self.name).exists()

    def create(self) -> None:
        """Make namespace and bridge."""
        self._run(["netns", "add", self.name])
        self._inside("link", "set", "lo", "up")
        self._inside("link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
        self._inside("address", "add", f"{CONTROL_ADDRESS}/24", "dev", BRIDGE)
        self._inside("link", "set", BRIDGE, "up")

    def add_tap(self, tap: str) -> None:
        """Make a tap and plug it into the bridge."""
        self._inside("tuntap", "add", "dev", tap, "mode", "tap")
        self._inside("link", "set", tap, "master", BRIDGE, "up")

    def cut(self, tap: str) -> None:
        """Lose every packet of a machine; its carrier stays, as behind a dead switch."""
        self._inside("link", "set", tap, "nomaster")

    def heal(self, tap: str) -> None:
        """Undo :meth:`cut`."""
        self._inside("link", "set", tap, "master", BRIDGE)

    def remove(self) -> None:
        """Remove the namespace with everything in it; absent is fine."""
        if self.exists():
            self._run(["netns", "delete", self.name])

    def _inside(self, *argv: str) -> None:
        self._run(["-n", self.name, *argv])
