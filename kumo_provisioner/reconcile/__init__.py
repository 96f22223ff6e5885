# SPDX-License-Identifier: Apache-2.0
"""Bring the nodes to what the record says: observe, plan, act.

First what an operation left behind when its process died is taken back in the record (an
operation at work holds the lock of its volume and is left alone). Then the nodes are asked what
they hold, :func:`plan` compares, and each difference is settled under the lock of its volume after
a second look at the record. Nothing is concluded from a node that did not answer.

An object that no row knows is removed only when the record of removals shows that it was ours;
any other is reported and not touched.
"""

from __future__ import annotations

import contextvars
import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from oslo_log import log
from sqlalchemy import delete, select
from sqlalchemy.orm import Session, selectinload

from kumo_client import errors, naming
from kumo_client.api.node import Node
from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.node import Inventory
from kumo_client.schemas.volume import REPLICA_AVAILABLE, REPLICA_MISSING
from kumo_provisioner import settling
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address
from kumo_provisioner.reconcile.settlers import SETTLERS
from kumo_provisioner.services import backends, building, migration, publish, removals, replicas

LOG = log.getLogger(__name__)
DAY_MS = 86_400_000
PARALLEL_VOLUMES = 8
# Databases limit the number of values in one statement.
REMOVALS_AT_ONCE = 500


@dataclasses.dataclass(frozen=True)
class WantedReplica:
    """A replica of the record. ``settled``: no operation that makes it is under way."""

    uuid: str
    volume_id: str
    backend_id: str
    settled: bool = True
    hosts: frozenset[str] = frozenset()
    absent: bool = False


@dataclasses.dataclass(frozen=True)
class WantedRemoval:
    """An object that has to go, or has gone already (``done``)."""

    uuid: str
    kind: str
    backend_id: str
    done: bool = False


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The record. ``parts``: backend id by the uuid of each part of a snapshot."""

    replicas: Mapping[str, WantedReplica]
    parts: Mapping[str, str]
    removals: Mapping[str, WantedRemoval]


@dataclasses.dataclass(frozen=True)
class Remove:
    """Take an object away from a node."""

    kind: str
    uuid: str
    backend_id: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Tell of an object that nobody knows."""

    kind: str
    uuid: str
    backend_id: str


@dataclasses.dataclass(frozen=True)
class AddExport:
    volume_id: str
    replica_id: str
    host_nqn: str


@dataclasses.dataclass(frozen=True)
class DropExport:
    volume_id: str
    replica_id: str
    host_nqn: str


@dataclasses.dataclass(frozen=True)
class NoteState:
    """Record that a replica is missing on its node, or is there again."""

    volume_id: str
    replica_id: str
    state: str


VolumeAction = AddExport | DropExport | NoteState
Action = Remove | Report | VolumeAction
# None: the node did not answer.
Seen = Mapping[str, Inventory | None]


@dataclasses.dataclass
class Counts:
    """What a reconcile did. ``waiting`` needs a node that is away, ``skipped`` was in use."""

    undone: int = 0
    removed: int = 0
    exports_restored: int = 0
    exports_removed: int = 0
    settled: int = 0
    missing: int = 0
    unknown: int = 0
    waiting: int = 0
    skipped: int = 0

    def wire(self) -> dict[str, int]:
        values = dataclasses.asdict(self)
        names = {"exports_restored": "exportsRestored", "exports_removed": "exportsRemoved"}
        return {names.get(key, key): value for key, value in values.items()}


# -- plan (pure) --------------------------------------------------------------------------------


def plan(wanted: Wanted, seen: Seen) -> list[Action]:
    """What to do so that the nodes become what is wanted.

    ``seen`` was read before ``wanted``, so whatever a node showed has a row if it ever had one.
    """
    actions: list[Action] = []
    for removal in wanted.removals.values():
        if not removal.done and seen.get(removal.backend_id) is not None:
            actions.append(Remove(removal.kind, removal.uuid, removal.backend_id))
    for backend_id, inventory in sorted(seen.items()):
        if inventory is not None:
            actions += _plan_node(wanted, backend_id, inventory)
    return actions


def _plan_node(wanted: Wanted, backend_id: str, inventory: Inventory) -> list[Action]:
    actions: list[Action] = []
    shown = {replica.uuid: replica for replica in inventory.replicas}
    for replica in wanted.replicas.values():
        if replica.backend_id != backend_id or not replica.settled:
            continue
        if replica.uuid not in shown:
            if not replica.absent:
                actions.append(NoteState(replica.volume_id, replica.uuid, REPLICA_MISSING))
            continue
        if replica.absent:
            actions.append(NoteState(replica.volume_id, replica.uuid, REPLICA_AVAILABLE))
        has = {export.host_nqn for export in shown[replica.uuid].exports}
        for nqn in sorted(replica.hosts - has):
            actions.append(AddExport(replica.volume_id, replica.uuid, nqn))
        for nqn in sorted(has - replica.hosts):
            actions.append(DropExport(replica.volume_id, replica.uuid, nqn))
    objects = [(models.REPLICA, uuid) for uuid in shown]
    objects += [(models.SNAPSHOT, snapshot.uuid) for snapshot in inventory.snapshots]
    for kind, uuid in objects:
        if uuid in wanted.replicas or uuid in wanted.parts:
            continue
        removal = wanted.removals.get(uuid)
        if removal is None or removal.backend_id != backend_id:
            actions.append(Report(kind, uuid, backend_id))
        elif removal.done:
            actions.append(Remove(kind, uuid, backend_id))
    return actions


