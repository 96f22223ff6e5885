# SPDX-License-Identifier: Apache-2.0
"""Watching pools and disks: observe, judge, act.

Each round looks at all pools with one command of device mapper, and now and then at each disk: that
it can be read, and its SMART log. :mod:`kumo_node.verdict` judges. What follows from it here: a
pool that gets full is given what is left in its group, and a pool whose disk is back is opened.
"""

from __future__ import annotations

import dataclasses
import pathlib
import threading
import time
from collections.abc import Callable

from oslo_log import log

from kumo_client import errors
from kumo_client.schemas.node import STATE_FAILED, STATE_OK, Ssd
from kumo_node import thin_status
from kumo_node.context import Context
from kumo_node.disks import Disks, device_of, has_holders, identity
from kumo_node.executor import CommandError, Executor
from kumo_node.exports import Exports
from kumo_node.pool import Condition, Pool
from kumo_node.smart import SmartLog
from kumo_node.thin_status import ThinStatus
from kumo_node.verdict import DiskSight, PoolSight, Thresholds, Verdict, judge

LOG = log.getLogger(__name__)
# Seconds between two reads of a disk, and between two tries to open a pool or to find space.
_PROBE = 15.0
_PATIENCE = 60.0
# Seconds between two rounds while a pool gets full, or one is to be looked at again.
_HURRY = 1.0
# What a read of a disk says when the disk, and not the command, is at fault (errno(3)).
_DEAD = ("Input/output error", "No such device", "No such file", "No medium")


@dataclasses.dataclass(frozen=True)
class Pace:
    """Seconds between two rounds, and between two looks at the SMART logs."""

    interval: float = 5.0
    smart: float = 300.0


