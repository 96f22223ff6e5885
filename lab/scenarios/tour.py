# SPDX-License-Identifier: Apache-2.0
"""The main job: a volume's whole life, driven by the real ``openstack`` command."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.cluster import Lab
from lab.compute import Attachment, Compute
from lab.controlplane import inventory
from lab.scenario import Context, Needs
from lab.services import BACKEND, Services

SUMMARY = "a volume's whole life, with one replica and with two"
NEEDS = Needs(storage=3, compute=1, openstack=True)

GIB = 1 << 30
PATTERN_MIB = 64
# The last MiB of the pattern's volume, to see that its end is where it should be.
TAIL_MIB = 1


@dataclass
class Life:
    """One volume with what is made of it."""

    ctx: Context
    services: Services
    compute: Compute
    replicas: int
    kind: str
    volume: str = ""
    snapshot: str = ""
    copies: list[str] = field(default_factory=list)
    sums: tuple[str, str] = ("", "")
    attachment: Attachment = field(default_factory=lambda: Attachment("", "", {}))

    @property
    def name(self) -> str:
        return f"tour-{self.replicas}"

    def openstack(self, *words: str) -> Any:
        return self.services.cinder.cli.json(*words)

    def run(self, command: str) -> str:
        return self.compute.machine.run(command, timeout=300).stdout


def run(ctx: Context) -> None:
    """Take volumes of one and of two replicas through their lives."""
    services = Services(ctx.lab)
    try:
        (compute, *_) = services.start(ctx.progress)
        before = inventory(ctx.lab)
        for replicas in (1, 2):
            _live(ctx, services, compute, replicas)
        with ctx.step("nothing is left on any machine"):
            after = inventory(ctx.lab)
            ctx.check(after == before, f"left behind: {after}, was {before}")
            ctx.check(not any(after.values()), f"left behind: {after}")
        with ctx.step("no secret is in any log"):
            found = secrets_in_logs(ctx.lab, services)
            ctx.check(not found, f"secrets in {found}")
        memory = sum(services.stack.memory_kib().values()) / 1024
        ctx.note(f"OpenStack services together use {memory:.0f} MiB")
    finally:
        services.close()


def _live(ctx: Context, services: Services, compute: Compute, replicas: int) -> None:
    life = Life(ctx, services, compute, replicas, f"kumo-{replicas}")
    _create(life)
    _use(life)
    _extend(life)
    if replicas == 1:
        _snapshot(life)
        _detach(life)
    else:
        # The legs of an attached array cannot be captured at one moment.
        _detach(life)
        _snapshot(life)
    _copies(life)
    _delete(life)


def _create(life: Life) -> None:
    ctx, cinder = life.ctx, life.services.cinder
    with ctx.step(f"openstack volume type create {life.kind}"):
        extra = ["--property", f"volume_backend_name={BACKEND}"]
        extra += ["--property", f"kumo:num_replicas={life.replicas}"]
        life.openstack("volume", "type", "create", *extra, life.kind)
    with ctx.step(f"openstack volume create --size 1 {life.name}"):
        made = life.openstack("volume", "create", "--size", "1", "--type", life.kind, life.name)
        life.volume = made["id"]
        seconds = cinder.wait("volume", life.volume, "available")
    ctx.note(f"available {seconds:.1f} s after the command ended")
    with ctx.step("kumo volume show: one replica on each of its nodes"):
        shown = life.services.plane.kumo_json("volume", "show", life.volume)
        shown = shown[0] if isinstance(shown, list) else shown
        nodes = {item["backend"]["persistentID"] for item in shown["location"]}
        ctx.check(len(nodes) == life.replicas, f"replicas on {len(nodes)} nodes: {nodes}")


def _use(life: Life) -> None:
    with life.ctx.step(f"attach {life.name} on {life.compute.machine.name} through os-brick"):
        life.attachment = life.compute.attach(life.volume)
    life.ctx.note(f"{life.attachment.path}, connector {life.attachment.seconds:.1f} s")
    with life.ctx.step("a new volume reads as zeros"):
        compared = life.run(f"cmp -n 67108864 {life.attachment.path} /dev/zero && echo same")
        life.ctx.check("same" in compared, compared)
    with life.ctx.step(f"fio writes {PATTERN_MIB} MiB and verifies them"):
        life.run(_fio(life.attachment.path, "write"))
        life.sums = _sums(life, life.attachment.path)


def _fio(path: str, mode: str) -> str:
    return (
        f"fio --name=pattern --filename={path} --rw={mode} --bs=256k --size={PATTERN_MIB}m"
        " --direct=1 --ioengine=libaio --iodepth=4 --verify=crc32c --verify_fatal=1"
        " --minimal >/dev/null"
    )


def _sums(life: Life, path: str) -> tuple[str, str]:
    """Digests of the pattern and of the end of the first GiB."""
    head = f"dd if={path} bs=1M count={PATTERN_MIB} iflag=direct status=none | sha256sum"
    skip = 1024 - TAIL_MIB
    tail = f"dd if={path} bs=1M skip={skip} count={TAIL_MIB} iflag=direct status=none | sha256sum"
    first, second = life.run(f"{head}; {tail}").splitlines()
    return first, second


def _extend(life: Life) -> None:
    with life.ctx.step("openstack volume set --size 2, while attached"):
        life.services.cinder.cli.run("volume", "set", "--size", "2", life.volume)
        life.services.cinder.wait("volume", life.volume, "in-use")
        size = life.compute.extend(life.attachment)
        seen = int(life.run(f"blockdev --getsize64 {life.attachment.path}"))
        life.ctx.check(seen >= 2 * GIB, f"the device has {seen} bytes, os-brick said {size}")
        last = f"dd if=/dev/urandom of={life.attachment.path} bs=1M count=1 seek=2047"
        life.run(f"{last} oflag=direct conv=fsync status=none")


def _snapshot(life: Life) -> None:
    state = "in-use" if life.replicas == 1 else "available"
    with life.ctx.step(f"openstack volume snapshot create (volume {state})"):
        words = ["volume", "snapshot", "create", "--volume", life.volume]
        made = life.openstack(*words, "--force", f"{life.name}-snap")
        life.snapshot = made["id"]
        life.services.cinder.wait("snapshot", life.snapshot, "available")


def _detach(life: Life) -> None:
    with life.ctx.step(f"detach {life.name}"):
        life.compute.detach(life.attachment)
        life.services.cinder.wait("volume", life.volume, "available")
    life.ctx.note(f"connector {life.attachment.seconds:.1f} s")


def _copies(life: Life) -> None:
    for source, text in (("snapshot", "from the snapshot"), ("source", "clone")):
        origin = life.snapshot if source == "snapshot" else life.volume
        name = f"{life.name}-{source}"
        with life.ctx.step(f"openstack volume create --{source} ({text})"):
            made = life.openstack("volume", "create", f"--{source}", origin, name)
            life.copies.append(made["id"])
            life.services.cinder.wait("volume", made["id"], "available")
    with life.ctx.step("attach both, compare checksums with the original, detach"):
        attached = [life.compute.attach(copy) for copy in life.copies]
        for attachment in attached:
            sums = _sums(life, attachment.path)
            life.ctx.check(sums == life.sums, f"{attachment.path}: {sums} instead of {life.sums}")
            size = int(life.run(f"blockdev --getsize64 {attachment.path}"))
            life.ctx.check(size >= 2 * GIB, f"{attachment.path} has {size} bytes")
        for attachment in attached:
            life.compute.detach(attachment)


def _delete(life: Life) -> None:
    cinder = life.services.cinder
    with life.ctx.step("openstack volume delete: the copies, the snapshot, the volume, the type"):
        for copy in life.copies:
            cinder.wait("volume", copy, "available")
        cinder.cli.run("volume", "delete", *life.copies)
        cinder.cli.run("volume", "snapshot", "delete", life.snapshot)
        cinder.wait("snapshot", life.snapshot, "gone")
        cinder.cli.run("volume", "delete", life.volume)
        for volume in [*life.copies, life.volume]:
            cinder.wait("volume", volume, "gone")
        cinder.cli.run("volume", "type", "delete", life.kind)


def secrets_in_logs(lab: Lab, services: Services) -> list[str]:
    """Names of logs, of services and of machines, that hold a token, a password or a private key.

    :raises LabError: a machine's log could not be read.
    """
    plane = services.plane
    files = [plane.token_file, plane.directory / "node.token"]
    secrets = [path.read_text().strip() for path in files]
    secrets += [*services.stack.settings.passwords.values(), "PRIVATE KEY-----"]
    logs = {path.name: path.read_text(errors="replace") for path in lab.log_files()}
    for machine in lab.machines.values():
        logs[f"journal of {machine.name}"] = machine.run("journalctl -b --no-pager").stdout
    return [name for name, text in logs.items() if any(secret in text for secret in secrets)]


def exports(lab: Lab) -> str:
    """What to type for ``openstack volume ...`` and ``kumo ...`` in a lab left running."""
    services = Services(lab)
    try:
        lines = [f"export {name}='{value}'" for name, value in services.exports().items()]
    finally:
        services.close()
    inside = f"ip netns exec {lab.netns} {Path(sys.executable).parent}"
    return "\n".join([*lines, f"alias openstack='{inside}/openstack' kumo='{inside}/kumo'"])
