# SPDX-License-Identifier: Apache-2.0
"""Which nodes are looked at when, and one look at a node.

A node is looked at when somebody asked for it (``next_reconcile`` is 0), ``interval`` after it told
that its own record has changed since the last look, and else every ``full_interval``. Each look is
taken under the lease of the node, so instances share them out.
"""

from __future__ import annotations

import contextvars
import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from oslo_log import log
from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.api.node import Node
from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.node import Inventory
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address
from kumo_provisioner.reconcile import record, settle
from kumo_provisioner.reconcile.act import act
from kumo_provisioner.reconcile.counts import Counts
from kumo_provisioner.reconcile.plan import Action, NoteState, Report, Wanted, objects, plan
from kumo_provisioner.services import capacity, due, garbage, network, probing, removals, restored

LOG = log.getLogger(__name__)
PARALLEL_NODES = 4
NODES_AT_ONCE = 64
# Of the time of one thread, the part that looks which nobody asked for may take.
SHARE_OF_TIME = 0.25


def run(core: Core) -> Counts:
    """Look at everything now, and finish or undo what was cut off."""
    begun, counts = time.monotonic(), Counts()
    # The looks of our own background work are short.
    patience = core.locks.timeout
    settle.undo_unfinished(core, counts, timeout=patience)
    probing.probe(core, everyone=True)
    with core.db.read() as session:
        ids = session.scalars(select(models.Backend.persistent_id).where(*_reachable())).all()
    with ThreadPoolExecutor(PARALLEL_NODES, "reconcile-node") as pool:
        futures = [
            pool.submit(contextvars.copy_context().run, _look, core, one, patience) for one in ids
        ]
        for future in futures:
            counts.add(future.result())
    settle.finish_unsettled(core, counts, timeout=patience)
    counts.waiting += _pending(core)
    removals.forget_old(core)
    _tell(core, counts, begun)
    return counts


def tick(core: Core, stopped: Callable[[float], bool] = lambda _seconds: False) -> Counts:
    """Look at the nodes that are due, and finish or undo what was cut off.

    :param stopped: waits for so many seconds, and tells whether to end.
    """
    begun, counts = time.monotonic(), Counts()
    _ask_for_doubtful(core)
    try:
        with core.locks.hold("duty:settle", timeout=0):
            settle.undo_unfinished(
                core, counts, min_age_ms=int(core.conf.reconcile.interval * 1000)
            )
            settle.finish_unsettled(core, counts)
    except errors.BusyError as exc:
        LOG.debug("Another instance settles: %s", exc)
    _look_at_due(core, counts, stopped)
    removals.forget_old(core)
    _tell(core, counts, begun)
    return counts


def _tell(core: Core, counts: Counts, begun: float) -> None:
    core.metrics.reconciled(dataclasses.asdict(counts), time.monotonic() - begun)
    if counts.any():
        LOG.info("Reconciled: %s", counts.wire())


def _ask_for_doubtful(core: Core) -> None:
    """Have those nodes looked at of which nobody knows what they did."""
    doubtful = core.nodes.doubtful
    ids = {doubtful.pop() for _ in range(len(doubtful))}
    try:
        due.ask(core, ids)
    except errors.KumoError:
        doubtful |= ids
        raise


def _pending(core: Core) -> int:
    with core.db.read() as session:
        query = select(func.count()).select_from(models.Removal)
        return int(session.scalar(query.where(models.Removal.done.is_(None))) or 0)


# -- due ----------------------------------------------------------------------------------------


def _reachable() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return models.Backend.state == AVAILABLE, models.Backend.failed_probes == 0


def _due(session: Session) -> list[tuple[str, int]]:
    row = models.Backend
    query = (
        select(row.persistent_id, row.next_reconcile)
        .where(*_reachable(), row.next_reconcile <= now_ms())
        .order_by(row.next_reconcile)
        .limit(NODES_AT_ONCE)
    )
    return [(backend_id, asked) for backend_id, asked in session.execute(query)]


def _look_at_due(core: Core, counts: Counts, stopped: Callable[[float], bool]) -> None:
    looked: set[str] = set()
    while True:
        with core.db.read() as session:
            found = _due(session)
        todo = [one for one in found if one[0] not in looked]
        if not todo:
            return
        for backend_id, asked in todo:
            looked.add(backend_id)
            begun = time.monotonic()
            counts.add(_look(core, backend_id, 0))
            spent = time.monotonic() - begun
            if stopped(0 if asked <= 0 else spent * (1 / SHARE_OF_TIME - 1)):
                return


