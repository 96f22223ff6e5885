# SPDX-License-Identifier: Apache-2.0
"""The connector: legs that are not what they should be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from lab.compute import BrickError
from lab.machine import Machine
from lab.scenario import Context, Needs
from lab.scenarios._connector import Trial

SUMMARY = "connector: blank, foreign and unreadable legs, moved namespaces, udev off, SIGKILL"
NEEDS = Needs(storage=2, compute=1)
_KILLS = 8
# md's superblock of version 1.2, the bitmap behind it, and room before the data.
_HEAD_KIB = 1024
_RULE = "64-md-raid-assembly.rules"


@dataclass(frozen=True)
class Leg:
    """A leg as its node has it."""

    uuid: str
    node: Machine
    device: str

    def head(self) -> str:
        """Digest of where md keeps what it knows."""
        read = f"dd if={self.device} bs=1k count={_HEAD_KIB} iflag=direct status=none"
        return self.node.run(f"{read} | sha256sum").stdout.split()[0]


def run(ctx: Context) -> None:
    """Spoil one leg of a detached volume in each way."""
    trial = Trial(ctx)
    volume = trial.create(2)
    attachment = trial.compute.attach(volume)
    wrote = trial.write(attachment.path, volume)
    trial.compute.detach(attachment)
    legs = [
        Leg(uuid, trial.node(volume, uuid), trial.leg_device(volume, uuid))
        for uuid in trial.volumes.nodes(volume)
    ]
    _unreadable(trial, volume, legs, wrote)
    _unreadable_new(trial)
    _foreign(trial, volume, legs, wrote)
    _blank(trial, volume, legs, wrote)
    _moved(trial, volume, legs, wrote)
    _udev_off(trial, volume, wrote)
    _killed(trial, volume, wrote)
    trial.close()


@contextlib.contextmanager
def _failing(leg: Leg) -> Iterator[None]:
    """Every access to a leg fails, as from a broken disk (dm-error, drivers/md/dm-target.c)."""
    name = leg.node.run(f"dmsetup info -c --noheadings -o name {leg.device}").stdout.strip()
    table = leg.node.run(f"dmsetup table {name}").stdout.strip()
    length = table.split()[1]
    _table(leg.node, name, f"0 {length} error")
    try:
        yield
    finally:
        _table(leg.node, name, table)


def _table(node: Machine, name: str, table: str) -> None:
    node.run(f"dmsetup suspend --noflush {name}; dmsetup load {name} --table '{table}'")
    node.run(f"dmsetup resume {name}")


def _unreadable(trial: Trial, volume: str, legs: list[Leg], wrote: str) -> None:
    with trial.case("no leg can be read: refused, and nothing is written to either"):
        before = [leg.head() for leg in legs]
        with contextlib.ExitStack() as stack:
            for leg in legs:
                stack.enter_context(_failing(leg))
            _refused(trial, volume)
        trial.ctx.check([leg.head() for leg in legs] == before, "a leg was written to")
    with trial.case("attach afterwards"):
        _attach_and_read(trial, volume, wrote)


def _unreadable_new(trial: Trial) -> None:
    """A volume that nobody has attached yet: without a look at both legs, nothing may be made."""
    volume = trial.create(2)
    legs = [
        Leg(uuid, trial.node(volume, uuid), trial.leg_device(volume, uuid))
        for uuid in trial.volumes.nodes(volume)
    ]
    with trial.case("a new volume with a leg that cannot be read: refused, nothing is written"):
        before = legs[0].head()
        with _failing(legs[1]):
            _refused(trial, volume)
        trial.ctx.check(legs[0].head() == before, "the other leg was written to")


def _refused(trial: Trial, volume: str) -> None:
    """Attaching fails with an error that names the volume, and leaves nothing behind."""
    attachment = trial.compute.reserve(volume)
    try:
        trial.compute.connect(attachment)
    except BrickError as error:
        trial.ctx.note(str(error)[:300])
        trial.ctx.check(volume in str(error), f"the error does not name the volume: {error}")
    else:
        read = trial.digest(attachment.path)
        trial.ctx.check(False, f"attached as {attachment.path}, which reads as {read}")
    finally:
        trial.compute.forget(attachment)
    trial.check_empty()


def _attach_and_read(trial: Trial, volume: str, wrote: str) -> None:
    attachment = trial.compute.attach(volume)
    read = trial.digest(attachment.path)
    trial.ctx.check(read == wrote, f"{attachment.path} reads as {read} instead of {wrote}")
    trial.wait_whole()
    trial.detach(attachment)


def _foreign(trial: Trial, volume: str, legs: list[Leg], wrote: str) -> None:
    """One leg carries the superblock of another array."""
    leg = legs[0]
    keep = "/root/head"
    make = "mdadm --create /dev/md99 --run --level=1 --raid-devices=2 --metadata=1.2"
    with trial.case("a leg with the superblock of another array: refused, nothing is written"):
        leg.node.run(f"dd if={leg.device} of={keep} bs=1k count={_HEAD_KIB} status=none")
        leg.node.run(f"modprobe raid1; mdadm --zero-superblock {leg.device}")
        leg.node.run(f"{make} --bitmap=internal --assume-clean {leg.device} missing </dev/null")
        leg.node.run("udevadm settle; mdadm --stop /dev/md99")
        before = [item.head() for item in legs]
        try:
            _refused(trial, volume)
            trial.ctx.check([item.head() for item in legs] == before, "a leg was written to")
        finally:
            write = f"dd if={keep} of={leg.device} bs=1k oflag=direct conv=fsync,notrunc"
            leg.node.run(f"{write} status=none")
    with trial.case("with its own superblock again: attached"):
        _attach_and_read(trial, volume, wrote)


def _blank(trial: Trial, volume: str, legs: list[Leg], wrote: str) -> None:
    leg = legs[0]
    with trial.case("a leg replaced by a blank one: the data of the other, and it is filled"):
        leg.node.run(f"blkdiscard -f {leg.device}")
        leg.node.run(f"dd if=/dev/zero of={leg.device} bs=1M count=8 oflag=direct status=none")
        _attach_and_read(trial, volume, wrote)
    with trial.case("the filled leg alone has the data"):
        other = legs[1]
        other.node.run("iptables -I INPUT -p tcp --dport 4420 -j REJECT --reject-with tcp-reset")
        try:
            attachment = trial.compute.attach(volume)
            read = trial.digest(attachment.path)
            trial.ctx.check(read == wrote, f"it reads as {read} instead of {wrote}")
            trial.compute.detach(attachment)
            trial.check_empty()
        finally:
            other.node.run(
                "iptables -D INPUT -p tcp --dport 4420 -j REJECT --reject-with tcp-reset"
            )
        _attach_and_read(trial, volume, wrote)


def _moved(trial: Trial, volume: str, legs: list[Leg], wrote: str) -> None:
    """Two namespaces of one subsystem change their numbers while nobody is connected."""
    second = trial.create(2)
    with trial.case("two volumes whose namespaces have changed numbers: each has its own data"):
        attachments = [trial.compute.reserve(item) for item in (volume, second)]
        for leg in legs:
            _swap(leg.node)
        for attachment in attachments:
            trial.compute.connect(attachment)
        read = trial.digest(attachments[0].path)
        trial.ctx.check(read == wrote, f"it reads as {read} instead of {wrote}")
        other = trial.write(attachments[1].path, second)
        trial.ctx.check(trial.digest(attachments[0].path) == wrote, "one writes into the other")
        for attachment in attachments:
            trial.compute.disconnect(attachment)
        trial.check_empty()
        for leg in legs:
            _swap(leg.node)
        for attachment in attachments:
            trial.compute.connect(attachment)
        trial.ctx.check(trial.digest(attachments[0].path) == wrote, "the first lost its data")
        trial.ctx.check(trial.digest(attachments[1].path) == other, "the second lost its data")
        for attachment in attachments:
            trial.compute.disconnect(attachment)
        trial.check_empty()
        for attachment in attachments:
            trial.compute.forget(attachment)


def _swap(node: Machine) -> None:
    """Let the two namespaces of the replicated class on a node change places."""
    node.run(
        "set -e; cd /sys/kernel/config/nvmet/subsystems; for s in *; do"
        " set -- $s/namespaces/*; [ $# = 2 ] || continue;"
        " a=$(cat $1/device_path) b=$(cat $2/device_path);"
        " u=$(cat $1/device_uuid) v=$(cat $2/device_uuid);"
        " g=$(cat $1/device_nguid) h=$(cat $2/device_nguid);"
        " echo 0 >$1/enable; echo 0 >$2/enable;"
        " echo -n $b >$1/device_path; echo -n $a >$2/device_path;"
        " echo $v >$1/device_uuid; echo $u >$2/device_uuid;"
        " echo $h >$1/device_nguid; echo $g >$2/device_nguid;"
        " echo 1 >$1/enable; echo 1 >$2/enable; done"
    )


def _udev_off(trial: Trial, volume: str, wrote: str) -> None:
    """Without the rule with which Debian's mdadm assembles what appears; all else runs with it."""
    with trial.case("attach and detach without udev's auto-assembly"):
        trial.run(f"ln -s /dev/null /etc/udev/rules.d/{_RULE}; udevadm control --reload")
        try:
            _attach_and_read(trial, volume, wrote)
        finally:
            trial.run(f"rm /etc/udev/rules.d/{_RULE}; udevadm control --reload")


def _killed(trial: Trial, volume: str, wrote: str) -> None:
    """The process gets a SIGKILL in the middle of it, each time a little later."""
    attachment = trial.compute.reserve(volume)
    trial.compute.connect(attachment)
    full = attachment.seconds
    brick = trial.compute.brick
    trial.compute.disconnect(attachment)
    down = attachment.seconds
    with trial.case(f"{_KILLS} times SIGKILL while it connects and disconnects, then again"):
        done = 0
        for number in range(_KILLS):
            part = (number + 1) / (_KILLS + 1)
            data = {key: attachment.data[key] for key in attachment.data if key != "device_path"}
            done += brick.call_killed("connect", full * part, data=data, multipath=False)
            trial.compute.connect(attachment)
            read = trial.digest(attachment.path)
            trial.ctx.check(read == wrote, f"after a kill at {part:.2f}: {read} instead of {wrote}")
            arguments = {"data": attachment.data, "force": False, "multipath": False}
            done += brick.call_killed("disconnect", down * part, **arguments)
            trial.compute.disconnect(attachment)
            trial.check_empty()
        trial.ctx.note(f"{done} of {2 * _KILLS} calls ended before they were killed")
    trial.compute.forget(attachment)
