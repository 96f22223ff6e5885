# SPDX-License-Identifier: Apache-2.0
"""What to do so that one node becomes what the record wants of it. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeGuard

from kumo_client.schemas.node import STATE_FAILED, Inventory, Limits, Replica
from kumo_provisioner.db import models


@dataclasses.dataclass(frozen=True)
class WantedReplica:
    """A replica of the record on this node.

    ``settled``: no operation that makes it or gives it up is under way. ``absent``: the node is
    known not to have it. ``limits``: its caps; None
    when they are not to be compared.
    """

    uuid: str
    volume_id: str
    settled: bool = True
    hosts: frozenset[str] = frozenset()
    absent: bool = False
    limits: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The record of one node.

    :ivar parts: uuids of the parts of snapshots on it.
    :ivar pending: kind by uuid of what has to go from it.
    :ivar gone: uuids of what has gone from it, as far as they were shown now.
    :ivar elsewhere: uuids that were shown here and that the record has on another node.
    """

    replicas: Mapping[str, WantedReplica]
    parts: frozenset[str] = frozenset()
    pending: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    elsewhere: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Remove:
    """Take an object away from the node."""

    kind: str
    uuid: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Tell of an object that nobody knows."""

    kind: str
    uuid: str
    bytes: int = 0


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
    present: bool


@dataclasses.dataclass(frozen=True)
class SetLimits:
    """The node caps a replica otherwise than the record says."""

    volume_id: str
    replica_id: str


VolumeAction = AddExport | DropExport | NoteState | SetLimits
Action = Remove | Report | VolumeAction


def plan(wanted: Wanted, inventory: Inventory) -> list[Action]:
    """What to do on a node that shows ``inventory``.

    The inventory was read before ``wanted``, so whatever it shows has a row if it ever had one.
    """
    actions: list[Action] = [Remove(kind, uuid) for uuid, kind in sorted(wanted.pending.items())]
    shown = {replica.uuid: replica for replica in inventory.replicas}
    for replica in wanted.replicas.values():
        if replica.settled:
            actions += _plan_replica(replica, shown.get(replica.uuid))
    objects = [(models.REPLICA, one.uuid, one.bytes) for one in inventory.replicas]
    objects += [(models.SNAPSHOT, one.uuid, one.bytes) for one in inventory.snapshots]
    for kind, uuid, size in objects:
        if uuid in wanted.replicas or uuid in wanted.parts or uuid in wanted.pending:
            continue
        if uuid in wanted.gone:
            actions.append(Remove(kind, uuid))
        elif uuid not in wanted.elsewhere:
            actions.append(Report(kind, uuid, size))
    return actions


def _plan_replica(wanted: WantedReplica, shown: Replica | None) -> list[VolumeAction]:
    ids = (wanted.volume_id, wanted.uuid)
    if not is_there(shown):
        return [] if wanted.absent else [NoteState(*ids, present=False)]
    actions: list[VolumeAction] = []
    if wanted.absent:
        actions.append(NoteState(*ids, present=True))
    has = {export.host_nqn for export in shown.exports}
    actions += [AddExport(*ids, nqn) for nqn in sorted(wanted.hosts - has)]
    actions += [DropExport(*ids, nqn) for nqn in sorted(has - wanted.hosts)]
    if wanted.limits is not None and wanted.limits != as_pair(shown.limits):
        actions.append(SetLimits(*ids))
    return actions


def is_there(shown: Replica | None) -> TypeGuard[Replica]:
    """Whether a node can serve a replica; one on a disk that has failed is in its record only."""
    return shown is not None and shown.state != STATE_FAILED


def as_pair(limits: Limits) -> tuple[int, int]:
    return limits.max_iops, limits.max_bw


def objects(inventory: Inventory) -> set[str]:
    """uuids of everything that a node shows."""
    return {one.uuid for one in inventory.replicas} | {one.uuid for one in inventory.snapshots}
