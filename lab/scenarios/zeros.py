# SPDX-License-Identifier: Apache-2.0
"""A new volume never shows what an earlier one held."""

from __future__ import annotations

from lab.compute import Attachment, Compute
from lab.controlplane import inventory
from lab.scenario import Context, Needs
from lab.services import BACKEND, Services

SUMMARY = "a volume on a disk that held another tenant's data reads as zeros"
NEEDS = Needs(storage=1, compute=1, openstack=True)
KIND = "kumo-zeros"
MIB = 64
# The node's pool hands out blocks of 64 KiB: what is not written of a new block must be zeros.
BLOCK_KIB = 64
MARK = "KUMO-EARLIER-TENANT"


def run(ctx: Context) -> None:
    """Fill a volume with a mark, delete it, look for the mark in the next one on that node."""
    services = Services(ctx.lab)
    cinder = services.cinder
    try:
        (compute, *_) = services.start(ctx.progress)
        cinder.cli.json(
            *("volume", "type", "create", "--property", f"volume_backend_name={BACKEND}"), KIND
        )
        with ctx.step(f"the first volume is filled with a mark ({MIB} MiB) and deleted"):
            first = _create(services)
            pool = _pool(services, first)
            _fill(ctx, compute, first)
            cinder.wait("volume", first, "available")
            cinder.cli.run("volume", "delete", first)
            cinder.wait("volume", first, "gone")
        made: list[str] = []
        with ctx.step("another volume is made in the same pool"):
            while not made or _pool(services, made[-1]) != pool:
                tried = sum(machine.spec.ssds for machine in ctx.lab.storage)
                ctx.check(len(made) <= tried, f"no volume went to {pool}: {made}")
                made.append(_create(services))
        with ctx.step("it reads as zeros, around a first write to each block too"):
            attachment = compute.attach(made[-1])
            _look(ctx, compute, attachment)
            compute.detach(attachment)
            cinder.wait("volume", made[-1], "available")
        with ctx.step("delete"):
            cinder.cli.run("volume", "delete", *made)
            for volume in made:
                cinder.wait("volume", volume, "gone")
            cinder.cli.run("volume", "type", "delete", KIND)
            left = inventory(ctx.lab)
            ctx.check(not any(left.values()), f"left behind: {left}")
    finally:
        services.close()


def _create(services: Services) -> str:
    made = services.cinder.cli.json("volume", "create", "--size", "1", "--type", KIND, KIND)
    services.cinder.wait("volume", made["id"], "available")
    return str(made["id"])


def _pool(services: Services, volume: str) -> tuple[str, str]:
    """Node and pool of a volume of one replica."""
    shown = services.plane.kumo_json("volume", "show", volume)
    shown = shown[0] if isinstance(shown, list) else shown
    leg = shown["location"][0]
    return str(leg["backend"]["persistentID"]), str(leg["pool"])


def _fill(ctx: Context, compute: Compute, volume: str) -> None:
    attachment = compute.attach(volume)
    fill = f"yes {MARK} | head -c {MIB << 20} | dd of={attachment.path} bs=1M"
    compute.machine.run(f"{fill} iflag=fullblock oflag=direct status=none")
    found = compute.machine.run(f"head -c 4096 {attachment.path} | grep -c {MARK}").stdout
    ctx.check(int(found) > 0, "the mark was not written")
    compute.detach(attachment)


def _look(ctx: Context, compute: Compute, attachment: Attachment) -> None:
    compare = f"cmp -n {MIB << 20} {attachment.path} /dev/zero"
    untouched = compute.machine.run(compare, check=False)
    ctx.check(untouched.returncode == 0, f"a new volume shows: {untouched.stdout}")
    # 4 KiB of zeros at the start of each block make the pool provision it.
    compute.machine.run(
        f"fio --name=touch --filename={attachment.path} --rw=write:{BLOCK_KIB - 4}k --bs=4k"
        f" --size={MIB}m --io_size={MIB // 16}m --direct=1 --zero_buffers --minimal >/dev/null"
    )
    touched = compute.machine.run(compare, check=False)
    ctx.check(touched.returncode == 0, f"beside a first write there is: {touched.stdout}")
