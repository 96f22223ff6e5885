# SPDX-License-Identifier: Apache-2.0
"""Holding the writes to an array for the moment of a snapshot.

``md/suspend_lo`` and ``md/suspend_hi`` make md keep writes between these sectors waiting, those
under way having ended when the attribute is written (Documentation/admin-guide/md.rst,
``suspend_hi_store()`` in drivers/md/md.c). Three things end a hold: the snapshot, a timer of this
process, and a process of its own that outlives this one. What is left of a hold all the same is
ended when the agent starts.
"""

from __future__ import annotations

import functools
import subprocess
import threading
from collections.abc import Callable
from typing import Protocol

from oslo_log import log

from os_brick_nvmeof import arrays, sysfs, waiting
from os_brick_nvmeof.agent.actions import HoldWrites
from os_brick_nvmeof.agent.hands import NotNowError
from os_brick_nvmeof.agent.model import FAILED, FINISHED, RUNNING
from os_brick_nvmeof.agent.vendor import Vendor, VendorError
from os_brick_nvmeof.context import Context

LOG = log.getLogger(__name__)

TAKEN = "Taken"
# Seconds between two looks at the task.
POLL = 0.05
# Seconds after the hold's own end at which the process beside us ends it.
GRACE = 0.5
_ATTRIBUTES = ("suspend_hi", "suspend_lo")


class Guard(Protocol):
    """Ends a hold when this process cannot."""

    def __call__(self, path: str, seconds: float) -> Callable[[], None]:
        """Write 0 to the attributes below ``path`` after that time; gives what calls it off.

        :raises OSError: it could not be started; then nothing may be held.
        """


def shell_guard(path: str, seconds: float) -> Callable[[], None]:
    """A shell that sleeps and writes."""
    ends = "; ".join(f'echo 0 > "$1/{name}"' for name in _ATTRIBUTES)
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'sleep "$2"; {ends}', "kumo-hold", path, f"{seconds:.2f}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def end() -> None:
        process.kill()
        process.wait()

    return end


def _path(name: str) -> str:
    return f"/{sysfs.BLOCK}/{name}/md"


def release_all(ctx: Context, names: list[str]) -> list[str]:
    """End what is left of holds; gives the arrays that were held."""
    held = []
    for name in names:
        for attribute in _ATTRIBUTES:
            text = sysfs.read(ctx.host.root / _path(name)[1:] / attribute)
            if text not in (None, "0"):
                LOG.warning("Writes to %s were held when the agent ended; they go on", name)
                _let_go(ctx, name)
                held.append(name)
                break
    return held


def _let_go(ctx: Context, name: str) -> None:
    for attribute in _ATTRIBUTES:
        try:
            ctx.host.write(f"{_path(name)}/{attribute}", "0")
        except OSError as error:
            LOG.error("%s of %s cannot be set to 0: %s", attribute, name, error)


class Hold:
    """One hold: :meth:`keep` under the lock of the volume, then :meth:`tell` without.

    Whatever may hang has a thread of its own: the kernel, which waits for I/O under way, and the
    provisioner.

    :param stopping: the agent is to end.
    """

    def __init__(
        self,
        ctx: Context,
        vendor: Vendor,
        action: HoldWrites,
        stopping: threading.Event,
        guard: Guard = shell_guard,
    ) -> None:
        self._ctx = ctx
        self._vendor = vendor
        self._action = action
        self._stopping = stopping
        self._guard = guard
        self._lock = threading.Lock()
        self._held = False
        # The kernel has taken what holds the writes, or refused it.
        self._written = False
        # The writes go on.
        self._over = ctx.threads.event()
        self._deadline = waiting.Deadline(ctx.clock, action.seconds)
        self._asking: waiting.Call[str] | None = None
        self._status = ""

    def keep(self, good: Callable[[], bool]) -> None:
        """Hold, tell, wait, let go; takes the time of the action and :data:`GRACE` at most.

        :param good: whether all legs that are captured are in sync and the array is clean.
        :raises NotNowError: the array is gone.
        :raises OSError: it could not be held.
        """
        array = arrays.look(self._ctx.host.root, self._action.name)
        if array is None:
            raise NotNowError(f"{self._action.name} is gone")
        self._deadline = waiting.Deadline(self._ctx.clock, self._action.seconds)
        call_off = self._guard(_path(self._action.name), self._action.seconds + GRACE)

        def let_go() -> bool:
            in_time = self.end()
            call_off()
            return in_time

        self._held = True
        status = ""
        try:
            waiting.Call(self._ctx, self._expire, "kumo-hold-end")
            status = self._held_for(array, good)
        finally:
            ended = waiting.Call(self._ctx, let_go, "kumo-hold-end")
            in_time = ended.wait(waiting.Deadline(self._ctx.clock, GRACE)) and ended.result()
            if status == TAKEN:
                status = "Success" if in_time else "HoldExpired"
            self._status = status

    def tell(self) -> bool:
        """Say how it ended; gives whether the snapshot was taken meanwhile.

        A question that is under way is waited for, so that its answer does not come later.

        :raises VendorError: the end could not be told.
        """
        if self._asking:
            self._asking.awaited()
        done = self._status == "Success"
        self._report(FINISHED if done else FAILED, self._status, 100.0 if done else 0.0)
        return done

    def _held_for(self, array: arrays.Array, good: Callable[[], bool]) -> str:
        """Why it ends."""
        begin = functools.partial(self._begin, array)
        begun = waiting.Call(self._ctx, begin, "kumo-hold")
        if not begun.wait(self._deadline):
            return "HoldExpired"
        begun.result()
        if not waiting.until(self._ctx, good, self._deadline):
            return "NotEnoughReplicas"
        self._asking = waiting.Call(self._ctx, self._ask, "kumo-hold-ask")
        return self._asking.result() if self._asking.wait(self._deadline) else "HoldExpired"

    def _begin(self, array: arrays.Array) -> None:
        """Hold. The kernel waits for the I/O that is under way, which a leg may delay."""
        sectors = array.size // sysfs.SECTOR
        try:
            self._ctx.host.write(f"{_path(array.name)}/suspend_lo", "0")
            self._ctx.host.write(f"{_path(array.name)}/suspend_hi", str(sectors))
        finally:
            with self._lock:
                self._written = True
                late = not self._held
            if late:
                self._let_go()

    def _expire(self) -> None:
        if not self._over.wait(self._action.seconds):
            self.end()

    def _ask(self) -> str:
        try:
            self._report(RUNNING, "", 0.0)
            while not self._deadline.passed and not self._stopping.is_set():
                task = self._vendor.task(self._action.task)
                if task is None or task.state == FAILED:
                    return "GivenUp"
                if task.status == TAKEN:
                    return TAKEN
                self._ctx.sleep(POLL)
        except VendorError as error:
            LOG.warning("The provisioner cannot be asked while writes are held: %s", error)
            return "CommunicationError"
        return "HoldExpired"

    def end(self) -> bool:
        """Let the writes go; False when that had been done before, or time is up."""
        with self._lock:
            held, self._held = self._held, False
            mine = held and self._written
        if mine:
            self._let_go()
        # Otherwise another thread does it: :meth:`_begin` where the kernel has not taken it yet.
        self._over.wait()
        return held and not self._deadline.passed

    def _let_go(self) -> None:
        _let_go(self._ctx, self._action.name)
        self._over.set()

    def _report(self, state: str, status: str, progress: float) -> None:
        self._vendor.report_task(self._action.task, state=state, status=status, progress=progress)