# -- observe ------------------------------------------------------------------------------------


def observe(core: Core) -> dict[str, Inventory | None]:
    """What the nodes hold; None for one that did not answer its probe or this question."""

    def ask(node: Node) -> Inventory:
        return node.inventory()

    with core.db.read() as session:
        rows = session.scalars(select(models.Backend)).all()
    seen: dict[str, Inventory | None] = {row.persistent_id: None for row in rows}
    calls = {
        row.persistent_id: (Address.of(row), ask)
        for row in rows
        if row.state == AVAILABLE and row.failed_probes == 0
    }
    for backend_id, outcome in core.nodes.call_all(calls).items():
        inventory = outcome.value
        if inventory is None:
            LOG.warning("No inventory of backend %s: %s", backend_id, outcome.error)
        elif inventory.persistent_id == backend_id:
            seen[backend_id] = inventory
        else:
            LOG.error("At the address of backend %s is %s", backend_id, inventory.persistent_id)
    return seen


def read_wanted(session: Session) -> Wanted:
    """The record as plan needs it."""
    query = select(models.Volume).options(
        selectinload(models.Volume.replicas),
        selectinload(models.Volume.publications).selectinload(models.Publication.host),
    )
    replicas = {}
    copies = migration.extra_exports(session)
    for volume in session.scalars(query):
        # An unfinished publication keeps its exports until it is committed or undone.
        hosts = frozenset(one.host.nqn for one in volume.publications)
        for row in volume.replicas:
            replicas[row.uuid] = WantedReplica(
                uuid=row.uuid,
                volume_id=volume.uuid,
                backend_id=row.backend_id,
                settled=volume.status == models.AVAILABLE,
                hosts=hosts | copies.get(row.uuid, set()),
                absent=row.absent,
            )
    parts = {row.uuid: row.backend_id for row in session.scalars(select(models.SnapshotPart))}
    gone = {
        row.uuid: WantedRemoval(row.uuid, row.kind, row.backend_id, row.done is not None)
        for row in session.scalars(select(models.Removal))
    }
    return Wanted(replicas, parts, gone)


# -- act ----------------------------------------------------------------------------------------


def run(core: Core) -> Counts:
    """One round, alone in this process."""
    with core.reconciling:
        begun = time.monotonic()
        counts = Counts()
        settle(core, counts)
        backends.probe(core)
        seen = observe(core)
        with core.db.read() as session:
            wanted = read_wanted(session)
        actions = plan(wanted, seen)
        act(core, actions, wanted, counts)
        finish_unsettled(core, counts)
        _count_waiting(core, counts)
        _forget_old(core)
    core.metrics.reconciled(dataclasses.asdict(counts), time.monotonic() - begun)
    if any(dataclasses.astuple(counts)):
        LOG.info("Reconciled: %s", counts.wire())
    return counts


def settle(core: Core, counts: Counts) -> None:
    """Take back, in the record, what was begun and has nobody working on it any more."""
    with core.db.read() as session:
        volumes = session.scalars(
            select(models.Volume.uuid).filter_by(status=models.CREATING)
        ).all()
        snapshots = session.scalars(
            select(models.Snapshot.uuid).filter_by(status=models.CREATING)
        ).all()
        publications = session.execute(
            select(models.Publication.volume_id, models.Publication.host_id).filter_by(
                status=models.PUBLISHING
            )
        ).all()
    for uuid in volumes:
        _settle_one(core, counts, models.Volume, uuid, uuid)
    for uuid in snapshots:
        _settle_one(core, counts, models.Snapshot, uuid, uuid)
    for volume_id, host_id in publications:
        _settle_one(core, counts, models.Publication, (volume_id, host_id), volume_id)


def _settle_one(
    core: Core, counts: Counts, table: type[models.Base], key: object, lock: str
) -> None:
    try:
        with core.locks.hold(lock, timeout=0), core.db.write() as session:
            row = session.get(table, key)
            if isinstance(row, models.Volume) and row.status == models.CREATING:
                removals.retire_volume(session, row)
            elif isinstance(row, models.Snapshot) and row.status == models.CREATING:
                removals.retire_snapshot(session, row)
            elif isinstance(row, models.Publication) and row.status == models.PUBLISHING:
                session.delete(row)
            else:
                return
            counts.undone += 1
            LOG.info("Undid an unfinished %s of %s", table.__name__.lower(), key)
    except errors.BusyError:
        counts.skipped += 1


def finish_unsettled(core: Core, counts: Counts) -> None:
    """Do what is still to be done on volumes after their wishes were recorded."""
    with core.db.read() as session:
        query = select(models.Volume.uuid).where(
            models.Volume.unsettled != "", models.Volume.status != models.CREATING
        )
        uuids = session.scalars(query).all()
    for uuid in uuids:
        try:
            with core.locks.hold(uuid, timeout=0):
                _finish_one(core, uuid, counts)
        except errors.BusyError:
            counts.skipped += 1


