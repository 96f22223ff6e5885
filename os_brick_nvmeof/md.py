# SPDX-License-Identifier: Apache-2.0
"""The array of a replicated volume: create, assemble, stop with proof, grow, add a leg.

mdadm does the work; what is true afterwards is read from sysfs, never from its output. It is only
ever given exact devices and the array's UUID, and never ``--force`` on data.

**udev.** mdadm's rule ``64-md-raid-assembly.rules`` runs ``mdadm --incremental`` on each leg as it
appears, so that an array of ours may be there already: whole, in part and not started, or come up
just while mdadm runs for us, which then finds legs busy. So udev gets a moment to deal with the
legs (:mod:`udev`): two mdadm that work against each other wait for each other for seconds, as was
seen with mdadm 4.2 (one tries for 4.6 s to open an array under the number that has become free,
``open_dev_excl()``; that the other one has it open meanwhile, waiting for the lock of mdadm's map,
is our guess). And nothing is done once: look, use what is right, stop what is not, do it, look
again, until a deadline. An array of another UUID is left alone, unless it is made of nothing but
this volume's legs and its attach has failed.

**failfast.** Legs are not marked so by default. With the mark, the kernel drops a leg at the first
error, and on recent kernels the loss of all legs for a moment can mark the array as broken for
good (MD_BROKEN, drivers/md/raid1.c). Time-outs of the connections do what it was made for.

**Bad blocks.** mdadm gives each leg room for a log of bad blocks. A write that fails on one leg is
entered there (``narrow_write_error()``, drivers/md/raid1.c), and the leg stays in the array without
that write, if md can still write its superblock. On a network it is the connection that fails, and
when all legs are lost within a moment, what was under way is entered on the one that md keeps. That
is needed: such a write is acknowledged when another leg had it before that was dropped
(``R1BIO_Uptodate``), so the kept leg has older data there. Without the log (``CREATE bbl=no`` in
mdadm.conf) it was given out as if nothing had happened: seen on Linux 6.12.117. So arrays have it,
and it is never removed by us (``--update=force-no-bbl``).

It has a price. What is entered cannot be read any more, until an operator has decided. And the log
is written once, the superblock again and again (``md_update_sb()``, drivers/md/md.c, clears
``badblocks.size`` before it knows how that write ends). With the connection lost meanwhile, the
superblock tells of bad blocks afterwards, and the log on the leg still reads as zeros: entries of 0
sectors. ``badblocks_set()`` refuses these, and with them ``super_1_load()`` the whole leg (EINVAL,
"does not have a valid v1.2 superblock"), for good: seen on Linux 6.12.117. An error then says so,
and the agent has md write the log again before it stops such an array.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from oslo_log import log as logging

from os_brick_nvmeof import arrays, conf, errors, freshness, sysfs, waiting
from os_brick_nvmeof.arrays import Array
from os_brick_nvmeof.context import Context
from os_brick_nvmeof.freshness import Mode
from os_brick_nvmeof.host import CommandError
from os_brick_nvmeof.props import Volume
from os_brick_nvmeof.superblock import Superblock

LOG = logging.getLogger(__name__)

KIB = 1024
# Seconds of no writes until md calls an array clean. Ours differ from the kernel's 0.2, which
# tells them from those that udev assembled and nobody has looked at; and superblocks are written
# less often. One second is exact at any frequency of the kernel's timer.
_MARK = ("safe_mode_delay", "1.000")
# Seconds between two tries, at most: each starts a process.
_LONGEST = 0.5
# Seconds for what nobody should be using.
_SHORT = 2.0
# Seconds that mdadm gets to stop an array before its legs are looked after.
_PATIENCE = 5.0
_LOCKLESS_SINCE = (6, 18)
_BAD_BLOCKS_WAY = (
    "a write that was acknowledged may be on another leg alone; look at mdadm --examine-badblocks: "
    "no kernel takes a leg with entries of 0 sectors before an operator has chosen it as it is, by "
    "mdadm --assemble --run --update=force-no-bbl"
)


def check_name(ctx: Context, volume: Volume, devices: Collection[str]) -> None:
    """Refuse when the array of another volume has the name.

    :raises ArrayError: it has.
    """
    name = arrays.linked(ctx.host.root, volume)
    array = arrays.look(ctx.host.root, name) if name else None
    if array and array.uuid != volume.uuid and not array.names & set(devices):
        raise errors.ArrayError(
            f"{arrays.link(volume)} is array {array.uuid or 'unknown'} ({name})",
            volume=volume.uuid,
            way_out="detach that volume, or give one of them another name",
        )


def publish(ctx: Context, volume: Volume, name: str) -> str:
    """The path of an array for its user: udev's link, or our own where it made none.

    :raises ArrayError: something else is in its place.
    """
    if arrays.linked(ctx.host.root, volume) != name:
        try:
            ctx.host.link(arrays.link(volume), name)
        except OSError as error:
            raise _failed(volume, f"{arrays.link(volume)} cannot be made: {error}") from error
    return arrays.link(volume)


def withdraw(ctx: Context, volume: Volume, name: str) -> None:
    """Remove the link of an array that is gone, if nobody else did."""
    if arrays.linked(ctx.host.root, volume) == name and arrays.look(ctx.host.root, name) is None:
        try:
            ctx.host.link(arrays.link(volume), "")
        except OSError as error:
            LOG.warning("%s stays: %s", arrays.link(volume), error)


def mark(ctx: Context, name: str) -> None:
    """Note on an array that it was checked and handed out; gone with the array."""
    try:
        ctx.host.write(f"/{sysfs.BLOCK}/{name}/md/{_MARK[0]}", _MARK[1])
    except OSError as error:
        LOG.warning("%s cannot be marked, and will be checked again: %s", name, error)


def marked(ctx: Context, name: str) -> bool:
    """Whether :func:`mark` was called on it."""
    return sysfs.read(f"{ctx.host.root}/{sysfs.BLOCK}/{name}/md/{_MARK[0]}") == _MARK[1]


# -- create and assemble ------------------------------------------------------------------------


def create(ctx: Context, volume: Volume, plan: freshness.Create, devices: Sequence[str]) -> Array:
    """Make the array of a new volume; every leg is known to hold nothing.

    All legs read as zeros, so they are the same and need no resync (``--assume-clean``).

    :param devices: names of the legs' block devices, in order.
    :raises ArrayError: mdadm did not make it.
    """
    bitmaps = ["internal"]
    if ctx.conf[conf.GROUP].bitmap == "lockless":
        bitmaps.insert(0, "lockless")
        if _kernel(ctx) < _LOCKLESS_SINCE:
            LOG.warning("This kernel has no lockless bitmap: %s gets an internal one", volume)
            bitmaps.pop(0)

    def attempt() -> None:
        while True:
            try:
                ctx.host.run(*_create(ctx, volume, plan, devices, bitmaps[0]))
                return
            except CommandError as error:
                if len(bitmaps) == 1 or not error.definite:
                    raise
                LOG.warning("%s gets an internal bitmap: %s", volume, error)
                bitmaps.pop(0)
                _clear_away(ctx, volume, devices)

    return _converge(ctx, volume, frozenset(devices), devices, plan.mode, attempt)


def _create(
    ctx: Context, volume: Volume, plan: freshness.Create, devices: Sequence[str], bitmap: str
) -> list[str]:
    places = len(devices) + plan.missing
    argv = ["mdadm", "--create", arrays.link(volume), "--run", "--metadata=1.2", "--level=1"]
    argv += [f"--raid-devices={places}", f"--bitmap={bitmap}", "--assume-clean"]
    argv += [f"--uuid={mdadm_uuid(volume.uuid)}", "--homehost=any", f"--name={volume.alias}"]
    if volume.size:
        # Exactly what was asked for: legs have room for md's own data besides.
        argv.append(f"--size={volume.size // KIB}")
    if places == 1:
        # mdadm takes one device for a mistake otherwise.
        argv.append("--force")
    if plan.mode is Mode.READ_ONLY:
        argv.append("--readonly")
    if ctx.conf[conf.GROUP].md_failfast:
        argv.append("--failfast")
    return argv + [f"/dev/{name}" for name in devices] + ["missing"] * plan.missing


def assemble(
    ctx: Context,
    volume: Volume,
    plan: freshness.Assemble,
    members: Sequence[str],
    filling: Sequence[str],
) -> Array:
    """Assemble exactly these legs; or take the array that is there, if it is the same.

    :param members: names of the block devices that have all data, the freshest first.
    :param filling: of those that were being filled.
    :raises ArrayError: mdadm did not bring it up in time.
    :raises StillInUseError: an array with other legs is there, and in use.
    """
    argv = ["mdadm", "--assemble", arrays.link(volume), f"--uuid={mdadm_uuid(plan.uuid)}"]
    if len(members) < plan.places:
        argv.append("--run")
    if plan.mode is not Mode.NORMAL:
        argv.append("--readonly")
    argv += [f"/dev/{name}" for name in (*members, *filling)]
    try:
        return _converge(
            ctx,
            volume,
            frozenset(members),
            [*members, *filling],
            plan.mode,
            lambda: void(ctx.host.run(*argv)),
        )
    except errors.ArrayError as error:
        found = _with_bad_blocks(ctx, members)
        if not found:
            raise
        raise errors.ArrayError(
            f"{error.text}; md has noted bad blocks on {', '.join(found)}",
            volume=volume.uuid,
            way_out=_BAD_BLOCKS_WAY,
        ) from error


def _with_bad_blocks(ctx: Context, devices: Sequence[str]) -> list[str]:
    """Those of some legs whose log of bad blocks had entries: see "Bad blocks" above."""
    seen = {
        name: arrays.read(ctx, f"/dev/{name}", sysfs.size(ctx.host.root, name) or 0)
        for name in devices
    }
    return [name for name, one in seen.items() if isinstance(one, Superblock) and one.bad_blocks]


def void(_: object) -> None:
    """Drop a result."""


def _converge(
    ctx: Context,
    volume: Volume,
    wanted: frozenset[str],
    devices: Sequence[str],
    mode: Mode,
    attempt: Callable[[], None],
) -> Array:
    deadline = waiting.Deadline(ctx.clock, ctx.conf[conf.GROUP].device_timeout)
    reason = ""

    def step() -> Array | None:
        nonlocal reason
        found = _right(ctx, volume, wanted, devices, mode)
        if found:
            return found
        _clear_away(ctx, volume, devices)
        try:
            attempt()
        except CommandError as error:
            reason = str(error)
            LOG.info("mdadm did not bring up %s, which is tried again: %s", volume, error)
        return _right(ctx, volume, wanted, devices, mode)

    array = waiting.until(ctx, step, deadline, _LONGEST)
    if array is None:
        raise _failed(volume, f"it did not come up in {deadline.seconds:g} s: {reason}")
    return array


def _right(
    ctx: Context, volume: Volume, wanted: frozenset[str], devices: Sequence[str], mode: Mode
) -> Array | None:
    """The array if it runs with the wanted legs and none that may not be in it."""
    found = arrays.find(ctx, volume, devices)
    if found is None or not found.running:
        return None
    if found.in_sync != wanted or not found.names <= set(devices):
        return None
    _enter(ctx, found, mode)
    return found


def _enter(ctx: Context, array: Array, mode: Mode) -> None:
    """Have the array in a mode (``array_state_store()`` in drivers/md/md.c)."""
    state = {Mode.READ_ONLY: arrays.READ_ONLY, Mode.UNTOUCHED: arrays.READ_AUTO}.get(mode)
    if state is None:
        state = "active" if array.state == arrays.READ_ONLY else array.state
    if state != array.state:
        ctx.host.write(f"/{sysfs.BLOCK}/{array.name}/md/array_state", state)


def _clear_away(ctx: Context, volume: Volume, devices: Collection[str]) -> None:
    """Stop an array of the volume that is not right: begun by udev, or by one who was killed."""
    found = arrays.find(ctx, volume, devices)
    if found:
        LOG.info("%s (%s) of %s is not as it has to be: stopped", found.name, found.state, volume)
        stop(ctx, volume, found, waiting.Deadline(ctx.clock, _SHORT))


# -- stop ---------------------------------------------------------------------------------------


def stop(
    ctx: Context,
    volume: Volume,
    array: Array,
    deadline: waiting.Deadline,
    stuck: Callable[[], None] | None = None,
) -> None:
    """Stop an array, and prove it: its device is gone and its legs are free.

    :param stuck: called when mdadm does not end: a leg gives no answer.
    :raises StillInUseError: naming who holds it.
    """
    reason = ""

    def attempt() -> bool:
        nonlocal reason
        if _gone(ctx, array):
            return True
        if arrays.look(ctx.host.root, array.name) is None:
            # Stopped; its device goes later.
            return False
        try:
            seconds = max(min(deadline.left, _PATIENCE), 1.0)
            ctx.host.run("mdadm", "--stop", f"/dev/{array.name}", timeout=seconds)
        except CommandError as error:
            reason = str(error)
            if not error.definite and stuck:
                stuck()
        return _gone(ctx, array)

    if waiting.until(ctx, attempt, deadline, _LONGEST):
        return
    raise errors.StillInUseError(
        f"array {array.name} did not stop in {deadline.seconds:g} s, {_user(ctx, volume, array)}: "
        f"{reason}",
        volume=volume.uuid,
        way_out="close what uses it, then detach again",
    )


def _gone(ctx: Context, array: Array) -> bool:
    """Its number may be another array's by now: then that one has none of its legs."""
    root = ctx.host.root
    now = arrays.look(root, array.name)
    if now is not None and (now.names & array.names or (now.uuid and now.uuid == array.uuid)):
        return False
    if now is not None and not now.names and not array.names:
        return False
    held = any(array.name in sysfs.holders(root, name) for name in array.names)
    return not held or now is not None


