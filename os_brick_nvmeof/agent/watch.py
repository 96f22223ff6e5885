# SPDX-License-Identifier: Apache-2.0
"""What says "look again": md, the kernel's events, and a glance at the states of connections.

The kernel wakes who polls /proc/mdstat when anything happens to an array (``md_new_event()`` in
drivers/md/md.c). It tells of controllers and block devices by uevents, but of a connection that is
lost only by its state.
"""

from __future__ import annotations

import pathlib
import select
import threading
from collections.abc import Callable
from typing import Any

from oslo_log import log

LOG = log.getLogger(__name__)
MDSTAT = "proc/mdstat"
# Bytes: an empty read would not mark it as seen.
_SOME = 1 << 16


class Watch:
    """A thread.

    :param states: states of all controllers.
    :param wake: called when there is something to see.
    :param seconds: between two glances.
    :param monitor: a started pyudev monitor, or None.
    """

    def __init__(
        self,
        root: pathlib.Path,
        states: Callable[[], dict[str, str]],
        wake: Callable[[], None],
        seconds: float,
        monitor: Any = None,
    ) -> None:
        self._root, self._states, self._wake = root, states, wake
        self._seconds, self._monitor = seconds, monitor
        self._stopped = threading.Event()
        self._known: dict[str, str] = {}

    def start(self) -> None:
        threading.Thread(target=self.run, name="watch", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        """Until :meth:`stop`."""
        poll = select.poll()
        if self._monitor is not None:
            poll.register(self._monitor.fileno(), select.POLLIN)
        mdstat = None
        try:
            while not self._stopped.is_set():
                try:
                    mdstat = mdstat or self._open(poll)
                    ready = {handle for handle, _ in poll.poll(self._seconds * 1000)}
                    happened = self.look(ready, mdstat)
                except Exception:
                    # Events that were too many for the socket end as ENOBUFS (netlink(7)). Nobody
                    # would miss the thread, and something has happened.
                    LOG.exception("The events of this host could not be read")
                    happened = True
                    self._stopped.wait(self._seconds)
                if happened:
                    self._wake()
        finally:
            if mdstat is not None:
                mdstat.close()

    def _open(self, poll: Any) -> Any:
        try:
            mdstat = (self._root / MDSTAT).open("rb", buffering=0)
        except FileNotFoundError:
            # The module of md is not loaded: there are no arrays either.
            return None
        mdstat.read(_SOME)
        poll.register(mdstat.fileno(), select.POLLPRI | select.POLLERR)
        return mdstat

    def look(self, ready: set[int], mdstat: Any) -> bool:
        """Take what is ready; gives whether anything has happened."""
        happened = bool(ready)
        if mdstat is not None and mdstat.fileno() in ready:
            mdstat.seek(0)
            while mdstat.read(_SOME):
                pass
        if self._monitor is not None and self._monitor.fileno() in ready:
            while self._monitor.poll(timeout=0) is not None:
                pass
        states = self._states()
        happened = happened or states != self._known
        self._known = states
        return happened


def udev_monitor() -> Any:
    """A started monitor of block devices and NVMe controllers; None where there is no udev."""
    try:
        import pyudev

        monitor = pyudev.Monitor.from_netlink(pyudev.Context())
        for subsystem in ("block", "nvme"):
            monitor.filter_by(subsystem)
        monitor.start()
    except (ImportError, OSError) as error:
        LOG.warning("No events of udev, so there is the timer only: %s", error)
        return None
    return monitor
