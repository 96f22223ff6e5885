# SPDX-License-Identifier: Apache-2.0
"""Finishing what was begun, and bringing exports back after a boot: observe, plan, act.

Runs once before the API is served and then on a timer. It needs no provisioner: everything comes
from the node's own record. What was answered as done is never given up; what was not is undone,
except a resize and a removal, which are finished.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from oslo_log import log

from kumo_client import errors
from kumo_client.schemas.node import STATE_FAILED, STATE_READ_ONLY
from kumo_node.context import Context, host_lock, replica_lock, snapshot_lock
from kumo_node.exports import Exports
from kumo_node.lvm import made_tag, replica_name
from kumo_node.replicas import Replicas
from kumo_node.snapshots import Snapshots
from kumo_node.spec import CREATING, DELETING, READY, Data, ReplicaRecord, SnapshotRecord
from kumo_node.strangers import Strangers

LOG = log.getLogger(__name__)
# Seconds between two looks for what is in no record; LVM is asked for all volumes then.
_COMPARE_SECONDS = 300.0


@dataclasses.dataclass(frozen=True)
class Seen:
    """What was observed.

    :ivar active: names of the volumes that have a device node.
    :ivar complete: keys of the exports whose kernel side is as it should be.
    :ivar suspended: uuids of replicas to which I/O waits.
    :ivar tags: for each pool that LVM was asked about, the tags of all volumes by name.
    :ivar failed: pools that cannot be reached: nothing is tried on them.
    :ivar readonly: pools on which nothing can be changed.
    :ivar problems: what could not be told, one sentence each.
    """

    active: frozenset[str]
    complete: frozenset[str]
    tags: Mapping[str, Mapping[str, frozenset[str]]] = dataclasses.field(default_factory=dict)
    suspended: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    readonly: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be done, in this order."""

    resume: tuple[str, ...] = ()
    undo_exports: tuple[str, ...] = ()
    undo_snapshots: tuple[str, ...] = ()
    undo_replicas: tuple[str, ...] = ()
    activate: tuple[str, ...] = ()
    finish_resizes: tuple[str, ...] = ()
    apply_exports: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(dataclasses.astuple(self))


def plan(data: Data, seen: Seen) -> Plan:
    """Decide; pure. Names are uuids and export keys."""
    inactive = [
        uuid
        for uuid, record in data.replicas.items()
        if record.state == READY
        and record.pool not in seen.failed
        and replica_name(uuid) not in seen.active
    ]
    lost = [uuid for uuid in inactive if not _is_there(data, seen, uuid)]
    usable = {
        uuid
        for uuid, record in data.replicas.items()
        if record.state == READY and record.pool not in seen.failed and uuid not in lost
    }
    fixed = seen.failed | seen.readonly
    return Plan(
        resume=tuple(
            uuid
            for uuid, record in data.replicas.items()
            if uuid in seen.suspended and record.pool not in seen.failed
        ),
        undo_exports=tuple(k for k, e in data.exports.items() if e.state != READY),
        undo_snapshots=_unfinished(data.snapshots, fixed),
        undo_replicas=_unfinished(data.replicas, fixed),
        activate=tuple(uuid for uuid in inactive if uuid not in lost),
        finish_resizes=tuple(
            uuid
            for uuid, record in data.replicas.items()
            if uuid in usable and record.target_bytes and record.pool not in fixed
        ),
        apply_exports=tuple(
            key
            for key, export in data.exports.items()
            if export.state == READY and export.replica in usable and key not in seen.complete
        ),
        lost=tuple(lost),
        problems=seen.problems,
    )


def _unfinished(
    records: Mapping[str, ReplicaRecord] | Mapping[str, SnapshotRecord], fixed: frozenset[str]
) -> tuple[str, ...]:
    return tuple(
        uuid
        for uuid, record in records.items()
        if record.state in (CREATING, DELETING) and not record.erase and record.pool not in fixed
    )


def _is_there(data: Data, seen: Seen, uuid: str) -> bool:
    """False only when LVM definitely showed no volume of ours for a replica."""
    record = data.replicas[uuid]
    tags = seen.tags.get(record.pool)
    return tags is None or made_tag(record.token) in tags.get(replica_name(uuid), frozenset())


