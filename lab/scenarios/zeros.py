# SPDX-License-Identifier: Apache-2.0
"""A new volume never shows what an earlier one held."""

from __future__ import annotations

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
    """Fill a volume with a mark, delete it, look for the mark in the next one."""
    services = Services(ctx.lab)
    cinder = services.cinder
    try:
        (compute, *_) = services.start(ctx.progress)
        run_in_guest = compute.machine.run
        cinder.cli.json(
            *("volume", "type", "create", "--property", f"volume_backend_name={BACKEND}"), KIND
        )
        with ctx.step(f"the first volume is filled with a mark ({MIB} MiB) and deleted"):
            first = cinder.cli.json("volume", "create", "--size", "1", "--type", KIND, KIND)["id"]
            cinder.wait("volume", first, "available")
            attachment = compute.attach(first)
            fill = f"yes {MARK} | head -c {MIB << 20} | dd of={attachment.path} bs=1M"
            run_in_guest(f"{fill} iflag=fullblock oflag=direct status=none")
            found = run_in_guest(f"head -c 4096 {attachment.path} | grep -c {MARK}").stdout
            ctx.check(int(found) > 0, "the mark was not written")
            compute.detach(attachment)
            cinder.wait("volume", first, "available")
            cinder.cli.run("volume", "delete", first)
            cinder.wait("volume", first, "gone")
        with ctx.step("the next volume reads as zeros, around a first write to each block too"):
            second = cinder.cli.json("volume", "create", "--size", "1", "--type", KIND, KIND)["id"]
            cinder.wait("volume", second, "available")
            attachment = compute.attach(second)
            untouched = run_in_guest(f"cmp -n {MIB << 20} {attachment.path} /dev/zero").stdout
            ctx.check(untouched == "", untouched)
            run_in_guest(
                f"fio --name=touch --filename={attachment.path} --rw=write:{BLOCK_KIB - 4}k"
                f" --bs=4k --size={MIB}m --io_size={MIB // 16}m --direct=1 --zero_buffers"
                " --minimal >/dev/null"
            )
            zeros = run_in_guest(f"cmp -n {MIB << 20} {attachment.path} /dev/zero").stdout
            ctx.check(zeros == "", f"something of the earlier volume shows: {zeros}")
            node = ctx.lab.storage[0]
            mapped = node.run("lvs --noheadings -o data_percent --select 'lv_name=~\"^r-\"'").stdout
            ctx.check(float(mapped.split()[0]) > 0, "the write provisioned no block")
        with ctx.step("detach and delete"):
            compute.detach(attachment)
            cinder.wait("volume", second, "available")
            cinder.cli.run("volume", "delete", second)
            cinder.wait("volume", second, "gone")
            cinder.cli.run("volume", "type", "delete", KIND)
            left = inventory(ctx.lab)
            ctx.check(not any(left.values()), f"left behind: {left}")
    finally:
        services.close()
