# SPDX-License-Identifier: Apache-2.0
"""What is charged to each node, computed from the rows."""

from __future__ import annotations

import math
from collections import Counter

from oslo_config import cfg
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kumo_client.schemas.backend import AVAILABLE
from kumo_provisioner import placement
from kumo_provisioner.db import models


def charged(session: Session) -> Counter[str]:
    """Bytes charged to each backend: replicas, parts of snapshots, and what has yet to go."""
    total: Counter[str] = Counter()
    for table in (models.Replica, models.SnapshotPart, models.Removal):
        query = select(table.backend_id, func.sum(table.reserved_bytes)).group_by(table.backend_id)
        if table is models.Removal:
            query = query.where(models.Removal.done.is_(None))
        for backend_id, size in session.execute(query):
            total[backend_id] += int(size or 0)
    return total


def candidates(session: Session) -> list[placement.Candidate]:
    """All backends as placement sees them."""
    used = charged(session)
    return [candidate(row, used) for row in session.scalars(select(models.Backend))]


def candidate(row: models.Backend, used: Counter[str]) -> placement.Candidate:
    return placement.Candidate(
        backend_id=row.persistent_id,
        state=row.state,
        total=row.total_bytes,
        charged=used[row.persistent_id],
        name=row.name,
        rack=row.rack,
        zone=row.zone,
        region=row.region,
    )


def replica_charge(conf: cfg.ConfigOpts, size: int, provisioning_type: str) -> int:
    """Bytes that a replica of ``size`` bytes is charged with."""
    return placement.charge(size, provisioning_type, conf.placement.thin_oversubscription)


def snapshot_charge(conf: cfg.ConfigOpts, replica_charged: int, percentage: int) -> int:
    """Bytes that the part of a snapshot is charged with."""
    percent = max(percentage, conf.placement.snapshot_reserve_percent)
    return math.ceil(replica_charged * percent / 100)


def totals(session: Session) -> tuple[int, int]:
    """Bytes of all connected nodes together, and bytes charged to them."""
    used = charged(session)
    rows = session.scalars(select(models.Backend).where(models.Backend.state == AVAILABLE)).all()
    return sum(row.total_bytes for row in rows), sum(used[row.persistent_id] for row in rows)
