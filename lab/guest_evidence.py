# SPDX-License-Identifier: Apache-2.0
"""What to look at when a story of healing went wrong, and how what it has left is removed.

Written to standard error, which is the journal of the machine: that is kept when a scenario fails.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lab.guest_remote import LOG

_LEGS = Path("/run/legs")
_NVMET = Path("/sys/kernel/config/nvmet")
_CONTROLLERS = Path("/sys/class/nvme-fabrics/ctl")
_STATE = ("/var/lib/kumo-agent", "/run/kumo-agent")
_STOP_SECONDS = 30.0


def _said(*argv: str) -> str:
    """What a command says, well or not."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired as error:
        return f"{error}\n"
    return done.stdout + done.stderr


def show() -> None:
    """Arrays, connections, superblocks and bad blocks of all legs, the agent's and kernel's log."""
    parts = [Path("/proc/mdstat").read_text()]
    parts += [
        f"{path.name}: {(path / 'state').read_text().strip()} {(path / 'subsysnqn').read_text()}"
        for path in sorted(_CONTROLLERS.glob("nvme*"))
    ]
    for leg in sorted(_LEGS.iterdir()):
        for question in ("--examine", "--examine-badblocks"):
            parts.append(_said("mdadm", question, str(leg)))
    parts.append(_said("tail", "-n", "80", LOG))
    parts.append(_said("dmesg", "--kernel"))
    print("\n".join(parts), file=sys.stderr, flush=True)


def clear() -> None:
    """Remove what an earlier run has left: arrays, connections, targets, nodes, memory.

    :raises TimeoutError: an array does not stop, because something uses it.
    """
    deadline = time.monotonic() + _STOP_SECONDS
    while arrays := [path.name for path in Path("/sys/block").glob("md*")]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{', '.join(arrays)} of an earlier run is in use: boot it anew")
        for name in arrays:
            _said("mdadm", "--stop", f"/dev/{name}")
        time.sleep(0.5)
    for path in _CONTROLLERS.glob("nvme*"):
        with contextlib.suppress(FileNotFoundError):  # it may go by itself
            (path / "delete_controller").write_text("1")
    _clear_targets()
    _clear_nodes()
    for name in _STATE:
        shutil.rmtree(name, ignore_errors=True)


def _clear_targets() -> None:
    """Bottom up, as Documentation/nvme/nvme-target.rst of the kernel makes them."""
    for link in _NVMET.glob("ports/*/subsystems/*"):
        link.unlink()
    for port in _NVMET.glob("ports/*"):
        port.rmdir()
    for namespace in _NVMET.glob("subsystems/*/namespaces/*"):
        (namespace / "enable").write_text("0")
        namespace.rmdir()
    for subsystem in _NVMET.glob("subsystems/*"):
        subsystem.rmdir()


def _clear_nodes() -> None:
    _said("losetup", "--detach-all")
    if _LEGS.is_mount():
        _said("umount", str(_LEGS))
    for name in Path("/run/netns").glob("node*"):
        _said("ip", "netns", "delete", name.name)
    for link in Path("/sys/class/net").iterdir():
        if link.name.startswith("port") or link.name in ("storage", "other"):
            _said("ip", "link", "delete", link.name)
