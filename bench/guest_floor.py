# SPDX-License-Identifier: Apache-2.0
"""The floor of the connector benchmark: what has to be done, by hand, waiting for readiness alone.

``Raw`` uses the commands that a person would, nvme-cli and mdadm. ``Fabrics`` writes to
/dev/nvme-fabrics and to sysfs as they do (drivers/nvme/host/fabrics.c), and uses mdadm alone.
Neither checks anything: nobody should attach a volume like this.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

_CONTROLLERS = Path("/sys/class/nvme-fabrics/ctl")
_READY_SECONDS = 30.0
_POLL_SECONDS = 0.001
# nvme-cli 2.3 crashes now and then when several disconnect at once.
_DISCONNECT = threading.Lock()


def _controllers(nqn: str) -> list[Path]:
    """Controllers of a subsystem."""
    found = []
    for path in _CONTROLLERS.glob("nvme*"):
        with contextlib.suppress(OSError):  # it may go away at this moment
            if (path / "subsysnqn").read_text().strip() == nqn:
                found.append(path)
    return found


def wait_device(uuid: str) -> str:
    """Path of the block device with a namespace's UUID, as soon as it is there.

    :raises TimeoutError: it does not appear.
    """
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        for path in Path("/sys/block").glob("nvme*"):
            with contextlib.suppress(OSError):
                device = Path("/dev") / path.name
                if (path / "uuid").read_text().strip() == uuid and device.exists():
                    return str(device)
        time.sleep(_POLL_SECONDS)
    raise TimeoutError(f"{uuid} does not appear")


def wait_size(path: str, size: int) -> None:
    """Wait until a block device has at least so many bytes."""
    deadline = time.monotonic() + _READY_SECONDS
    while int(Path(f"/sys/block/{Path(path).resolve().name}/size").read_text()) * 512 < size:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} does not grow to {size}")
        time.sleep(_POLL_SECONDS)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: code {done.returncode}: {done.stderr.strip()}")


def _array_of(devices: list[str]) -> str:
    """Name of the array that holds the first leg; "" if none does."""
    holders = Path(f"/sys/block/{Path(devices[0]).name}/holders")
    return next((path.name for path in holders.glob("md*")), "")


def _whole(array: str) -> bool:
    """Whether an array runs with all its legs."""
    md = Path(f"/sys/block/{array}/md")
    with contextlib.suppress(OSError):  # it may go away at this moment
        state = (md / "array_state").read_text().strip()
        return state not in ("clear", "inactive") and int((md / "degraded").read_text()) == 0
    return False


class Raw:
    """nvme-cli and mdadm."""

    def connect(self, data: dict[str, Any], multipath: bool) -> str:
        """Attach; an array is made when the properties call it new, and assembled otherwise."""
        devices = []
        for leg in data["volume_replicas"]:
            for address, port, _ in leg["portals"] if multipath else leg["portals"][:1]:
                if not self._connect(leg["target_nqn"], address, port):
                    break
            else:
                devices.append(wait_device(leg["vol_uuid"]))
        if data["replica_count"] == 1:
            return devices[0]
        path = f"/dev/md/{data['alias']}"
        if data["kumo"].get("array_state") == "new":
            size = data["kumo"]["capacity"] << 20
            options = [f"--raid-devices={len(devices)}", "--level=1", "--bitmap=internal", "-R"]
            options += ["--homehost=any", "--assume-clean", f"--size={size}", "--metadata=1.2"]
            _run("mdadm", "--create", path, "--name", data["alias"], *options, *devices)
        else:
            self._assemble(path, devices)
        return path

    def _assemble(self, path: str, devices: list[str]) -> None:
        """Let udev put the legs together, and assemble what it did not.

        Started at once, mdadm and udev's mdadm take the legs from each other.
        """
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            _run("udevadm", "settle", f"--timeout={_READY_SECONDS:.0f}")
            array = _array_of(devices)
            if array and _whole(array):
                return
            try:
                if array:
                    _run("mdadm", "--stop", f"/dev/{array}")
                _run("mdadm", "--assemble", path, *devices)
                return
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise

    def disconnect(self, data: dict[str, Any]) -> None:
        """Detach."""
        if data["replica_count"] > 1:
            _run("mdadm", "--stop", f"/dev/md/{data['alias']}")
        for leg in data["volume_replicas"]:
            self._disconnect(leg["target_nqn"])

    def extend(self, data: dict[str, Any], path: str, size: int) -> None:
        """Let every leg, then the array, have so many bytes."""
        for leg in data["volume_replicas"]:
            self._rescan(leg["target_nqn"])
            wait_size(wait_device(leg["vol_uuid"]), size)
        if data["replica_count"] > 1:
            _run("mdadm", "--grow", path, f"--size={size >> 10}", "--assume-clean")
        wait_size(path, size)

    def _connect(self, nqn: str, address: str, port: str) -> bool:
        argv = ["nvme", "connect", "-t", "tcp", "-a", address, "-s", port, "-n", nqn]
        return subprocess.run(argv, capture_output=True).returncode == 0

    def _disconnect(self, nqn: str) -> None:
        with _DISCONNECT:
            _run("nvme", "disconnect", "-n", nqn)

    def _rescan(self, nqn: str) -> None:
        for path in _controllers(nqn):
            _run("nvme", "ns-rescan", f"/dev/{path.name}")


class Fabrics(Raw):
    """The kernel's own files."""

    def __init__(self) -> None:
        host_nqn = Path("/etc/nvme/hostnqn").read_text().strip()
        host_id = Path("/etc/nvme/hostid").read_text().strip()
        self._host = f"hostnqn={host_nqn},hostid={host_id}"

    def _connect(self, nqn: str, address: str, port: str) -> bool:
        options = f"transport=tcp,traddr={address},trsvcid={port},nqn={nqn},{self._host}"
        try:
            with open("/dev/nvme-fabrics", "r+b", buffering=0) as file:
                file.write(options.encode())
        except OSError:
            return False
        return True

    def _disconnect(self, nqn: str) -> None:
        for path in _controllers(nqn):
            (path / "delete_controller").write_text("1")

    def _rescan(self, nqn: str) -> None:
        for path in _controllers(nqn):
            (path / "rescan_controller").write_text("1")
