# SPDX-License-Identifier: Apache-2.0
"""Whether it is the network: when a third of the nodes vanish at once, nothing is concluded."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.event import FATAL, INFO
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.duties import Duty
from kumo_provisioner.services import events

# In a smaller fleet one node is a third already.
SMALLEST_FLEET = 4
COUNTER = "network.suspected"


def suspected(session: Session) -> bool:
    """Whether so many nodes are away that it is the network rather than the nodes.

    Nodes in maintenance do not count.
    """
    query = (
        select(models.Backend.state, func.count())
        .where(models.Backend.mode != models.MAINTENANCE)
        .group_by(models.Backend.state)
    )
    counts: dict[str, int] = {state: count for state, count in session.execute(query)}
    total = sum(counts.values())
    away = total - counts.get(AVAILABLE, 0)
    return total >= SMALLEST_FLEET and 3 * away >= total


def watch(core: Core) -> None:
    """Record an event when it begins and when it ends."""
    with core.db.read() as session:
        now, row = suspected(session), session.get(models.Counter, COUNTER)
        if now is bool(row and row.value % 2):
            return
    with core.db.write() as session:
        row = session.get(models.Counter, COUNTER)
        if row is None:
            row = models.Counter(name=COUNTER, value=0)
            session.add(row)
        # Odd while it is suspected.
        row.value += 1
        if now:
            what, level = "suspected", FATAL
            text = "a third of the storage nodes or more are away: it is the network; nothing is "
            text += "replaced or removed until they are back"
        else:
            what, level, text = "restored", INFO, "most storage nodes can be asked again"
        events.record(session, f"network.{what}", text, level=level)


DUTIES = (Duty("network", watch, lambda core: float(core.conf.reconcile.probe_interval)),)
