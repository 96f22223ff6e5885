# SPDX-License-Identifier: Apache-2.0
"""Volumes that grow while no host uses them: extended when detached, and larger copies."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from lab.compute import Attachment, Compute
from lab.controlplane import inventory
from lab.errors import LabError
from lab.scenario import Context, Needs
from lab.services import BACKEND, Services

SUMMARY = "extended while detached, and copied into a larger volume"
NEEDS = Needs(storage=2, compute=1, openstack=True)

GIB = 1 << 30
PATTERN_MIB = 16
# How much of an array is compared, from its end backwards: a check of all of it takes a minute.
CHECK_MIB = 256
_CHECK_SECONDS = 120.0


@dataclass
class Growth:
    """One volume, and the larger ones made of it."""

    ctx: Context
    services: Services
    compute: Compute
    replicas: int
    volume: str = ""
    snapshot: str = ""
    copies: list[str] = field(default_factory=list)
    sums: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"copies-{self.replicas}"

    def openstack(self, *words: str) -> Any:
        return self.services.cinder.cli.json(*words)

    def run(self, command: str) -> str:
        return self.compute.machine.run(command, timeout=300).stdout


def run(ctx: Context) -> None:
    """Grow volumes of two replicas and of one."""
    services = Services(ctx.lab)
    try:
        (compute, *_) = services.start(ctx.progress)
        before = inventory(ctx.lab)
        for replicas in (2, 1):
            growth = Growth(ctx, services, compute, replicas)
            _create(growth)
            _extend(growth)
            _copies(growth)
            _delete(growth)
        with ctx.step("nothing is left on any machine"):
            after = inventory(ctx.lab)
            ctx.check(after == before, f"left behind: {after}, was {before}")
    finally:
        services.close()


def _create(growth: Growth) -> None:
    cinder = growth.services.cinder
    with growth.ctx.step(f"a volume of 1 GiB with {growth.replicas} replica(s), a pattern on it"):
        extra = ["--property", f"volume_backend_name={BACKEND}"]
        extra += ["--property", f"kumo:num_replicas={growth.replicas}"]
        growth.openstack("volume", "type", "create", *extra, growth.name)
        words = ["volume", "create", "--size", "1", "--type", growth.name, growth.name]
        growth.volume = growth.openstack(*words)["id"]
        cinder.wait("volume", growth.volume, "available")
        attachment = growth.compute.attach(growth.volume)
        for first in (0, 1024 - PATTERN_MIB):
            _write(growth, attachment, first)
        growth.sums = _sums(growth, attachment, 0, 1024 - PATTERN_MIB)
        _detach(growth, attachment)


def _extend(growth: Growth) -> None:
    ctx, cinder = growth.ctx, growth.services.cinder
    # What was synchronised before, in a lab that is shared, does not count.
    growth.run("dmesg --clear")
    with ctx.step("openstack volume set --size 2, while detached"):
        cinder.cli.run("volume", "set", "--size", "2", growth.volume)
        cinder.wait("volume", growth.volume, "available")
    with ctx.step("attach: 2 GiB, the pattern is there, the new part is zeros and can be written"):
        attachment = growth.compute.attach(growth.volume)
        _look(growth, attachment, 2)
        zeros = growth.run(f"cmp -n {64 << 20} -i {GIB}:0 {attachment.path} /dev/zero && echo same")
        ctx.check("same" in zeros, f"the new part is not zeros: {zeros}")
        _write(growth, attachment, 2048 - PATTERN_MIB)
        growth.sums += _sums(growth, attachment, 2048 - PATTERN_MIB)
    if growth.replicas > 1:
        with ctx.step("the legs are alike in the new part"):
            _check_array(growth, attachment)
    _detach(growth, attachment)


def _copies(growth: Growth) -> None:
    ctx, cinder = growth.ctx, growth.services.cinder
    with ctx.step("a snapshot; volumes of 3 GiB from it and from the volume"):
        words = ["volume", "snapshot", "create", "--volume", growth.volume, growth.name]
        growth.snapshot = growth.openstack(*words)["id"]
        cinder.wait("snapshot", growth.snapshot, "available")
        for option, origin in (("--snapshot", growth.snapshot), ("--source", growth.volume)):
            words = ["volume", "create", "--size", "3", option, origin, f"{growth.name}{option}"]
            growth.copies.append(growth.openstack(*words)["id"])
        for copy in growth.copies:
            cinder.wait("volume", copy, "available")
    with ctx.step("attach both: 3 GiB, the pattern is there, the new part can be written"):
        attached = [growth.compute.attach(copy) for copy in growth.copies]
        for attachment in attached:
            _look(growth, attachment, 3)
            _write(growth, attachment, 3072 - PATTERN_MIB)
    if growth.replicas > 1:
        with ctx.step("the legs of both are alike in the new part"):
            for attachment in attached:
                _check_array(growth, attachment)
    for attachment in attached:
        _detach(growth, attachment)


def _delete(growth: Growth) -> None:
    cinder = growth.services.cinder
    with growth.ctx.step("delete the copies, the snapshot, the volume and the type"):
        cinder.cli.run("volume", "delete", *growth.copies)
        cinder.cli.run("volume", "snapshot", "delete", growth.snapshot)
        cinder.wait("snapshot", growth.snapshot, "gone")
        cinder.cli.run("volume", "delete", growth.volume)
        for volume in [*growth.copies, growth.volume]:
            cinder.wait("volume", volume, "gone")
        cinder.cli.run("volume", "type", "delete", growth.name)


def _detach(growth: Growth, attachment: Attachment) -> None:
    growth.compute.detach(attachment)
    growth.services.cinder.wait("volume", attachment.volume, "available")


def _write(growth: Growth, attachment: Attachment, first: int) -> None:
    """Random data from the MiB ``first`` on."""
    growth.run(
        f"dd if=/dev/urandom of={attachment.path} bs=1M seek={first} count={PATTERN_MIB}"
        " oflag=direct conv=fsync status=none"
    )


def _sums(growth: Growth, attachment: Attachment, *firsts: int) -> list[str]:
    """Digests of the patterns that begin at these MiB."""
    parts = [
        f"dd if={attachment.path} bs=1M skip={first} count={PATTERN_MIB} iflag=direct status=none"
        " | sha256sum"
        for first in firsts
    ]
    return growth.run("; ".join(parts)).splitlines()


def _look(growth: Growth, attachment: Attachment, gib: int) -> None:
    """The size is what was asked for, and every pattern is where it was written."""
    seen = int(growth.run(f"blockdev --getsize64 {attachment.path}"))
    growth.ctx.check(seen >= gib * GIB, f"{attachment.path} has {seen} bytes, not {gib} GiB")
    firsts = [0, 1024 - PATTERN_MIB, 2048 - PATTERN_MIB][: len(growth.sums)]
    sums = _sums(growth, attachment, *firsts)
    growth.ctx.check(sums == growth.sums, f"{attachment.path}: {sums}, not {growth.sums}")


def _check_array(growth: Growth, attachment: Attachment) -> None:
    """The array runs with all legs, was not synchronised, and its legs are the same."""
    ctx, name = growth.ctx, growth.run(f"basename $(readlink -f {attachment.path})").strip()
    array = f"/sys/block/{name}/md"
    shown = growth.run(f"cd {array}; cat array_state degraded sync_action resync_start").split()
    state, degraded, action, resync = shown
    ctx.check(state in ("clean", "active", "active-idle"), f"{name} is {state}")
    ctx.check((degraded, action, resync) == ("0", "idle", "none"), f"{name}: {shown}")
    synced = growth.run(
        f"dmesg | grep -E '{name}: (resync|recovery)|md: (resync|recovery) of' | cat"
    )
    ctx.check(f"{name}" not in synced, f"{name} was synchronised: {synced}")
    sectors = int(growth.run(f"cat /sys/block/{name}/size"))
    first = max(0, sectors // 2048 - CHECK_MIB) * 2048
    growth.run(f"echo {first} > {array}/sync_min && echo check > {array}/sync_action")
    deadline = time.monotonic() + _CHECK_SECONDS
    while growth.run(f"cat {array}/sync_action").strip() != "idle":
        if time.monotonic() > deadline:
            raise LabError(f"the check of {name} takes more than {_CHECK_SECONDS:.0f} s")
        time.sleep(0.5)
    mismatches = growth.run(f"cat {array}/mismatch_cnt").strip()
    ctx.check(mismatches == "0", f"{mismatches} sectors of the legs of {name} differ")