def _user(ctx: Context, volume: Volume, array: Array) -> str:
    """Who holds an array, as far as it can be told."""
    held = sysfs.holders(ctx.host.root, array.name)
    if held:
        return f"{', '.join(held)} is made of it"
    mounts = sysfs.read(ctx.host.root / "proc/mounts") or ""
    for line in mounts.splitlines():
        device, _, rest = line.partition(" ")
        if device in (f"/dev/{array.name}", arrays.link(volume)):
            return f"it is mounted at {rest.split(' ')[0]}"
    return "a process has it open or a leg gives no answer"


# -- grow and add -------------------------------------------------------------------------------


def grow(ctx: Context, volume: Volume, array: Array, size: int) -> int:
    """Let a running array have a size; its legs have the room already.

    The new part needs no resync when it reads as zeros on every leg. Our nodes promise that: a leg
    is a thin volume, of which nobody has written the new part (:mod:`kumo_node.lvm`). Nobody else
    does, so it is relied on only where the properties are from our driver.

    :param size: bytes, a multiple of 1024.
    :returns: bytes that it has now.
    :raises ArrayError: mdadm could not do it.
    :raises SizeError: it is smaller all the same.
    """
    argv = ["mdadm", "--grow", f"/dev/{array.name}", f"--size={size // KIB}"]
    if volume.told:
        argv.append("--assume-clean")
    try:
        ctx.host.run(*argv)
    except CommandError as error:
        raise _failed(volume, f"it cannot grow to {size} bytes: {error}") from error
    deadline = waiting.Deadline(ctx.clock, ctx.conf[conf.GROUP].device_timeout)

    def large() -> int:
        now = sysfs.size(ctx.host.root, array.name) or 0
        return now if now >= size else 0

    now = waiting.until(ctx, large, deadline)
    if now:
        return now
    raise errors.SizeError(
        f"array {array.name} has {sysfs.size(ctx.host.root, array.name)} bytes and should have "
        f"{size}",
        volume=volume.uuid,
        way_out="look at its legs, then extend again",
    )


