# SPDX-License-Identifier: Apache-2.0
"""The connector: legs that are not what they should be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from lab.compute import Attachment, BrickError
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


@dataclass(frozen=True)
class Subject:
    """A detached volume of two legs, and the digest of what is on it."""

    volume: str
    legs: list[Leg]
    wrote: str


def run(ctx: Context) -> None:
    """Spoil one leg of a detached volume in each way."""
    trial = Trial(ctx)
    subject = _subject(trial, *trial.filled(2))
    _unreadable(trial, subject)
    _unreadable_new(trial)
    for spoil in (_foreign, _blank, _moved, _udev_off, _killed):
        if trial.stock:
            subject = _subject(trial, *trial.filled(2))
        spoil(trial, subject)
    trial.close()


def _subject(trial: Trial, volume: str, wrote: str) -> Subject:
    return Subject(volume, _legs(trial, volume), wrote)


def _legs(trial: Trial, volume: str) -> list[Leg]:
    return [
        Leg(uuid, trial.node(volume, uuid), trial.leg_device(volume, uuid))
        for uuid in trial.volumes.nodes(volume)
    ]


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


def _unreadable(trial: Trial, subject: Subject) -> None:
    with trial.case("no leg can be read: refused, and nothing is written to either"):
        before = [leg.head() for leg in subject.legs]
        with contextlib.ExitStack() as stack:
            for leg in subject.legs:
                stack.enter_context(_failing(leg))
            _refused(trial, subject.volume)
        trial.ctx.check([leg.head() for leg in subject.legs] == before, "a leg was written to")
    with trial.case("attach afterwards"):
        _attach_and_read(trial, subject)


def _unreadable_new(trial: Trial) -> None:
    """A volume that nobody has attached yet: without a look at both legs, nothing may be made."""
    volume = trial.create(2)
    legs = _legs(trial, volume)
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


def _attach_and_read(trial: Trial, subject: Subject) -> None:
    attachment = trial.compute.attach(subject.volume)
    _same(trial, attachment, subject)
    trial.wait_whole()
    trial.detach(attachment)


def _same(trial: Trial, attachment: Attachment, subject: Subject) -> None:
    read = trial.digest(attachment.path)
    trial.ctx.check(
        read == subject.wrote, f"{attachment.path} reads as {read} instead of {subject.wrote}"
    )


def _foreign(trial: Trial, subject: Subject) -> None:
    """One leg carries the superblock of another array."""
    leg = subject.legs[0]
    keep = "/root/head"
    make = "mdadm --create /dev/md99 --run --level=1 --raid-devices=2 --metadata=1.2"
    with trial.case("a leg with the superblock of another array: refused, nothing is written"):
        leg.node.run(f"dd if={leg.device} of={keep} bs=1k count={_HEAD_KIB} status=none")
        leg.node.run(f"modprobe raid1; mdadm --zero-superblock {leg.device}")
        leg.node.run(f"{make} --bitmap=internal --assume-clean {leg.device} missing </dev/null")
        leg.node.run("udevadm settle; mdadm --stop /dev/md99")
        before = [item.head() for item in subject.legs]
        try:
            _refused(trial, subject.volume)
            after = [item.head() for item in subject.legs]
            trial.ctx.check(after == before, "a leg was written to")
        finally:
            write = f"dd if={keep} of={leg.device} bs=1k oflag=direct conv=fsync,notrunc"
            leg.node.run(f"{write} status=none")
    with trial.case("with its own superblock again: attached"):
        _attach_and_read(trial, subject)


def _blank(trial: Trial, subject: Subject) -> None:
    leg, other = subject.legs
    with trial.case("a leg replaced by a blank one: the data of the other, and it is filled"):
        leg.node.run(f"blkdiscard -f {leg.device}")
        leg.node.run(f"dd if=/dev/zero of={leg.device} bs=1M count=8 oflag=direct status=none")
        _attach_and_read(trial, subject)
    with trial.case("the filled leg alone has the data"):
        other.node.run("iptables -I INPUT -p tcp --dport 4420 -j REJECT --reject-with tcp-reset")
        try:
            attachment = trial.compute.attach(subject.volume)
            _same(trial, attachment, subject)
            trial.compute.detach(attachment)
            trial.check_empty()
        finally:
            other.node.run(
                "iptables -D INPUT -p tcp --dport 4420 -j REJECT --reject-with tcp-reset"
            )
        _attach_and_read(trial, subject)


def _moved(trial: Trial, subject: Subject) -> None:
    """Two namespaces of one subsystem change their numbers while nobody is connected."""
    with trial.plane.only(*(leg.node.name for leg in subject.legs)):
        second = trial.create(2)
    with trial.case("two volumes whose namespaces have changed numbers: each has its own data"):
        attachments = [trial.compute.reserve(item) for item in (subject.volume, second)]
        with _swapped(subject.legs):
            for attachment in attachments:
                trial.compute.connect(attachment)
            _same(trial, attachments[0], subject)
            other = trial.write(attachments[1].path, second)
            _same(trial, attachments[0], subject)
            for attachment in attachments:
                trial.compute.disconnect(attachment)
            trial.check_empty()
        for attachment in attachments:
            trial.compute.connect(attachment)
        _same(trial, attachments[0], subject)
        trial.ctx.check(trial.digest(attachments[1].path) == other, "the second lost its data")
        for attachment in attachments:
            trial.compute.disconnect(attachment)
        trial.check_empty()
        for attachment in attachments:
            trial.compute.forget(attachment)


@contextlib.contextmanager
def _swapped(legs: list[Leg]) -> Iterator[None]:
    for leg in legs:
        _swap(leg.node)
    try:
        yield
    finally:
        for leg in legs:
            _swap(leg.node)


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


def _udev_off(trial: Trial, subject: Subject) -> None:
    """Without the rule with which Debian's mdadm assembles what appears; all else runs with it."""
    with trial.case("attach and detach without udev's auto-assembly"):
        trial.run(f"ln -s /dev/null /etc/udev/rules.d/{_RULE}; udevadm control --reload")
        try:
            _attach_and_read(trial, subject)
        finally:
            trial.run(f"rm /etc/udev/rules.d/{_RULE}; udevadm control --reload")


