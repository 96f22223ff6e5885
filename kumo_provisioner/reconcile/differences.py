# SPDX-License-Identifier: Apache-2.0
"""How nodes and record differ, and what would be done about it: a reconcile that only looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.api.node import Node
from kumo_client.schemas import restored as wire
from kumo_client.schemas.node import Inventory, Stamp
from kumo_provisioner import stamps
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address, Outcome
from kumo_provisioner.reconcile import record
from kumo_provisioner.reconcile.plan import (
    Action,
    AddExport,
    DropExport,
    NoteState,
    Remove,
    Report,
    SetLimits,
    VolumeAction,
    plan,
)

SILENT = "silent"
LIST_MAX = 10_000


class Look(NamedTuple):
    """:ivar memories: where nodes are that have to follow our database, with what they remember.
    :ivar drops: exports that the record does not have."""

    shown: wire.Restored
    memories: list[tuple[Address, Stamp]]
    drops: list[DropExport]


def look(core: Core) -> Look:
    """Ask all nodes and compare; nothing is changed."""
    with core.db.read() as session:
        rows = session.scalars(select(models.Backend).order_by(models.Backend.persistent_id)).all()
        names = {row.persistent_id: row.name for row in rows}
        calls = {row.persistent_id: (Address.of(row), _ask) for row in rows}
    outcomes = core.nodes.call_all(calls)
    known = core.stamps.load()
    sights = [_sight(known, one, names[one], outcomes[one]) for one in names]
    found: list[wire.Difference] = []
    drops: list[DropExport] = []
    for backend_id in names:
        inventory = _answer(backend_id, outcomes[backend_id])
        if inventory is not None:
            with core.db.read() as session:
                actions = plan(record.read(session, backend_id, inventory), inventory)
                found += _differences(session, backend_id, actions, inventory)
            drops += [one for one in actions if isinstance(one, DropExport)]
    with core.db.read() as session:
        found += _unfinished(session)
        uncertain = _uncertain(session)
    shown = wire.Restored(
        doubt=known.doubt,
        reason=known.reason,
        since=known.since,
        stamp=str(known.line.now),
        backends=sights,
        differences=found[:LIST_MAX],
        uncertain=uncertain if known.doubt else [],
    )
    return Look(shown, list(_memories(known, calls, outcomes)), drops)


def _ask(node: Node) -> Inventory:
    return node.inventory()


def _answer(backend_id: str, outcome: Outcome[Inventory]) -> Inventory | None:
    """What the node itself answered."""
    found = outcome.value
    return found if found is not None and found.persistent_id == backend_id else None


def _sight(
    known: stamps.Known, backend_id: str, name: str, outcome: Outcome[Inventory]
) -> wire.Sight:
    inventory = _answer(backend_id, outcome)
    if inventory is None:
        reason = outcome.error or errors.NotAvailableError("another node answers at its address")
        return wire.Sight(
            backend_id=backend_id, name=name, judgement=SILENT, reason=reason.description
        )
    memory = inventory.stamp
    return wire.Sight(
        backend_id=backend_id,
        name=name,
        judgement=known.judge(backend_id, memory),
        stamp="" if memory is None else str(memory.plain),
    )


def _memories(
    known: stamps.Known,
    calls: dict[str, Any],
    outcomes: dict[str, Outcome[Inventory]],
) -> Iterator[tuple[Address, Stamp]]:
    for backend_id, (address, _) in calls.items():
        inventory = _answer(backend_id, outcomes[backend_id])
        memory = inventory.stamp if inventory is not None else None
        if memory is not None and known.judge(backend_id, memory) != stamps.FINE:
            yield address, memory


# -- lists --------------------------------------------------------------------------------------

_WORDS: dict[type[Any], str] = {
    AddExport: wire.EXPORT,
    DropExport: wire.UNEXPORT,
    SetLimits: wire.CAP,
}


def _differences(
    session: Session, backend_id: str, actions: Iterable[Action], inventory: Inventory
) -> Iterator[wire.Difference]:
    todo = list(actions)
    shown = {one.uuid: one for one in inventory.replicas}
    aliases = _aliases(session, {_volume_of(one, shown) for one in todo})
    for action in todo:
        volume_id = _volume_of(action, shown)
        common = {"backend_id": backend_id, "volume_id": volume_id}
        common["alias"] = aliases.get(volume_id, "")
        if isinstance(action, Remove | Report):
            yield wire.Difference(
                action=wire.REMOVE if isinstance(action, Remove) else wire.UNKNOWN,
                kind=action.kind,
                uuid=action.uuid,
                bytes=action.bytes if isinstance(action, Report) else 0,
                host_nqn=_hosts(shown, action.uuid),
                **common,
            )
        else:
            yield _of_volume(action, common)


def _hosts(shown: dict[str, Any], uuid: str) -> str:
    """The hosts that have an object which nobody knows."""
    found = shown.get(uuid)
    return "" if found is None else ", ".join(one.host_nqn for one in found.exports)


def _of_volume(action: VolumeAction, common: dict[str, str]) -> wire.Difference:
    if isinstance(action, NoteState):
        word = wire.FOUND if action.present else wire.MISSING
    else:
        word = _WORDS[type(action)]
    return wire.Difference(
        action=word,
        kind=models.REPLICA,
        uuid=action.replica_id,
        host_nqn=action.host_nqn if isinstance(action, AddExport | DropExport) else "",
        **common,
    )


def _volume_of(action: Action, shown: dict[str, Any]) -> str:
    if isinstance(action, Remove | Report):
        found = shown.get(action.uuid)
        return "" if found is None else str(found.volume_id)
    return action.volume_id


def _aliases(session: Session, uuids: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for some in record.chunks(sorted(uuids)):
        query = select(models.Volume.uuid, models.Volume.alias).where(models.Volume.uuid.in_(some))
        found |= {uuid: alias for uuid, alias in session.execute(query)}
    return found


def _unfinished(session: Session) -> Iterator[wire.Difference]:
    """What was under way when the copy was made."""
    volume, snapshot, publication = models.Volume, models.Snapshot, models.Publication
    query = select(volume).where((volume.status == models.CREATING) | (volume.unsettled != ""))
    for row in session.scalars(query.limit(LIST_MAX)):
        making = row.status == models.CREATING
        yield wire.Difference(
            action=wire.UNDO if making else wire.FINISH,
            kind="volume",
            uuid=row.uuid,
            volume_id=row.uuid,
            alias=row.alias,
            detail="" if making else row.unsettled,
        )
    for part in session.scalars(select(snapshot).filter_by(status=models.CREATING)):
        yield wire.Difference(
            action=wire.UNDO,
            kind="snapshot",
            uuid=part.uuid,
            volume_id=part.volume_id,
            alias=part.alias,
        )
    for one in session.scalars(select(publication).filter_by(status=models.PUBLISHING)):
        yield wire.Difference(
            action=wire.UNDO,
            kind="publication",
            uuid=one.volume_id,
            volume_id=one.volume_id,
            alias=one.volume.alias,
            host_id=one.host_id,
            host_nqn=one.host.nqn,
        )


def _uncertain(session: Session) -> list[wire.Uncertain]:
    volume = models.Volume
    query = select(volume.uuid, volume.alias).where(
        volume.num_replicas > 1, volume.array_state == models.ARRAY_NEW
    )
    return [
        wire.Uncertain(volume_id=uuid, alias=alias)
        for uuid, alias in session.execute(query.order_by(volume.uuid).limit(LIST_MAX))
    ]
