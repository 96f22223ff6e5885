# SPDX-License-Identifier: Apache-2.0
"""A pool that sold more than it has is filled to the brim."""

from __future__ import annotations

import time
import uuid
from typing import Any

from kumo_client.schemas.volume import StorageClass, VolumeCreate
from lab.controlplane import Client, ControlPlane, inventory
from lab.plain_host import PlainHost
from lab.scenario import Context, Needs

SUMMARY = "a full pool refuses what is new, fails writes cleanly and keeps what was written"
NEEDS = Needs(storage=1, compute=1, ssds=2, ssd_gib=3)
GIB = 2
MARKED_MIB = 64
# What a write into a full pool may take until it is refused.
_BOUND_SECONDS = 90.0


def run(ctx: Context) -> None:
    """Sell twice what there is, write until nothing fits, delete something, go on."""
    plane = ControlPlane(ctx.lab)
    plane.start(ctx.progress)
    client = plane.client()
    host = PlainHost(ctx.lab.compute[0], client)
    try:
        with plane.only(ctx.lab.storage[0].name):
            _brim(ctx, plane, client, host)
    finally:
        client.close()


def _brim(ctx: Context, plane: ControlPlane, client: Client, host: PlainHost) -> None:
    with ctx.step("thin volumes are sold, more than the pools have"):
        by_pool = _sell(client)
        pool, volumes = max(by_pool.items(), key=lambda item: len(item[1]))
        (other,) = [found[0] for name, found in by_pool.items() if name != pool][:1]
        ctx.check(len(volumes) * GIB > 3, f"pool {pool} has only {volumes}")
    with ctx.step("each is attached, marked and read back"):
        devices = {volume: host.attach(volume) for volume in (*volumes, other)}
        marks = {volume: _mark(host, device) for volume, device in devices.items()}
    with ctx.step("one after the other is filled until the pool is full") as task:
        refused = _fill(ctx, host, [devices[volume] for volume in volumes])
        task.update(refused)
    _look(ctx, plane, client, pool)
    with ctx.step("what was written is there, the other pool works"):
        _compare(ctx, host, devices, marks)
        host.machine.run(f"dd if=/dev/zero of={devices[other]} bs=1M seek=512 count=8 {_DIRECT}")
    with ctx.step("a volume is deleted; the pool is usable again, nothing is lost"):
        gone = volumes.pop()
        host.detach(gone)
        client.delete_volume(gone)
        del devices[gone], marks[gone]
        _recover(ctx, client, pool)
        host.machine.run(
            f"dd if=/dev/zero of={devices[volumes[0]]} bs=1M seek=512 count=64 {_DIRECT}"
        )
        _compare(ctx, host, devices, marks)
    with ctx.step("delete"):
        for volume in devices:
            host.detach(volume)
            client.delete_volume(volume)
        host.disconnect()
        left = inventory(ctx.lab)
        ctx.check(not any(left.values()), f"left behind: {left}")


_DIRECT = "oflag=direct conv=fsync status=none"


def _sell(client: Client) -> dict[str, list[str]]:
    """Volumes by pool, until one pool has two and another has one."""
    found: dict[str, list[str]] = {}
    while len(found) < 2 or max(len(volumes) for volumes in found.values()) < 2:
        uid = str(uuid.uuid4())
        client.create_volume(
            VolumeCreate(
                uuid=uid,
                alias=uid,
                capacity=GIB,
                provisioning_type="THIN",
                storage_class=StorageClass(allow_span=False),
            )
        )
        found.setdefault(client.volume(uid).location[0].pool, []).append(uid)
    return found


def _mark(host: PlainHost, device: str) -> str:
    host.machine.run(f"dd if=/dev/urandom of={device} bs=1M count={MARKED_MIB} {_DIRECT}")
    return _digest(host, device)


