# SPDX-License-Identifier: Apache-2.0
"""What the record says of the fleet, as metrics.

The queries read one row per node, pool and tenant, or go along an index over what is out of order;
the number of volumes of each tenant alone is counted, in an index. What was read is kept for a
while, because several collectors may ask.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from oslo_log import log
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.schemas import task
from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.node import STATE_OK, Ssd
from kumo_client.schemas.volume import REPLICA_AVAILABLE, REPLICA_STATES
from kumo_provisioner import settling, stamps
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models

LOG = log.getLogger(__name__)
MAX_AGE = 10.0
NODE = ("node", "name")
PLACE = (*NODE, "rack", "zone", "region")
POOL = ("node", "pool")
TENANT = ("tenant",)
SSD = (*POOL, "serial", "path")
KB = 1000


class Family(NamedTuple):
    """A metric: name, help, labels."""

    name: str
    text: str
    labels: tuple[str, ...] = ()
    counter: bool = False


_FAMILIES = (
    Family("ks_node_used_capacity_bytes", "Bytes of the node that are promised.", PLACE),
    Family("ks_node_free_capacity_bytes", "Bytes of the node that can be promised.", PLACE),
    Family("ks_node_state", "1: the node is Available; 2: Unavailable.", PLACE),
    Family(
        "kumo_node_in_service",
        "1: the node may get new replicas; 0: cordoned, drained or in maintenance.",
        NODE,
    ),
    Family("kumo_node_problems", "Problems that the node tells of.", NODE),
    Family("kumo_node_silence_seconds", "Time since the node last answered or called.", NODE),
    Family("kumo_node_removals", "Objects that have to go from the node.", ("node",)),
    Family("kumo_pool_capacity_bytes", "Size of the pool.", POOL),
    Family("kumo_pool_charged_bytes", "Bytes of the pool that are promised.", POOL),
    Family("kumo_pool_used_bytes", "Bytes of the pool that are really occupied.", POOL),
    Family("kumo_pool_metadata_percent", "Part of the pool's metadata that is occupied.", POOL),
    Family("kumo_pool_replicas", "Replicas on the pool.", POOL),
    Family("kumo_pool_state", "1 with the state that the pool is in.", (*POOL, "state")),
    Family("kumo_pool_iops_limit", "Operations per second that the pool delivers.", POOL),
    Family("kumo_pool_iops_guaranteed", "Operations per second that are guaranteed.", POOL),
    Family("kumo_pool_iops", "Operations per second of the last minutes.", POOL),
    Family("kumo_pool_bandwidth_limit_bytes", "Bytes per second that the pool delivers.", POOL),
    Family("kumo_pool_bandwidth_guaranteed_bytes", "Bytes per second guaranteed.", POOL),
    Family("kumo_pool_bandwidth_bytes", "Bytes per second of the last minutes.", POOL),
    Family("kumo_ssd_ok", "1: the SSD works; 0: it has failed.", SSD),
    Family("kumo_ssd_wear_percent", "Part of the SSD's endurance that is used.", SSD),
    Family("kumo_ssd_media_errors", "Errors of the medium, from its SMART log.", SSD),
    Family("kumo_ssd_io_errors", "Failed operations since the node booted.", SSD),
    Family("kumo_ssd_temperature_celsius", "Temperature of the SSD.", SSD),
    Family("kumo_replicas", "Replicas by state and freshness.", ("state", "freshness")),
    Family("kumo_volumes", "Volumes of the tenant.", TENANT),
    Family("kumo_volumes_unsettled", "Volumes with work that is not finished.", ("kind",)),
    Family("kumo_tenant_capacity_bytes", "Budget of the tenant; 0 has no limit.", TENANT),
    Family("kumo_tenant_used_bytes", "What the tenant uses of it.", TENANT),
    Family("kumo_tasks", "Tasks that are not done.", ("type", "state")),
    Family("kumo_task_age_seconds", "Age of the oldest task that is not done.", ("type",)),
    Family("kumo_events_total", "Events recorded.", counter=True),
    Family("kumo_garbage", "Objects on nodes that no record knows.", ("kind", "acknowledged")),
    Family("kumo_instances", "Provisioners alive on this database."),
    Family("kumo_leases", "Leases that are held."),
    Family("kumo_database_up", "1: the record could be read."),
    Family(
        "kumo_database_doubted",
        "1: the database is an old copy or another one, nothing is taken away from nodes.",
    ),
    Family("kumo_record_read_seconds", "Time that reading the record took."),
)
FAMILIES = {one.name: one for one in _FAMILIES}
# Name, labels as they stand between the braces, value.
Sample = tuple[str, str, float]


class Record:
    """Metrics of the record of one provisioner."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._guard = threading.Lock()
        self._text = b""
        self._read_at = float("-inf")

    def text(self) -> bytes:
        """The metrics as Prometheus reads them, at most :data:`MAX_AGE` seconds old.

        Without a database there is nothing but ``kumo_database_up``: old values would look like
        good ones.
        """
        with self._guard:
            if time.monotonic() - self._read_at >= MAX_AGE:
                self._text = self._read().encode()
                self._read_at = time.monotonic()
            return self._text

    def _read(self) -> str:
        begun = time.monotonic()
        samples: list[Sample] = []
        up = 1
        try:
            with self._core.db.read() as session:
                for reader in _READERS:
                    samples += reader(session)
        except errors.DatabaseUnavailableError as exc:
            LOG.warning("There are no metrics of the record: %s", exc)
            samples, up = [], 0
        samples.append(("kumo_database_up", "", up))
        samples.append(("kumo_record_read_seconds", "", time.monotonic() - begun))
        return _render(samples)


