# SPDX-License-Identifier: Apache-2.0
"""Images into volumes and back through Glance, by a cinder-volume that has a real kernel."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.controlplane import ControlPlane, inventory
from lab.errors import ScenarioFailedError
from lab.machine import Machine
from lab.network import CONTROL_ADDRESS
from lab.openstack.guest_volume import GuestVolume
from lab.openstack.stack import Stack
from lab.scenario import Context, Needs
from lab.services import DRIVER, Cinder

SUMMARY = "images into volumes and back, with one replica and with two"
NEEDS = Needs(storage=2, compute=1, openstack=True)

BACKEND = "kumo"
GIB = 1 << 30
IMAGE_BYTES = 8 << 20
# Replicas of a volume and the format of the image that it is made from. Cinder reads the whole
# GiB to make an image of a volume, so that one volume of each type has to do.
COPIES = ((1, "raw"), (2, "qcow2"))
CREDENTIALS = "/etc/cinder/kumo"
_READ_AHEAD = (
    "/etc/udev/rules.d/99-kumo-lab.rules",
    'ACTION=="add|change", SUBSYSTEM=="block", KERNEL=="nvme*|md*",'
    ' ATTR{queue/read_ahead_kb}="4096"\n',
)

_COPY_SECONDS = 300.0
_SEED = 20


@dataclass
class Copy:
    """A volume made from an image, and the image made from it.

    ``replicas`` of the volume, ``form`` the disk format of the image it is made from.
    """

    replicas: int
    form: str
    volume: str = ""
    image: str = ""

    @property
    def name(self) -> str:
        return f"image-{self.form}-{self.replicas}"


class World:
    """What the steps share.

    :param directory: for the image files.
    """

    def __init__(self, ctx: Context, stack: Stack, directory: Path) -> None:
        self.ctx = ctx
        self.cinder = Cinder(stack, ctx.lab.netns)
        self.directory = directory
        self.copies = [Copy(replicas, form) for replicas, form in COPIES]
        self.images: dict[str, str] = {}

    @property
    def pattern(self) -> Path:
        """The raw content of both images."""
        return self.directory / "pattern.raw"

    def openstack(self, *words: str) -> Any:
        """Decoded answer of the ``openstack`` command."""
        return self.cinder.cli.json(*words)


def run(ctx: Context) -> None:
    """Copy images into volumes, one of each type, and those volumes into images."""
    plane = ControlPlane(ctx.lab)
    _clear(ctx)
    stack = _stack(ctx)
    service = GuestVolume(stack, ctx.lab.compute[0])
    try:
        _start(ctx, plane, stack, service)
        before = inventory(ctx.lab)
        with tempfile.TemporaryDirectory(prefix="kumo-image-") as files:
            world = World(ctx, stack, Path(files))
            try:
                _round_trip(world, plane)
            finally:
                world.cinder.close()
        with ctx.step("nothing is left on any machine"):
            after = inventory(ctx.lab)
            ctx.check(after == before, f"left behind: {after}, was {before}")
        memory = stack.memory_kib()
        ctx.note(f"MariaDB uses {memory['mariadb'] / 1024:.0f} MiB")
    finally:
        if not ctx.keep:
            service.stop()
            stack.stop()


def _directory(ctx: Context) -> Path:
    return ctx.lab.state_dir / "openstack-shared"


def _stack(ctx: Context) -> Stack:
    return Stack(ctx.lab.processes, _directory(ctx), CONTROL_ADDRESS, shared_database=True)


def _clear(ctx: Context) -> None:
    """Make room: another scenario's services on this lab have the same names and ports as ours,
    and an earlier run of this one that failed has left its types and images."""
    stack = _stack(ctx)
    GuestVolume(stack, ctx.lab.compute[0]).stop()
    stack.stop()
    shutil.rmtree(_directory(ctx))


def _start(ctx: Context, plane: ControlPlane, stack: Stack, service: GuestVolume) -> None:
    with ThreadPoolExecutor(2) as pool:
        for done in [
            pool.submit(plane.start, ctx.progress),
            pool.submit(_start_stack, ctx, stack),
        ]:
            done.result()
    files = {
        f"{CREDENTIALS}/ca.pem": plane.ca_file.read_bytes(),
        f"{CREDENTIALS}/token": plane.token_file.read_bytes(),
    }
    backend = {
        "volume_driver": DRIVER,
        "kumo_urls": plane.url,
        "kumo_ca_file": f"{CREDENTIALS}/ca.pem",
        "kumo_token_file": f"{CREDENTIALS}/token",
    }
    _prepare(ctx.lab.compute[0])
    with ctx.step(f"cinder-volume with the Kumo driver on {ctx.lab.compute[0].name}"):
        service.start({BACKEND: backend}, files)


def _prepare(machine: Machine) -> None:
    """Let a machine without KVM read a GiB in one go.

    With the 128 KiB that Linux reads ahead, every request costs its processor more than the data;
    and when the pages that were read have filled its memory, its network card needs some left.
    """
    machine.put(_READ_AHEAD[0], _READ_AHEAD[1].encode())
    machine.run("udevadm control --reload && sysctl -q vm.min_free_kbytes=65536")


def _start_stack(ctx: Context, stack: Stack) -> None:
    with ctx.progress.task("Keystone, Glance, Cinder, RabbitMQ and MariaDB") as task:
        stack.start(task.update)


def _round_trip(world: World, plane: ControlPlane) -> None:
    _make_images(world)
    _make_types(world)
    _to_volumes(world)
    _check_replicas(world, plane)
    _to_images(world)
    _compare(world)
    _delete(world)


def _make_images(world: World) -> None:
    # Of random bytes, so that nothing of it is taken for zeros, and always the same.
    world.pattern.write_bytes(random.Random(_SEED).randbytes(IMAGE_BYTES))
    for _, form in COPIES:
        with world.ctx.step(f"openstack image create --disk-format {form}"):
            file = world.directory / f"pattern.{form}"
            if not file.exists():
                _qemu_img("convert", "-f", "raw", "-O", form, str(world.pattern), str(file))
            words = ["--disk-format", form, "--container-format", "bare", "--file", str(file)]
            made = world.openstack("image", "create", *words, f"image-{form}")
            world.images[form] = made["id"]


def _make_types(world: World) -> None:
    for replicas, _ in COPIES:
        with world.ctx.step(f"openstack volume type create {_kind(replicas)}"):
            words = ["--property", f"volume_backend_name={BACKEND}"]
            words += ["--property", f"kumo:num_replicas={replicas}"]
            world.openstack("volume", "type", "create", *words, _kind(replicas))


def _kind(replicas: int) -> str:
    return f"image-{replicas}"


def _to_volumes(world: World) -> None:
    begin = {}
    for copy in world.copies:
        with world.ctx.step(f"openstack volume create --image image-{copy.form} {copy.name}"):
            words = ["--size", "1", "--image", world.images[copy.form]]
            words += ["--type", _kind(copy.replicas)]
            copy.volume = world.openstack("volume", "create", *words, copy.name)["id"]
            begin[copy.volume] = time.monotonic()
    for copy in world.copies:
        with world.ctx.step(f"{copy.name} is available"):
            world.cinder.wait("volume", copy.volume, "available", _COPY_SECONDS)
        seconds = time.monotonic() - begin[copy.volume]
        world.ctx.note(f"{seconds:.1f} s after its command ended")


def _check_replicas(world: World, plane: ControlPlane) -> None:
    with world.ctx.step("kumo volume show: one replica on each of its nodes"):
        for copy in world.copies:
            shown = plane.kumo_json("volume", "show", copy.volume)
            nodes = {item["backend"]["persistentID"] for item in shown["location"]}
            world.ctx.check(
                len(nodes) == copy.replicas, f"{copy.name} has replicas on {len(nodes)} nodes"
            )


def _to_images(world: World) -> None:
    for copy in world.copies:
        with world.ctx.step(f"openstack image create --volume {copy.name} --disk-format qcow2"):
            words = ["--volume", copy.volume, "--disk-format", "qcow2"]
            made = world.openstack("image", "create", *words, f"{copy.name}-back")
            copy.image = made["image_id"]
        # One after the other: two at once starve what keeps the machine's connections alive.
        with world.ctx.step(f"{copy.name}-back is active"):
            world.cinder.wait("volume", copy.volume, "available", _COPY_SECONDS)
            shown = world.openstack("image", "show", copy.image)
            world.ctx.check(shown["status"] == "active", f"the image is {shown['status']}")


def _compare(world: World) -> None:
    for copy in world.copies:
        with world.ctx.step(f"openstack image save {copy.name}-back: the same content, then zeros"):
            file = world.directory / f"{copy.name}.qcow2"
            world.cinder.cli.run("image", "save", "--file", str(file), copy.image)
            size = json.loads(_qemu_img("info", "--output=json", str(file)))["virtual-size"]
            world.ctx.check(size >= GIB, f"{copy.name}-back has {size} bytes")
            # The larger image must be zero beyond the end of the smaller one (qemu-img(1)).
            _qemu_img("compare", "-f", "raw", "-F", "qcow2", str(world.pattern), str(file))


def _delete(world: World) -> None:
    volumes = [copy.volume for copy in world.copies]
    with world.ctx.step("openstack volume delete, image delete: everything, and the types"):
        world.cinder.cli.run("volume", "delete", *volumes)
        images = [*world.images.values(), *(copy.image for copy in world.copies)]
        world.cinder.cli.run("image", "delete", *images)
        for volume in volumes:
            world.cinder.wait("volume", volume, "gone")
        kinds = [_kind(replicas) for replicas, _ in COPIES]
        world.cinder.cli.run("volume", "type", "delete", *kinds)


def _qemu_img(*words: str) -> str:
    """Run qemu-img and return what it printed.

    :raises ScenarioFailedError: it ended with another code than 0, as for images that differ.
    """
    done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = f"{done.stdout}{done.stderr}".strip()
        raise ScenarioFailedError(f"qemu-img {' '.join(words)}: code {done.returncode}: {said}")
    return done.stdout
