# SPDX-License-Identifier: Apache-2.0
"""The few nodes among thousands that placement has to look at closely.

Reading all pools of a large fleet costs more than all the rest of a placement. So the database
drops what a filter of placement is sure to refuse, and sorts by what placement weighs; the nodes of
the first pools are then read whole and given to placement, which decides. Dropping too little here
only costs time; a test compares with placement over the whole fleet that it is never too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    Table,
    bindparam,
    case,
    or_,
    select,
    type_coerce,
)
from sqlalchemy.orm import Session

from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.node import STATE_OK
from kumo_provisioner.db import models
from kumo_provisioner.placement import Ask, Candidate, Rules
from kumo_provisioner.services import capacity

POOLS = 32
_POOL_TABLE = cast(Table, models.Pool.__table__)
_NODE_TABLE = cast(Table, models.Backend.__table__)
_POOL, _NODE = _POOL_TABLE.c, _NODE_TABLE.c
# In the order of the fields of Candidate. Flags as numbers: converting them takes as long as the
# rest of a row.
_COLUMNS = (
    _NODE.persistent_id,
    _POOL.name,
    _NODE.name,
    _NODE.state,
    _NODE.mode,
    type_coerce(_NODE.cordoned, Integer),
    _NODE.rack,
    _NODE.zone,
    _NODE.region,
    _NODE.max_iops,
    _NODE.max_bw,
    _NODE.sold_iops,
    _NODE.sold_bw,
    _POOL.state,
    type_coerce(_POOL.spans, Integer),
    _POOL.total_bytes,
    _POOL.used_bytes,
    _POOL.charged_bytes,
    capacity.MAX_IOPS,
    capacity.MAX_BW,
    _POOL.sold_iops,
    _POOL.sold_bw,
    _POOL.iops,
    _POOL.bw,
    _POOL.used_at,
)
_FLEET = _POOL_TABLE.join(_NODE_TABLE)
_ALL = select(*_COLUMNS).select_from(_FLEET)


def candidates(session: Session, backend_ids: Sequence[str] | None = None) -> list[Candidate]:
    """All pools of all nodes, or of some, as placement sees them."""
    query = _ALL if backend_ids is None else _ALL.where(_NODE.persistent_id.in_(backend_ids))
    return list(map(Candidate._make, session.connection().execute(query)))


def _number(name: str) -> ColumnElement[float]:
    # A bound number is a double on all databases; a literal would be a decimal on some.
    return bindparam(name, type_=Float())


def _whole(name: str) -> ColumnElement[int]:
    return bindparam(name, type_=BigInteger())


def _part(some: Any, of: Any) -> ColumnElement[float]:
    return case((of > 0, _number("one") * some / of), else_=_number("none"))


def _larger(one: ColumnElement[float], other: ColumnElement[float]) -> ColumnElement[float]:
    return case((one > other, one), else_=other)


_MAX_IOPS, _MAX_BW = capacity.MAX_IOPS.element, capacity.MAX_BW.element
_SOLD = _larger(
    _part(_POOL.sold_iops + _whole("iops"), _MAX_IOPS),
    _part(_POOL.sold_bw + _whole("bw"), _MAX_BW),
)
_USE = case(
    (
        _POOL.used_at >= _whole("fresh_since"),
        _larger(_part(_POOL.iops, _MAX_IOPS), _part(_POOL.bw, _MAX_BW)),
    ),
    else_=_number("none"),
)
# What kumo_provisioner.placement.weights.weight computes.
_WEIGHT = (
    _number("by_capacity")
    * (_POOL.charged_bytes + _whole("charge"))
    / case((_POOL.total_bytes > 0, _POOL.total_bytes), else_=1)
    + _number("by_guarantees") * _SOLD
    + _number("by_use") * _USE
).label("weight")
_FIRST = (
    select(_POOL.backend_id, _WEIGHT)
    .select_from(_FLEET)
    .where(
        _NODE.state == AVAILABLE,
        _NODE.mode == "",
        _NODE.cordoned.is_(False),
        _POOL.state == STATE_OK,
        or_(_whole("charge") <= 0, _POOL.charged_bytes + _whole("charge") <= _POOL.total_bytes),
        _POOL.used_bytes <= _number("max_fill") * _POOL.total_bytes,
    )
    .order_by(_WEIGHT, _POOL.backend_id, _POOL.name)
    .limit(POOLS)
)


def best(session: Session, ask: Ask, rules: Rules) -> tuple[list[Candidate], float | None]:
    """The nodes whose pools are the best that this request could get.

    :returns: all pools of these nodes, and the weight from which on there may be others; None
        when there are none.
    """
    query = _FIRST.where(*_narrowed(ask))
    values = {
        "one": 1.0,
        "none": 0.0,
        "charge": ask.charge,
        "iops": ask.iops,
        "bw": ask.bw,
        "fresh_since": rules.fresh_since,
        "max_fill": rules.max_fill,
        "by_capacity": rules.capacity,
        "by_guarantees": rules.guarantees,
        "by_use": rules.use,
    }
    rows = session.connection().execute(query, values).all()
    if not rows:
        return [], None
    found = candidates(session, list({backend_id for backend_id, _ in rows}))
    return found, float(rows[-1][1]) if len(rows) == POOLS else None


def _narrowed(ask: Ask) -> list[ColumnElement[bool]]:
    """What only some requests ask for."""
    checks: list[ColumnElement[bool]] = []
    for column, asked in (
        (_NODE.zone, ask.zones),
        (_NODE.rack, ask.racks),
        (_NODE.region, ask.regions),
    ):
        wanted = [value for value in asked if value]
        if wanted:
            checks.append(column.in_(["", *wanted]))
    if ask.backend_id:
        checks.append(_NODE.persistent_id == ask.backend_id)
    if ask.taken:
        checks.append(_NODE.persistent_id.not_in(sorted(ask.taken)))
    racks = sorted(rack for rack in ask.taken_racks if rack)
    if racks and not ask.same_rack_allowed:
        checks.append(_NODE.rack.not_in(racks))
    if not ask.allow_span:
        checks.append(_POOL.spans.is_(False))
    if ask.iops > 0:
        checks.append(_POOL.sold_iops + ask.iops <= _MAX_IOPS)
    if ask.bw > 0:
        checks.append(_POOL.sold_bw + ask.bw <= _MAX_BW)
    return checks
