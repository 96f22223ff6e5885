# SPDX-License-Identifier: Apache-2.0
"""One virtual machine as compute host and storage nodes, for the benchmarks of healing."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from bench.guest_floor import wait_device
from bench.guest_io import Load
from bench.guest_log import LIVE, Log
from bench.guest_nodes import Node, prepare
from bench.guest_targets import run
from kumo_client import naming
from os_brick_nvmeof import props, replicated
from os_brick_nvmeof.conf import GROUP
from os_brick_nvmeof.context import Context

NODES = 3
_MIB = 1 << 20
_CONTROLLERS = Path("/sys/class/nvme-fabrics/ctl")
_STOP_TRIES = 40
_LIVE_SECONDS = 60.0
_MEMORY_MIB = 1000


@dataclasses.dataclass(frozen=True)
class Attached:
    """A volume with a leg on each of two nodes.

    :ivar array: "md127". :ivar devices: of its legs, "nvme0n1".
    """

    volume: props.Volume
    array: str
    devices: tuple[str, ...]

    @property
    def path(self) -> str:
        """Of the array's device."""
        return f"/dev/{self.array}"

    def attribute(self, name: str) -> str:
        """An attribute of md in sysfs."""
        return Path(f"/sys/block/{self.array}/md/{name}").read_text().strip()


class Busy(Protocol):
    """What uses volumes."""

    def idle(self, path: str) -> None:
        """End it, and wait until nothing of it is under way; ``path`` is for an error."""


class Site:
    """Nodes, the kernel's log, and how volumes come and go.

    :param size_mib: of each volume. :param nodes: how many there are.
    """

    def __init__(self, ctx: Context, size_mib: int, nodes: int = NODES) -> None:
        prepare(_MEMORY_MIB)
        self.ctx, self.size = ctx, size_mib * _MIB
        self.nodes = [
            Node(number, naming.subsystem_nqn(f"node{number}", ctx.host_nqn, props.REPLICATED))
            for number in range(1, nodes + 1)
        ]
        self.log = Log()
        self.log.start()

    @property
    def leg_size(self) -> int:
        """Bytes of a leg."""
        return self.size + naming.md_overhead(1)

    def tune(self, settings: Mapping[str, object]) -> None:
        """Options of the connector for what is attached from now on."""
        for name, value in settings.items():
            self.ctx.conf.set_override(name, value, group=GROUP)

    def attach(self, count: int, on: Sequence[int] = (0, 1)) -> list[Attached]:
        """Make volumes and attach them by the connector.

        :param on: the nodes of their legs.
        """
        return [self._attached(on) for _ in range(count)]

    def _attached(self, on: Sequence[int]) -> Attached:
        legs = []
        for node in map(self.nodes.__getitem__, on):
            leg = str(uuid.uuid4())
            node.add(leg, self.leg_size)
            legs.append(
                props.Leg(leg, node.nqn, (node.portal,), node.name, props.AVAILABLE, props.FRESH)
            )
        name = str(uuid.uuid4())
        volume = props.Volume(
            uuid=name,
            alias=f"v-{name[:8]}",
            io_class=props.REPLICATED,
            size=self.size,
            legs=tuple(legs),
            replicated=True,
            array_state=props.NEW,
            told=True,
        )
        array = Path(replicated.attach(self.ctx, volume)).resolve().name
        devices = tuple(Path(wait_device(leg.uuid)).name for leg in volume.legs)
        return Attached(volume, array, devices)

    def load(self, volumes: Sequence[Attached]) -> Load:
        """A writer and a reader on each of these."""
        return Load([one.path for one in volumes])

    def wait_live(self, since: float) -> float:
        """When the kernel had its connection to a node again."""
        return self.log.wait(LIVE, since, _LIVE_SECONDS)

    def clear(self, load: Busy | None) -> None:
        """All nodes are back, nothing is attached, no leg is left."""
        for node in self.nodes:
            node.restore()
        self.all_live()
        if load:
            load.idle("the volumes")
        for path in Path("/sys/block").glob("md*"):
            _stop(path.name)
        for path in _CONTROLLERS.glob("nvme*"):
            with contextlib.suppress(FileNotFoundError):  # it may go by itself
                (path / "delete_controller").write_text("1")
        for node in self.nodes:
            node.clear()
        run("udevadm", "settle", "--timeout=10")

    def all_live(self) -> None:
        """Wait until all connections are there.

        :raises TimeoutError: one does not come back.
        """
        deadline = time.monotonic() + _LIVE_SECONDS
        while {(path / "state").read_text().strip() for path in _CONTROLLERS.glob("nvme*")} - {
            "live"
        }:
            if time.monotonic() > deadline:
                raise TimeoutError("a connection does not come back")
            time.sleep(0.2)


def _stop(array: str) -> None:
    for _ in range(_STOP_TRIES):
        done = subprocess.run(["mdadm", "--stop", f"/dev/{array}"], capture_output=True, text=True)
        if not done.returncode:
            return
        time.sleep(0.5)
    raise RuntimeError(f"{array} does not stop: {done.stderr.strip()}")
