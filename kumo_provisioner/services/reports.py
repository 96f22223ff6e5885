# SPDX-License-Identifier: Apache-2.0
"""What a node tells of itself, taken over into the record.

What matters for decisions is written when it changes. Figures that move all the time (fill, use,
times) are written when they have moved far or are older than ``[reconcile] refresh_interval``, so
that a thousand nodes that tell them every few seconds do not keep the database busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oslo_config import cfg
from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from kumo_client.schemas.event import FATAL, INFO, WARN
from kumo_client.schemas.node import STATE_FAILED, STATE_OK, NodeInfo, Ssd
from kumo_client.schemas.node import Pool as NodePool
from kumo_provisioner.core import now_ms
from kumo_provisioner.db import models
from kumo_provisioner.services import capacity, events

TEXT_MAX = 255
POOL_MAX = 128
# Part of a pool, or of what it delivers, by which fill or use has to move to be written at once.
FAR = 0.05
# Figures of a disk that move all the time.
SSD_FIGURES = {"temperature", "wearPercent"}


def _facts(info: NodeInfo) -> dict[str, Any]:
    """Columns of a backend as the node tells them."""
    return {
        "name": info.name[:TEXT_MAX],
        "version": info.version[:64],
        "boot_id": info.boot_id[:64],
        "portals": [portal.wire() for portal in info.portals],
        "total_bytes": sum(pool.total_bytes for pool in info.pools),
        "problems": list(info.problems),
        "abilities": sorted(info.abilities),
    }


def _pool_facts(told: NodePool) -> dict[str, Any]:
    """Columns of a pool that are written when they change."""
    return {
        "state": told.state[:16],
        "spans": told.spans,
        "total_bytes": told.total_bytes,
        "measured_iops": told.max_iops,
        "measured_bw": told.max_bw,
    }


def _pool_figures(told: NodePool) -> dict[str, Any]:
    """Columns of a pool that move all the time."""
    return {
        "used_bytes": told.used_bytes,
        "metadata_percent": told.metadata_percent,
        "iops": told.iops,
        "bw": told.bw,
        "ssds": [ssd.wire() for ssd in told.ssds],
    }


def _lasting(ssds: Sequence[Any]) -> list[dict[str, Any]]:
    return [{key: one[key] for key in one.keys() - SSD_FIGURES} for one in ssds]


def _told_pools(info: NodeInfo) -> dict[str, NodePool]:
    return {pool.name: pool for pool in info.pools if len(pool.name) <= POOL_MAX}


def news(row: models.Backend, info: NodeInfo) -> bool:
    """Whether the node tells something that has to be recorded at once."""
    if any(getattr(row, name) != value for name, value in _facts(info).items()):
        return True
    told = _told_pools(info)
    known = {pool.name for pool in row.pools}
    lost = [pool for pool in row.pools if pool.name not in told and pool.state != STATE_FAILED]
    if told.keys() - known or lost:
        return True
    return any(_pool_news(pool, told[pool.name]) for pool in row.pools if pool.name in told)


def _pool_news(row: models.Pool, told: NodePool) -> bool:
    if any(getattr(row, name) != value for name, value in _pool_facts(told).items()):
        return True
    moved = [(told.used_bytes - row.used_bytes, row.total_bytes)]
    moved += [(told.iops - row.iops, row.max_iops), (told.bw - row.bw, row.max_bw)]
    if any(of and abs(by) > FAR * of for by, of in moved):
        return True
    return _lasting(row.ssds) != _lasting([ssd.wire() for ssd in told.ssds])


def look_again(conf: cfg.ConfigOpts, row: models.Backend, info: NodeInfo) -> int | None:
    """When (ms) what the node holds is to be compared with the record; None for as planned.

    At once after a reboot. A change of what it holds is mostly our own doing, so it is looked at
    in the usual interval and not in the long one of nodes where nothing happens.
    """
    if row.boot_id and row.boot_id != info.boot_id[:64]:
        return 0
    soon = now_ms() + int(conf.reconcile.interval * 1000)
    if info.generation != row.node_generation and row.next_reconcile > soon:
        return soon
    return None


def take_over(session: Session, row: models.Backend, info: NodeInfo) -> None:
    """Record what a node tells."""
    before = list(row.problems or [])
    for name, value in _facts(info).items():
        setattr(row, name, value)
    row.used_bytes = sum(pool.used_bytes for pool in info.pools)
    row.seen_generation = info.generation
    _tell_problems(session, row, before, info.problems)
    _pools(session, row, info)


def _tell_problems(
    session: Session, row: models.Backend, before: Sequence[str], now: Sequence[str]
) -> None:
    for text in now:
        if text not in before:
            _event(session, row, "backend.problem", text, WARN)
    for text in before:
        if text not in now:
            _event(session, row, "backend.problem", f"no longer: {text}", INFO)


def _event(
    session: Session, row: models.Backend, what: str, text: str, level: str, **details: Any
) -> None:
    message = f"backend {row.persistent_id} ({row.name}): {text}"
    events.record(session, what, message, level=level, backend=row.persistent_id, **details)


def _pools(session: Session, row: models.Backend, info: NodeInfo) -> None:
    known = {pool.name: pool for pool in row.pools}
    told = _told_pools(info)
    _rename(session, row, known, told)
    for name, pool in told.items():
        if name not in known:
            known[name] = models.Pool(name=name, state=STATE_OK)
            row.pools.append(known[name])
        _pool(session, row, known[name], pool)
    for name in known.keys() - told.keys():
        if not _forgotten(session, row, name):
            _state(session, row, known[name], STATE_FAILED, "the node shows it no more")


def _pool(session: Session, backend: models.Backend, row: models.Pool, told: NodePool) -> None:
    _state(session, backend, row, told.state[:16], _bad_disks(told.ssds))
    for name, value in (_pool_facts(told) | _pool_figures(told)).items():
        setattr(row, name, value)
    row.used_at = now_ms()


def _bad_disks(ssds: Sequence[Ssd]) -> str:
    bad = [f"{one.path} is {one.state}" for one in ssds if one.state != STATE_OK]
    return ", ".join(bad)


def _forgotten(session: Session, row: models.Backend, name: str) -> bool:
    """Forget a pool that is not there any more, unless something is charged to it."""
    empty = delete(models.Pool).where(
        models.Pool.backend_id == row.persistent_id,
        models.Pool.name == name,
        models.Pool.charged_bytes == 0,
        models.Pool.replicas == 0,
    )
    session.flush()
    gone = bool(session.connection().execute(empty).rowcount)
    if gone:
        session.expire(row, ["pools"])
    return gone


def _state(
    session: Session, backend: models.Backend, row: models.Pool, state: str, why: str
) -> None:
    if row.state == state:
        return
    text = f"pool {row.name} is {state}, was {row.state}{f': {why}' if why else ''}"
    level = {STATE_OK: INFO, STATE_FAILED: FATAL}.get(state, WARN)
    _event(session, backend, "pool.state", text, level, pool=row.name, state=state, was=row.state)
    if STATE_FAILED in (state, row.state):
        # What lies on it is gone, or is there again.
        backend.next_reconcile = 0
    row.state = state


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
    known[new] = models.Pool(name=new, state=STATE_OK)
    row.pools.append(known[new])
    session.flush()
    capacity.recount(session, row.persistent_id)
    session.refresh(known[new])