class Health:
    """The loop.

    :ivar changed: set when a state or a problem has changed; whoever waits for it clears it.
    :ivar clock: tells seconds.
    :ivar observers: called without arguments on the same occasions, in the loop's thread.
    """

    def __init__(
        self,
        ctx: Context,
        exports: Exports,
        disks: Disks,
        executor: Executor,
        limits: Thresholds,
        pace: Pace,
    ) -> None:
        self.ctx = ctx
        self.exports = exports
        self.disks = disks
        self.executor = executor
        self.limits = limits
        self.pace = pace
        self.smart = SmartLog(executor)
        self.changed = threading.Event()
        self.observers: list[Callable[[], None]] = []
        self.clock = time.monotonic
        self._sights: dict[str, DiskSight] = {}
        self._due: dict[tuple[str, str], float] = {}
        self._failures: dict[tuple[str, str], str] = {}
        self._problems: dict[str, tuple[str, ...]] = {}
        self._active: set[str] = set()
        self._doubtful = False
        self._told: tuple[list[tuple[str, str, list[str]]], dict[str, tuple[str, ...]]] = ([], {})
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # The loop.

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the loop and wait for the round that is under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._pause()):
            try:
                self.round()
            except (errors.KumoError, OSError) as error:
                LOG.error("This look at the pools ended early: %s", error)

    def _pause(self) -> float:
        full = any(_used(pool) > self.limits.warn for pool in self.ctx.pools.values())
        return min(self.pace.interval, _HURRY) if full or self._doubtful else self.pace.interval

    def round(self) -> None:
        """Look at everything once, and do what follows."""
        sights = self.observe()
        self._doubtful = any(one.told and one.status is None and one.was_active for one in sights)
        self._active = {
            one.name for one in sights if one.status or (one.was_active and not one.told)
        }
        for sight in sights:
            pool = self.ctx.pools[sight.name]
            if sight.status is not None:
                pool.note(sight.status.data_percent, sight.status.metadata_percent)
            verdict = judge(sight, pool.condition, self.limits)
            problems = list(verdict.problems)
            self._enter(pool, verdict)
            self._act(pool, verdict, problems)
            self._problems[pool.name] = tuple(problems)
        self._tell()

    def problems(self) -> list[str]:
        """What is wrong, one sentence each."""
        return [text for texts in self._problems.values() for text in texts]

    def ssds(self, pool: Pool) -> list[Ssd]:
        """The disks of a pool as the API shows them."""
        record = self.ctx.spec.data.pools.get(pool.name)
        if not pool.disks and record is not None:
            return [Ssd(path=record.path, serial=record.serial, state=STATE_FAILED)]
        return [self._ssd(ssd) for ssd in pool.ssds()]

    def _ssd(self, ssd: Ssd) -> Ssd:
        sight = self._sights.get(ssd.path)
        if sight is None:
            return ssd
        smart = dataclasses.asdict(sight.smart) if sight.smart else {}
        dead = not sight.there or sight.readable is False
        return ssd.model_copy(
            update={
                "state": STATE_FAILED if dead else STATE_OK,
                "io_errors": sight.io_errors,
                **smart,
            }
        )

    # Observe.

    def observe(self) -> list[PoolSight]:
        """Look at all pools and their disks."""
        found: dict[str, ThinStatus] = {}
        told = True
        try:
            found = thin_status.read(self.executor)
        except errors.KumoError as error:
            LOG.warning("%s", error.description)
            told = False
        return [
            PoolSight(pool.name, given_up=True)
            if pool.given_up
            else PoolSight(
                pool.name,
                tuple(self._disk(pool, path) for path in pool.paths()),
                told,
                status=thin_status.of(found, pool.lvm.vg, pool.lvm.pool_name),
                was_active=pool.name in self._active,
            )
            for pool in self.ctx.pools.values()
        ]

    def _disk(self, pool: Pool, path: str) -> DiskSight:
        device = device_of(path)
        if device is None:
            sight = DiskSight(path, there=False)
        else:
            before = self._sights.get(path)
            sight = DiskSight(
                path,
                there=True,
                readable=before.readable if before else None,
                identity=identity(device, pool.lvm.sys_root),
                known=pool.identities.get(path, ""),
                held=has_holders(device, pool.lvm.sys_root),
                smart=before.smart if before else None,
                io_errors=_io_errors(pool.lvm.sys_root, device),
            )
            if self._is_due("probe", path, _PROBE) or not (before and before.there):
                sight = dataclasses.replace(sight, readable=self._read(device))
            if self._is_due("smart", path, self.pace.smart):
                sight = dataclasses.replace(sight, smart=self.smart.read(device))
        self._sights[path] = sight
        return sight

    def _is_due(self, what: str, which: str, seconds: float) -> bool:
        now = self.clock()
        if now < self._due.get((what, which), float("-inf")):
            return False
        self._due[what, which] = now + seconds
        return True

    def _read(self, device: str) -> bool | None:
        """Whether the disk can be read, past the page cache: yes, no, or could not tell."""
        try:
            self.executor.run(
                "dd", f"if={device}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct",
                "status=none",
            )  # fmt: skip
        except CommandError as error:
            if error.definite and any(text in error.stderr for text in _DEAD):
                return False
            LOG.warning("Whether %s can be read could not be told: %s", device, error)
            return None
        return True

    # Act.

    def _enter(self, pool: Pool, verdict: Verdict) -> None:
        """Make the verdict the pool's condition."""
        if pool.condition != verdict.condition:
            new = verdict.condition
            level = LOG.info if new.state == STATE_OK else LOG.error
            level("Pool %s is %s now. %s", pool.name, new.state, new.reason)
            pool.condition = new

    def _act(self, pool: Pool, verdict: Verdict, problems: list[str]) -> None:
        if verdict.reopen:
            self._attempt(problems, "opened", pool, lambda: self._open(pool, clean=verdict.clean))
        if verdict.relieve:
            with_reserve = verdict.relieve == "reserve"
            self._attempt(problems, "grown", pool, lambda: pool.grow(with_reserve=with_reserve))

    def _attempt(
        self, problems: list[str], what: str, pool: Pool, act: Callable[[], object]
    ) -> None:
        """Try now and then; between two tries the problem of the last one stands."""
        key = (what, pool.name)
        if self._is_due(*key, _PATIENCE):
            self._failures[key] = ""
            try:
                act()
            except (errors.KumoError, OSError) as error:
                text = error.description if isinstance(error, errors.KumoError) else str(error)
                self._failures[key] = f"Pool {pool.name} cannot be {what}: {text}"
        if self._failures.get(key):
            problems.append(self._failures[key])

    def _open(self, pool: Pool, *, clean: bool) -> None:
        """Open a pool whose disk is back, or that is not active for another reason."""
        if clean:
            self.exports.disable(pool.name)
        try:
            self.ctx.pools.reopen(self.disks, pool, clean=clean)
        except errors.KumoError as error:
            if not error.transient:
                pool.condition = Condition(STATE_FAILED, error.description)
            raise
        LOG.info("Pool %s is open again", pool.name)

    def _tell(self) -> None:
        states = [
            (pool.name, pool.wire_state(), [ssd.state for ssd in self.ssds(pool)])
            for pool in self.ctx.pools.values()
        ]
        now = (states, dict(self._problems))
        if now == self._told:
            return
        before = {text for texts in self._told[1].values() for text in texts}
        for text in self.problems():
            if text not in before:
                LOG.warning("%s", text)
        self._told = now
        self.changed.set()
        for observer in self.observers:
            observer()


def _used(pool: Pool) -> float:
    state = pool.known()
    if state is None or pool.failed:
        return 0.0
    return max(state.data_percent or 0.0, state.metadata_percent or 0.0)


def _io_errors(sys_root: pathlib.Path, device: str) -> int:
    """Errors counted by the kernel: SCSI disks only (drivers/scsi/scsi_sysfs.c, hexadecimal)."""
    path = sys_root / "class" / "block" / pathlib.Path(device).name / "device" / "ioerr_cnt"
    try:
        return int(path.read_text(), 16)
    except (OSError, ValueError):
        return 0