def _killed(trial: Trial, subject: Subject) -> None:
    """The process gets a SIGKILL in the middle of it, each time a little later."""
    attachment = trial.compute.reserve(subject.volume)
    brick = trial.compute.brick
    with trial.case(f"{_KILLS} times SIGKILL while it connects and disconnects, then again"):
        trial.compute.connect(attachment)
        full = attachment.seconds
        trial.compute.disconnect(attachment)
        down = attachment.seconds
        done = 0
        for number in range(_KILLS):
            part = (number + 1) / (_KILLS + 1)
            data = {key: attachment.data[key] for key in attachment.data if key != "device_path"}
            done += brick.call_killed("connect", full * part, data=data, multipath=False)
            with _after_kill(trial, "connect", full * part):
                trial.compute.connect(attachment)
                _same(trial, attachment, subject)
            arguments = {"data": attachment.data, "force": False, "multipath": False}
            done += brick.call_killed("disconnect", down * part, **arguments)
            with _after_kill(trial, "disconnect", down * part):
                trial.compute.disconnect(attachment)
                trial.check_empty()
        trial.ctx.note(f"{done} of {2 * _KILLS} calls ended before they were killed")
    trial.compute.forget(attachment)


@contextlib.contextmanager
def _after_kill(trial: Trial, name: str, seconds: float) -> Iterator[None]:
    """Tell which kill it was, if what is done next fails."""
    try:
        yield
    except Exception:
        trial.ctx.note(f"after a SIGKILL {seconds:.2f} s into a {name}:")
        raise
