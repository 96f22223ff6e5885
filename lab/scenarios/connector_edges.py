# SPDX-License-Identifier: Apache-2.0
"""The connector: recycled legs, nodes that are away at a first attach, and what hangs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from lab.compute import Attachment, BrickError
from lab.machine import Machine
from lab.scenario import Context, Needs
from lab.scenarios._connector import Trial

SUMMARY = "connector: recycled legs, dead nodes at a first attach, refused I/O, eleven namespaces"
NEEDS = Needs(storage=2, compute=1)
IN_ALL = False
_LOAD_SECONDS = 30.0
_STALL_SECONDS = 15.0
# An emulated machine takes its time over everything else in a call, too.
_SLACK_SECONDS = 10.0
_CONNECT_SECONDS = 5.0
_DEVICE_SECONDS = 15.0
_DETACH_SECONDS = 30.0
# One more than stock os-brick needs to take nvme1n1 for nvme1n10.
_MANY = 11
# Superblock, bitmap and the data that is compared.
_COPIED_MIB = 16


def run(ctx: Context) -> None:
    """Begin with a volume that has data, then spoil others."""
    trial = Trial(ctx)
    nodes = ctx.lab.storage[:2]
    with trial.plane.only(*(node.name for node in nodes)):
        volume, wrote = trial.filled(2)
        _recycled(trial, volume, wrote)
        _first_attach(trial)
        _many(trial)
        _refused_io(trial)
        _silent_detach(trial, nodes)
    trial.close()


def _recycled(trial: Trial, earlier: str, wrote: str) -> None:
    """A new volume on legs that hold something, as if nobody had cleared them."""
    for count, text in (
        (2, "both legs with what an earlier volume left"),
        (1, "one leg with what an earlier volume left"),
        (0, "different old data on its legs"),
    ):
        volume = trial.create(2)
        legs = list(trial.volumes.nodes(volume))
        with trial.case(f"a new volume, {text}: refused"):
            for leg in legs[:count]:
                _copy(trial, earlier, volume, leg)
            for leg in legs if not count else ():
                _scribble(trial, volume, leg)
            attachment = trial.compute.reserve(volume)
            try:
                _fails(trial, attachment, "ForeignData", wrote)
            finally:
                trial.compute.forget(attachment)
            trial.check_empty()


def _scribble(trial: Trial, volume: str, leg: str) -> None:
    target = f"of={trial.leg_device(volume, leg)} oflag=direct conv=fsync,notrunc"
    trial.node(volume, leg).run(f"dd if=/dev/urandom bs=1M count={_COPIED_MIB} {target}")


def _copy(trial: Trial, earlier: str, volume: str, leg: str) -> None:
    """Write what the earlier volume has on a leg's node over that leg."""
    node = trial.node(volume, leg)
    source = next(
        trial.leg_device(earlier, other)
        for other, address in trial.volumes.nodes(earlier).items()
        if address == node.address
    )
    target = trial.leg_device(volume, leg)
    node.run(
        f"dd if={source} of={target} bs=1M count={_COPIED_MIB} oflag=direct conv=fsync,notrunc"
        " status=none; udevadm settle"
    )


def _fails(trial: Trial, attachment: Attachment, code: str, earlier: str = "") -> None:
    """Connecting is refused with a code; else the digest of an earlier volume may be there."""
    try:
        trial.compute.connect(attachment)
    except BrickError as error:
        trial.ctx.note(str(error)[:200])
        trial.ctx.check(f"{code}:" in str(error), f"refused otherwise than as {code}: {error}")
        return
    shown = "the earlier" if trial.digest(attachment.path) == earlier else "some"
    trial.ctx.check(False, f"attached as {attachment.path}, which shows {shown} data")


def _first_attach(trial: Trial) -> None:
    """Nobody has attached these volumes yet."""
    for legs, text, spoilt, code, most in (
        (1, "its node refuses connections", _refusing, "Unreachable", _CONNECT_SECONDS),
        (1, "its node is silent", _silent, "Unreachable", _CONNECT_SECONDS),
        (1, "its node lacks the namespace", _hidden, "NamespaceMissing", _DEVICE_SECONDS),
        (2, "one node refuses connections", _refusing, "Unreachable", _CONNECT_SECONDS),
        (2, "one node is silent", _silent, "Unreachable", _CONNECT_SECONDS),
    ):
        volume = trial.create(legs)
        leg = list(trial.volumes.nodes(volume))[-1]
        with trial.case(f"a new volume of {legs} legs, {text}: refused in bounded time"):
            attachment = trial.compute.reserve(volume)
            with spoilt(trial.node(volume, leg), leg):
                begin = time.monotonic()
                try:
                    _fails(trial, attachment, code)
                finally:
                    took = time.monotonic() - begin
                    trial.ctx.note(f"{took:.1f} s")
                trial.check_empty()
            most += _SLACK_SECONDS
            trial.ctx.check(took < most, f"it took {took:.1f} s")
            trial.compute.forget(attachment)