# -- one node -----------------------------------------------------------------------------------


def _look(core: Core, backend_id: str, timeout: float) -> Counts:
    """Compare one node with the record and settle the differences."""
    counts = Counts()
    try:
        with core.locks.hold(f"backend:{backend_id}", timeout=timeout):
            claimed = _claim(core, backend_id)
            inventory = None if claimed is None else _observe(core, claimed[0])
            if claimed is not None and inventory is not None:
                _compare(core, claimed[0], claimed[1], inventory, counts)
    except errors.BusyError as exc:
        LOG.debug("Backend %s is left to others: %s", backend_id, exc)
        counts.skipped += 1
    return counts


def _claim(core: Core, backend_id: str) -> tuple[Address, int] | None:
    """Where the node is, and a mark that is gone when somebody asks for another look."""
    with core.db.write() as session:
        row = session.get(models.Backend, backend_id)
        if row is None:
            return None
        # If this look fails, the next one is not at once.
        row.next_reconcile = now_ms() + int(core.conf.reconcile.interval * 1000)
        return Address.of(row), row.next_reconcile


def _observe(core: Core, address: Address) -> Inventory | None:
    def ask(node: Node) -> Inventory:
        return node.inventory()

    outcome = core.nodes.call((address, ask))
    if outcome.value is None:
        LOG.warning("No inventory of backend %s: %s", address, outcome.error)
    elif outcome.value.persistent_id != address.backend_id:
        LOG.error("At the address of backend %s is %s", address, outcome.value.persistent_id)
        return None
    return outcome.value


def _compare(core: Core, address: Address, mark: int, inventory: Inventory, counts: Counts) -> None:
    backend_id = address.backend_id
    mine = Counts()
    restored.note(core, backend_id, inventory.stamp)
    looking_only = restored.looking_only(core)
    with core.db.read() as session:
        wanted = record.read(session, backend_id, inventory)
        doubt = network.suspected(session)
    actions = [one for one in plan(wanted, inventory) if not (doubt and _is_consequence(one))]
    found = [one for one in actions if isinstance(one, Report)]
    mine.unknown += len(found)
    if looking_only:
        mine.waiting += len(actions) - len(found)
        doubt = True
    else:
        act(core, actions, mine)
    gone = core.db.run(lambda session: _finish(core, session, backend_id, inventory, found, doubt))
    mine.removed += len(gone) - removals.carry_out(core, gone)
    counts.add(mine)
    more = len(wanted.pending) >= record.REMOVALS_AT_ONCE
    _schedule(core, backend_id, mark, inventory, mine, wanted, at_once=more)


def _is_consequence(action: Action) -> bool:
    """Nothing is concluded from what is missing while the network is suspected."""
    return isinstance(action, NoteState)


def _finish(
    core: Core,
    session: Session,
    backend_id: str,
    inventory: Inventory,
    found: list[Report],
    doubt: bool,
) -> list[str]:
    capacity.recount(session, backend_id)
    garbage.note(session, backend_id, [(one.kind, one.uuid, one.bytes) for one in found])
    if doubt:
        return []
    used = {one.uuid for one in inventory.replicas if one.exports}
    return garbage.expire(core, session, backend_id, len(objects(inventory)), used)


def _schedule(
    core: Core,
    backend_id: str,
    mark: int,
    inventory: Inventory,
    counts: Counts,
    wanted: Wanted,
    *,
    at_once: bool,
) -> None:
    """When to look again; not changed when somebody has asked for it meanwhile."""
    conf = core.conf.reconcile
    unfinished = counts.waiting or counts.skipped or counts.unknown
    unsettled = any(not one.settled for one in wanted.replicas.values())
    pending = len(wanted.pending) > counts.removed
    told_nothing = inventory.generation == 0
    again = conf.interval
    if not (unfinished or unsettled or pending or told_nothing):
        again = conf.full_interval
    values = {
        "next_reconcile": 0 if at_once and counts.removed else now_ms() + int(again * 1000),
        "node_generation": inventory.generation,
    }
    with core.db.write() as session:
        session.execute(
            update(models.Backend)
            .where(
                models.Backend.persistent_id == backend_id, models.Backend.next_reconcile == mark
            )
            .values(values),
            execution_options={"synchronize_session": False},
        )