def _render(samples: Iterable[Sample]) -> str:
    """The text format of Prometheus, version 0.0.4. There may be many thousand samples, for which
    the general way through objects takes several times as long."""
    lines: dict[str, list[str]] = {}
    for name, labels, value in samples:
        family = lines.get(name)
        if family is None:
            known = FAMILIES[name]
            kind = "counter" if known.counter else "gauge"
            family = lines[name] = [f"# HELP {name} {known.text}\n# TYPE {name} {kind}\n"]
        family.append(f"{name}{{{labels}}} {value}\n" if labels else f"{name} {value}\n")
    return "".join(itertools.chain.from_iterable(lines.values()))


def _labels(names: tuple[str, ...], values: Iterable[str]) -> str:
    return ",".join(
        f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True)
    )


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _nodes(session: Session) -> Iterator[Sample]:
    pools = models.Pool
    sums = {
        node: (total, charged)
        for node, total, charged in session.execute(
            select(
                pools.backend_id, func.sum(pools.total_bytes), func.sum(pools.charged_bytes)
            ).group_by(pools.backend_id)
        )
    }
    now = now_ms()
    one = models.Backend
    for row in session.execute(
        select(
            one.persistent_id,
            one.name,
            one.rack,
            one.zone,
            one.region,
            one.state,
            one.mode,
            one.cordoned,
            one.problems,
            one.last_probe,
            one.last_heartbeat,
        )
    ):
        node, place = _labels(NODE, row[:2]), _labels(PLACE, row[:5])
        total, charged = sums.get(row.persistent_id, (0, 0))
        yield "ks_node_used_capacity_bytes", place, charged
        yield "ks_node_free_capacity_bytes", place, max(0, total - charged)
        yield "ks_node_state", place, 1 if row.state == AVAILABLE else 2
        yield "kumo_node_in_service", node, 0 if row.mode or row.cordoned else 1
        yield "kumo_node_problems", node, len(row.problems)
        heard = max(row.last_probe, row.last_heartbeat)
        yield "kumo_node_silence_seconds", node, max(0, now - heard) / 1000


def _pools(session: Session) -> Iterator[Sample]:
    for row in session.execute(select(*models.Pool.__table__.columns)):
        names = (row.backend_id, row.name)
        pool = _labels(POOL, names)
        yield "kumo_pool_capacity_bytes", pool, row.total_bytes
        yield "kumo_pool_charged_bytes", pool, row.charged_bytes
        yield "kumo_pool_used_bytes", pool, row.used_bytes
        yield "kumo_pool_metadata_percent", pool, row.metadata_percent
        yield "kumo_pool_replicas", pool, row.replicas
        yield "kumo_pool_state", f'{pool},state="{_escaped(row.state)}"', 1
        yield "kumo_pool_iops_limit", pool, row.declared_iops or row.measured_iops
        yield "kumo_pool_iops_guaranteed", pool, row.sold_iops
        yield "kumo_pool_iops", pool, row.iops
        yield "kumo_pool_bandwidth_limit_bytes", pool, (row.declared_bw or row.measured_bw) * KB
        yield "kumo_pool_bandwidth_guaranteed_bytes", pool, row.sold_bw * KB
        yield "kumo_pool_bandwidth_bytes", pool, row.bw * KB
        for ssd in row.ssds:
            yield from _ssd(names, Ssd.model_validate(ssd))


