# SPDX-License-Identifier: Apache-2.0
"""Filters: why a node, or a pool, cannot take a replica.

A filter is made for a request: it gives a check, or None when the request has nothing for it to
check, so that a placement among thousands of pools runs only the checks that matter. A check gives
the reason of a refusal, or None. The names are stable: they are shown to users and programs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kumo_client.naming import GIB
from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.node import STATE_OK
from kumo_provisioner.placement.facts import Ask, Candidate, Rules
from kumo_provisioner.placement.weights import use_of_node, use_of_pool

# All pools of one node.
Node = Sequence[Candidate]
NodeCheck = Callable[[Node], str | None]
PoolCheck = Callable[[Candidate], str | None]


class Refusal(NamedTuple):
    refused_by: str
    reason: str


# -- nodes --------------------------------------------------------------------------------------


def _state(_ask: Ask, _rules: Rules) -> NodeCheck:
    return lambda node: None if node[0].state == AVAILABLE else f"its state is {node[0].state}"


def _mode(_ask: Ask, _rules: Rules) -> NodeCheck:
    return lambda node: f"it is {node[0].mode}" if node[0].mode else None


def _cordon(_ask: Ask, _rules: Rules) -> NodeCheck:
    return lambda node: "it is cordoned" if node[0].cordoned else None


def _backend(ask: Ask, _rules: Rules) -> NodeCheck | None:
    if not ask.backend_id:
        return None
    return lambda node: (
        None if node[0].backend_id == ask.backend_id else "another node is asked for"
    )


def _zone(ask: Ask, _rules: Rules) -> NodeCheck | None:
    return _location("zone", ask.zones, lambda node: node[0].zone)


def _rack(ask: Ask, _rules: Rules) -> NodeCheck | None:
    return _location("rack", ask.racks, lambda node: node[0].rack)


def _region(ask: Ask, _rules: Rules) -> NodeCheck | None:
    return _location("region", ask.regions, lambda node: node[0].region)


def _location(what: str, asked: Sequence[str], of: Callable[[Node], str]) -> NodeCheck | None:
    wanted = [item for item in asked if item]
    if not wanted:
        return None

    def check(node: Node) -> str | None:
        value = of(node)
        if not value or value in wanted:
            return None
        return f"its {what} {value} is not one of {', '.join(wanted[:8])}"

    return check


def _replica(ask: Ask, _rules: Rules) -> NodeCheck | None:
    if not ask.taken:
        return None
    held = "it holds a replica of the volume"
    return lambda node: held if node[0].backend_id in ask.taken else None


def rack_reason(rack: str) -> str:
    return f"rack {rack} holds another replica"


def _same_rack(ask: Ask, _rules: Rules) -> NodeCheck | None:
    racks = {rack for rack in ask.taken_racks if rack}
    if ask.same_rack_allowed or not racks:
        return None
    return lambda node: rack_reason(node[0].rack) if node[0].rack in racks else None


def _node_guarantee(ask: Ask, _rules: Rules) -> NodeCheck | None:
    if ask.iops <= 0 and ask.bw <= 0:
        return None

    def check(node: Node) -> str | None:
        one = node[0]
        if one.node_max_iops and ask.iops > 0:
            left = one.node_max_iops - one.node_sold_iops
            if ask.iops > left:
                return _too_little(ask.iops, left, one.node_max_iops, "IOPS")
        if one.node_max_bw and ask.bw > 0:
            left = one.node_max_bw - one.node_sold_bw
            if ask.bw > left:
                return _too_little(ask.bw, left, one.node_max_bw, "KB/s")
        return None

    return check


def _too_little(wanted: int, left: int, of: int, unit: str) -> str:
    return f"{wanted} {unit} are to be guaranteed and {max(0, left)} of {of} are left"


def _node_hot(_ask: Ask, rules: Rules) -> NodeCheck:
    def check(node: Node) -> str | None:
        use = use_of_node(node, rules)
        return None if use <= rules.hot else _busy(use, rules.hot)

    return check


def _busy(use: float, limit: float) -> str:
    return f"{use:.0%} of what it delivers is in use, more than {limit:.0%}"


# -- pools --------------------------------------------------------------------------------------


def _pool_state(_ask: Ask, _rules: Rules) -> PoolCheck:
    return lambda pool: (
        None if pool.pool_state == STATE_OK else f"the pool's state is {pool.pool_state}"
    )


def _span(ask: Ask, _rules: Rules) -> PoolCheck | None:
    if ask.allow_span:
        return None
    return lambda pool: "the pool lies on several disks" if pool.spans else None


def _capacity(ask: Ask, _rules: Rules) -> PoolCheck:
    charge = ask.charge

    def check(pool: Candidate) -> str | None:
        if charge <= 0 or pool.charged + charge <= pool.total:
            return None
        return (
            f"{_gib(charge)} GiB are needed and {_gib(max(0, pool.total - pool.charged))} of "
            f"{_gib(pool.total)} GiB are free"
        )

    return check


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _fill(_ask: Ask, rules: Rules) -> PoolCheck:
    limit = rules.max_fill

    def check(pool: Candidate) -> str | None:
        if pool.used <= limit * pool.total:
            return None
        return f"{pool.used / max(1, pool.total):.0%} of it is occupied, more than {limit:.0%}"

    return check


def _guarantee(ask: Ask, _rules: Rules) -> PoolCheck | None:
    if ask.iops <= 0 and ask.bw <= 0:
        return None

    def check(pool: Candidate) -> str | None:
        if ask.iops > 0 and pool.sold_iops + ask.iops > pool.max_iops:
            return _cannot(ask.iops, pool.sold_iops, pool.max_iops, "IOPS")
        if ask.bw > 0 and pool.sold_bw + ask.bw > pool.max_bw:
            return _cannot(ask.bw, pool.sold_bw, pool.max_bw, "KB/s")
        return None

    return check


def _cannot(wanted: int, sold: int, of: int, unit: str) -> str:
    if not of:
        return f"{wanted} {unit} are to be guaranteed and nobody declared what the pool delivers"
    return _too_little(wanted, of - sold, of, unit)


def _hot(_ask: Ask, rules: Rules) -> PoolCheck:
    def check(pool: Candidate) -> str | None:
        if not pool.iops and not pool.bw:
            return None
        use = use_of_pool(pool, rules)
        return None if use <= rules.hot else _busy(use, rules.hot)

    return check


NODE_FILTERS: tuple[tuple[str, Callable[[Ask, Rules], NodeCheck | None]], ...] = (
    ("state", _state),
    ("mode", _mode),
    ("cordon", _cordon),
    ("backend", _backend),
    ("replica", _replica),
    ("zone", _zone),
    ("rack", _rack),
    ("region", _region),
    ("same-rack", _same_rack),
    ("node-guarantee", _node_guarantee),
    ("node-hot", _node_hot),
)
POOL_FILTERS: tuple[tuple[str, Callable[[Ask, Rules], PoolCheck | None]], ...] = (
    ("pool-state", _pool_state),
    ("span", _span),
    ("capacity", _capacity),
    ("fill", _fill),
    ("guarantee", _guarantee),
    ("hot", _hot),
)
FILTERS = tuple(name for name, _ in (*NODE_FILTERS, *POOL_FILTERS))
# What grows where it is needs these alone: it cannot go elsewhere, so load or a cordon is no bar.
_GROWING = ("node-guarantee", "pool-state", "capacity", "guarantee")


def node_checks(ask: Ask, rules: Rules) -> list[tuple[str, NodeCheck]]:
    """The checks of nodes that this request needs."""
    made = [(name, make(ask, rules)) for name, make in NODE_FILTERS]
    return [(name, check) for name, check in made if check is not None]


def pool_checks(ask: Ask, rules: Rules) -> list[tuple[str, PoolCheck]]:
    """The checks of pools that this request needs."""
    made = [(name, make(ask, rules)) for name, make in POOL_FILTERS]
    return [(name, check) for name, check in made if check is not None]


def growing(pool: Candidate, ask: Ask) -> Refusal | None:
    """Why what is on this pool cannot be charged with so much more; None when it can."""
    rules = Rules()
    for name, of_node in node_checks(ask, rules):
        reason = of_node([pool]) if name in _GROWING else None
        if reason is not None:
            return Refusal(name, reason)
    for name, of_pool in pool_checks(ask, rules):
        reason = of_pool(pool) if name in _GROWING else None
        if reason is not None:
            return Refusal(name, reason)
    return None
