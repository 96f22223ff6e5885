# SPDX-License-Identifier: Apache-2.0
"""The lab's own verbs do to a machine what they say."""

from __future__ import annotations

import errno
import socket

from lab.guest_agent import GuestAgentError
from lab.machine import Machine
from lab.openstack.netns import Inside
from lab.scenario import Context, Needs

SUMMARY = "cut, heal, pause, resume, kill, start and reboot do what they say"
NEEDS = Needs(storage=1, compute=1)
_CLOSED_PORT = 9


def run(ctx: Context) -> None:
    """Pull each fault once on a storage machine and look at it from outside and from inside."""
    machine = ctx.lab.storage[0]
    with ctx.step("its kernel has nvmet over TCP, md raid1, thin pools and the host's side"):
        for module in ("nvmet-tcp", "nvme-tcp", "raid1", "dm-thin-pool"):
            machine.run(["modprobe", module])
        kernel = machine.run(["uname", "-r"]).stdout.strip()
        ctx.check(kernel == ctx.lab.kernel, f"kernel {kernel}, wanted {ctx.lab.kernel}")
    ctx.note(f"kernel {kernel}")
    _link(ctx, machine)
    _processor(ctx, machine)
    _power(ctx, machine)


def _reachable(ctx: Context, machine: Machine) -> bool:
    """Does its kernel answer? A refused connection is an answer, silence is not."""
    inside = Inside(ctx.lab.netns)
    try:
        inside.call(lambda: socket.create_connection((machine.address, _CLOSED_PORT), 3).close())
    except ConnectionRefusedError:
        return True
    except OSError as error:
        silent = isinstance(error, TimeoutError) or error.errno == errno.EHOSTUNREACH
        ctx.check(silent, f"{machine.name}: {error}")
        return False
    finally:
        inside.close()
    return True


def _link(ctx: Context, machine: Machine) -> None:
    with ctx.step("cut: no packet comes through, commands still do"):
        ctx.check(_reachable(ctx, machine), "not reachable before the cut")
        machine.cut()
        ctx.check(not _reachable(ctx, machine), "still reachable")
        carrier = machine.run("cat /sys/class/net/eth0/carrier").stdout.strip()
        ctx.check(carrier == "1", "the guest noticed a lost carrier; a dead switch shows none")
    with ctx.step("heal"):
        machine.heal()
        ctx.check(_reachable(ctx, machine), "not reachable after heal")


def _processor(ctx: Context, machine: Machine) -> None:
    with ctx.step("pause: nothing answers; resume: it goes on where it was"):
        before = float(machine.run("cat /proc/uptime").stdout.split()[0])
        machine.pause()
        ctx.check(machine.state() == "paused", f"state {machine.state()}")
        try:
            machine.run("true", timeout=3)
        except GuestAgentError:
            pass
        else:
            ctx.check(False, "a paused machine ran a command")
        machine.resume()
        machine.wait_ready(60)
        after = float(machine.run("cat /proc/uptime").stdout.split()[0])
        ctx.check(after > before, "it did not go on")


def _power(ctx: Context, machine: Machine) -> None:
    # The lab may be shared: LVM leaves what does not fill an extent at the end of a disk alone.
    disk = machine.ssd_path(1)
    at = int(machine.run(f"blockdev --getsz $(readlink -f {disk})").stdout) - 8
    with ctx.step("kill: what was flushed is there after start, on its root and on its SSD"):
        machine.run("echo kept >/root/kept && sync /root/kept")
        machine.run(f"echo kept | dd of={disk} bs=512 seek={at} conv=sync,fsync status=none")
        boot = machine.run("cat /proc/sys/kernel/random/boot_id").stdout
        machine.kill()
        ctx.check(machine.state() == "off", f"state {machine.state()}")
        ctx.check(not _reachable(ctx, machine), "a machine without power answers")
        machine.start()
        machine.wait_ready()
        ctx.check(boot != machine.run("cat /proc/sys/kernel/random/boot_id").stdout, "same boot")
        ctx.check(machine.run("cat /root/kept").stdout == "kept\n", "the root file system lost it")
        # The agent answers before udev has named the disks.
        machine.run(f"for n in $(seq 120); do [ -e {disk} ] && exit; sleep 0.5; done; exit 1")
        read = machine.run(f"dd if={disk} bs=512 skip={at} count=1 status=none | head -c 5").stdout
        ctx.check(read == "kept\n", f"the SSD lost it: {read!r}")
        machine.run(f"dd if=/dev/zero of={disk} bs=512 seek={at} count=1 conv=fsync status=none")
    with ctx.step("reboot"):
        machine.reboot()
        ctx.check(_reachable(ctx, machine), "not reachable after a reboot")
