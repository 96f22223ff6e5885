# SPDX-License-Identifier: Apache-2.0
"""The connector: volumes come, grow and go, one by one and all at once."""

from __future__ import annotations

from lab import brick_site
from lab.compute import Attachment, Compute
from lab.scenario import Context, Needs
from lab.scenarios._connector import GIB, Trial

SUMMARY = "connector: one to three legs, two paths, extend, 16 at once, handed from stock to ours"
NEEDS = Needs(storage=3, compute=1)
_AT_ONCE = 16
# On emulated processors that other machines share, connections that come eight at a time take
# seconds each; a host with processors of its own needs a fraction of the defaults.
_EMULATED = {"connect_timeout": 15.0, "device_timeout": 30.0}


def run(ctx: Context) -> None:
    """Attach in every form, and see that what is written stays and that nothing else does."""
    trial = Trial(ctx)
    _single(trial, paths=1)
    _single(trial, paths=2)
    _replicated(trial, legs=2)
    _replicated(trial, legs=3)
    _at_once(trial)
    if trial.edition == brick_site.OURS:
        _handed_over(trial)
    trial.close()


def _single(trial: Trial, paths: int) -> None:
    volume = trial.create(1)
    compute = trial.computer(multipath=paths > 1)
    with trial.case(f"one leg, {paths} portals: attach, write, again, detach, attach, extend"):
        attachment = compute.attach(volume)
        first = attachment.seconds
        seen = [(item.state, item.nqn) for item in trial.controllers()]
        trial.ctx.check(len(seen) == paths, f"{len(seen)} connections: {seen}")
        trial.ctx.check(all(state == "live" for state, _ in seen), f"connections: {seen}")
        wrote = trial.write(attachment.path, volume)
        compute.connect(attachment)
        again = attachment.seconds
        _come_back(trial, compute, volume, attachment, wrote)
        trial.ctx.note(f"attach {first:.2f} s, again {again:.2f} s")


def _replicated(trial: Trial, legs: int) -> None:
    volume = trial.create(legs)
    compute = trial.compute
    with trial.case(f"{legs} legs: create, write, again, detach, attach, extend"):
        attachment = compute.attach(volume)
        first = attachment.seconds
        array = trial.array()
        trial.ctx.check(array["raid_disks"] == str(legs), f"array: {array}")
        trial.ctx.check(array["degraded"] == "0", f"array: {array}")
        size = trial.size(attachment.path)
        exact = size == GIB or trial.stock
        trial.ctx.check(exact, f"the array has {size} bytes, {GIB} were asked for")
        wrote = trial.write(attachment.path, volume)
        compute.connect(attachment)
        again = attachment.seconds
        _come_back(trial, compute, volume, attachment, wrote)
        trial.ctx.note(f"create {first:.2f} s, again {again:.2f} s")


def _come_back(
    trial: Trial, compute: Compute, volume: str, attachment: Attachment, wrote: str
) -> None:
    """Detach, attach, find what was written, extend, detach."""
    compute.detach(attachment)
    down = attachment.seconds
    trial.check_empty()
    attachment = compute.attach(volume)
    up = attachment.seconds
    read = trial.digest(attachment.path)
    trial.ctx.check(read == wrote, f"{attachment.path} reads as {read} instead of {wrote}")
    trial.volumes.extend(volume, 2)
    told = compute.extend(attachment)
    size = trial.size(attachment.path)
    trial.ctx.check(size >= 2 * GIB, f"{size} bytes after an extend to 2 GiB, told {told}")
    trial.ctx.check(told == size, f"the connector told {told} bytes, the device has {size}")
    extended = attachment.seconds
    trial.ctx.check(trial.digest(attachment.path) == wrote, "extend changed data")
    compute.detach(attachment)
    trial.check_empty()
    times = f"detach {down:.2f} s, attach {up:.2f} s, extend {extended:.2f} s"
    trial.ctx.note(times)


def _at_once(trial: Trial) -> None:
    volumes = [trial.create(1 + number % 2) for number in range(_AT_ONCE)]
    compute = trial.compute
    with (
        trial.case(f"{_AT_ONCE} volumes of one and two legs at once"),
        trial.patient(**_EMULATED),
    ):
        attachments = [compute.reserve(volume) for volume in volumes]
        wanted = {leg["target_nqn"] for item in attachments for leg in item.data["volume_replicas"]}
        half = _AT_ONCE // 2
        up = compute.together("connect", attachments[:half])
        # The others come while the first go, over the same connections.
        calls = [
            {"call": "disconnect", "arguments": {"data": item.data, "force": False}}
            for item in attachments[:half]
        ]
        calls += [{"call": "connect", "arguments": {"data": x.data}} for x in attachments[half:]]
        answers, _ = compute.brick.call("together", calls=calls)
        failed = [answer["error"] for answer in answers if "error" in answer]
        trial.ctx.check(not failed, f"{len(failed)} failed: {failed[:1]}")
        compute.together("connect", attachments)
        found = sorted(item.nqn for item in trial.controllers())
        trial.ctx.check(found == sorted(wanted), f"connected {found}, wanted {sorted(wanted)}")
        paths = " ".join(item.path for item in attachments)
        sizes = trial.run(f"for d in {paths}; do blockdev --getsize64 $d; done").split()
        exact = all(int(size) == GIB or (trial.stock and int(size) > GIB) for size in sizes)
        trial.ctx.check(exact and len(sizes) == _AT_ONCE, f"sizes {sizes}")
        arrays = len(trial.arrays())
        trial.ctx.check(arrays == half, f"{arrays} arrays for {half} replicated volumes")
        down = compute.together("disconnect", attachments, force=False)
        trial.check_empty()
        for item in attachments:
            compute.forget(item)
        trial.ctx.note(f"{half} attached in {up:.2f} s, {_AT_ONCE} detached in {down:.2f} s")


def _handed_over(trial: Trial) -> None:
    """What one of them attached, the other one detaches, with udev's auto-assembly on and off."""
    stock = trial.computer(brick_site.STOCK)
    for legs in (1, 2):
        volume = trial.create(legs)
        for first, second in ((stock, trial.compute), (trial.compute, stock)):
            names = f"{first.brick.edition} attaches, {second.brick.edition} detaches"
            with trial.case(f"{legs} legs: {names}"):
                attachment = first.attach(volume)
                wrote = trial.write(attachment.path, f"{volume} {names}")
                second.disconnect(attachment)
                trial.check_empty()
                second.connect(attachment)
                trial.ctx.check(trial.digest(attachment.path) == wrote, "other data is read")
                first.detach(attachment)
                trial.check_empty()
