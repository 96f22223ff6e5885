# SPDX-License-Identifier: Apache-2.0
"""Placement over the fleet of the record: which pools get the replicas of a volume."""

from __future__ import annotations

import json
import uuid as uuidlib
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple, cast

from oslo_config import cfg
from sqlalchemy import Table
from sqlalchemy.orm import Session

from kumo_client import errors, naming
from kumo_client.schemas.node import ArrayIdentity, ReplicaSource, ReplicaSpec
from kumo_client.schemas.volume import REPLICA_AVAILABLE, StorageClass
from kumo_provisioner import placement
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address
from kumo_provisioner.placement import Ask, Candidate, Refusal, Rules, Verdict
from kumo_provisioner.services import building, capacity, shortlist

# Weights of placement and of the database may differ by what rounding does.
ROUNDING = 1e-9
# Nodes that are looked at for each replica, when it is known which are the best.
FIRST = 4
_VOLUMES = cast(Table, models.Volume.__table__)
_REPLICAS = cast(Table, models.Replica.__table__)
# Made once: making a statement takes a good part of running it.
_INSERT_VOLUME, _INSERT_REPLICA = _VOLUMES.insert(), _REPLICAS.insert()


def rules(conf: cfg.ConfigOpts) -> Rules:
    """The rules that the configuration gives."""
    chosen = conf.placement
    return Rules(
        max_fill=chosen.max_fill_percent / 100,
        hot=chosen.hot_percent / 100,
        fresh_since=now_ms() - int(chosen.use_max_age * 1000),
        capacity=chosen.capacity_weight,
        guarantees=chosen.guarantee_weight,
        use=chosen.use_weight,
        assumed_iops=chosen.assumed_iops,
        assumed_bw=chosen.assumed_bw,
    )


def ask_for(
    core: Core,
    volume: models.Volume,
    *,
    replicas: int | None = None,
    size: int | None = None,
    asked: StorageClass | None = None,
) -> Ask:
    """What to ask for more replicas of a volume: those of its storage class, charges included.

    :param replicas: how many; unset: those that the volume was asked with.
    :param size: bytes of each; unset: as its capacity needs.
    :param asked: its storage class, if that is at hand.
    """
    if asked is None:
        asked = StorageClass.model_validate(volume.storage_class)
    if size is None:
        size = naming.replica_bytes(volume.capacity, volume.num_replicas)
    iops, bw = capacity.guarantee(asked, max(volume.capacity, volume.wanted_capacity))
    return Ask(
        replicas=volume.num_replicas if replicas is None else replicas,
        charge=capacity.replica_charge(core.conf, size, volume.provisioning_type),
        iops=iops,
        bw=bw,
        zones=asked.zones,
        racks=asked.racks,
        regions=asked.regions,
        same_rack_allowed=asked.same_rack_allowed,
        allow_span=asked.allow_span,
        taken=frozenset(one.backend_id for one in volume.replicas),
        taken_racks=frozenset(one.backend.rack for one in volume.replicas),
    )


def verdicts(core: Core, session: Session, ask: Ask) -> list[Verdict]:
    """What placement says of every pool, nothing recorded."""
    return placement.verdicts(shortlist.candidates(session), ask, rules(core.conf))


def choose(core: Core, session: Session, ask: Ask) -> list[Candidate]:
    """Pools for new replicas, on different nodes. Charge them with :func:`add_replica` in the same
    transaction, run by :func:`capacity.retried`.

    :raises NoSpaceError: naming the filter that refused each node.
    """
    try:
        return _choose(core, session, ask)
    except errors.NoSpaceError as exc:
        core.metrics.refused(exc)
        raise


def _choose(core: Core, session: Session, ask: Ask) -> list[Candidate]:
    """From the nodes that were the best a moment ago, if they still are as good as was known of
    all others then: from the first of them, or from all; else from those that are the best now;
    else from the whole fleet, which may have more, and all of which a refusal has to name."""
    chosen_rules = rules(core.conf)
    key = _kind(ask)
    known = core.shortlists.get(key) if key is not None else None
    if known is not None:
        for ids, cut in (known.first(FIRST * ask.replicas), known.whole()):
            some = shortlist.candidates(session, ids)
            found = _among(some, cut, ask, chosen_rules)
            known.note(_weights(some, found, ask, chosen_rules))
            if found:
                return found
    some, cut = shortlist.best(session, ask, chosen_rules)
    found = _among(some, cut, ask, chosen_rules)
    if key is not None and cut is not None:
        nodes = _weights(some, found, ask, chosen_rules)
        core.shortlists.put(key, shortlist.Shortlist(nodes, cut))
    return found or placement.place(shortlist.candidates(session), ask, chosen_rules)