@contextlib.contextmanager
def _refusing(node: Machine, _leg: str = "") -> Iterator[None]:
    rule = "INPUT -p tcp --dport 4420 -j REJECT --reject-with tcp-reset"
    node.run(f"iptables -I {rule}")
    try:
        yield
    finally:
        node.run(f"iptables -D {rule}")


@contextlib.contextmanager
def _silent(node: Machine, _leg: str) -> Iterator[None]:
    node.cut()
    try:
        yield
    finally:
        node.heal()


@contextlib.contextmanager
def _hidden(node: Machine, leg: str) -> Iterator[None]:
    """The node connects and does not offer the leg."""
    find = f"grep -lx {leg} /sys/kernel/config/nvmet/subsystems/*/namespaces/*/device_uuid"
    (found,) = node.run(find).stdout.split()
    switch = found.replace("device_uuid", "enable")
    node.run(f"echo 0 >{switch}")
    try:
        yield
    finally:
        node.run(f"echo 1 >{switch}")


def _many(trial: Trial) -> None:
    """Volumes whose devices have names of which one is the beginning of another."""
    volumes = [trial.create(2) for _ in range(_MANY)]
    with trial.case(f"{_MANY} volumes on the same two subsystems: each attach leaves the others"):
        attachments = []
        for count, volume in enumerate(volumes, 1):
            attachments.append(trial.compute.attach(volume))
            there = trial.arrays()
            trial.ctx.check(len(there) == count, f"{len(there)} arrays after attach {count}")
            whole = all(array["degraded"] == "0" for array in there.values())
            trial.ctx.check(whole, f"after attach {count}: {there}")
        names = trial.run("cd /sys/block; echo nvme*n*").split()
        tenth = [name for name in names if name.endswith("n10")]
        trial.ctx.check(tenth and tenth[0][:-1] in names, f"devices: {names}")
        for count, attachment in enumerate(attachments, 1):
            trial.compute.detach(attachment)
            there = trial.arrays()
            trial.ctx.check(
                len(there) == _MANY - count, f"{len(there)} arrays after detach {count}"
            )
        trial.check_empty()


def _refused_io(trial: Trial) -> None:
    """The node is up, its target is not: every packet is answered with a reset."""
    volume = trial.create(2)
    attachment = trial.compute.attach(volume)
    leg = next(iter(trial.volumes.nodes(volume)))
    with trial.case("a node refuses connections under load: I/O goes on over the other leg"):
        trial.start_load(attachment.path, _LOAD_SECONDS)
        time.sleep(3)
        with _refusing(trial.node(volume, leg)):
            seen = trial.load()
            text = ", ".join(f"{name} {told['longest']} s" for name, told in seen.items())
            trial.ctx.note(f"longest waits: {text}")
            for name, told in seen.items():
                trial.ctx.check(not told["error"], f"{name}: {told['error']}")
                trial.ctx.check(told["longest"] < _STALL_SECONDS, f"{name}: {told}")
            trial.compute.detach(attachment)
            trial.check_empty()


def _silent_detach(trial: Trial, nodes: list[Machine]) -> None:
    """md has not noticed yet that a leg is lost, and another volume comes meanwhile."""
    volume = trial.create(2)
    with trial.plane.only(nodes[1].name):
        other = trial.create(1)
    attachment = trial.compute.attach(volume)
    with trial.case("detach with a leg silent that md still has; another volume comes meanwhile"):
        wanted = trial.compute.reserve(other)
        nodes[0].cut()
        try:
            with ThreadPoolExecutor(1) as pool:
                gone = pool.submit(trial.compute.disconnect, attachment)
                time.sleep(2)
                begin = time.monotonic()
                trial.compute.connect(wanted)
                waited = time.monotonic() - begin
                trial.ctx.note(f"the other volume came after {waited:.1f} s")
                gone.result()
            trial.ctx.note(f"detached after {attachment.seconds:.1f} s")
            took = attachment.seconds
            trial.ctx.check(took < _DETACH_SECONDS, f"the detach took {took:.1f} s")
            trial.ctx.check(waited < _CONNECT_SECONDS + _SLACK_SECONDS, f"{waited:.1f} s")
        finally:
            nodes[0].heal()
        trial.compute.detach(wanted)
        trial.compute.forget(attachment)
        trial.check_empty()
