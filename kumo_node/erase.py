# SPDX-License-Identifier: Apache-2.0
"""Erasing deleted volumes before their space is given back (option ``secure_delete``).

The call that deletes answers when the record says so; erasing goes on in a thread of its own and,
after a restart, from the start again: what is erased already reads as zeros and costs little.

How a volume is erased without a look at the metadata of the pool: a thin volume reads as zeros
where it has no block, and that costs no I/O. What does not read as zeros is overwritten with zeros,
then discarded. A block that is the volume's own is overwritten in its place. One that a snapshot or
copy shares stays theirs, for the pool gives the volume a new block, which the discard gives back;
it is erased when the last of them is deleted.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import threading
from collections.abc import Callable, Iterator

from oslo_log import log

from kumo_client import errors
from kumo_client.schemas.node import STATE_FAILED, STATE_READ_ONLY
from kumo_node.context import Context, replica_lock, snapshot_lock
from kumo_node.executor import CommandError, Executor
from kumo_node.lvm import made_tag, replica_name, snapshot_name
from kumo_node.replicas import Replicas
from kumo_node.snapshots import Snapshots
from kumo_node.spec import DELETING, ERASE_ZERO, ReplicaRecord, SnapshotRecord

LOG = log.getLogger(__name__)
# Erased and discarded at once: what a volume with shared blocks may need for a moment.
WINDOW = 256 << 20
_STEP = 4 << 20
# The smallest block of a pool: nothing that is not mapped is written to.
_BLOCK = 64 << 10
_ZEROS = bytes(_BLOCK)


class Erasing:
    """The loop.

    :param interval: seconds between two looks for something to erase.
    """

    def __init__(
        self,
        ctx: Context,
        replicas: Replicas,
        snapshots: Snapshots,
        executor: Executor,
        *,
        interval: float = 5,
    ) -> None:
        self.ctx = ctx
        self.replicas = replicas
        self.snapshots = snapshots
        self.executor = executor
        self.interval = interval
        self._problems: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # The loop.

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="erase", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the loop after the step that is under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            self.round()

    def problems(self) -> list[str]:
        """What could not be erased, one sentence each."""
        return sorted(self._problems.values())

    def round(self) -> None:
        """Erase and remove everything that is to be."""
        data = self.ctx.spec.data
        found: dict[str, Callable[[], None]] = {}
        for uuid, record in data.replicas.items():
            if self._is_due(record):
                found[replica_name(uuid)] = functools.partial(self._replica, uuid, record)
        for uuid, part in data.snapshots.items():
            if self._is_due(part):
                found[snapshot_name(uuid)] = functools.partial(self._snapshot, uuid, part)
        self._problems = {name: text for name, text in self._problems.items() if name in found}
        for name, act in found.items():
            if not self._stop.is_set():
                self._try(name, act)

    def _is_due(self, record: ReplicaRecord | SnapshotRecord) -> bool:
        usable = self.ctx.pool_of(record).condition.state not in (STATE_FAILED, STATE_READ_ONLY)
        return record.state == DELETING and bool(record.erase) and usable

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
            self._problems.pop(name, None)
        except (errors.KumoError, OSError) as error:
            text = error.description if isinstance(error, errors.KumoError) else str(error)
            problem = f"Deleted volume {name} is not erased yet: {text}"
            if self._problems.get(name) != problem:
                LOG.error("%s", problem)
            self._problems[name] = problem

    # One volume. Nothing else works on it: every verb refuses a record that is being deleted.

    def _replica(self, uuid: str, record: ReplicaRecord) -> None:
        if not self._erase(replica_name(uuid), record):
            return
        with self.ctx.locks.hold(replica_lock(uuid)):
            done = record.model_copy(update={"erase": ""})
            with self.ctx.spec.edit() as data:
                data.replicas[uuid] = done
            self.replicas.undo(uuid, done)

    def _snapshot(self, uuid: str, record: SnapshotRecord) -> None:
        if not self._erase(snapshot_name(uuid), record):
            return
        with self.ctx.locks.hold(snapshot_lock(uuid)):
            done = record.model_copy(update={"erase": ""})
            with self.ctx.spec.edit() as data:
                data.snapshots[uuid] = done
            self.snapshots.undo(uuid, done)

    def _erase(self, name: str, record: ReplicaRecord | SnapshotRecord) -> bool:
        """Erase a volume.

        :returns: False when the loop is to end before it is done.
        """
        lvm = self.ctx.lvm_of(record)
        volume = lvm.find(name)
        if volume is None or made_tag(record.token) not in volume.tags:
            return True
        lvm.activate([name])
        device = lvm.device(name)
        LOG.info("Erasing %s/%s, %d bytes, by %s", lvm.vg, name, volume.bytes, record.erase)
        for start in range(0, volume.bytes, WINDOW):
            if self._stop.is_set():
                return False
            size = min(WINDOW, volume.bytes - start)
            if record.erase == ERASE_ZERO:
                overwrite(device, start, size)
            self._discard(device, start, size)
        LOG.info("Erased %s/%s", lvm.vg, name)
        return True

    def _discard(self, device: str, start: int, size: int) -> None:
        try:
            self.executor.run("blkdiscard", "-o", str(start), "-l", str(size), device)
        except CommandError as error:
            raise errors.InternalError(f"blkdiscard on {device}: {error.stderr}") from error


def overwrite(device: str, start: int, size: int) -> None:
    """Write zeros where a range of a device does not read as zeros.

    :raises OSError: it cannot be read or written.
    """
    with _opened(device) as handle, mmap.mmap(-1, _STEP) as buffer, mmap.mmap(-1, _BLOCK) as zeros:
        # Memory of mmap begins on a page, as O_DIRECT wants it.
        for at in range(start, start + size, _STEP):
            got = os.preadv(handle, [buffer], at)
            for block in range(0, min(got, start + size - at), _BLOCK):
                if buffer[block : block + _BLOCK] != _ZEROS:
                    _write(handle, zeros, at + block)
        os.fsync(handle)


def _write(handle: int, zeros: mmap.mmap, at: int) -> None:
    try:
        os.pwritev(handle, [zeros], at)
    except OSError as error:
        # A full pool has no new block to break a share with. A block of the volume's own needs
        # none: this one is shared, and the discard that follows takes it away from this volume.
        if error.errno != errno.ENOSPC:
            raise


@contextlib.contextmanager
def _opened(device: str) -> Iterator[int]:
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        handle = os.open(device, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        handle = os.open(device, flags)
    try:
        yield handle
    finally:
        os.close(handle)
