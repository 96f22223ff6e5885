# SPDX-License-Identifier: Apache-2.0
"""What every service needs, made once when the program starts."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

from oslo_config import cfg

from kumo_provisioner.db.engine import Database
from kumo_provisioner.locks import Locks
from kumo_provisioner.nodes import Nodes


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclasses.dataclass
class Core:
    """Configuration, database, nodes and locks of one running provisioner.

    :ivar wake: set to ask for a reconcile before its time.
    """

    conf: cfg.ConfigOpts
    db: Database
    nodes: Nodes | Any
    locks: Locks
    wake: threading.Event = dataclasses.field(default_factory=threading.Event)
    # Only one reconcile at a time.
    reconciling: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    @classmethod
    def make(cls, conf: cfg.ConfigOpts) -> Core:
        """Connect everything.

        :raises ConfigError: when a file is missing or the database cannot be used.
        """
        nodes = Nodes(conf)
        database = Database(conf.database.connection)
        return cls(conf, database, nodes, Locks(conf.server.lock_timeout))

    def close(self) -> None:
        self.nodes.close()
        self.db.close()