def _digest(host: PlainHost, device: str) -> str:
    read = f"dd if={device} bs=1M count={MARKED_MIB} iflag=direct status=none | sha256sum"
    return str(host.machine.run(read, timeout=120).stdout)


def _fill(ctx: Context, host: PlainHost, devices: list[str]) -> str:
    """Write zeros behind the marks; the last write has to fail, and soon."""
    for device in devices:
        write = f"dd if=/dev/zero of={device} bs=1M seek={MARKED_MIB} oflag=direct"
        begin = time.monotonic()
        done = host.machine.run(write, check=False, timeout=600)
        lines = str(done.stderr).splitlines() or [""]
        # The end of a volume that fitted is "No space left on device" of dd itself, without an
        # error of the device: all bytes are written then.
        written = int(host.machine.run(f"blockdev --getsize64 {device}").stdout)
        if not _reached_end(lines, written):
            seconds = time.monotonic() - begin
            ctx.check(done.returncode != 0, f"the write to {device} did not fail")
            ctx.note(f"refused after {seconds:.0f} s of writing: {lines[0]}")
            _check_prompt(ctx, host, device)
            return lines[0]
    ctx.check(False, "everything fitted into the pool")
    return ""


def _reached_end(lines: list[str], size: int) -> bool:
    copied = [line for line in lines if " bytes " in line]
    return bool(copied) and int(copied[0].split()[0]) == size - (MARKED_MIB << 20)


def _check_prompt(ctx: Context, host: PlainHost, device: str) -> None:
    """A write that finds no room fails at once instead of hanging."""
    begin = time.monotonic()
    write = f"dd if=/dev/zero of={device} bs=1M seek=$(({GIB} * 1024 - 64)) count=8 oflag=direct"
    done = host.machine.run(write, check=False, timeout=300)
    seconds = time.monotonic() - begin
    ctx.check(done.returncode != 0, "a write into the full pool succeeded")
    ctx.check(seconds < _BOUND_SECONDS, f"a write into the full pool took {seconds:.0f} s")
    ctx.note(f"a further write fails within {seconds:.1f} s")


def _pool(client: Client, name: str) -> Any:
    """A pool and its node."""
    return next(
        (backend, pool)
        for backend in client.backends()
        for pool in backend.pools
        if pool.name == name
    )


def _look(ctx: Context, plane: ControlPlane, client: Client, name: str) -> None:
    with ctx.step("the node and the provisioner say so, and nothing new goes there"):
        deadline = time.monotonic() + 90
        while True:
            backend, pool = _pool(client, name)
            told = [text for text in backend.problems if name in text]
            if pool.state != "ok" and told:
                break
            ctx.check(
                time.monotonic() < deadline,
                f"pool {name} is {pool.state}, told: {backend.problems}",
            )
            time.sleep(1)
        events = plane.kumo_json("event", "list")
        shown = [one for one in events if one["type"] in ("pool.state", "backend.problem")]
        ctx.check(shown, f"no event tells of it: {[one['type'] for one in events]}")
        verdict = client.plan_volume(
            VolumeCreate(alias="dry", capacity=1, storage_class=StorageClass(allow_span=False))
        )
        refused = [one for one in verdict.nodes if one.pool == name and one.reason]
        ctx.check(refused, f"placement would still use pool {name}: {verdict.nodes}")
        ctx.note(f"placement: {refused[0].refused_by}: {refused[0].reason}")
    ctx.note("; ".join(told))


def _recover(ctx: Context, client: Client, name: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        _, pool = _pool(client, name)
        if pool.state == "ok":
            return
        ctx.check(time.monotonic() < deadline, f"pool {name} stays {pool.state}")
        time.sleep(1)


def _compare(ctx: Context, host: PlainHost, devices: dict[str, str], marks: dict[str, str]) -> None:
    for volume, device in devices.items():
        found = _digest(host, device)
        ctx.check(found == marks[volume], f"volume {volume} has lost what was written to it")
