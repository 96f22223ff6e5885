# SPDX-License-Identifier: Apache-2.0
"""One lock for each object, so that calls run in parallel but never on the same object."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from kumo_client import errors


class Locks:
    """Named locks that exist while somebody holds or awaits them.

    :param timeout: seconds to wait for one.
    """

    def __init__(self, timeout: float = 30) -> None:
        self.timeout = timeout
        self._mutex = threading.Lock()
        self._locks: dict[str, list] = {}

    @contextlib.contextmanager
    def hold(self, *names: str, wait: bool = True) -> Iterator[None]:
        """Hold the locks of all names, taken in one order so that two calls never deadlock.

        :param wait: False gives up at once.
        :raises BusyError: when one is still held after the time-out.
        """
        with contextlib.ExitStack() as stack:
            for name in sorted(set(names)):
                stack.enter_context(self._one(name, self.timeout if wait else 0))
            yield

    @contextlib.contextmanager
    def _one(self, name: str, timeout: float) -> Iterator[None]:
        with self._mutex:
            entry = self._locks.setdefault(name, [threading.Lock(), 0])
            entry[1] += 1
        taken = False
        try:
            taken = entry[0].acquire(timeout=timeout) if timeout else entry[0].acquire(False)
            if not taken:
                raise errors.BusyError(
                    f"Another call works on {name}", way_out="Repeat the call later"
                )
            yield
        finally:
            if taken:
                entry[0].release()
            with self._mutex:
                entry[1] -= 1
                if not entry[1]:
                    self._locks.pop(name, None)
