# SPDX-License-Identifier: Apache-2.0
"""Background work of a running provisioner: reconciles, and the duties of the services.

Several instances may run. A duty is done by the one that holds its lease; it keeps the lease from
round to round, so that the interval holds for all of them together, and another instance takes
over when it ends or dies.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from oslo_log import log

from kumo_client import errors, request_id
from kumo_provisioner import reconcile, stamps
from kumo_provisioner.core import Core
from kumo_provisioner.duties import Duty
from kumo_provisioner.services import (
    drain,
    events,
    holding,
    migration,
    network,
    probing,
    restored,
    tasks,
    tenants,
    tokens,
)

LOG = log.getLogger(__name__)
# Wakes that come in a bunch cause one reconcile.
SOAK_SECONDS = 0.5
# Modules that have DUTIES.
DUTY_MODULES = (probing, holding, tenants, tokens, events, tasks, migration, drain, network)


class Worker:
    """A thread that looks at nodes and one for each duty; they live as long as the application."""

    def __init__(self, core: Core, modules: tuple[object, ...] = DUTY_MODULES) -> None:
        self._core = core
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._reconcile, name="reconcile", daemon=True)]
        self._threads.append(threading.Thread(target=self._stamp, name="stamp", daemon=True))
        self._threads += [
            threading.Thread(target=self._duty, args=(duty,), name=duty.name, daemon=True)
            for module in modules
            for duty in getattr(module, "DUTIES")  # noqa: B009 - modules have no common type
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def dead(self) -> list[str]:
        """Names of the threads that should run and do not."""
        return [one.name for one in self._threads if not one.is_alive()]

    def stop(self) -> None:
        """Stop after the step being worked on; a step is bounded by the budget of its calls."""
        self._stopping.set()
        self._core.wake.set()
        deadline = time.monotonic() + self._core.conf.nodes.budget
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _duty(self, duty: Duty) -> None:
        while not self._stopping.is_set():
            self._guarded(duty.name, lambda: self._serve(duty))
            self._stopping.wait(duty.interval(self._core))

    def _serve(self, duty: Duty) -> None:
        """Do a duty while we have its lease."""
        try:
            with self._core.locks.hold(f"duty:{duty.name}", timeout=0):
                while not self._stopping.is_set():
                    self._core.locks.verify()
                    with request_id.use(None):
                        duty.run(self._core)
                    self._stopping.wait(duty.interval(self._core))
        except errors.BusyError as exc:
            LOG.debug("The duty %s is not ours: %s", duty.name, exc)

    def _reconcile(self) -> None:
        while not self._stopping.is_set():
            self._guarded("reconcile", lambda: reconcile.tick(self._core, self._stopping.wait))
            self._core.wake.wait(self._core.conf.reconcile.interval)
            self._stopping.wait(SOAK_SECONDS)
            self._core.wake.clear()

    def _stamp(self) -> None:
        while not self._stopping.wait(stamps.PAUSE):
            self._guarded("stamp", lambda: restored.advance(self._core))

    def _guarded(self, name: str, step: Callable[[], object]) -> None:
        with request_id.use(None):
            try:
                step()
            except errors.DatabaseUnavailableError as exc:
                LOG.warning("The %s loop waits for the database: %s", name, exc)
            except Exception:
                # The loop has to outlive a defect.
                LOG.exception("The %s loop failed and goes on", name)
