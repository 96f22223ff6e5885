# SPDX-License-Identifier: Apache-2.0
"""Weights: how much of a pool is promised and used. The least comes first.

What a filter compares has to be known. A weight only sorts, so it takes an assumed figure where
nobody knows what a pool delivers: a busy pool comes after an idle one all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from kumo_provisioner.placement.facts import Ask, Candidate, Rules


def use_of_pool(pool: Candidate, rules: Rules) -> float:
    """Part of what the pool delivers that was in use in the last minutes; 0 when not known."""
    if pool.used_at < rules.fresh_since:
        return 0.0
    iops = pool.iops / pool.max_iops if pool.max_iops else 0.0
    bw = pool.bw / pool.max_bw if pool.max_bw else 0.0
    return max(iops, bw)


def use_of_node(node: Sequence[Candidate], rules: Rules) -> float:
    """The same for a whole node, whose own limits count when it has any."""
    iops = bw = max_iops = max_bw = 0
    for pool in node:
        if pool.used_at >= rules.fresh_since:
            iops += pool.iops
            bw += pool.bw
        max_iops += pool.max_iops
        max_bw += pool.max_bw
    max_iops = node[0].node_max_iops or max_iops
    max_bw = node[0].node_max_bw or max_bw
    return max(iops / max_iops if max_iops else 0.0, bw / max_bw if max_bw else 0.0)


def _assumed_use(pool: Candidate, rules: Rules) -> float:
    """:func:`use_of_pool`, by what a pool is assumed to deliver where that is not known."""
    if pool.used_at < rules.fresh_since:
        return 0.0
    max_iops = pool.max_iops or rules.assumed_iops
    max_bw = pool.max_bw or rules.assumed_bw
    iops = pool.iops / max_iops if max_iops else 0.0
    bw = pool.bw / max_bw if max_bw else 0.0
    return iops if iops > bw else bw


def weight(pool: Candidate, ask: Ask, rules: Rules) -> float:
    """Smaller is better: capacity that is sold or occupied, whichever is more, sold guarantees and
    use, as the operator weighs them."""
    promised = pool.charged + ask.charge
    occupied = promised if promised > pool.used else pool.used
    value = rules.capacity * occupied / (pool.total or 1)
    if rules.guarantees:
        iops = (pool.sold_iops + ask.iops) / pool.max_iops if pool.max_iops else 0.0
        bw = (pool.sold_bw + ask.bw) / pool.max_bw if pool.max_bw else 0.0
        value += rules.guarantees * (iops if iops > bw else bw)
    if pool.iops or pool.bw:
        value += rules.use * _assumed_use(pool, rules)
    return value
