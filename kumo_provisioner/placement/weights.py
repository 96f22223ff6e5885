# SPDX-License-Identifier: Apache-2.0
"""Weights: how much of a pool is promised and used. The least comes first."""

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


def weight(pool: Candidate, ask: Ask, rules: Rules) -> float:
    """Smaller is better: sold capacity, sold guarantees and use, as the operator weighs them."""
    value = rules.capacity * (pool.charged + ask.charge) / (pool.total or 1)
    if rules.guarantees:
        iops = (pool.sold_iops + ask.iops) / pool.max_iops if pool.max_iops else 0.0
        bw = (pool.sold_bw + ask.bw) / pool.max_bw if pool.max_bw else 0.0
        value += rules.guarantees * (iops if iops > bw else bw)
    if pool.iops or pool.bw:
        value += rules.use * use_of_pool(pool, rules)
    return value
