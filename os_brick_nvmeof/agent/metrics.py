# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of the agent."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from os_brick_nvmeof.agent import status

STATES = (
    status.GOOD,
    status.DEGRADED,
    status.HEALING,
    status.BROKEN,
    status.FAILED,
    status.DETACHED,
)


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        this = self.registry
        self.actions = Counter(
            "kumo_agent_actions", "Actions carried out.", ["kind", "outcome"], registry=this
        )
        self.probes = Counter(
            "kumo_agent_probes", "Probes of storage nodes.", ["outcome"], registry=this
        )
        self.silent = Gauge(
            "kumo_agent_silent_portals",
            "Portals that do not answer the probes.",
            registry=this,
        )
        self.pulls = Counter(
            "kumo_agent_pulls", "Questions to the provisioner.", ["outcome"], registry=this
        )
        self.rounds = Counter("kumo_agent_rounds", "Looks at the host.", registry=this)
        self.healed = Counter(
            "kumo_agent_healed_legs", "Legs that came to be in sync again.", ["kind"], registry=this
        )
        self.copied = Counter(
            "kumo_agent_healed_bytes",
            "Bytes written to legs that were healed.",
            ["kind"],
            registry=this,
        )
        self.volumes = Gauge(
            "kumo_agent_volumes", "Volumes of this host by state.", ["state"], registry=this
        )
        self.legs = Gauge(
            "kumo_agent_legs", "Legs by place in their arrays.", ["place"], registry=this
        )
        self.progress = Gauge(
            "kumo_agent_sync_progress_ratio", "Of a synchronisation.", ["volume"], registry=this
        )
        self.away = Gauge(
            "kumo_agent_provisioner_away", "1 while the provisioner cannot be asked.", registry=this
        )
        self.network = Gauge(
            "kumo_agent_network_suspected",
            "1 while so many nodes are away that only connections are mended.",
            registry=this,
        )
        self.waiting = Gauge(
            "kumo_agent_failing_actions", "Actions that failed and are tried again.", registry=this
        )

    def note(self, shown: Mapping[str, Any]) -> None:
        """Take over a status."""
        self.rounds.inc()
        states = Count(volume["state"] for volume in shown["volumes"])
        for name in STATES:
            self.volumes.labels(name).set(states[name])
        self.legs.clear()
        places = Count(leg["place"] for volume in shown["volumes"] for leg in volume["legs"])
        for place, number in places.items():
            self.legs.labels(place).set(number)
        self.progress.clear()
        for volume in shown["volumes"]:
            if volume["progress"] is not None:
                self.progress.labels(volume["uuid"]).set(volume["progress"] / 100)
        self.away.set(shown["provisioner"]["away"])
        self.network.set(bool(shown["network"]))
        self.waiting.set(len(shown["waiting"]))

    def serve(self, address: str, port: int) -> None:
        """:raises OSError: the port cannot be had."""
        start_http_server(port, address, registry=self.registry)
