# SPDX-License-Identifier: Apache-2.0
"""What a pool's state is, judged from what was seen. Pure.

Only a definite sign makes a pool failed or read-only; where something could not be told, the state
stays what it was and a problem says so.
"""

from __future__ import annotations

import dataclasses

from kumo_client.schemas.node import STATE_FAILED, STATE_OK, STATE_READ_ONLY
from kumo_node import thin_status
from kumo_node.pool import Condition
from kumo_node.smart import Smart
from kumo_node.thin_status import ThinStatus


@dataclasses.dataclass(frozen=True)
class DiskSight:
    """A disk as it was seen.

    :ivar there: its device node exists.
    :ivar readable: a read of it succeeded; None when that could not be told.
    :ivar identity: changes when the disk was taken away and given back.
    :ivar known: the identity it had when the pool was opened; "" when the pool is not open.
    :ivar held: something stacked on it is active; None when that could not be told.
    :ivar io_errors: errors that the kernel has counted, where it counts them.
    """

    path: str
    there: bool
    readable: bool | None = True
    identity: str = ""
    known: str = ""
    held: bool | None = None
    smart: Smart | None = None
    io_errors: int = 0


@dataclasses.dataclass(frozen=True)
class PoolSight:
    """A pool as it was seen.

    :ivar given_up: its disk is not given to this node any more and was not looked at.
    :ivar told: device mapper gave an answer.
    :ivar status: its answer; None when it has no such pool.
    :ivar was_active: it had one at the look before. LVM gives a pool another device when its first
        volume is made (:func:`kumo_node.thin_status.of`), and it has none for a moment.
    """

    name: str
    disks: tuple[DiskSight, ...] = ()
    told: bool = True
    given_up: bool = False
    status: ThinStatus | None = None
    was_active: bool = False


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Percent of data or metadata space, and of the life of an SSD."""

    warn: float = 80.0
    full: float = 95.0
    critical: float = 98.0
    wear: float = 90.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """``condition`` of the pool.

    :ivar problems: one sentence each; they name thresholds and no figures that change all the time.
    :ivar reopen: it is to be opened (again): it is not active, or its disk is back.
    :ivar clean: what is active of it is to be deactivated before.
    :ivar relieve: space is to be found for it: "" for no, ``spare`` for what is free beyond the
        reserve, ``reserve`` for the reserve, too.
    """

    condition: Condition
    problems: tuple[str, ...] = ()
    reopen: bool = False
    clean: bool = False
    relieve: str = ""


def judge(sight: PoolSight, before: Condition, limits: Thresholds) -> Verdict:
    """The verdict on a pool.

    :param before: what was found the last time.
    """
    if sight.given_up:
        return Verdict(before, tuple(_with(before, sight, [])))
    problems = [text for disk in sight.disks for text in _disk_problems(disk, limits)]
    broken = next((text for disk in sight.disks if (text := _broken(disk))), "")
    if broken:
        return _failed(sight, broken, problems)
    unknown = next((d.path for d in sight.disks if d.readable is None), "")
    if unknown or not sight.told:
        what = f"disk {unknown}" if unknown else "device mapper"
        problems.append(f"Pool {sight.name}: the state could not be told, {what} gave no answer")
        return Verdict(before, tuple(problems))
    if sight.status is not None and _is_stale(sight.disks):
        # What is still active lies on a device that is no more.
        return _failed(sight, before.reason or "its disk was taken away", problems, clean=True)
    if sight.status is not None and sight.status.mode == thin_status.FAILED:
        reason = "device mapper has given it up after errors"
        return _failed(sight, reason, problems, clean=True)
    if not all(disk.known for disk in sight.disks):
        if before.state == STATE_OK:
            problems.append(f"Pool {sight.name} is not open")
        return Verdict(before, tuple(_with(before, sight, problems)), reopen=True)
    return _by_status(sight, before, limits, problems)


def _is_stale(disks: tuple[DiskSight, ...]) -> bool:
    """True when disks were taken away and given back under an active pool."""
    if any(disk.known not in ("", disk.identity) for disk in disks):
        return True
    return bool(disks) and all(disk.held is False for disk in disks)


def _by_status(
    sight: PoolSight, before: Condition, limits: Thresholds, problems: list[str]
) -> Verdict:
    status = sight.status
    if status is None:
        if before.state == STATE_OK and sight.was_active:
            return Verdict(before, tuple(problems))
        if before.state == STATE_OK:
            problems.append(f"Pool {sight.name} is not active")
        return Verdict(before, tuple(_with(before, sight, problems)), reopen=True)
    if status.mode == thin_status.READ_ONLY or status.needs_check:
        condition = Condition(STATE_READ_ONLY, "its metadata must be checked")
        # Space for metadata alone brings it back, unless an error was found.
        starved = status.metadata_percent > limits.critical and not status.needs_check
        return Verdict(
            condition,
            tuple(_with(condition, sight, problems)),
            relieve="reserve" if starved else "",
        )
    levels = {"data": status.data_percent, "metadata": status.metadata_percent}
    problems.extend(_level(sight.name, what, used, limits) for what, used in levels.items()
                    if used > limits.warn)  # fmt: skip
    return Verdict(
        Condition(), tuple(problems), relieve=_relief(max(levels.values()), status, limits)
    )


def _relief(used: float, status: ThinStatus, limits: Thresholds) -> str:
    if used > limits.critical or status.mode == thin_status.OUT_OF_SPACE:
        return "reserve"
    return "spare" if used > limits.warn else ""


def _level(name: str, what: str, used: float, limits: Thresholds) -> str:
    tail, limit = "", limits.warn
    if used > limits.critical:
        tail, limit = "; writes to new blocks fail when it is full", limits.critical
    elif used > limits.full:
        tail, limit = "; nothing new is put on it", limits.full
    return f"More than {limit:g} % of the {what} space of pool {name} is used{tail}"


def _failed(sight: PoolSight, reason: str, problems: list[str], *, clean: bool = False) -> Verdict:
    condition = Condition(STATE_FAILED, reason)
    told = tuple(_with(condition, sight, problems))
    return Verdict(condition, told, reopen=clean, clean=clean)


def _with(condition: Condition, sight: PoolSight, problems: list[str]) -> list[str]:
    if condition.state == STATE_OK:
        return problems
    return [f"Pool {sight.name} is {condition.state}: {condition.reason}", *problems]


def _broken(disk: DiskSight) -> str:
    if not disk.there:
        return f"its disk {disk.path} is missing"
    if disk.readable is False:
        return f"its disk {disk.path} cannot be read"
    return ""


def _disk_problems(disk: DiskSight, limits: Thresholds) -> list[str]:
    if disk.smart is None:
        return []
    found = [f"Disk {disk.path}: {text}" for text in disk.smart.warnings()]
    if disk.smart.wear_percent is not None and disk.smart.wear_percent >= limits.wear:
        found.append(f"Disk {disk.path}: {limits.wear:g} % or more of its life is used up")
    return found
