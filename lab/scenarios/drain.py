# SPDX-License-Identifier: Apache-2.0
"""A node is emptied: its replicas move to other nodes, with their data."""

from __future__ import annotations

import time
import uuid

from kumo_client.schemas.volume import VolumeCreate
from lab.controlplane import Client, ControlPlane, inventory
from lab.plain_host import PlainHost
from lab.scenario import Context, Needs

SUMMARY = "a drained node is empty, and the volumes have their data on another one"
NEEDS = Needs(storage=2, compute=1)
VOLUMES = 2
MARKED_MIB = 96
_DRAIN_SECONDS = 240.0


def run(ctx: Context) -> None:
    """Write to volumes, drain a node while one volume is attached, detach it, compare."""
    plane = ControlPlane(ctx.lab)
    plane.start(ctx.progress)
    client = plane.client()
    host = PlainHost(ctx.lab.compute[0], client)
    try:
        source, target, *others = (machine.name for machine in ctx.lab.storage)
        with ctx.step(f"volumes are made on {source} and written to"):
            for name in (target, *others):
                plane.kumo("backend", "cordon", _identity(client, name))
            volumes = [_make(client) for _ in range(VOLUMES)]
            plane.kumo("backend", "uncordon", _identity(client, target))
            marks = {volume: _mark(host, volume) for volume in volumes}
            attached = volumes[-1]
            for volume in volumes[:-1]:
                host.detach(volume)
        with ctx.step(f"{source} is drained; what is detached moves, the attached volume does not"):
            begin = time.monotonic()
            plane.kumo("backend", "drain", "--yes", _identity(client, source))
            _wait(ctx, client, volumes[:-1], target)
            ctx.check(_node(client, attached) == source, "an attached volume has moved")
        ctx.note(f"{VOLUMES - 1} volume(s) of 1 GiB moved in {time.monotonic() - begin:.0f} s")
        with ctx.step("it is detached, and moves, too"):
            host.detach(attached)
            host.disconnect()
            _wait(ctx, client, volumes, target)
            _wait_empty(ctx, plane, source)
        with ctx.step("the data is what was written"):
            # The last detach takes the subsystem away, to which nothing can be added then.
            devices = {volume: host.attach(volume) for volume in volumes}
            for volume, device in devices.items():
                ctx.check(_digest(host, device) == marks[volume], f"volume {volume} differs")
            for volume in volumes:
                host.detach(volume)
            host.disconnect()
        with ctx.step("the node is used again; delete"):
            plane.kumo("backend", "drain", "--stop", _identity(client, source))
            for name in others:
                plane.kumo("backend", "uncordon", _identity(client, name))
            for volume in volumes:
                client.delete_volume(volume)
            left = inventory(ctx.lab)
            ctx.check(not any(left.values()), f"left behind: {left}")
    finally:
        client.close()


def _identity(client: Client, name: str) -> str:
    return str(next(one.persistent_id for one in client.backends() if one.name == name))


def _make(client: Client) -> str:
    uid = str(uuid.uuid4())
    client.create_volume(VolumeCreate(uuid=uid, alias=uid, capacity=1))
    return uid


def _node(client: Client, volume: str) -> str:
    (leg,) = client.volume(volume).location
    return str(leg.backend.name)


def _mark(host: PlainHost, volume: str) -> str:
    device = host.attach(volume)
    write = f"dd if=/dev/urandom of={device} bs=1M count={MARKED_MIB} seek=7 oflag=direct"
    host.machine.run(f"{write} conv=fsync status=none", timeout=120)
    return _digest(host, device)


def _digest(host: PlainHost, device: str) -> str:
    """Of the beginning, which has a part that was never written."""
    read = f"dd if={device} bs=1M count={MARKED_MIB + 32} iflag=direct status=none | sha256sum"
    return str(host.machine.run(read, timeout=120).stdout)


def _wait(ctx: Context, client: Client, volumes: list[str], node: str) -> None:
    deadline = time.monotonic() + _DRAIN_SECONDS
    while True:
        seen = [client.volume(volume).location for volume in volumes]
        if all([leg.backend.name for leg in legs] == [node] for legs in seen):
            return
        if time.monotonic() > deadline:
            tasks = [f"{one.type} {one.state} {one.status_description}" for one in client.tasks()]
            ctx.check(False, f"not all have moved to {node}; tasks: {tasks}")
        time.sleep(1)


def _wait_empty(ctx: Context, plane: ControlPlane, name: str) -> None:
    deadline = time.monotonic() + 60
    while inventory(plane.lab)[name]:
        ctx.check(time.monotonic() < deadline, f"{name} holds {inventory(plane.lab)[name]}")
        time.sleep(1)