def _weights(
    some: list[Candidate], chosen: list[Candidate], ask: Ask, chosen_rules: Rules
) -> dict[str, float]:
    """The least weight of the pools of each node, when the chosen ones are charged."""
    found: dict[str, float] = {}
    for one in some:
        after = one
        if one in chosen:
            after = one._replace(
                charged=one.charged + ask.charge,
                sold_iops=one.sold_iops + ask.iops,
                sold_bw=one.sold_bw + ask.bw,
            )
        weight = placement.weight(after, ask, chosen_rules)
        found[one.backend_id] = min(weight, found.get(one.backend_id, weight))
    return found


def _kind(ask: Ask) -> Hashable:
    """What the best nodes depend on; None for a request that is like no other."""
    if ask.taken or ask.backend_id:
        return None
    places = (tuple(ask.zones), tuple(ask.racks), tuple(ask.regions))
    return ask.charge, ask.iops, ask.bw, ask.allow_span, places


def _among(
    some: list[Candidate], cut: float | None, ask: Ask, chosen_rules: Rules
) -> list[Candidate]:
    """Placement among some nodes; empty when others may be better, or there are not enough.

    :param cut: the weight from which on there are others; None when there are none.
    """
    try:
        found = placement.place(some, ask, chosen_rules)
    except errors.NoSpaceError:
        return []
    last = max(placement.weight(one, ask, chosen_rules) for one in found)
    return found if cut is None or last <= cut + ROUNDING else []


def add_replica(
    session: Session, volume: models.Volume, backend_id: str, pool: str, size: int, ask: Ask
) -> models.Replica:
    """Add the row of a replica to a volume and charge its pool. Its uuid is never used a second
    time. Several are added in the order of their backend ids (see capacity).

    :raises LostRaceError: when the pool has no room any more.
    """
    replica = models.Replica(
        uuid=str(uuidlib.uuid4()),
        backend_id=backend_id,
        pool=pool,
        position=1 + max((one.position for one in volume.replicas), default=-1),
        bytes=size,
        reserved_bytes=ask.charge,
        sold_iops=ask.iops,
        sold_bw=ask.bw,
        state=REPLICA_AVAILABLE,
        state_since=now_ms(),
    )
    capacity.take(session, replica)
    volume.replicas.append(replica)
    return replica


def record(session: Session, volume: models.Volume) -> None:
    """Insert a new volume and its replicas, whose objects stay outside of the session: that takes
    a part of the time."""
    connection = session.connection()
    connection.execute(_INSERT_VOLUME, _values(volume, _VOLUMES))
    rows = [_values(one, _REPLICAS) | {"volume_id": volume.uuid} for one in volume.replicas]
    connection.execute(_INSERT_REPLICA, rows)


def address(spot: Candidate) -> Address:
    """Where the node of a chosen pool answers."""
    return Address(spot.backend_id, tuple(json.loads(spot.mgmt_ips)), spot.mgmt_port)


def _values(row: models.Base, table: Table) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if name in table.c}


def replica_spec(
    volume: models.Volume,
    replica: models.Replica,
    *,
    source: ReplicaSource | None = None,
    array: ArrayIdentity | None = None,
    asked: StorageClass | None = None,
) -> ReplicaSpec:
    """What the node of a replica is told to make.

    :param asked: the storage class of the volume, if that is at hand.
    """
    if asked is None:
        asked = StorageClass.model_validate(volume.storage_class)
    capped = asked.max_iops_per_gb or asked.max_bw_per_gb
    return ReplicaSpec(
        volume_id=volume.uuid,
        bytes=replica.bytes,
        pool=replica.pool or None,
        source=source,
        array=array,
        limits=capacity.limits(asked, volume.capacity) if capped else None,
    )


class Growth(NamedTuple):
    """What a pool is to be charged with besides: bytes, guaranteed operations, KB/s."""

    backend: models.Backend
    pool: str
    size: int
    iops: int = 0
    bw: int = 0


def refuse_growth(session: Session, wanted: Iterable[Growth]) -> None:
    """Make sure that these pools can be charged with more, for what has to be on them.

    :raises BackendUnavailableError: when a node is down.
    :raises NoSpaceError: for the first that cannot, naming filter and reason.
    """
    for more in wanted:
        node = more.backend
        building.need_available(node)
        pools = shortlist.candidates(session, [node.persistent_id])
        known = [one for one in pools if one.pool == more.pool]
        refusal = Refusal("pool-state", "the node has no such pool")
        if known:
            found = placement.growing(known[0], Ask(1, more.size, more.iops, more.bw))
            if found is None:
                continue
            refusal = found
        verdict = Verdict(node.persistent_id, node.name, more.pool, *refusal)
        raise errors.NoSpaceError(
            f"pool {more.pool} of node {node.name or node.persistent_id} cannot take it: "
            f"{refusal.refused_by}: {refusal.reason}",
            node=node.persistent_id,
            details={"refusals": [verdict.told()]},
        )
