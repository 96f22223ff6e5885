# SPDX-License-Identifier: Apache-2.0
"""Heartbeats both ways: probes that ask the nodes, and what nodes tell on their own.

Only probes decide whether a node is Available: that we can call it is what matters, and a node
that we cannot reach may well reach us. A node that tells enough by itself is probed less often.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from oslo_log import log
from sqlalchemy import and_, select
from sqlalchemy.orm import Session, selectinload

from kumo_client import errors
from kumo_client.api.node import Node
from kumo_client.schemas import backend as wire
from kumo_client.schemas.event import INFO, WARN
from kumo_client.schemas.node import STATE_FAILED, Heartbeat, NodeInfo
from kumo_provisioner import stamps
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.duties import Duty
from kumo_provisioner.nodes import Address, Outcome
from kumo_provisioner.services import events, replicas, reports, restored

LOG = log.getLogger(__name__)
# Nodes asked, and written down, together.
CHUNK = 64
Outcomes = Mapping[str, Outcome[NodeInfo]]


class Due(NamedTuple):
    """A node to be probed."""

    address: Address
    available: bool


def ask_info(node: Node) -> NodeInfo:
    return node.info()


def probe(core: Core, *, everyone: bool = False) -> bool:
    """Ask the nodes how they are and record the answers.

    :param everyone: also nodes whose heartbeats come in time.
    :returns: whether a node came back or rebooted, so that there may be something to reconcile.
    """
    due = _due(core, everyone=everyone)
    # Nodes that are away take their time to be so; the others do not wait for them.
    due.sort(key=lambda one: not one.available)
    returned = False
    for start in range(0, len(due), CHUNK):
        some = [one.address for one in due[start : start + CHUNK]]
        outcomes = core.nodes.call_all(
            {address.backend_id: (address, ask_info) for address in some}, probing=True
        )
        returned |= _record(core, outcomes)
    note_failed_pools(core)
    return returned


def _due(core: Core, *, everyone: bool) -> list[Due]:
    columns = models.Backend
    query = select(
        columns.persistent_id,
        columns.mgmt_ips,
        columns.mgmt_port,
        columns.state,
        columns.failed_probes,
        columns.last_probe,
        columns.last_heartbeat,
    )
    options = core.conf.reconcile
    alive_since = now_ms() - int(options.heartbeat_max_age * 1000)
    probed_since = now_ms() - int(options.probe_interval_alive * 1000)
    found = []
    with core.db.read() as session:
        for backend_id, ips, port, state, failed, probed, alive in session.execute(query):
            well = state == wire.AVAILABLE and not failed
            if well and alive > alive_since and probed > probed_since and not everyone:
                continue
            found.append(Due(Address(backend_id, tuple(ips), port), well))
    return found


def _rows(session: Session, ids: list[str]) -> list[models.Backend]:
    query = select(models.Backend).where(models.Backend.persistent_id.in_(ids))
    return list(session.scalars(query.options(selectinload(models.Backend.pools))))


def _record(core: Core, outcomes: Outcomes) -> bool:
    """Write down what is new; most of the time that is nothing."""
    with core.db.read() as session:
        rows = _rows(session, list(outcomes))
        new = [row.persistent_id for row in rows if _is_new(core, row, outcomes)]
    _note_stamps(core, outcomes)
    if not new:
        return False

    def write(session: Session) -> bool:
        notes = [_note(core, session, row, outcomes) for row in _rows(session, new)]
        return any(notes)

    return core.db.run(write)


def _note_stamps(core: Core, outcomes: Outcomes) -> None:
    """Compare what nodes remember with our database; tell those that are behind."""
    behind = []
    for backend_id, outcome in outcomes.items():
        info = outcome.value
        if info is None or info.stamp is None or info.persistent_id != backend_id:
            continue
        if restored.note(core, backend_id, info.stamp) == stamps.BEHIND:
            behind.append((backend_id, info.stamp))
    if behind and not core.stamps.doubted:
        with core.db.read() as session:
            rows = {row.persistent_id: row for row in _rows(session, [one for one, _ in behind])}
        restored.catch_up(
            core, [(Address.of(rows[one]), memory) for one, memory in behind if one in rows]
        )


def _answer(row: models.Backend, outcomes: Outcomes) -> NodeInfo | None:
    """What the node itself answered."""
    info = outcomes[row.persistent_id].value
    return info if info is not None and info.persistent_id == row.persistent_id else None


def _old(core: Core, time: int) -> bool:
    return time < now_ms() - int(core.conf.reconcile.refresh_interval * 1000)


def _is_new(core: Core, row: models.Backend, outcomes: Outcomes) -> bool:
    info = _answer(row, outcomes)
    if info is None:
        enough = row.failed_probes >= core.conf.reconcile.probe_failures
        return not enough or row.state == wire.AVAILABLE
    if row.state != wire.AVAILABLE or row.failed_probes or _old(core, row.last_probe):
        return True
    return reports.news(row, info) or reports.look_again(core.conf, row, info) is not None


def _note(core: Core, session: Session, row: models.Backend, outcomes: Outcomes) -> bool:
    info = _answer(row, outcomes)
    if info is None:
        _failed(core, session, row, outcomes[row.persistent_id])
        return False
    returned = row.state != wire.AVAILABLE
    if returned:
        _tell(session, row, "backend.available", "is back", INFO)
        row.next_reconcile = 0
    returned |= _taken_over(core, session, row, info)
    row.state = wire.AVAILABLE
    row.failed_probes = 0
    row.last_probe = now_ms()
    return returned


def _taken_over(core: Core, session: Session, row: models.Backend, info: NodeInfo) -> bool:
    """Record what a node told; gives whether it is to be reconciled at once."""
    again = reports.look_again(core.conf, row, info)
    reports.take_over(session, row, info)
    if again is not None:
        row.next_reconcile = min(row.next_reconcile, again)
    return again == 0


def _failed(core: Core, session: Session, row: models.Backend, outcome: Outcome[NodeInfo]) -> None:
    """One lost probe is no answer at all; only several in a row tell that the node is away."""
    enough = core.conf.reconcile.probe_failures
    row.failed_probes = min(enough, row.failed_probes + 1)
    why = str(outcome.error)
    if outcome.value is not None:
        why = f"another node, {outcome.value.persistent_id}, answers at its address"
        row.failed_probes = enough
    if row.failed_probes < enough or row.state != wire.AVAILABLE:
        return
    row.state = wire.UNAVAILABLE
    expected = row.mode == models.MAINTENANCE
    text = f"is {wire.UNAVAILABLE}{', as expected in maintenance' if expected else ''}: {why}"
    _tell(session, row, "backend.unavailable", text, INFO if expected else WARN)


def _tell(session: Session, row: models.Backend, what: str, text: str, level: str) -> None:
    message = f"backend {row.persistent_id} ({row.name}) {text}"
    events.record(session, what, message, level=level, backend=row.persistent_id)


def heartbeat(core: Core, told: Heartbeat) -> None:
    """Take over what a node tells by itself.

    :raises NotExistsError: when no such backend is registered.
    """
    with core.db.read() as session:
        rows = _rows(session, [told.persistent_id])
        if not rows:
            raise errors.NotExistsError(
                f"no backend {told.persistent_id} is registered",
                node=told.persistent_id,
                way_out="register the node with 'kumo backend add'",
            )
        row = rows[0]
        new = _old(core, row.last_heartbeat) or reports.news(row, told)
        new = new or reports.look_again(core.conf, row, told) is not None
    restored.note(core, told.persistent_id, told.stamp)
    if not new:
        return

    def write(session: Session) -> bool:
        wake = False
        for row in _rows(session, [told.persistent_id]):
            wake = _taken_over(core, session, row, told)
            row.last_heartbeat = now_ms()
        return wake

    if core.db.run(write):
        core.wake.set()
    note_failed_pools(core, told.persistent_id)


def note_failed_pools(core: Core, backend_id: str | None = None) -> None:
    """Record that the replicas on pools that have failed are missing.

    Only the node itself says that a pool has failed; of a node that is away nothing is known. A
    volume at work is left for the next time.

    :param backend_id: only those of this node.
    """
    query = (
        select(models.Replica.uuid, models.Replica.volume_id)
        .join(
            models.Pool,
            and_(
                models.Pool.backend_id == models.Replica.backend_id,
                models.Pool.name == models.Replica.pool,
            ),
        )
        .where(models.Pool.state == STATE_FAILED, models.Replica.absent.is_(False))
    )
    if backend_id is not None:
        query = query.where(models.Pool.backend_id == backend_id)
    with core.db.read() as session:
        found = session.execute(query).all()
    for uuid, volume_id in found:
        try:
            with core.locks.hold(volume_id, timeout=0), core.db.write() as session:
                leg = session.get(models.Replica, uuid)
                if leg is not None:
                    replicas.note_node(session, leg, present=False)
        except errors.BusyError as exc:
            LOG.info("Replica %s on a failed pool is noted later: %s", uuid, exc)


def _probe_duty(core: Core) -> None:
    if probe(core):
        core.wake.set()


DUTIES = (Duty("probe", _probe_duty, lambda core: float(core.conf.reconcile.probe_interval)),)
