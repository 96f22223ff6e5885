# SPDX-License-Identifier: Apache-2.0
"""Carry out a plan: each difference under the lock of its volume, after a second look."""

from __future__ import annotations

import contextvars
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from oslo_log import log
from sqlalchemy import select

from kumo_client import errors, naming
from kumo_client.api.node import Node
from kumo_client.schemas.node import Limits
from kumo_client.schemas.volume import StorageClass
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address
from kumo_provisioner.reconcile.counts import Counts
from kumo_provisioner.reconcile.plan import (
    Action,
    AddExport,
    DropExport,
    NoteState,
    Remove,
    Report,
    SetLimits,
    VolumeAction,
    is_there,
)
from kumo_provisioner.services import building, capacity, migration, publish, removals, replicas

LOG = log.getLogger(__name__)
PARALLEL_VOLUMES = 4
# Another leg of the volume may just be fixed on its node.
VOLUME_SECONDS = 1.0
# Few at a time: users wait for the same node.
REMOVALS_AT_ONCE = 8


def act(core: Core, actions: Iterable[Action], counts: Counts) -> None:
    """Carry out a plan, reports excepted. What fails is left for the next look."""
    by_volume: dict[str, list[VolumeAction]] = defaultdict(list)
    gone: list[str] = []
    for action in actions:
        if isinstance(action, Remove):
            gone.append(action.uuid)
        elif not isinstance(action, Report):
            by_volume[action.volume_id].append(action)
    _fix_all(core, by_volume, counts)
    for start in range(0, len(gone), REMOVALS_AT_ONCE):
        some = gone[start : start + REMOVALS_AT_ONCE]
        left = removals.carry_out(core, some)
        counts.removed += len(some) - left
        if left == len(some):
            # Nothing is gained by asking a node for hundreds that fails all of them.
            break


def _fix_all(core: Core, by_volume: dict[str, list[VolumeAction]], counts: Counts) -> None:
    if not by_volume:
        return
    with ThreadPoolExecutor(min(PARALLEL_VOLUMES, len(by_volume)), "reconcile-volume") as pool:
        futures = [
            pool.submit(contextvars.copy_context().run, _fix_volume, core, volume_id, todo)
            for volume_id, todo in by_volume.items()
        ]
        for future in futures:
            counts.add(future.result())


def _fix_volume(core: Core, volume_id: str, actions: list[VolumeAction]) -> Counts:
    counts = Counts()
    try:
        with core.locks.hold(volume_id, timeout=VOLUME_SECONDS):
            for action in actions:
                _fix(core, action, counts)
    except errors.BusyError:
        counts.skipped += len(actions)
    return counts


def _fix(core: Core, action: VolumeAction, counts: Counts) -> None:
    try:
        if isinstance(action, NoteState):
            _note_state(core, action, counts)
        elif isinstance(action, SetLimits):
            _set_limits(core, action, counts)
        else:
            _export(core, action, counts)
    except errors.KumoError as exc:
        counts.waiting += 1
        LOG.warning("%s is left for the next round: %s", action, exc)


def _note_state(core: Core, action: NoteState, counts: Counts) -> None:
    with core.db.read() as session:
        row = session.get(models.Replica, action.replica_id)
        if row is None or row.absent is not action.present:
            return
        address = Address.of(row.backend)
    outcome = core.nodes.call((address, lambda node: node.replica(action.replica_id)))
    if outcome.error is not None and not isinstance(outcome.error, errors.NotExistsError):
        raise outcome.error
    present = is_there(outcome.value)
    if present is not action.present:
        return
    with core.db.write() as session:
        row = session.get_one(models.Replica, action.replica_id)
        counts.missing += replicas.note_node(session, row, present=present) and not present


def _set_limits(core: Core, action: SetLimits, counts: Counts) -> None:
    with core.db.read() as session:
        row = session.get(models.Replica, action.replica_id)
        if row is None or row.volume.unsettled:
            return
        asked = StorageClass.model_validate(row.volume.storage_class)
        limits = capacity.limits(asked, row.volume.capacity)
        address = Address.of(row.backend)
    outcome = core.nodes.call((address, _limit_call(action.replica_id, limits)))
    failed = building.first_error({action: outcome})
    if failed is not None:
        raise failed
    counts.limits_set += 1


def _limit_call(uuid: str, limits: Limits) -> Any:
    def call(node: Node) -> object:
        return node.set_limits(uuid, limits)

    return call


def _export(core: Core, action: AddExport | DropExport, counts: Counts) -> None:
    adding = isinstance(action, AddExport)
    with core.db.read() as session:
        replica = session.get(models.Replica, action.replica_id)
        if replica is None:
            return
        query = select(models.Host.nqn).join(models.Publication)
        hosts = set(session.scalars(query.filter_by(volume_id=replica.volume_id)))
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
