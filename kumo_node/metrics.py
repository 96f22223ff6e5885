# SPDX-License-Identifier: Apache-2.0
"""GET /metrics of a node, in the text format of Prometheus.

What the node holds is read when it is asked for; what the process did is counted. There is one
registry for each node.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from oslo_log import log
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kumo_client import errors
from kumo_client.schemas.node import NodeInfo, Ssd
from kumo_node.service import Node
from kumo_node.spec import READY

LOG = log.getLogger(__name__)
PREFIX = "kumo_storage_"
OTHER = "other"
_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 120)
# Name, help, labels besides those that its group has, by group.
_NODE = {
    "up": "1 when the node could look at itself.",
    "problems": "Problems that the node tells of.",
    "generation": "Generation of the node's record.",
    "copy_remaining_bytes": "Bytes that copies from other nodes still have to read.",
}
_POOL = {
    "pool_size_bytes": "Size of the pool.",
    "pool_used_bytes": "Bytes of the pool that are mapped.",
    "pool_provisioned_bytes": "Sum of the sizes of its replicas and snapshots.",
    "pool_data_percent": "Part of the pool's data space that is used.",
    "pool_metadata_percent": "Part of the pool's metadata space that is used.",
    "pool_iops": "Operations per second of its disks, mean of the last minutes.",
    "pool_bandwidth_bytes": "Bytes per second of its disks, mean of the last minutes.",
    "pool_iops_limit": "Operations per second that it delivers, as given or measured; 0: unknown.",
    "pool_bandwidth_limit_bytes": "Bytes per second that it delivers; 0: unknown.",
    "pool_replicas": "Replicas on the pool.",
    "pool_snapshots": "Snapshots on the pool.",
}
_SSD = {
    "ssd_io_errors": "Errors of the disk since boot.",
    "ssd_wear_percent": "Part of its endurance that is used, by its SMART log.",
    "ssd_media_errors": "Media errors, by its SMART log.",
    "ssd_temperature_celsius": "Temperature, by its SMART log.",
}


class Metrics:
    """The metrics of one running node."""

    def __init__(self, node: Node) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_Holdings(node))
        self._requests = Counter(
            f"{PREFIX}requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            f"{PREFIX}request_duration_seconds",
            "Time until a request was answered.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; ``route`` is the template of its path."""
        method = method if method in ("GET", "PUT", "PATCH", "DELETE") else OTHER
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class _Holdings(Collector):
    """What the node holds, read when it is collected."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def describe(self) -> list[Metric]:
        # Without it the registry would collect once when this is registered.
        return []

    def collect(self) -> Iterator[Metric]:
        found = _families()
        try:
            info = self.node.info()
        except errors.KumoError as error:
            LOG.warning("The metrics are not complete: %s", error.description)
            _add(found, "up", [], 0)
        else:
            _add(found, "up", [], 1)
            self._add_info(found, info)
        self._add_record(found)
        self._add_heartbeats(found)
        yield from found.values()

    def _add_info(self, found: dict[str, Any], info: NodeInfo) -> None:
        _add(found, "info", [info.name, info.persistent_id, info.version, info.kernel], 1)
        _add(found, "problems", [], len(info.problems))
        for ability in info.abilities:
            _add(found, "ability", [ability], 1)
        for pool in info.pools:
            values = {
                "pool_size_bytes": pool.total_bytes,
                "pool_used_bytes": pool.used_bytes,
                "pool_provisioned_bytes": pool.provisioned_bytes,
                "pool_data_percent": pool.data_percent,
                "pool_metadata_percent": pool.metadata_percent,
                "pool_iops": pool.iops,
                "pool_bandwidth_bytes": pool.bw * 1024,
                "pool_iops_limit": pool.max_iops,
                "pool_bandwidth_limit_bytes": pool.max_bw * 1024,
            }
            for name, value in values.items():
                _add(found, name, [pool.name], value)
            _add(found, "pool_state", [pool.name, pool.state], 1)
            for ssd in pool.ssds:
                _add_ssd(found, pool.name, ssd)

    def _add_record(self, found: dict[str, Any]) -> None:
        data = self.node.ctx.spec.data
        _add(found, "generation", [], data.generation)
        for name in self.node.ctx.pools:
            for kind, records in (("replicas", data.replicas), ("snapshots", data.snapshots)):
                ready = [r for r in records.values() if r.pool == name and r.state == READY]
                _add(found, f"pool_{kind}", [name], len(ready))
        for io_class in ("plain", "replicated"):
            exports = [e for e in data.exports.values() if e.io_class == io_class]
            _add(found, "exports", [io_class], len(exports))
        remaining = 0
        for state in ("running", "done", "failed"):
            copies = [uuid for uuid, copy in data.copies.items() if copy.state == state]
            _add(found, "copies", [state], len(copies))
            if state == "running":
                remaining = sum(data.copies[u].bytes - self.node.copies.copied(u) for u in copies)
        _add(found, "copy_remaining_bytes", [], remaining)

    def _add_heartbeats(self, found: dict[str, Any]) -> None:
        beats = self.node.heartbeats
        if beats is not None:
            _add(found, "heartbeats", ["ok"], beats.ok)
            _add(found, "heartbeats", ["failed"], beats.failed)
            _add(found, "heartbeat_last_seconds", [], beats.last)


def _families() -> dict[str, Any]:
    found: dict[str, Any] = {}

    def gauge(name: str, text: str, *labels: str) -> None:
        found[name] = GaugeMetricFamily(PREFIX + name, text, labels=labels)

    gauge("info", "1.", "name", "persistent_id", "version", "kernel")
    gauge("ability", "1 for each ability of the node.", "ability")
    gauge("exports", "Namespaces exported.", "class")
    gauge("copies", "Copies from other nodes on record.", "state")
    gauge("heartbeat_last_seconds", "Unix time of the last heartbeat that was taken.")
    gauge("pool_state", "1 with the state that the pool is in.", "pool", "state")
    gauge("ssd_state", "1 with the state that the disk is in.", "pool", "path", "serial", "state")
    for name, text in _NODE.items():
        gauge(name, text)
    for name, text in _POOL.items():
        gauge(name, text, "pool")
    for name, text in _SSD.items():
        gauge(name, text, "pool", "path", "serial")
    found["heartbeats"] = CounterMetricFamily(
        f"{PREFIX}heartbeats", "Heartbeats sent.", labels=("result",)
    )
    return found


def _add(found: dict[str, Any], name: str, labels: list[str], value: float) -> None:
    found[name].add_metric(labels, value)


def _add_ssd(found: dict[str, Any], pool: str, ssd: Ssd) -> None:
    labels = [pool, ssd.path, ssd.serial]
    _add(found, "ssd_state", [*labels, ssd.state], 1)
    values = {
        "ssd_io_errors": ssd.io_errors,
        "ssd_wear_percent": ssd.wear_percent,
        "ssd_media_errors": ssd.media_errors,
        "ssd_temperature_celsius": ssd.temperature,
    }
    for name, value in values.items():
        if value is not None:
            _add(found, name, labels, value)
