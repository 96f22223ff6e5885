# SPDX-License-Identifier: Apache-2.0
"""What a node tells of itself, taken over into the record."""

from __future__ import annotations

from sqlalchemy import update
from sqlalchemy.orm import Session

from kumo_client.schemas import backend as wire
from kumo_client.schemas.node import STATE_FAILED, NodeInfo
from kumo_client.schemas.node import Pool as NodePool
from kumo_provisioner.core import now_ms
from kumo_provisioner.db import models
from kumo_provisioner.services import capacity

TEXT_MAX = 255
POOL_MAX = 128


def take_over(session: Session, row: models.Backend, info: NodeInfo) -> None:
    """Record an answer of a node."""
    row.name = info.name[:TEXT_MAX]
    row.version = info.version[:64]
    row.boot_id = info.boot_id[:64]
    row.portals = [portal.wire() for portal in info.portals]
    row.total_bytes = sum(pool.total_bytes for pool in info.pools)
    row.used_bytes = sum(pool.used_bytes for pool in info.pools)
    row.state = wire.AVAILABLE
    row.failed_probes = 0
    row.last_probe = now_ms()
    row.seen_generation = info.generation
    row.problems = list(info.problems)
    _pools(session, row, info)


def _pools(session: Session, row: models.Backend, info: NodeInfo) -> None:
    known = {pool.name: pool for pool in row.pools}
    told = {pool.name: pool for pool in info.pools if len(pool.name) <= POOL_MAX}
    _rename(session, row, known, told)
    for name, pool in told.items():
        if name not in known:
            known[name] = models.Pool(name=name)
            row.pools.append(known[name])
        _pool(known[name], pool)
    for name in known.keys() - told.keys():
        if known[name].charged_bytes or known[name].replicas:
            known[name].state = STATE_FAILED
        else:
            row.pools.remove(known[name])


def _pool(row: models.Pool, told: NodePool) -> None:
    row.state = told.state[:16]
    row.spans = told.spans
    row.total_bytes = told.total_bytes
    row.used_bytes = told.used_bytes
    row.metadata_percent = told.metadata_percent
    row.measured_iops = told.max_iops
    row.measured_bw = told.max_bw
    row.iops = told.iops
    row.bw = told.bw
    row.used_at = now_ms()
    row.ssds = [ssd.wire() for ssd in told.ssds]


def _rename(
    session: Session,
    row: models.Backend,
    known: dict[str, models.Pool],
    told: dict[str, NodePool],
) -> None:
    """Give the pool of a record from before pools had names the name that the node gives it.

    Such a record has one pool of an assumed name, never told by a node (``used_at`` is 0).
    """
    if len(known) != 1 or len(told) != 1 or known.keys() == told.keys():
        return
    (old,), (new,) = known.values(), told
    if old.used_at:
        return
    del known[old.name]
    tables = (models.Replica, models.SnapshotPart, models.Removal)
    for table in tables:
        mine = update(table).where(table.backend_id == row.persistent_id)
        session.execute(mine.values(pool=new))
    row.pools.remove(old)
    session.flush()
    known[new] = models.Pool(name=new, state=old.state)
    row.pools.append(known[new])
    session.flush()
    capacity.recount(session, row.persistent_id)
    session.refresh(known[new])
