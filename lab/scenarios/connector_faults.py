# SPDX-License-Identifier: Apache-2.0
"""The connector: nodes that are away, at an attach, under load and at a detach."""

from __future__ import annotations

import time

from lab.compute import Attachment, BrickError
from lab.machine import Machine
from lab.scenario import Context, Needs
from lab.scenarios._connector import Trial, leg_uuids

SUMMARY = "connector: dead legs at attach, under load and at detach; stale legs; a host's reboot"
NEEDS = Needs(storage=2, compute=1)
# With connect_timeout at its default; on top of what an attach takes on an emulated processor.
_ATTACH_SECONDS = 5.0
# An emulated machine takes its time over everything else in an attach, too.
_SLACK_SECONDS = 5.0
_STALL_SECONDS = 15.0
_DETACH_SECONDS = 30.0
_LOAD_SECONDS = 20.0
_BACK_SECONDS = 60.0


def run(ctx: Context) -> None:
    """Take nodes away at each moment in turn."""
    trial = Trial(ctx)
    volume = trial.create(2)
    attachment = trial.compute.attach(volume)
    trial.write(attachment.path, "first")
    _under_load(trial, volume, attachment)
    wrote = ""
    if trial.holds(attachment):
        wrote = _detach_with_a_dead_leg(trial, attachment)
    _stale(trial, volume, wrote)
    _dead_at_attach(trial, *trial.renewed(volume, wrote))
    volume, wrote = trial.renewed(volume, wrote)
    _all_dead_at_detach(trial, volume, wrote)
    _path_lost(trial)
    _reboot(trial, trial.renewed(volume, wrote)[0])
    trial.close()


def _under_load(trial: Trial, volume: str, attachment: Attachment) -> None:
    ctx = trial.ctx
    node = trial.node(volume, leg_uuids(attachment)[0])
    with trial.case(f"{node.name} cut off under load: I/O goes on over the other leg"):
        trial.start_load(attachment.path, _LOAD_SECONDS)
        time.sleep(3)
        node.cut()
        seen = trial.load()
        text = ", ".join(f"{name} {told['longest']} s" for name, told in seen.items())
        ctx.note(f"longest waits: {text}")
        for name, told in seen.items():
            ctx.check(not told["error"], f"{name}: {told['error']}")
            ctx.check(told["longest"] < _STALL_SECONDS, f"{name} waited {told['longest']} s")
        array = trial.array()
        ctx.check(array["degraded"] == "1", f"array: {array}")


def _detach_with_a_dead_leg(trial: Trial, attachment: Attachment) -> str:
    """The first leg's node is cut off. The answer is the digest of what that leg has not."""
    wrote = ""
    with trial.case("detach while that leg is unreachable, in bounded time"):
        wrote = trial.write(attachment.path, "second")
        begin = time.monotonic()
        trial.compute.disconnect(attachment)
        trial.ctx.check(attachment.seconds < _DETACH_SECONDS, f"{attachment.seconds:.1f} s")
        trial.check_empty()
        trial.ctx.note(f"{attachment.seconds:.1f} s ({time.monotonic() - begin:.0f} s to be empty)")
        trial.compute.forget(attachment)
    return wrote


def _stale(trial: Trial, volume: str, newest: str) -> None:
    """The first leg has old data; ``newest`` is the digest of what the other has."""
    ctx = trial.ctx
    stale, fresh = _nodes(trial, volume)
    with trial.case(f"{stale.name} is back with old data, {fresh.name} is away: attach is refused"):
        fresh.cut()
        stale.heal()
        attachment = trial.compute.reserve(volume)
        _refused(trial, attachment, "Stale")
        trial.compute.forget(attachment)
        trial.check_empty()
    fresh.heal()
    with trial.case("both are back: the newer data, and the array becomes whole"):
        attachment = _attach_in_time(trial, volume)
        read = trial.digest(attachment.path)
        ctx.check(read == newest, f"old data is handed out, {read} instead of {newest}")
        trial.wait_whole()
        ctx.check(trial.digest(attachment.path) == newest, "data changed while a leg was rebuilt")
        trial.detach(attachment)


def _attach_in_time(trial: Trial, volume: str) -> Attachment:
    """Attach again and again, as somebody does until the provisioner has seen a node come back."""
    deadline = time.monotonic() + _BACK_SECONDS
    while True:
        try:
            return trial.compute.attach(volume)
        except BrickError:
            if time.monotonic() > deadline:
                raise
        time.sleep(2)


def _nodes(trial: Trial, volume: str) -> list[Machine]:
    return [trial.node(volume, leg) for leg in trial.volumes.nodes(volume)]


def _refused(trial: Trial, attachment: Attachment, code: str) -> None:
    """Connecting fails with an error of a code, which names volume, leg and node."""
    try:
        trial.compute.connect(attachment)
    except BrickError as error:
        text = str(error)
        trial.ctx.check(f"{code}:" in text, f"refused otherwise than as {code}: {text}")
        trial.ctx.note(text[:200])
        return
    read = trial.digest(attachment.path)
    trial.ctx.check(False, f"attached as {attachment.path}, which reads as {read}")