def _finish_one(core: Core, uuid: str, counts: Counts) -> None:
    with core.db.read() as session:
        row = session.get(models.Volume, uuid)
        # What a newer version recorded is left to it.
        kinds = [one for one in settling.kinds(row) if one in SETTLERS] if row else []
    for kind in kinds:
        try:
            SETTLERS[kind](core, uuid)
            counts.settled += 1
        except errors.KumoError as exc:
            counts.waiting += 1
            LOG.warning("%s of volume %s is left for the next round: %s", kind, uuid, exc)


def act(core: Core, actions: Iterable[Action], wanted: Wanted, counts: Counts) -> None:
    """Carry out a plan. What fails is left for the next round."""
    by_volume: dict[str, list[VolumeAction]] = defaultdict(list)
    remove: list[Remove] = []
    for action in actions:
        if isinstance(action, Remove):
            remove.append(action)
        elif isinstance(action, Report):
            counts.unknown += 1
            LOG.warning(
                "Backend %s holds %s %s, of which nothing is known here; it is not touched",
                action.backend_id,
                action.kind,
                action.uuid,
            )
        else:
            by_volume[action.volume_id].append(action)
    with ThreadPoolExecutor(PARALLEL_VOLUMES, "reconcile-volume") as pool:
        futures = [
            pool.submit(contextvars.copy_context().run, _fix_volume, core, volume_id, todo)
            for volume_id, todo in by_volume.items()
        ]
        for future in futures:
            _add(counts, future.result())
    _remove(core, remove, counts)


def _add(counts: Counts, more: Counts) -> None:
    for field in dataclasses.fields(Counts):
        setattr(counts, field.name, getattr(counts, field.name) + getattr(more, field.name))


def _remove(core: Core, actions: list[Remove], counts: Counts) -> None:
    uuids = [action.uuid for action in actions]
    for start in range(0, len(uuids), REMOVALS_AT_ONCE):
        some = uuids[start : start + REMOVALS_AT_ONCE]
        counts.removed += len(some) - removals.carry_out(core, some)


def _fix_volume(core: Core, volume_id: str, actions: list[VolumeAction]) -> Counts:
    counts = Counts()
    try:
        with core.locks.hold(volume_id, timeout=0):
            for action in actions:
                _fix(core, action, counts)
    except errors.BusyError:
        counts.skipped += len(actions)
    return counts


def _fix(core: Core, action: VolumeAction, counts: Counts) -> None:
    try:
        if isinstance(action, NoteState):
            _note_state(core, action, counts)
        else:
            _export(core, action, counts)
    except errors.KumoError as exc:
        counts.waiting += 1
        LOG.warning("%s is left for the next round: %s", action, exc)


def _note_state(core: Core, action: NoteState, counts: Counts) -> None:
    present = action.state == REPLICA_AVAILABLE
    with core.db.read() as session:
        row = session.get(models.Replica, action.replica_id)
        if row is None or row.absent is not present:
            return
        address = Address.of(row.backend)
    outcome = core.nodes.call((address, lambda node: node.replica(action.replica_id)))
    if outcome.error is not None and not isinstance(outcome.error, errors.NotExistsError):
        raise outcome.error
    if (outcome.error is None) is not present:
        return
    with core.db.write() as session:
        row = session.get_one(models.Replica, action.replica_id)
        counts.missing += replicas.note_node(session, row, present=present) and not present


def _export(core: Core, action: AddExport | DropExport, counts: Counts) -> None:
    adding = isinstance(action, AddExport)
    with core.db.read() as session:
        replica = session.get(models.Replica, action.replica_id)
        if replica is None:
            return
        hosts = {one.host.nqn for one in replica.volume.publications}
        hosts |= migration.extra_exports(session, replica.backend_id).get(replica.uuid, set())
        if (action.host_nqn in hosts) is not adding:
            return
        address = Address.of(replica.backend)
        io_class = naming.io_class(replica.volume.num_replicas)
    if adding:
        call = publish.export_call(action.replica_id, action.host_nqn, io_class)
    else:
        call = publish.unexport_call(action.replica_id, action.host_nqn)
    failed = building.first_error({action: core.nodes.call((address, call))})
    if failed is not None:
        raise failed
    if adding:
        counts.exports_restored += 1
    else:
        counts.exports_removed += 1


def _count_waiting(core: Core, counts: Counts) -> None:
    with core.db.read() as session:
        query = select(models.Removal.uuid).where(models.Removal.done.is_(None))
        counts.waiting += len(session.scalars(query).all())


def _forget_old(core: Core) -> None:
    oldest = now_ms() - core.conf.reconcile.removal_memory_days * DAY_MS
    with core.db.read() as session:
        query = select(models.Removal.uuid).where(models.Removal.done < oldest)
        old = session.scalars(query.limit(1000)).all()
    if old:
        with core.db.write() as session:
            session.execute(delete(models.Removal).where(models.Removal.uuid.in_(old)))
