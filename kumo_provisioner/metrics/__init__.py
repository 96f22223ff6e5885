# SPDX-License-Identifier: Apache-2.0
"""What this process did, counted; and :mod:`~kumo_provisioner.metrics.record`, what there is.

Each :class:`Metrics` has a registry of its own. Names of labels and values are few and known:
nothing that a client makes up becomes a label.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from kumo_client import errors
from kumo_client.api.node import Node
from kumo_client.schemas.common import SUCCESS

METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
OTHER = "other"
REQUEST_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
NODE_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
RECONCILE_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters and histograms of one running provisioner."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._counter(
            "kumo_requests", "Requests answered.", "method", "route", "status"
        )
        self._request_seconds = self._histogram(
            "kumo_request_duration_seconds",
            "Time until a request was answered.",
            REQUEST_BUCKETS,
            "method",
            "route",
        )
        self.requests_at_work = Gauge(
            "kumo_requests_in_progress", "Requests at work.", registry=self.registry
        )
        self._node_calls = self._counter(
            "kumo_node_calls", "Calls to storage nodes, by what came of them.", "verb", "result"
        )
        self._node_seconds = self._histogram(
            "kumo_node_call_duration_seconds",
            "Time that calls to storage nodes took, repetitions included.",
            NODE_BUCKETS,
            "verb",
        )
        self._refusals = self._counter(
            "kumo_placement_refusals",
            "Nodes and pools that a filter refused, in placements that found no place.",
            "filter",
        )
        self._retries = self._counter(
            "kumo_database_retries",
            "Transactions repeated because another one was in the way or the connection broke.",
        )
        self._reconcile_seconds = self._histogram(
            "kumo_reconcile_duration_seconds", "Time that reconciles took.", RECONCILE_BUCKETS
        )
        self._reconciled = self._counter(
            "kumo_reconcile_results", "What reconciles did and found.", "result"
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)

    def text(self) -> bytes:
        """What has been counted, as Prometheus reads it."""
        return generate_latest(self.registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered.

        :param method: one of :data:`METHODS`, or :data:`OTHER`.
        :param route: template of the path, or :data:`OTHER`; never the path itself.
        """
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(method, route).observe(seconds)

    def node_call(self, verb: str, result: str, seconds: float) -> None:
        """A storage node was called.

        :param result: code of the error, or Success.
        """
        self._node_calls.labels(verb, result).inc()
        self._node_seconds.labels(verb).observe(seconds)

    def refused(self, error: errors.NoSpaceError) -> None:
        """A placement found no place."""
        for one in error.details.get("refusals", ()):
            self._refusals.labels(str(one["refusedBy"])).inc()

    def retried(self) -> None:
        """A transaction is repeated."""
        self._retries.inc()

    def reconciled(self, counts: Mapping[str, int], seconds: float) -> None:
        """A reconcile ended."""
        self._reconcile_seconds.observe(seconds)
        for name, count in counts.items():
            self._reconciled.labels(name).inc(count)


class _Watched:
    def __init__(self, node: Node, tell: Callable[[str, str, float], None]) -> None:
        self._node = node
        self._tell = tell

    def __getattr__(self, verb: str) -> Any:
        method = getattr(self._node, verb)

        def call(*args: Any, **options: Any) -> Any:
            begun = time.monotonic()
            result = errors.InternalError.code
            try:
                answer = method(*args, **options)
                result = SUCCESS
            except errors.KumoError as exc:
                result = exc.code
                raise
            finally:
                self._tell(verb, result, time.monotonic() - begun)
            return answer

        return call


def watched(node: Node, tell: Callable[[str, str, float], None]) -> Node:
    """The client of a node, each call of which is told: verb, result, seconds."""
    return cast(Node, _Watched(node, tell))