class Finisher(Protocol):
    """Something that finds in the record, or in the kernel, what it has to finish."""

    def pending(self) -> Sequence[str]:
        """Names of what is unfinished; a look without locks.

        :raises KumoError: it could not be looked at.
        """

    def finish(self, what: str) -> None:
        """Finish or undo it, if that is still to be done.

        :raises KumoError: it cannot be done now.
        """


class Restore:
    """The loop.

    :param interval: seconds between two rounds.
    :ivar before: what finds to do before replicas and exports are looked at. :ivar after: after.
    """

    def __init__(
        self,
        ctx: Context,
        replicas: Replicas,
        snapshots: Snapshots,
        exports: Exports,
        *,
        interval: float = 15,
    ) -> None:
        self.ctx = ctx
        self.replicas = replicas
        self.snapshots = snapshots
        self.exports = exports
        self.interval = interval
        self.strangers = Strangers(ctx, ctx.nvmet.fs)
        self.before: list[Finisher] = []
        self.after: list[Finisher] = []
        self._told: frozenset[str] = frozenset()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # The loop.

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="restore", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the loop and wait for the round that is under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        compared = time.monotonic()
        while not self._stop.wait(self.interval):
            try:
                self.round()
                if time.monotonic() - compared > _COMPARE_SECONDS:
                    self.strangers.look()
                    compared = time.monotonic()
            except (errors.KumoError, OSError) as error:
                LOG.error("This round of restoring ended early: %s", error)

    def round(self) -> list[str]:
        """One round.

        :returns: what could not be done, one sentence each; the next round tries again.
        """
        problems: list[str] = []
        self._finish(self.before, problems)
        todo = plan(self.ctx.spec.data, self.observe())
        if todo:
            problems += self.act(todo)
        self._finish(self.after, problems)
        self._tell(problems)
        return problems

    def problems(self) -> list[str]:
        """What the last round could not do, and what is there and in no record."""
        return [*sorted(self._told), *self.strangers.problems()]

    # Observe.

    def observe(self) -> Seen:
        """Look at device nodes and configfs; at LVM only for a pool of which a volume is missing,
        it is slow."""
        data = self.ctx.spec.data
        failed = self._in_state(STATE_FAILED)
        active, missing, suspended = set(), set(), set()
        for uuid, record in data.replicas.items():
            lvm, name = self.ctx.lvm_of(record), replica_name(uuid)
            if lvm.is_active(name):
                active.add(name)
                if lvm.is_suspended(name):
                    suspended.add(uuid)
            elif record.state == READY:
                missing.add(record.pool)
        tags, problems = self._tags(missing - failed)
        whole: dict[tuple[str, str], bool] = {}
        complete = frozenset(
            key
            for key, export in data.exports.items()
            if self.ctx.nvmet.complete(self.ctx.namespace(export), whole)
        )
        return Seen(
            active=frozenset(active),
            complete=complete,
            tags=tags,
            suspended=frozenset(suspended),
            failed=failed,
            readonly=self._in_state(STATE_READ_ONLY),
            problems=tuple(problems),
        )

    def _in_state(self, state: str) -> frozenset[str]:
        return frozenset(p.name for p in self.ctx.pools.values() if p.condition.state == state)

    def _tags(self, names: Iterable[str]) -> tuple[dict[str, dict[str, frozenset[str]]], list[str]]:
        tags, problems = {}, []
        for name in sorted(names):
            try:
                found = self.ctx.pools[name].lvm.volumes()
                tags[name] = {volume.name: volume.tags for volume in found.values()}
            except errors.KumoError as error:
                problems.append(f"Pool {name} could not be looked at: {error.description}")
        return tags, problems

    # Act.

    def act(self, todo: Plan) -> list[str]:
        """Carry a plan out; what fails does not keep the rest from being done."""
        problems = [
            *todo.problems,
            *(
                f"Replica {uuid} is recorded and its logical volume does not exist"
                for uuid in todo.lost
            ),
        ]
        for uuid in todo.resume:
            self._try(problems, self._resume, uuid)
        for key in todo.undo_exports:
            self._try(problems, self._undo_export, key)
        for uuid in todo.undo_snapshots:
            self._try(problems, self._undo_snapshot, uuid)
        for uuid in todo.undo_replicas:
            self._try(problems, self._undo_replica, uuid)
        for pool, names in self._by_pool(todo.activate).items():
            self._try(problems, self._activate, (pool, names))
        for uuid in todo.finish_resizes:
            self._try(problems, self._finish_resize, uuid)
        for key in todo.apply_exports:
            self._try(problems, self._apply_export, key)
        return problems

    def _finish(self, finishers: Iterable[Finisher], problems: list[str]) -> None:
        for finisher in finishers:
            try:
                waiting = finisher.pending()
            except errors.KumoError as error:
                problems.append(str(error))
                continue
            for what in waiting:
                self._try(problems, finisher.finish, what)

    def _tell(self, problems: list[str]) -> None:
        for problem in problems:
            # Once; a round comes every few seconds.
            LOG.log(logging.DEBUG if problem in self._told else logging.ERROR, "%s", problem)
        self._told = frozenset(problems)

    def _try(self, problems: list[str], act: Callable, what: object) -> None:
        try:
            act(what)
        except errors.BusyError:
            LOG.debug("%s: another call works on it", what)
        except (errors.KumoError, OSError) as error:
            problems.append(str(error))

    def _by_pool(self, uuids: Iterable[str]) -> dict[str, list[str]]:
        """Names of the volumes of replicas, by pool."""
        replicas = self.ctx.spec.data.replicas
        found: dict[str, list[str]] = {}
        for uuid in uuids:
            if uuid in replicas:
                found.setdefault(replicas[uuid].pool, []).append(replica_name(uuid))
        return found

    def _activate(self, what: tuple[str, list[str]]) -> None:
        pool, names = what
        LOG.info("Activating %d volumes of pool %s", len(names), pool)
        self.ctx.pools[pool].lvm.activate(names)

    # A verb may have changed the record since it was planned for: each looks again, under its lock.

    def _resume(self, uuid: str) -> None:
        # A snapshot suspends its origin for a moment, under the lock of the replica; what is
        # suspended while nobody has the lock was left by a command that was killed.
        with self.ctx.locks.hold(replica_lock(uuid), wait=False):
            record = self.ctx.spec.data.replicas.get(uuid)
            if record is None:
                return
            lvm = self.ctx.lvm_of(record)
            if lvm.is_suspended(replica_name(uuid)):
                LOG.warning("Replica %s was left suspended; resuming it", uuid)
                lvm.resume(replica_name(uuid))

    def _undo_export(self, key: str) -> None:
        record = self.ctx.spec.data.exports.get(key)
        if record is None:
            return
        locks = (replica_lock(record.replica), host_lock(record.host_nqn))
        with self.ctx.locks.hold(*locks, wait=False):
            record = self.ctx.spec.data.exports.get(key)
            if record is not None and record.state != READY:
                LOG.info("Removing the unfinished export of replica %s", record.replica)
                self.exports.undo(record)

    def _undo_snapshot(self, uuid: str) -> None:
        with self.ctx.locks.hold(snapshot_lock(uuid), wait=False):
            record = self.ctx.spec.data.snapshots.get(uuid)
            if record is not None and record.state != READY and not record.erase:
                LOG.info("Removing unfinished snapshot %s", uuid)
                self.snapshots.undo(uuid, record)

    def _undo_replica(self, uuid: str) -> None:
        with self.ctx.locks.hold(replica_lock(uuid), wait=False):
            record = self.ctx.spec.data.replicas.get(uuid)
            if record is not None and record.state in (CREATING, DELETING) and not record.erase:
                LOG.info("Removing unfinished replica %s", uuid)
                self.replicas.undo(uuid, record)

    def _finish_resize(self, uuid: str) -> None:
        with self.ctx.locks.hold(replica_lock(uuid), wait=False):
            record = self.ctx.spec.data.replicas.get(uuid)
            if record is not None and record.state == READY:
                self.replicas.finish_resize(uuid, record)

    def _apply_export(self, key: str) -> None:
        record = self.ctx.spec.data.exports.get(key)
        if record is None:
            return
        locks = (replica_lock(record.replica), host_lock(record.host_nqn))
        with self.ctx.locks.hold(*locks, wait=False):
            record = self.ctx.spec.data.exports.get(key)
            if record is not None and record.state == READY:
                LOG.info("Restoring the export of replica %s", record.replica)
                self.exports.apply(record)
