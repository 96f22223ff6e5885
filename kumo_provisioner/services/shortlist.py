# SPDX-License-Identifier: Apache-2.0
"""The few nodes among thousands that placement has to look at closely.

Reading all pools of a large fleet costs more than all the rest of a placement. So the database
drops what a filter of placement is sure to refuse, and sorts by what placement weighs; the nodes of
the first pools are then read whole and given to placement, which decides. Dropping too little here
only costs time; a test compares with placement over the whole fleet that it is never too much.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    Select,
    String,
    Table,
    Text,
    bindparam,
    case,
    or_,
    select,
    type_coerce,
)
from sqlalchemy import cast as sql_cast
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.node import STATE_OK
from kumo_provisioner.db import models
from kumo_provisioner.placement import Ask, Candidate, Rules
from kumo_provisioner.services import capacity

POOLS = 32
# Backend ids, and the weight from which on there are others; None when there are none.
Look = tuple[list[str], float | None]
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
    # As its text: only that of a chosen node is ever read.
    sql_cast(_NODE.mgmt_ips, Text),
    _NODE.mgmt_port,
)
_FLEET = _POOL_TABLE.join(_NODE_TABLE)
_ALL = select(*_COLUMNS).select_from(_FLEET)


@functools.cache
def _some(count: int) -> Select[Any]:
    """The pools of so many nodes: ``id0``, ``id1`` and so on. With a single parameter for all of
    them the statement would be completed anew each time."""
    ids = [bindparam(f"id{number}", type_=String()) for number in range(count)]
    return _ALL.where(_NODE.persistent_id.in_(ids))


def candidates(session: Session, backend_ids: Sequence[str] | None = None) -> list[Candidate]:
    """All pools of all nodes, or of some, as placement sees them."""
    connection = session.connection()
    if backend_ids is None:
        found = connection.execute(_ALL)
    else:
        ids = {f"id{number}": one for number, one in enumerate(backend_ids)}
        found = connection.execute(_some(len(ids)), ids)
    # At once: row by row takes longer than all the rest.
    return list(map(Candidate._make, found.all()))


class Shortlist:
    """The best nodes of a moment ago, each with the least weight of its pools when it was seen.

    Several threads may use one: the worst that comes of it is a look at the whole list.

    :param nodes: weights by backend id.
    :param cut: the weight from which on there are others; None when there are none.
    """

    def __init__(self, nodes: dict[str, float], cut: float | None) -> None:
        self._nodes = nodes
        self._cut = cut

    def first(self, count: int) -> Look:
        """The best ``count`` nodes, as far as is known."""
        ordered = sorted(self._nodes.items(), key=lambda one: one[1])
        others = [weight for _, weight in ordered[count : count + 1]]
        if self._cut is not None:
            others.append(self._cut)
        return sorted(uid for uid, _ in ordered[:count]), min(others, default=None)

    def whole(self) -> Look:
        """All of them."""
        return sorted(self._nodes), self._cut

    def note(self, nodes: dict[str, float]) -> None:
        """Remember what nodes weigh now."""
        self._nodes |= nodes


def _number(name: str) -> ColumnElement[float]:
    # A bound number is a double on all databases; a literal would be a decimal on some.
    return bindparam(name, type_=Float())


def _whole(name: str) -> ColumnElement[int]:
    return bindparam(name, type_=BigInteger())


def _part(some: Any, of: Any) -> ColumnElement[float]:
    return case((of > 0, _number("one") * some / of), else_=_number("none"))


class _Larger(FunctionElement[float]):
    """The larger one of two numbers."""

    name = "greatest"
    type = Float()
    inherit_cache = True


@compiles(_Larger)
def _compile_larger(element: Any, compiler: Any, **options: Any) -> str:
    # The two-argument MAX of sqlite.org/lang_corefunc.html; an aggregate anywhere else.
    name = "max" if compiler.dialect.name == "sqlite" else "greatest"
    return f"{name}({compiler.process(element.clauses, **options)})"


def _larger(one: ColumnElement[float], other: ColumnElement[float]) -> ColumnElement[float]:
    return cast(ColumnElement[float], _Larger(one, other))


_MAX_IOPS, _MAX_BW = capacity.MAX_IOPS.element, capacity.MAX_BW.element
_SOLD = _larger(
    _part(_POOL.sold_iops + _whole("iops"), _MAX_IOPS),
    _part(_POOL.sold_bw + _whole("bw"), _MAX_BW),
)
_USE = case(
    (
        _POOL.used_at >= _whole("fresh_since"),
        _larger(
            _part(_POOL.iops, case((_MAX_IOPS > 0, _MAX_IOPS), else_=_whole("assumed_iops"))),
            _part(_POOL.bw, case((_MAX_BW > 0, _MAX_BW), else_=_whole("assumed_bw"))),
        ),
    ),
    else_=_number("none"),
)
# What kumo_provisioner.placement.weights.weight computes.
_WEIGHT = (
    _number("by_capacity")
    * _larger(_POOL.charged_bytes + _whole("charge"), _POOL.used_bytes)
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
    .limit(bindparam("pools", type_=Integer()))
)
_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "zones": _NODE.zone.in_(bindparam("zones", expanding=True)),
    "racks": _NODE.rack.in_(bindparam("racks", expanding=True)),
    "regions": _NODE.region.in_(bindparam("regions", expanding=True)),
    "backend": _NODE.persistent_id == bindparam("backend"),
    "taken": _NODE.persistent_id.not_in(bindparam("taken", expanding=True)),
    "taken_racks": _NODE.rack.not_in(bindparam("taken_racks", expanding=True)),
    "one_disk": _POOL.spans.is_(False),
    "sells_iops": _POOL.sold_iops + _whole("iops") <= _MAX_IOPS,
    "sells_bw": _POOL.sold_bw + _whole("bw") <= _MAX_BW,
}


@functools.cache
def _statement(names: tuple[str, ...]) -> Select[Any]:
    """Made once for each kind of request: making it takes longer than running it."""
    return _FIRST.where(*(_CONDITIONS[name] for name in names))


def best(session: Session, ask: Ask, rules: Rules) -> tuple[list[Candidate], float | None]:
    """The nodes whose pools are the best that this request could get.

    :returns: all pools of these nodes, and the weight from which on there may be others; None
        when there are none.
    """
    narrowed = _narrowed(ask)
    values = {
        "pools": POOLS,
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
        "assumed_iops": rules.assumed_iops,
        "assumed_bw": rules.assumed_bw,
        **narrowed,
    }
    query = _statement(tuple(narrowed))
    rows = session.connection().execute(query, values).all()
    if not rows:
        return [], None
    found = candidates(session, list({backend_id for backend_id, _ in rows}))
    return found, float(rows[-1][1]) if len(rows) == POOLS else None


def _narrowed(ask: Ask) -> dict[str, Any]:
    """What only some requests ask for: values of :data:`_CONDITIONS`."""
    asked: dict[str, Any] = {}
    for name, some in (("zones", ask.zones), ("racks", ask.racks), ("regions", ask.regions)):
        wanted = [value for value in some if value]
        if wanted:
            asked[name] = ["", *wanted]
    if ask.backend_id:
        asked["backend"] = ask.backend_id
    if ask.taken:
        asked["taken"] = sorted(ask.taken)
    racks = sorted(rack for rack in ask.taken_racks if rack)
    if racks and not ask.same_rack_allowed:
        asked["taken_racks"] = racks
    for name, wanted_too in (
        ("one_disk", not ask.allow_span),
        ("sells_iops", ask.iops > 0),
        ("sells_bw", ask.bw > 0),
    ):
        if wanted_too:
            asked[name] = True
    return asked
