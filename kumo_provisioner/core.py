# SPDX-License-Identifier: Apache-2.0
"""What every service needs, made once when the program starts."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

from oslo_config import cfg
from sqlalchemy import update

from kumo_provisioner.clock import now_ms as now_ms
from kumo_provisioner.db import models
from kumo_provisioner.db.engine import Database
from kumo_provisioner.instances import Instances
from kumo_provisioner.leases import Leases
from kumo_provisioner.locks import Locks
from kumo_provisioner.metrics import Metrics
from kumo_provisioner.nodes import Nodes
from kumo_provisioner.recent import Recent
from kumo_provisioner.stamps import Stamps

# How long (seconds) placement relies on which pools are the best ones.
SHORTLIST_SECONDS = 1.0


@dataclasses.dataclass
class Core:
    """Configuration, database, nodes and locks of one running provisioner.

    :ivar wake: set to ask for a reconcile before its time.
    :ivar leaving: set when the process was told to end; it still serves, but says not to be ready.
    :ivar stopping: set when requests at work have to come to their end; who waits wakes up.
    :ivar shortlists: see :mod:`kumo_provisioner.services.placing`.
    """

    conf: cfg.ConfigOpts
    db: Database
    nodes: Nodes | Any
    locks: Locks
    wake: threading.Event = dataclasses.field(default_factory=threading.Event)
    leaving: threading.Event = dataclasses.field(default_factory=threading.Event)
    stopping: threading.Event = dataclasses.field(default_factory=threading.Event)
    metrics: Metrics = dataclasses.field(default_factory=Metrics)
    shortlists: Recent[Any, Any] = dataclasses.field(
        default_factory=lambda: Recent(SHORTLIST_SECONDS)
    )
    instances: Instances | None = None
    leases: Leases | None = None
    stamps: Stamps = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.stamps = self.nodes.stamps = Stamps(self.db)
        self.nodes.tell = self.metrics.node_call
        self.db.on_retry = self.metrics.retried

    @classmethod
    def make(cls, conf: cfg.ConfigOpts) -> Core:
        """Make everything; nothing is asked of database or nodes yet.

        :raises ConfigError: when a file is missing or the database cannot be used.
        """
        nodes = Nodes(conf)
        database = Database(conf.database.connection, conf.database.max_connections)
        return cls(conf, database, nodes, Locks(conf.server.lock_timeout)).share()

    def share(self) -> Core:
        """Prepare to work with other instances on one database, if it is of such a kind."""
        if not self.db.is_sqlite:
            self.instances = Instances(self.conf, self.db, on_death=self.wake.set)
            self.leases = Leases(self.db, self.instances)
            self.locks = Locks(self.locks.timeout, self.leases)
            self.nodes.guard = self.locks.verify
        return self

    def start(self) -> None:
        """Become the one provisioner of an SQLite file, or one of several.

        :raises ConfigError: when that is not possible.
        """
        if self.db.is_sqlite:
            self.db.claim()
            self.db.upgrade()
            self._look_everywhere()
            self.stamps.start()
            return
        self.db.check_schema()
        self.stamps.start()
        if self.instances is not None and self.leases is not None:
            self.instances.start()
            self.leases.start()

    def _look_everywhere(self) -> None:
        """What our predecessor was doing to which node, nobody knows."""
        with self.db.write() as session:
            session.execute(update(models.Backend).values(next_reconcile=0))

    def close(self) -> None:
        """End in order; leases that are still held count until they are noticed to be dead."""
        if self.leases is not None and self.instances is not None:
            self.leases.stop()
            self.instances.stop()
        self.nodes.close()
        self.db.close()