def _ssd(pool: tuple[str, str], ssd: Ssd) -> Iterator[Sample]:
    labels = _labels(SSD, (*pool, ssd.serial, ssd.path))
    yield "kumo_ssd_ok", labels, 1 if ssd.state == STATE_OK else 0
    yield "kumo_ssd_io_errors", labels, ssd.io_errors
    for name, value in (
        ("kumo_ssd_wear_percent", ssd.wear_percent),
        ("kumo_ssd_media_errors", ssd.media_errors),
        ("kumo_ssd_temperature_celsius", ssd.temperature),
    ):
        if value is not None:
            yield name, labels, value


def _replicas(session: Session) -> Iterator[Sample]:
    one = models.Replica
    # Nearly all are in order, and how many there are in all is kept with the pools.
    counts = {
        (state, freshness): count
        for state, freshness, count in session.execute(
            select(one.state, one.freshness, func.count())
            .where(one.state.in_([state for state in REPLICA_STATES if state != REPLICA_AVAILABLE]))
            .group_by(one.state, one.freshness)
            .union_all(
                select(one.state, one.freshness, func.count())
                .where(one.state == REPLICA_AVAILABLE)
                .where(one.freshness.in_([models.STALE, models.BLANK]))
                .group_by(one.state, one.freshness)
            )
        )
    }
    total = session.scalar(select(func.sum(models.Pool.replicas))) or 0
    good = (REPLICA_AVAILABLE, models.FRESH)
    counts[good] = max(0, total - sum(counts.values()))
    for key, count in counts.items():
        yield "kumo_replicas", _labels(("state", "freshness"), key), count


def _volumes(session: Session) -> Iterator[Sample]:
    one = models.Volume
    tenants: dict[str, int] = {}
    for tenant, capacity, used in session.execute(
        select(models.Tenant.uuid, models.Tenant.capacity, models.Tenant.used_capacity)
    ):
        tenants[tenant] = 0
        yield "kumo_tenant_capacity_bytes", _labels(TENANT, (tenant,)), capacity << 30
        yield "kumo_tenant_used_bytes", _labels(TENANT, (tenant,)), used << 30
    for tenant, count in session.execute(
        select(one.tenant_id, func.count()).group_by(one.tenant_id)
    ):
        tenants[tenant] = count
    for tenant, count in tenants.items():
        yield "kumo_volumes", _labels(TENANT, (tenant,)), count
    kinds = dict.fromkeys(settling.KINDS, 0)
    for unsettled, count in session.execute(
        select(one.unsettled, func.count()).where(one.unsettled > "").group_by(one.unsettled)
    ):
        for kind in unsettled.split(","):
            kinds[kind] = kinds.get(kind, 0) + count
    for kind, count in kinds.items():
        yield "kumo_volumes_unsettled", _labels(("kind",), (kind,)), count


def _tasks(session: Session) -> Iterator[Sample]:
    one = models.Task
    oldest: dict[str, int] = {}
    for kind, state, count, created in session.execute(
        select(one.type, one.state, func.count(), func.min(one.created))
        .where(one.state.in_([task.IDLE, task.RUNNING]))
        .group_by(one.type, one.state)
    ):
        yield "kumo_tasks", _labels(("type", "state"), (kind, state)), count
        oldest[kind] = min(created, oldest.get(kind, created))
    for kind, created in oldest.items():
        age = max(0, now_ms() - created) / 1000
        yield "kumo_task_age_seconds", _labels(("type",), (kind,)), age


def _odds(session: Session) -> Iterator[Sample]:
    backend, removal, garbage = models.Backend, models.Removal, models.Garbage
    for node, count in session.execute(
        select(backend.persistent_id, func.count())
        .join(removal, (removal.backend_id == backend.persistent_id) & removal.done.is_(None))
        .group_by(backend.persistent_id)
    ):
        yield "kumo_node_removals", _labels(("node",), (node,)), count
    for kind, kept, count in session.execute(
        select(garbage.kind, garbage.acknowledged, func.count()).group_by(
            garbage.kind, garbage.acknowledged
        )
    ):
        labels = _labels(("kind", "acknowledged"), (kind, "true" if kept else "false"))
        yield "kumo_garbage", labels, count
    yield "kumo_events_total", "", session.scalar(select(func.max(models.Event.id))) or 0
    # On SQLite there is one, and it needs no row.
    alive = session.scalar(select(func.count()).select_from(models.Instance)) or 1
    yield "kumo_instances", "", alive
    yield "kumo_database_doubted", "", int(stamps.read(session).doubt != "")
    yield "kumo_leases", "", session.scalar(select(func.count()).select_from(models.Lease)) or 0


_READERS = (_nodes, _pools, _replicas, _volumes, _tasks, _odds)
