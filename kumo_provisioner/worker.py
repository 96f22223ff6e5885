# SPDX-License-Identifier: Apache-2.0
"""Background work of a running provisioner: probes, and reconciles on a timer or when woken."""

from __future__ import annotations

import threading
from collections.abc import Callable

from oslo_log import log

from kumo_client import request_id
from kumo_provisioner import reconcile
from kumo_provisioner.core import Core
from kumo_provisioner.services import backends

LOG = log.getLogger(__name__)
# Wakes that come in a bunch cause one reconcile.
SOAK_SECONDS = 0.5


class Worker:
    """Two threads, started and stopped with the application."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._probe, name="probe", daemon=True),
            threading.Thread(target=self._reconcile, name="reconcile", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop after the step being worked on; a step is bounded by the budget of its calls."""
        self._stopping.set()
        self._core.wake.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=self._core.conf.nodes.budget)

    def _probe(self) -> None:
        while not self._stopping.is_set():
            self._guarded("probe", self._probe_once)
            self._stopping.wait(self._core.conf.reconcile.probe_interval)

    def _probe_once(self) -> None:
        if backends.probe(self._core):
            self._core.wake.set()

    def _reconcile(self) -> None:
        while not self._stopping.is_set():
            self._guarded("reconcile", lambda: reconcile.run(self._core))
            self._core.wake.wait(self._core.conf.reconcile.interval)
            self._stopping.wait(SOAK_SECONDS)
            self._core.wake.clear()

    def _guarded(self, name: str, step: Callable[[], object]) -> None:
        with request_id.use(None):
            try:
                step()
            except Exception:
                # The loop has to outlive a defect or a database that is away for a while.
                LOG.exception("The %s loop failed and goes on", name)