def add(ctx: Context, volume: Volume, array: Array, device: str, full: bool) -> bool:
    """Give a leg its place again; md fills it. What fails is logged: the array does without.

    :param device: name of the block device.
    :param full: all of it is filled, whatever it holds; otherwise what the bitmap says.
    """
    for verb in ("--add-spare",) if full else ("--re-add", "--add-spare"):
        try:
            ctx.host.run("mdadm", "--manage", f"/dev/{array.name}", verb, f"/dev/{device}")
        except CommandError as error:
            LOG.info("mdadm %s of %s to %s of %s: %s", verb, device, array.name, volume, error)
            if not error.definite:
                break
        else:
            return True
    LOG.warning(
        "%s could not be added to %s of %s, which stays degraded", device, array.name, volume
    )
    return False


def mdadm_uuid(uuid: str) -> str:
    """A UUID as mdadm prints it."""
    plain = uuid.replace("-", "")
    return ":".join(plain[at : at + 8] for at in range(0, 32, 8))


def _kernel(ctx: Context) -> tuple[int, int]:
    return conf.version(sysfs.read(ctx.host.root / "proc/sys/kernel/osrelease") or "")


def _failed(volume: Volume, text: str) -> errors.ArrayError:
    return errors.ArrayError(
        text, volume=volume.uuid, way_out="look at its legs with mdadm --examine"
    )
