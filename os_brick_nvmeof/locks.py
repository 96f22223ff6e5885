# SPDX-License-Identifier: Apache-2.0
"""Locks between the threads and the processes of a host: one for each volume, subsystem, array.

Stock os-brick has one lock for the host. Ours are ranges of one file in os-brick's lock directory,
one byte for each name at an offset made of its hash, so that no file is left behind for each
volume. They are locks of the open file description (``F_OFD_SETLK``, fcntl(2), Linux 3.15): the
kernel frees them when the process ends, and another thread of the same process has to wait, too.

Order: a volume before its array, an array before subsystems, subsystems sorted by NQN; the one
of a connection before the host's turn to connect. None of them can be taken twice by one thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import struct
import time
from collections.abc import Callable, Iterator

from oslo_concurrency import lockutils
from oslo_log import log as logging

LOG = logging.getLogger(__name__)

FILE = "os-brick-kumo-locks"
_FIRST_WAIT = 0.001
_LONGEST_WAIT = 0.05
_BUSY = (errno.EAGAIN, errno.EACCES)


class Locks:
    """The locks of a host.

    :param lock_path: directory of the lock file, the same for all services of the host; None
        for locks between the threads of this process alone.
    :param sleep: waits that many seconds between two tries at a lock of another process.
    :ivar directory: ``lock_path``: what all services of the host have to know is there as well.
    """

    def __init__(
        self, lock_path: str | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.directory = lock_path
        self._path = os.path.join(lock_path, FILE) if lock_path else None
        self._sleep = sleep

    def check(self) -> None:
        """:raises OSError: when the lock file cannot be opened, or made."""
        if self._path is not None:
            os.close(_open(self._path))

    def volume(self, uuid: str) -> contextlib.AbstractContextManager[None]:
        """Of one volume: held by each verb from its beginning to its end.

        :raises OSError: when the lock file cannot be opened.
        """
        return self._hold(f"volume-{uuid}")

    def array(self, uuid: str) -> contextlib.AbstractContextManager[None]:
        """Of one md array: held while it is created, assembled, changed or stopped."""
        return self._hold(f"array-{uuid}")

    def subsystem(self, nqn: str) -> contextlib.AbstractContextManager[None]:
        """Of one subsystem: held while its controllers are made or deleted."""
        return self._hold(f"subsystem-{nqn}")

    def connecting(self, nqn: str) -> contextlib.AbstractContextManager[None]:
        """Of the one connection that a subsystem has without multipath: held while it is made.

        Whoever takes it can be left behind by its caller, for a node can keep it waiting.
        """
        return self._hold(f"connecting-{nqn}")

    def connects(self) -> contextlib.AbstractContextManager[None]:
        """Of the host's turn to connect, which the kernel has one of; held for one portal.

        Whoever takes it can be left behind by its caller, as with :meth:`connecting`.
        """
        return self._hold("connects")

    @contextlib.contextmanager
    def _hold(self, name: str) -> Iterator[None]:
        # Threads of this process wake each other; only other processes have to be asked again.
        with lockutils.internal_lock(f"kumo-{self._path or ''}-{name}"):
            if self._path is None:
                yield
                return
            handle = _open(self._path)
            try:
                self._wait(handle, name)
                yield
            finally:
                os.close(handle)

    def _wait(self, handle: int, name: str) -> None:
        wait = _FIRST_WAIT
        while not _try(handle, _offset(name)):
            if wait == _FIRST_WAIT:
                LOG.debug("Waiting for lock %s, which another process holds", name)
            self._sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)


def _offset(name: str) -> int:
    """A place in the file for a name: 62 bits of its hash."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2


def _try(handle: int, offset: int) -> bool:
    # struct flock of <fcntl.h>: type, whence, start, length, pid (0 for F_OFD_*).
    request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    directory = os.path.dirname(path)
    os.makedirs(directory, exist_ok=True)
    handle = os.open(path, flags | os.O_CREAT, 0o660)
    if os.geteuid() == 0:
        # Made by root, it must serve the services as well, which are other users.
        owner = os.stat(directory)
        os.fchown(handle, owner.st_uid, owner.st_gid)
    return handle
