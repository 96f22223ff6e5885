# SPDX-License-Identifier: Apache-2.0
"""Filling a replica of this node from a replica of another node, in the background.

A copy is in the record from its beginning until the caller takes it back. After a restart it goes
on from the last offset that was durable. The connection to the other node is ended before the
record says that the copy is done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from oslo_log import log

from kumo_client import errors
from kumo_client.schemas.common import Portal
from kumo_client.schemas.node import Copy, CopySpec
from kumo_node import md_superblock
from kumo_node.context import Context, replica_lock
from kumo_node.initiator import Initiator
from kumo_node.lvm import replica_name
from kumo_node.replicas import Replicas
from kumo_node.spec import COPY_DONE, COPY_FAILED, COPY_RUNNING, CopyRecord, PortalRecord
from kumo_node.transfer import Pace, Transfer

LOG = log.getLogger(__name__)
# Bytes and seconds after which progress is made durable.
_DURABLE_BYTES = 1 << 30
_DURABLE_SECONDS = 10.0
# Tries without any progress before a copy has failed, and the pause after the first in seconds.
_TRIES = 6
_PAUSE = 2.0
_ALIGNMENT = 4096


class _StoppedError(Exception):
    """The copy was taken back, or the daemon ends."""


class Job:
    """A copy that is under way."""

    def __init__(self, uuid: str, offset: int) -> None:
        self.uuid = uuid
        self.offset = offset
        self.stop = threading.Event()
        self.thread: threading.Thread | None = None


class Copies:
    """The verbs of ``/v1/copies``.

    :param parallel: copies that are under way at one time; others wait.
    :param rate: bytes per second of one copy, 0 for no limit.
    """

    def __init__(
        self,
        ctx: Context,
        replicas: Replicas,
        initiator: Initiator,
        *,
        parallel: int = 2,
        rate: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ctx = ctx
        self.replicas = replicas
        self.initiator = initiator
        self.parallel = parallel
        self.rate = rate
        self.clock = clock
        self.pause = _PAUSE
        self._mutex = threading.Lock()
        self._jobs: dict[str, Job] = {}
        # Taken back, and not to be started again however long that takes.
        self._unwanted: set[str] = set()
        self._ended = False
        # Connecting and disconnecting exclude each other; several copies may share a connection.
        self._connecting = threading.Lock()
        self._users: dict[tuple[str, str], int] = {}

    # The verbs.

    def put(self, uuid: str, wish: CopySpec) -> Copy:
        """Begin to fill a replica, or see how far that is.

        :raises NotExistsError: there is no such replica.
        :raises ConflictError: it is being filled from elsewhere, or is too small.
        :raises InUseError: it is exported.
        """
        with self.ctx.locks.hold(replica_lock(uuid)):
            record = self.ctx.spec.data.copies.get(uuid)
            if record is None:
                record = self._begin(uuid, wish)
            self._compare(uuid, record, wish)
        with self._mutex:
            self._unwanted.discard(uuid)
        self.dispatch()
        return self.get(uuid)

    def _begin(self, uuid: str, wish: CopySpec) -> CopyRecord:
        replica = self.ctx.settled(uuid)
        self.ctx.refuse_exported(uuid, replica)
        self.ctx.pool_of(replica).check_writable()
        if wish.bytes > replica.bytes or wish.bytes % _ALIGNMENT:
            raise errors.ConflictError(
                f"Replica {uuid} has {replica.bytes} bytes and cannot take {wish.bytes}",
                volume=replica.volume_id,
            )
        record = CopyRecord(
            source_replica=wish.source_replica,
            subsystem_nqn=wish.subsystem_nqn,
            host_nqn=wish.host_nqn,
            portals=tuple(
                PortalRecord(ip=p.ip, port=p.port, transport=p.transport) for p in wish.portals
            ),
            bytes=wish.bytes,
        )
        with self.ctx.spec.edit() as data:
            data.copies[uuid] = record
        return record

    def _compare(self, uuid: str, record: CopyRecord, wish: CopySpec) -> None:
        names = ("source_replica", "subsystem_nqn", "host_nqn", "bytes")
        if any(getattr(record, name) != getattr(wish, name) for name in names):
            raise errors.ConflictError(
                f"Replica {uuid} is being filled from {record.source_replica}",
                way_out="Stop that copy first",
            )

    def get(self, uuid: str) -> Copy:
        """:raises NotExistsError: no copy into that replica was begun."""
        record = self.ctx.spec.data.copies.get(uuid)
        if record is None:
            raise errors.NotExistsError(f"There is no copy into replica {uuid}")
        return Copy(
            replica=uuid,
            state=record.state,
            copied=self.copied(uuid),
            bytes=record.bytes,
            reason=record.reason,
        )

    def copied(self, uuid: str) -> int:
        """Bytes that are copied, though perhaps not durable yet; 0 when there is no such copy."""
        record = self.ctx.spec.data.copies.get(uuid)
        with self._mutex:
            job = self._jobs.get(uuid)
        return max(record.offset if record else 0, job.offset if job else 0)

    def delete(self, uuid: str) -> None:
        """Stop a copy and forget it; absent is success.

        :raises BusyError: what is under way does not end; repeat the call.
        """
        with self.ctx.locks.hold(f"copy {uuid}"):
            if uuid not in self.ctx.spec.data.copies:
                return
            self._stop(uuid)
            with self.ctx.spec.edit() as data:
                record = data.copies.pop(uuid)
        if record.state == COPY_RUNNING:
            self._leave(record, used=False)
        with self._mutex:
            self._unwanted.discard(uuid)
        self.dispatch()

    def _stop(self, uuid: str) -> None:
        with self._mutex:
            self._unwanted.add(uuid)
            job = self._jobs.get(uuid)
        if job is None or job.thread is None:
            return
        job.stop.set()
        job.thread.join(self.ctx.locks.timeout)
        if job.thread.is_alive():
            raise errors.BusyError(f"The copy into replica {uuid} waits for a device")

    # Running.

    def dispatch(self) -> None:
        """Start what is waiting, as many as may run."""
        with self._mutex:
            taken = self._unwanted | set(self._jobs)
            for uuid, record in self.ctx.spec.data.copies.items():
                if self._ended or len(self._jobs) >= self.parallel:
                    return
                if record.state == COPY_RUNNING and uuid not in taken:
                    job = Job(uuid, record.offset)
                    job.thread = threading.Thread(
                        target=self._work, args=(job,), name=f"copy {uuid}", daemon=True
                    )
                    self._jobs[uuid] = job
                    job.thread.start()

    def stop(self) -> None:
        """End all that is under way; it goes on when the daemon starts again."""
        with self._mutex:
            self._ended = True
            jobs = list(self._jobs.values())
        for job in jobs:
            job.stop.set()
        for job in jobs:
            if job.thread is not None:
                job.thread.join(self.ctx.locks.timeout)

    def _work(self, job: Job) -> None:
        try:
            self._try(job)
        except _StoppedError:
            LOG.info("The copy into replica %s was stopped at %d", job.uuid, job.offset)
        except Exception as error:
            LOG.exception("The copy into replica %s ended by a defect", job.uuid)
            self._end(job, COPY_FAILED, f"a defect of the node: {type(error).__name__}")
        finally:
            with self._mutex:
                self._jobs.pop(job.uuid, None)
        self.dispatch()

    def _try(self, job: Job) -> None:
        """Copy, and begin again where it was when a device or the network fails."""
        tries, reached = 0, job.offset
        while True:
            try:
                self._copy(job)
                return
            except (errors.KumoError, OSError) as error:
                tries = 1 if job.offset > reached else tries + 1
                reached = max(reached, job.offset)
                reason = error.description if isinstance(error, errors.KumoError) else str(error)
                lasting = isinstance(error, errors.KumoError) and not error.transient
            if lasting or tries >= _TRIES:
                LOG.error("The copy into replica %s has failed: %s", job.uuid, reason)
                self._end(job, COPY_FAILED, reason)
                return
            LOG.warning("The copy into replica %s is tried again: %s", job.uuid, reason)
            if job.stop.wait(self.pause * tries):
                raise _StoppedError

    def _copy(self, job: Job) -> None:
        record = self.ctx.spec.data.copies[job.uuid]
        replica = self.ctx.replica(job.uuid)
        target = self.ctx.lvm_of(replica).device(replica_name(job.uuid))
        # What was not durable yet is read again; equal blocks are not written.
        job.offset = record.offset
        self._join(record)
        try:
            source = self.initiator.find(record.subsystem_nqn, record.source_replica)
            if source.bytes != record.bytes:
                raise errors.ConflictError(
                    f"The source has {source.bytes} bytes, not {record.bytes}"
                )
            with Transfer(source.device, target, record.bytes) as transfer:
                self._transfer(job, transfer, record.offset)
        finally:
            self._leave(record)
        if replica.array_uuid is not None:
            identity, name = replica.array_uuid, replica.array_name or ""
            self.replicas.edit_array(
                replica_name(job.uuid),
                replica,
                lambda dev: md_superblock.restamp(dev, identity, name),
            )
        LOG.info("Replica %s is now a copy of %s", job.uuid, record.source_replica)
        self._end(job, COPY_DONE, "")

    def _transfer(self, job: Job, transfer: Transfer, start: int) -> None:
        pace = Pace(self.rate, self.clock, job.stop.wait)
        durable, since = start, self.clock()
        for offset in transfer.run(start):
            pace.did(offset - job.offset)
            job.offset = offset
            if job.stop.is_set():
                transfer.flush()
                self._progress(job)
                raise _StoppedError
            now = self.clock()
            if offset - durable >= _DURABLE_BYTES or now - since >= _DURABLE_SECONDS:
                transfer.flush()
                self._progress(job)
                durable, since = offset, now
        transfer.flush()

    def _progress(self, job: Job) -> None:
        """The offset is durable: begin there after a restart."""
        self._edit(job, {"offset": job.offset}, counts=False)

    def _end(self, job: Job, state: str, reason: str) -> None:
        changes: dict[str, object] = {"state": state, "reason": reason}
        if state == COPY_DONE:
            changes["offset"] = job.offset
        self._edit(job, changes, counts=True)

    def _edit(self, job: Job, changes: dict[str, object], *, counts: bool) -> None:
        with self.ctx.spec.edit(counts=counts) as data:
            record = data.copies.get(job.uuid)
            if record is not None:
                data.copies[job.uuid] = record.model_copy(update=changes)

    # Connections.

    def _join(self, record: CopyRecord) -> None:
        key = (record.subsystem_nqn, record.host_nqn)
        with self._connecting:
            self._users[key] = self._users.get(key, 0) + 1
            try:
                self.initiator.hide({subsystem for subsystem, _ in self._users})
                portals = [
                    Portal(ip=p.ip, port=p.port, transport=p.transport) for p in record.portals
                ]
                self.initiator.connect(record.subsystem_nqn, record.host_nqn, portals)
            except BaseException:
                self._users[key] -= 1
                raise

    def _leave(self, record: CopyRecord, *, used: bool = True) -> None:
        """Disconnect when nobody else uses the connection.

        :param used: False when the caller had not joined, to end what an earlier run left.
        """
        key = (record.subsystem_nqn, record.host_nqn)
        with self._connecting:
            left = self._users.get(key, 0) - (1 if used else 0)
            if left > 0:
                self._users[key] = left
                return
            self._users.pop(key, None)
            try:
                self.initiator.disconnect(*key)
            except errors.KumoError as error:
                LOG.warning("%s", error.description)

    # Restoring.

    def pending(self) -> list[str]:
        """Copies that wait for a thread."""
        with self._mutex:
            taken = self._unwanted | set(self._jobs)
        return [
            uuid
            for uuid, record in self.ctx.spec.data.copies.items()
            if record.state == COPY_RUNNING and uuid not in taken
        ]

    def finish(self, what: str) -> None:
        """Let it go on, when there is room."""
        self.dispatch()
