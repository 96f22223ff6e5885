# SPDX-License-Identifier: Apache-2.0
"""What nodes have promised: room, and guaranteed operations and bandwidth.

The counters of ``pools`` and ``backends`` are written here alone, each by one UPDATE that also
checks the limit. So two instances that place at the same time can never promise more than there
is: the slower one changes no row, and that is a lost race (:class:`LostRaceError`), after which the
caller looks at the fleet afresh (:func:`retried`). The row of the node is updated before that of
its pool, and nodes in the order of their ids, so that transactions do not wait for each other in a
circle.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from oslo_config import cfg
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Table,
    Update,
    and_,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.event import WARN
from kumo_client.schemas.node import STATE_OK, Limits
from kumo_client.schemas.volume import StorageClass
from kumo_provisioner import placement
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.services import events

T = TypeVar("T")
Row = models.Replica | models.SnapshotPart
CAP_MAX = 1 << 40

_POOLS = cast(Table, models.Pool.__table__)
_BACKENDS = cast(Table, models.Backend.__table__)
MAX_IOPS = case(
    (_POOLS.c.declared_iops > 0, _POOLS.c.declared_iops), else_=_POOLS.c.measured_iops
).label("max_iops")
MAX_BW = case((_POOLS.c.declared_bw > 0, _POOLS.c.declared_bw), else_=_POOLS.c.measured_bw).label(
    "max_bw"
)


class LostRaceError(errors.NoSpaceError):
    """What was free when the fleet was looked at has been taken by somebody else since."""


# -- what things cost ---------------------------------------------------------------------------


def replica_charge(conf: cfg.ConfigOpts, size: int, provisioning_type: str) -> int:
    """Bytes that a replica of ``size`` bytes is charged with."""
    return placement.charge(size, provisioning_type, conf.placement.thin_oversubscription)


def snapshot_charge(conf: cfg.ConfigOpts, replica_charged: int, percentage: int) -> int:
    """Bytes that the part of a snapshot is charged with."""
    percent = max(percentage, conf.placement.snapshot_reserve_percent)
    return math.ceil(replica_charged * percent / 100)


def guarantee(asked: StorageClass, gib: int) -> tuple[int, int]:
    """Operations per second and KB/s that each replica of a volume has to be able to deliver.

    Every leg takes all writes, and may have to take all reads.
    """
    return asked.desired_iops_per_gb * gib, asked.desired_bw_per_gb * gib


def limits(asked: StorageClass, gib: int) -> Limits:
    """Caps of each replica of a volume."""
    return Limits(
        max_iops=min(CAP_MAX, asked.max_iops_per_gb * gib),
        max_bw=min(CAP_MAX, asked.max_bw_per_gb * gib),
    )


# -- the counters -------------------------------------------------------------------------------


def take(session: Session, row: Row) -> None:
    """Charge the pool of a replica, or part of a snapshot, that is about to be recorded.

    ``backend_id``, ``pool``, ``reserved_bytes`` and, of a replica, ``sold_iops`` and ``sold_bw``
    of the row are set.

    :raises LostRaceError: when there is not enough any more; the transaction is to be given up.
    """
    iops, bw = _sold(row)
    _move(session, row, row.reserved_bytes, iops, bw, replicas=_is_replica(row))


def take_all(session: Session, rows: Iterable[Row]) -> None:
    """:func:`take` for all parts of an object."""
    for row in sorted(rows, key=lambda one: one.backend_id):
        take(session, row)


def change(
    session: Session,
    row: Row,
    *,
    reserved_bytes: int | None = None,
    sold_iops: int | None = None,
    sold_bw: int | None = None,
) -> None:
    """Charge a recorded row with something else, and write that to the row.

    :raises LostRaceError: when there is not enough for more; the transaction is to be given up.
    """
    iops, bw = _sold(row)
    size = row.reserved_bytes if reserved_bytes is None else reserved_bytes
    wanted_iops = iops if sold_iops is None else sold_iops
    wanted_bw = bw if sold_bw is None else sold_bw
    delta = (size - row.reserved_bytes, wanted_iops - iops, wanted_bw - bw)
    if any(delta):
        _move(session, row, *delta)
    row.reserved_bytes = size
    if isinstance(row, models.Replica):
        row.sold_iops, row.sold_bw = wanted_iops, wanted_bw


def give_back(session: Session, row: Row | models.Removal) -> None:
    """Take back all that a row which goes, or has gone, is charged with."""
    iops, bw = _sold(row)
    _move(session, row, -row.reserved_bytes, -iops, -bw, replicas=-_is_replica(row))


def retire(session: Session, kind: str, row: Row) -> models.Removal:
    """The removal that takes the place of a row: it keeps the bytes, which are occupied until the
    node has confirmed, and gives the guarantees back."""
    iops, bw = _sold(row)
    if iops or bw or _is_replica(row):
        _move(session, row, 0, -iops, -bw, replicas=-_is_replica(row))
    return models.Removal(
        uuid=row.uuid,
        kind=kind,
        backend_id=row.backend_id,
        pool=row.pool,
        reserved_bytes=row.reserved_bytes,
        since=now_ms(),
    )


def _is_replica(row: Row | models.Removal) -> int:
    return int(isinstance(row, models.Replica))


def _sold(row: Row | models.Removal) -> tuple[int, int]:
    if isinstance(row, models.SnapshotPart):
        return 0, 0
    return row.sold_iops or 0, row.sold_bw or 0


def _move(
    session: Session,
    row: Row | models.Removal,
    size: int,
    iops: int,
    bw: int,
    *,
    replicas: int = 0,
) -> None:
    """Add to the counters of a node and of a pool; only an increase has a limit."""
    # Core statements: a flush must not be caused before the caller has completed its rows.
    connection = session.connection()
    values = {
        "of_node": row.backend_id,
        "of_pool": row.pool,
        "more_bytes": size,
        "more_iops": iops,
        "more_bw": bw,
        "more_replicas": replicas,
    }
    found = connection.execute(_charge_node(iops > 0, bw > 0), values).rowcount
    found += connection.execute(_charge_pool(size > 0, iops > 0, bw > 0), values).rowcount
    # What is given back may belong to a node that was removed since.
    if found != 2 and max(size, iops, bw, replicas) > 0:
        raise LostRaceError(
            f"pool {row.pool} of node {row.backend_id} has been taken by others meanwhile",
            node=row.backend_id,
            way_out="repeat the call",
        )


def _more(name: str) -> ColumnElement[int]:
    return bindparam(f"more_{name}", type_=BigInteger())


# Each made once: making a statement takes longer than running it.
@functools.cache
def _charge_node(iops: bool, bw: bool) -> Update:
    """:param iops: whether there has to be room for more; ``bw`` likewise."""
    table = _BACKENDS.c
    limits = [
        or_(limit == 0, sold + more <= limit)
        for asked, sold, more, limit in (
            (iops, table.sold_iops, _more("iops"), table.max_iops),
            (bw, table.sold_bw, _more("bw"), table.max_bw),
        )
        if asked
    ]
    return (
        update(_BACKENDS)
        .where(table.persistent_id == bindparam("of_node"), *limits)
        .values(
            generation=table.generation + 1,
            sold_iops=table.sold_iops + _more("iops"),
            sold_bw=table.sold_bw + _more("bw"),
        )
    )


@functools.cache
def _charge_pool(size: bool, iops: bool, bw: bool) -> Update:
    """:param size: whether there has to be room for more; ``iops`` and ``bw`` likewise."""
    table = _POOLS.c
    limits = [
        sold + more <= limit
        for asked, sold, more, limit in (
            (size, table.charged_bytes, _more("bytes"), table.total_bytes),
            (iops, table.sold_iops, _more("iops"), MAX_IOPS.element),
            (bw, table.sold_bw, _more("bw"), MAX_BW.element),
        )
        if asked
    ]
    which = and_(table.backend_id == bindparam("of_node"), table.name == bindparam("of_pool"))
    return (
        update(_POOLS)
        .where(which, *limits)
        .values(
            charged_bytes=table.charged_bytes + _more("bytes"),
            sold_iops=table.sold_iops + _more("iops"),
            sold_bw=table.sold_bw + _more("bw"),
            replicas=table.replicas + _more("replicas"),
        )
    )


def retried(core: Core, function: Callable[[Session], T]) -> T:
    """Run a transaction that takes room, and again when a race was lost.

    :param function: reads the fleet afresh each time.
    :raises NoSpaceError: when the race was lost too often.
    """
    attempts = core.conf.placement.attempts
    for _attempt in range(attempts):
        try:
            return core.db.run(function)
        except LostRaceError as exc:
            lost = exc
    raise errors.NoSpaceError(
        f"{attempts} attempts in a row met others that took the same room: {lost.message}",
        node=lost.node,
        way_out="repeat the call",
    ) from lost


# -- sums ---------------------------------------------------------------------------------------


def totals(session: Session) -> tuple[int, int]:
    """Bytes of all connected nodes together, and bytes of them that no new volume can have."""
    free = case(
        (_POOLS.c.charged_bytes > _POOLS.c.total_bytes, 0),
        else_=_POOLS.c.total_bytes - _POOLS.c.charged_bytes,
    )
    usable = and_(
        _POOLS.c.state == STATE_OK, _BACKENDS.c.mode == "", _BACKENDS.c.cordoned.is_(False)
    )
    query = (
        select(func.sum(_POOLS.c.total_bytes), func.sum(case((usable, free), else_=0)))
        .select_from(_POOLS.join(_BACKENDS))
        .where(_BACKENDS.c.state == AVAILABLE)
    )
    total, left = session.execute(query).one()
    return int(total or 0), int(total or 0) - int(left or 0)


def counted(session: Session, backend_id: str) -> dict[str, list[int]]:
    """What the rows of one node add up to: bytes, IOPS, KB/s and replicas by pool.

    One statement, so one moment: what is retired between two of them would be counted twice.
    """
    nothing = literal(0)
    sources: list[tuple[Any, tuple[Any, Any, Any]]] = [
        (models.Replica, (models.Replica.sold_iops, models.Replica.sold_bw, literal(1))),
        (models.SnapshotPart, (nothing, nothing, nothing)),
        (models.Removal, (nothing, nothing, nothing)),
    ]
    parts = []
    for table, (iops, bw, replicas) in sources:
        sums = [func.sum(one) for one in (table.reserved_bytes, iops, bw, replicas)]
        query = select(table.pool, *sums).where(table.backend_id == backend_id)
        if table is models.Removal:
            query = query.where(models.Removal.done.is_(None))
        parts.append(query.group_by(table.pool))
    found: dict[str, list[int]] = {}
    for pool, *values in session.execute(union_all(*parts)):
        known = found.setdefault(pool, [0, 0, 0, 0])
        for place, value in enumerate(values):
            known[place] += int(value or 0)
    return found


def recount(session: Session, backend_id: str) -> bool:
    """Compare the counters of one node with its rows and correct them.

    A pool that rows name and that has no row itself gets one in state ``failed``.

    :returns: whether they differed, which is a defect, logged and recorded as an event.
    """
    # Whoever charges the node updates this row first, so nothing moves between count and write.
    bump = update(_BACKENDS).where(_BACKENDS.c.persistent_id == backend_id)
    bump = bump.values(generation=_BACKENDS.c.generation)
    if not session.connection().execute(bump).rowcount:
        return False
    session.flush()
    sums = counted(session, backend_id)
    columns = (_POOLS.c.charged_bytes, _POOLS.c.sold_iops, _POOLS.c.sold_bw, _POOLS.c.replicas)
    query = select(_POOLS.c.name, *columns).where(_POOLS.c.backend_id == backend_id)
    kept = {name: values for name, *values in session.connection().execute(query)}
    wrong = {}
    for name in sorted({*sums, *kept}):
        values = sums.get(name, [0, 0, 0, 0])
        if name not in kept:
            session.add(models.Pool(backend_id=backend_id, name=name, state="failed"))
            session.flush()
        if kept.get(name) != values:
            wrong[name] = {"kept": kept.get(name), "counted": values}
            _write_sums(session, backend_id, name, values)
    _write_node_sums(session, backend_id, sums)
    if wrong:
        events.record(
            session,
            "capacity.corrected",
            f"the counters of backend {backend_id} did not agree with its rows: {wrong}",
            level=WARN,
            backend=backend_id,
            pools=wrong,
        )
    return bool(wrong)


def _write_sums(session: Session, backend_id: str, name: str, values: list[int]) -> None:
    names = ("charged_bytes", "sold_iops", "sold_bw", "replicas")
    which = and_(_POOLS.c.backend_id == backend_id, _POOLS.c.name == name)
    session.connection().execute(
        update(_POOLS).where(which).values(dict(zip(names, values, strict=True)))
    )


def _write_node_sums(session: Session, backend_id: str, sums: dict[str, list[int]]) -> None:
    values = {
        "sold_iops": sum(value[1] for value in sums.values()),
        "sold_bw": sum(value[2] for value in sums.values()),
    }
    which = _BACKENDS.c.persistent_id == backend_id
    session.connection().execute(update(_BACKENDS).where(which).values(values))