def _dead_at_attach(trial: Trial, volume: str, wrote: str) -> None:
    usual = 0.0
    with trial.case("attach with both legs, to compare"):
        attachment = trial.compute.attach(volume)
        usual = attachment.seconds
        trial.ctx.note(f"{usual:.1f} s")
        trial.detach(attachment)
    for how, away, back in (
        ("refuses connections", _refuse, _accept),
        ("is silent", Machine.cut, Machine.heal),
    ):
        volume, wrote = trial.renewed(volume, wrote)
        attachment = trial.compute.reserve(volume)
        node = _nodes(trial, volume)[1]
        away(node)
        try:
            with trial.case(
                f"attach while {node.name} {how}: at most {_ATTACH_SECONDS:.0f} s more"
            ):
                trial.compute.connect(attachment)
                trial.ctx.note(f"{attachment.seconds:.1f} s")
                trial.ctx.check(trial.digest(attachment.path) == wrote, "other data is read")
                took = attachment.seconds
                trial.ctx.check(
                    took < usual + _ATTACH_SECONDS + _SLACK_SECONDS, f"it took {took:.1f} s"
                )
                trial.compute.disconnect(attachment)
                trial.check_empty()
        finally:
            back(node)
        trial.compute.forget(attachment)
        with trial.case("with both legs again, the array becomes whole"):
            attachment = _attach_in_time(trial, volume)
            trial.wait_whole()
            trial.detach(attachment)


def _all_dead_at_detach(trial: Trial, volume: str, wrote: str) -> None:
    """Forced, as Nova does when it evacuates."""
    attachment = trial.compute.reserve(volume)
    nodes = _nodes(trial, volume)
    try:
        with trial.case("forced detach while no leg is reachable, in bounded time"):
            trial.compute.connect(attachment)
            for node in nodes:
                node.cut()
            trial.compute.disconnect(attachment, force=True)
            trial.ctx.note(f"{attachment.seconds:.1f} s")
            trial.check_empty()
            trial.ctx.check(attachment.seconds < _DETACH_SECONDS, f"{attachment.seconds:.1f} s")
    finally:
        for node in nodes:
            node.heal()
    with trial.case("attach and detach with all legs again"):
        attachment = trial.standing(attachment)
        trial.compute.connect(attachment)
        trial.ctx.check(trial.digest(attachment.path) == wrote, "other data is read")
        trial.compute.detach(attachment)
        trial.check_empty()


def _refuse(node: Machine) -> None:
    node.run("iptables -I INPUT -p tcp --dport 4420 -j REJECT --reject-with tcp-reset")


def _accept(node: Machine) -> None:
    node.run("iptables -D INPUT -p tcp --dport 4420 -j REJECT --reject-with tcp-reset")


def _path_lost(trial: Trial) -> None:
    """One of the two portals of the only leg goes silent under load."""
    volume = trial.create(1)
    compute = trial.computer(multipath=True)
    attachment = compute.attach(volume)
    (leg,) = attachment.data["volume_replicas"]
    node = trial.node(volume, leg["vol_uuid"])
    address = leg["portals"][0][0]
    try:
        with trial.case("one path of two is lost under load: I/O goes on over the other"):
            trial.start_load(attachment.path, _LOAD_SECONDS)
            time.sleep(3)
            node.run(f"iptables -I INPUT -d {address} -p tcp --dport 4420 -j DROP")
            seen = trial.load()
            text = ", ".join(f"{name} {told['longest']} s" for name, told in seen.items())
            trial.ctx.note(f"longest waits: {text}")
            for name, told in seen.items():
                trial.ctx.check(not told["error"], f"{name}: {told['error']}")
                trial.ctx.check(told["longest"] < _STALL_SECONDS + 5, f"{name}: {told}")
    finally:
        node.run(f"iptables -D INPUT -d {address} -p tcp --dport 4420 -j DROP", check=False)
    if trial.holds(attachment):
        with trial.case("detach"):
            compute.detach(attachment)
            trial.check_empty()


def _reboot(trial: Trial, volume: str) -> None:
    """The host restarts with volumes attached, as after a power cut; Nova attaches them again."""
    single = trial.create(1)
    with trial.case("the host loses power with two volumes attached, and attaches them again"):
        attachments = [trial.compute.attach(item) for item in (volume, single)]
        wrote = [trial.write(item.path, f"{item.volume} reboot") for item in attachments]
        trial.power_cycle()
        for attachment, digest in zip(attachments, wrote, strict=True):
            trial.compute.connect(attachment)
            read = trial.digest(attachment.path)
            trial.ctx.check(read == digest, f"{attachment.path} lost what was written")
            trial.compute.detach(attachment)
        trial.check_empty()
