# SPDX-License-Identifier: Apache-2.0
"""Images into volumes and back through Glance, by a cinder-volume that has a real kernel."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.controlplane import ControlPlane, inventory
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
FORMATS = ("raw", "qcow2")
REPLICAS = (1, 2)
CREDENTIALS = "/etc/cinder/kumo"

_COPY_SECONDS = 180.0


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
        self.copies = [Copy(replicas, form) for replicas in REPLICAS for form in FORMATS]
        self.images: dict[str, str] = {}

    @property
    def pattern(self) -> Path:
        """The raw content of both images."""
        return self.directory / "pattern.raw"

    def openstack(self, *words: str) -> Any:
        """Decoded answer of the ``openstack`` command."""
        return self.cinder.cli.json(*words)


def run(ctx: Context) -> None:
    """Copy a raw and a qcow2 image into volumes of each type, and those volumes into images."""
    plane = ControlPlane(ctx.lab)
    directory = ctx.lab.state_dir / "openstack-shared"
    stack = Stack(ctx.lab.processes, directory, CONTROL_ADDRESS, shared_database=True)
    service = GuestVolume(stack, ctx.lab.compute[0])
    # The services of another scenario on this lab have the same names and ports.
    stack.stop()
    stack = Stack(ctx.lab.processes, directory, CONTROL_ADDRESS, shared_database=True)
    try:
        plane.start(ctx.progress)
        before = inventory(ctx.lab)
        _start(ctx, plane, stack, service)
        with tempfile.TemporaryDirectory(prefix="kumo-image-") as files:
            world = World(ctx, stack, Path(files))
            try:
                _round_trip(world)
            finally:
                world.cinder.close()
        with ctx.step("nothing is left on any machine"):
            after = inventory(ctx.lab)
            ctx.check(after == before, f"left behind: {after}, was {before}")
    finally:
        if not ctx.keep:
            service.stop()
            stack.stop()
