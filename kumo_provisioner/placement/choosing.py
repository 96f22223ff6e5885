# SPDX-License-Identifier: Apache-2.0
"""Choosing: the best pool of each node that can take a replica, best nodes first.

Taking the best node first and passing over nodes of racks that are taken finds as many nodes as
any other order would: each rack serves one replica, whichever of its nodes it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from kumo_client import errors
from kumo_provisioner.placement.facts import Ask, Candidate, Rules, Verdict
from kumo_provisioner.placement.filters import Refusal, node_checks, pool_checks, rack_reason
from kumo_provisioner.placement.weights import weight

# (weight, backend id, pool, candidate): the order in which nodes are tried.
Fitting = tuple[float, str, str, Candidate]
TOLD = 20


def place(candidates: Iterable[Candidate], ask: Ask, rules: Rules | None = None) -> list[Candidate]:
    """Pools for the replicas, on different nodes, best first.

    :raises NoSpaceError: when there are not enough; ``details["refusals"]`` has what refused each
        node or pool.
    """
    rules = rules or Rules()
    nodes = _by_node(candidates)
    fitting = _fitting(nodes, ask, rules)
    chosen = _spread(fitting, ask)
    if len(chosen) < ask.replicas:
        raise _no_space(_refused(nodes, ask, rules, chosen), len(nodes), len(chosen), ask)
    return chosen


def verdicts(
    candidates: Iterable[Candidate], ask: Ask, rules: Rules | None = None
) -> list[Verdict]:
    """What placement says of every node and pool, the chosen first, then by weight.

    None is chosen when there are not enough.
    """
    rules = rules or Rules()
    nodes = _by_node(candidates)
    fitting = _fitting(nodes, ask, rules, all_pools=True)
    best = _fitting(nodes, ask, rules)
    chosen = _spread(best, ask)
    taken = {(one.backend_id, one.pool) for one in chosen}
    enough = len(chosen) >= ask.replicas
    refused = _refused(nodes, ask, rules, chosen)
    told = {(one.backend_id, one.pool) for one in refused}
    found = [
        Verdict(one.backend_id, one.name, one.pool, weight=value, chosen=enough and key in taken)
        for value, _, _, one in fitting
        if (key := (one.backend_id, one.pool)) not in told and (one.backend_id, "") not in told
    ]
    found.sort(key=lambda one: not one.chosen)
    return found + refused


def _by_node(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    nodes: dict[str, list[Candidate]] = {}
    for one in candidates:
        known = nodes.get(one[0])
        if known is None:
            nodes[one[0]] = [one]
        else:
            known.append(one)
    return nodes


def _fitting(
    nodes: dict[str, list[Candidate]], ask: Ask, rules: Rules, *, all_pools: bool = False
) -> list[Fitting]:
    """The best pool of each node that can take a replica, or all of them, in order."""
    of_node = [check for _, check in node_checks(ask, rules)]
    of_pool = [check for _, check in pool_checks(ask, rules)]
    found: list[Fitting] = []
    for node in nodes.values():
        for node_check in of_node:
            if node_check(node) is not None:
                break
        else:
            pools = []
            for pool in node:
                for pool_check in of_pool:
                    if pool_check(pool) is not None:
                        break
                else:
                    pools.append((weight(pool, ask, rules), pool[0], pool[1], pool))
            if pools:
                found += pools if all_pools else [min(pools)]
    found.sort()
    return found


def _spread(fitting: Sequence[Fitting], ask: Ask) -> list[Candidate]:
    """The first nodes, in racks of their own unless the request allows otherwise."""
    chosen: list[Candidate] = []
    racks: set[str] = set()
    for _, _, _, one in fitting:
        if len(chosen) == ask.replicas:
            break
        if one.rack and one.rack in racks and not ask.same_rack_allowed:
            continue
        racks.add(one.rack)
        chosen.append(one)
    return chosen


def _refused(
    nodes: dict[str, list[Candidate]], ask: Ask, rules: Rules, chosen: Sequence[Candidate]
) -> list[Verdict]:
    """What refused each node, or each pool of a node that would do itself."""
    of_node, of_pool = node_checks(ask, rules), pool_checks(ask, rules)
    racks = {one.rack for one in chosen if one.rack}
    taken = {one.backend_id for one in chosen}
    found = []
    for backend_id, node in sorted(nodes.items()):
        first = node[0]
        refusal = _first(of_node, node)
        if refusal is not None:
            found.append(Verdict(backend_id, first.name, "", *refusal))
            continue
        pools = [(pool, _first(of_pool, pool)) for pool in node]
        fits = any(refusal is None for _, refusal in pools)
        if fits and backend_id not in taken and first.rack in racks and not ask.same_rack_allowed:
            found.append(Verdict(backend_id, first.name, "", "same-rack", rack_reason(first.rack)))
            continue
        found += [
            Verdict(backend_id, first.name, pool.pool, *refusal)
            for pool, refusal in pools
            if refusal is not None
        ]
    return found


def _first(checks: Iterable[tuple[str, object]], subject: object) -> Refusal | None:
    for name, check in checks:
        reason = check(subject)  # type: ignore[operator]
        if reason is not None:
            return Refusal(name, reason)
    return None


def _no_space(refused: Sequence[Verdict], nodes: int, found: int, ask: Ask) -> errors.NoSpaceError:
    if not nodes:
        return errors.NoSpaceError(
            "no storage node is registered", way_out="register one with 'kumo backend add'"
        )
    told = [_sentence(one) for one in refused[:TOLD]]
    if len(refused) > TOLD:
        rest = Counter(one.refused_by for one in refused[TOLD:])
        counts = ", ".join(f"{name} {count}" for name, count in rest.most_common())
        told.append(f"and {len(refused) - TOLD} more, refused by {counts}")
    return errors.NoSpaceError(
        f"{ask.replicas} replica(s) need as many storage nodes and only {found} can take "
        f"one ({'; '.join(told)})",
        details={"refusals": [one.told() for one in refused]},
    )


def _sentence(one: Verdict) -> str:
    where = f"{one.name or one.backend_id}{f' pool {one.pool}' if one.pool else ''}"
    return f"{where}: {one.refused_by}: {one.reason}"
