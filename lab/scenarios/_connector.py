# SPDX-License-Identifier: Apache-2.0
"""What the scenarios of the connector have in common.

They run with our connector. ``KUMO_LAB_OS_BRICK=stock`` runs them with os-brick as it comes, to see
what that does: a case that fails is told then, cleaned up by force and not the end of the scenario.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kumo_client.schemas.host import UnpublishRequest
from lab import brick_site
from lab.compute import CALL_SECONDS, Attachment, Compute
from lab.controlplane import ControlPlane, inventory
from lab.errors import LabError
from lab.machine import Machine
from lab.scenario import Context
from lab.volumes import Volumes
from os_brick_nvmeof.conf import GROUP

GIB = 1 << 30
MIB = 4
_EDITION = "KUMO_LAB_OS_BRICK"
_GONE_SECONDS = 30.0
_SYNC_SECONDS = 180.0
# Stock os-brick puts no leg back.
_STOCK_SYNC_SECONDS = 30.0
# Some of its calls hang, and so does what would clear up after them.
_STOCK_CALL_SECONDS = 180.0
_CLEAR_SECONDS = 300.0
_STOCK_CLEAR_SECONDS = 60.0
_LOAD_UNIT = "kumo-load"


def edition() -> str:
    """Which os-brick the scenarios run with.

    :raises LabError: the environment names none that exists.
    """
    chosen = os.environ.get(_EDITION) or brick_site.OURS
    brick_site.guest_path(chosen)
    return chosen


@dataclass(frozen=True)
class Controller:
    """A connection of the compute machine."""

    name: str
    nqn: str
    address: str
    state: str


class Host:
    """What is on a compute machine.

    :param chosen: which os-brick it has, one of :data:`lab.brick_site.EDITIONS`.
    """

    def __init__(self, ctx: Context, chosen: str) -> None:
        self.ctx = ctx
        self.edition = chosen
        self.machine = ctx.lab.compute[0]

    @property
    def stock(self) -> bool:
        """Whether stock os-brick is watched."""
        return self.edition == brick_site.STOCK

    def run(self, command: str, timeout: float = 120.0) -> str:
        """Output of a command on the compute machine."""
        return self.machine.run(command, timeout=timeout).stdout

    def controllers(self) -> list[Controller]:
        """The connections to other machines."""
        text = self.run(
            "for c in /sys/class/nvme-fabrics/ctl/nvme*; do [ -e $c ] || continue; echo ${c##*/}"
            " $(cat $c/subsysnqn) $(cat $c/address) $(cat $c/state); done; true"
        )
        return [
            Controller(name, nqn, address.split(",")[0].removeprefix("traddr="), state)
            for name, nqn, address, state in (line.split() for line in text.splitlines())
        ]

    def arrays(self) -> dict[str, dict[str, str]]:
        """Attributes of each md array by its name: raid_disks, degraded, array_state, component."""
        names = ("raid_disks", "degraded", "array_state", "component_size", "sync_action")
        shown = "; ".join(f"echo $(cat $a/md/{name} 2>/dev/null)" for name in names)
        each = f"[ -e $a ] || continue; echo ${{a##*/}}; {shown}"
        text = self.run(f"for a in /sys/block/md*; do {each}; done; true")
        lines = text.splitlines()
        step = len(names) + 1
        return {
            lines[at]: dict(zip(names, lines[at + 1 : at + step], strict=True))
            for at in range(0, len(lines), step)
        }

    def array(self) -> dict[str, str]:
        """Attributes of the only array.

        :raises ScenarioFailedError: there is none, or more than one.
        """
        found = self.arrays()
        self.ctx.check(len(found) == 1, f"one array is wanted, there are {found}")
        return next(iter(found.values()))

    def wait_whole(self) -> float:
        """Wait until every leg of the only array is in sync; the seconds that took.

        :raises ScenarioFailedError: it does not become so.
        """
        patience = _STOCK_SYNC_SECONDS if self.stock else _SYNC_SECONDS
        begin = time.monotonic()
        while True:
            array = self.array()
            seconds = time.monotonic() - begin
            if array["degraded"] == "0" and array["sync_action"] == "idle":
                return seconds
            self.ctx.check(seconds < patience, f"the array stays {array}")
            time.sleep(0.5)

    def size(self, path: str) -> int:
        """Bytes of a block device."""
        return int(self.run(f"blockdev --getsize64 {path}"))

    def write(self, path: str, mark: str) -> str:
        """Write what depends on ``mark`` alone over the first MiB of a device; its digest."""
        code = f'import random, sys; data = random.Random("{mark}").randbytes({MIB << 20})'
        self.run(
            f"/usr/bin/python3 -c '{code}; sys.stdout.buffer.write(data)' | dd of={path} bs=1M"
            " iflag=fullblock oflag=direct conv=fsync status=none"
        )
        return self.digest(path)

    def digest(self, path: str) -> str:
        """Digest of the first MiB of a device, read past the page cache."""
        read = f"dd if={path} bs=1M count={MIB} iflag=direct status=none"
        return self.run(f"test -b {path} && {read} | sha256sum").split()[0]

    def check_empty(self) -> None:
        """No connection and no array is left, within seconds.

        :raises ScenarioFailedError: one is.
        """
        deadline = time.monotonic() + _GONE_SECONDS
        while left := [*self.controllers(), *self.arrays()]:
            self.ctx.check(time.monotonic() < deadline, f"left on the host: {left}")
            time.sleep(0.5)


class Trial(Host):
    """A compute machine, storage nodes with volumes for it, and what happens on it."""

    def __init__(self, ctx: Context, chosen: str | None = None) -> None:
        super().__init__(ctx, chosen or edition())
        self.plane = ControlPlane(ctx.lab)
        self.plane.start(ctx.progress)
        self._client = self.plane.client()
        self.volumes = Volumes(self._client)
        self.compute = self.computer()
        self._made: list[str] = []
        self._clear_old()
        ctx.note(f"os-brick: {self.edition}, {self.compute.brick.call('kind')[0]}")

    def _clear_old(self) -> None:
        """Remove what a failed run has left in a lab that was kept."""
        self.force_clear()
        for volume in self._client.volumes():
            self._client.unpublish(UnpublishRequest(vol_id=volume.uuid))
            self._client.delete_volume(volume.uuid)

    def computer(self, chosen: str | None = None, multipath: bool = False) -> Compute:
        """The compute machine with an edition of os-brick."""
        seconds = _STOCK_CALL_SECONDS if self.stock else CALL_SECONDS
        found = Compute(
            self.machine, self.volumes.request, chosen or self.edition, multipath, seconds
        )
        found.start()
        return found

    @contextlib.contextmanager
    def patient(self, **options: float) -> Iterator[None]:
        """Other time-outs for our connector: options of its section."""
        if self.stock:
            yield
            return
        brick = self.compute.brick
        brick.call("configure", group=GROUP, options=options)
        try:
            yield
        finally:
            brick.call("configure", group=GROUP, options=dict.fromkeys(options))

    @contextlib.contextmanager
    def case(self, text: str) -> Iterator[None]:
        """One step, which a stock os-brick may fail."""
        try:
            with self.ctx.step(f"{self.edition}: {text}"):
                yield
        except Exception as error:
            if not self.stock:
                raise
            self.ctx.note(f"STOCK FAILS: {str(error).splitlines()[0][:300]}")
            self.force_clear()

    def create(self, replicas: int, gib: int = 1, down_time: int = 0) -> str:
        """Make a volume that is deleted at the end; see :meth:`lab.volumes.Volumes.create`."""
        made = self.volumes.create(replicas, gib, down_time)
        self._made.append(made)
        return made

    def filled(self, replicas: int) -> tuple[str, str]:
        """A detached volume with data on it: its uuid, and what :meth:`digest` tells of it."""
        volume = self.create(replicas)
        attachment = self.compute.attach(volume)
        wrote = self.write(attachment.path, volume)
        self.compute.detach(attachment)
        self.check_empty()
        return volume, wrote

    def renewed(self, volume: str, wrote: str) -> tuple[str, str]:
        """With stock, another volume of two legs: an earlier case may have spoilt this one."""
        return self.filled(2) if self.stock else (volume, wrote)

    def holds(self, attachment: Attachment) -> bool:
        """Whether an attachment is still there: with stock, a case that failed clears all."""
        there = attachment.identifier in self.volumes.attachments
        if not there:
            self.ctx.note("STOCK: the next case is not tried, it needs what the last one has lost")
        return there

    def standing(self, attachment: Attachment) -> Attachment:
        """An attachment, or another one of its volume if it is gone (:meth:`holds`)."""
        if attachment.identifier in self.volumes.attachments:
            return attachment
        return self.compute.reserve(attachment.volume)

    def close(self) -> None:
        """Delete all volumes; nothing may be left anywhere.

        :raises LabError: something is.
        """
        try:
            if self.stock:
                self.force_clear()
            self.volumes.clear()
            for volume in self._made:
                self.volumes.delete(volume)
        finally:
            self._client.close()
        left = inventory(self.ctx.lab)
        self.ctx.check(not any(left.values()), f"left behind: {left}")

    def force_clear(self) -> None:
        """Remove every array, connection and attachment, whoever made them.

        Arrays that stock os-brick has assembled may be there until the host restarts.
        """
        if not self.stock:
            self._clear_host(_CLEAR_SECONDS)
        elif not self._clear_stock():
            self.ctx.note("STOCK: the host had to be power-cycled")
            self.power_cycle()
        self.volumes.clear()

    def _clear_stock(self) -> bool:
        try:
            return self._clear_host(_STOCK_CLEAR_SECONDS)
        except LabError as error:
            self.ctx.note(f"STOCK: {str(error).splitlines()[0][:100]}")
            return False

    def _clear_host(self, seconds: float) -> bool:
        """Whether no array and no connection is left."""
        for _ in range(5):
            self.machine.run(
                "udevadm settle -t 5; for a in /sys/block/md*; do [ -e $a ] || continue;"
                " timeout 20 mdadm --stop /dev/${a##*/}; done;"
                "for c in /sys/class/nvme-fabrics/ctl/nvme*; do [ -e $c ] || continue;"
                ' timeout 20 sh -c "echo 1 >$c/delete_controller"; done',
                check=False,
                timeout=seconds,
            )
            if not self.controllers() and not self.arrays():
                return True
        return False

    def power_cycle(self) -> None:
        """The compute machine loses power, boots, and has its connector again."""
        self.machine.kill()
        self.machine.start()
        self.machine.wait_ready()
        self.compute.start()

    # Load

    def start_load(self, path: str, seconds: float) -> None:
        """Write and read a device for so long, in the background."""
        self.run(
            f"systemctl reset-failed {_LOAD_UNIT} 2>/dev/null; rm -f /run/{_LOAD_UNIT};"
            f" systemd-run --collect --unit {_LOAD_UNIT} sh -c"
            f" 'exec kumo-python -m lab.guest_load {path} {seconds} >/run/{_LOAD_UNIT}'"
        )

    def load(self, timeout: float = 120.0) -> dict[str, dict[str, Any]]:
        """What the load saw, as soon as it has ended.

        :raises LabError: it does not end.
        """
        deadline = time.monotonic() + timeout
        while not (text := self.run(f"cat /run/{_LOAD_UNIT} 2>/dev/null; true")):
            if time.monotonic() > deadline:
                raise LabError("the load on the device does not end")
            time.sleep(1)
        return dict(json.loads(text))

    # Legs

    def detach(self, attachment: Attachment) -> None:
        """Detach an array of which every leg is in sync, and say so at the provisioner."""
        self.compute.disconnect(attachment)
        legs = self.volumes.nodes(attachment.volume)
        counters = {leg: self.events(attachment.volume, leg) for leg in legs}
        self.volumes.report_clean(attachment.identifier, counters)
        self.compute.forget(attachment)
        self.check_empty()

    def events(self, volume: str, leg: str) -> int:
        """The md event counter of a leg, from its superblock."""
        device = self.leg_device(volume, leg)
        shown = self.node(volume, leg).run(f"mdadm --examine {device} | grep Events").stdout
        return int(shown.split(":")[1])

    def node(self, volume: str, leg: str) -> Machine:
        """The storage machine with a leg of a volume."""
        address = self.volumes.nodes(volume)[leg]
        return next(item for item in self.ctx.lab.storage if item.address == address)

    def leg_device(self, volume: str, leg: str) -> str:
        """The logical volume of a leg on its node."""
        select = f"lvs --noheadings -o lv_path --select 'lv_name=\"r-{leg}\"'"
        return self.node(volume, leg).run(select).stdout.strip()


def leg_uuids(attachment: Attachment) -> list[str]:
    """The legs that an attachment names."""
    return [leg["vol_uuid"] for leg in attachment.data["volume_replicas"]]
