# SPDX-License-Identifier: Apache-2.0
"""A storage node that loses power gives its volumes back without the provisioner."""

from __future__ import annotations

import time

from lab.controlplane import inventory
from lab.scenario import Context, Needs
from lab.services import BACKEND, Services

SUMMARY = "a node loses power; its exports come back while the provisioner is down"
NEEDS = Needs(storage=1, compute=1, openstack=True)
KIND = "kumo-reboot"
_BACK_SECONDS = 180.0


def run(ctx: Context) -> None:
    """Attach, write, kill provisioner and node, start the node alone, read."""
    services = Services(ctx.lab)
    cinder = services.cinder
    try:
        (compute, *_) = services.start(ctx.progress)
        with ctx.step("a volume is attached and written to"):
            cinder.cli.json(
                *("volume", "type", "create", "--property", f"volume_backend_name={BACKEND}"), KIND
            )
            made = cinder.cli.json("volume", "create", "--size", "1", "--type", KIND, KIND)["id"]
            cinder.wait("volume", made, "available")
            attachment = compute.attach(made)
            write = f"dd if=/dev/urandom of={attachment.path} bs=1M count=16 oflag=direct"
            compute.machine.run(f"{write} conv=fsync status=none")
            digest = f"dd if={attachment.path} bs=1M count=16 iflag=direct status=none | sha256sum"
            before = compute.machine.run(digest).stdout
        shown = services.plane.kumo_json("volume", "show", made)
        address = (shown[0] if isinstance(shown, list) else shown)["location"][0]["backend"]
        node = next(m for m in ctx.lab.storage if m.address in address["mgmtIPs"])
        exported = inventory(ctx.lab)[node.name]
        with ctx.step(f"provisioner killed, {node.name} loses power and starts again"):
            services.plane.kill()
            node.kill()
            node.start()
            node.wait_ready()
            begin = time.monotonic()
            while (seen := inventory(ctx.lab)[node.name]) != exported:
                waited = time.monotonic() - begin
                ctx.check(waited < _BACK_SECONDS, f"{node.name} has {seen}, wanted {exported}")
                time.sleep(1)
        ctx.note(f"exports are back {time.monotonic() - begin:.0f} s after it was up")
        with ctx.step("the host reads what it wrote, over the same device"):
            after = compute.machine.run(digest, timeout=120).stdout
            ctx.check(after == before, f"{after} instead of {before}")
        with ctx.step("provisioner started again; detach and delete"):
            services.plane.start(ctx.progress)
            compute.detach(attachment)
            cinder.wait("volume", made, "available")
            cinder.cli.run("volume", "delete", made)
            cinder.wait("volume", made, "gone")
            cinder.cli.run("volume", "type", "delete", KIND)
            left = inventory(ctx.lab)
            ctx.check(not any(left.values()), f"left behind: {left}")
    finally:
        services.close()
