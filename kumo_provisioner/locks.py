# SPDX-License-Identifier: Apache-2.0
"""Locks by name: one operation at a time on a volume or snapshot.

Inside this process first, and then, unless the database is SQLite, between instances.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from kumo_client import errors
from kumo_provisioner.leases import Leases


class Locks:
    """Named locks that exist while somebody holds or waits for them.

    :param timeout: seconds a caller waits for one of them.
    :param leases: those of this instance; None when there is no other.
    """

    def __init__(self, timeout: float, leases: Leases | None = None) -> None:
        self.timeout = timeout
        self._leases = leases
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def hold(self, *names: str, timeout: float | None = None) -> Iterator[None]:
        """Hold all the locks named.

        They are taken in the order of their names, so that two callers cannot wait for each other.

        :param timeout: seconds to wait in all; 0 means not at all.
        :raises BusyError: when somebody else holds one for longer than that.
        :raises DatabaseUnavailableError: when leases cannot be taken.
        """
        wait = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + wait
        with ExitStack() as stack:
            wanted = sorted(set(names))
            for name in wanted:
                stack.enter_context(self._one(name, deadline))
            if self._leases is not None and wanted:
                stack.enter_context(self._leases.hold(wanted, deadline))
            yield

    def verify(self) -> None:
        """Make sure, as far as can be told without the database, that what we hold is still ours.

        :raises BusyError: when it may not be.
        """
        if self._leases is not None:
            self._leases.verify()

    @contextmanager
    def _one(self, name: str, deadline: float) -> Iterator[None]:
        with self._guard:
            lock, users = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = (lock, users + 1)
        try:
            if not lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise errors.BusyError(
                    f"another operation is at work on {name}", way_out="repeat the call later"
                )
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._guard:
                lock, users = self._locks.pop(name)
                if users > 1:
                    self._locks[name] = (lock, users - 1)

    def held(self) -> int:
        """How many locks are held or waited for."""
        with self._guard:
            return len(self._locks)
