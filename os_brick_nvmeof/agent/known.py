# SPDX-License-Identifier: Apache-2.0
"""What the threads of the agent share, and how it is written down."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from oslo_log import log

from os_brick_nvmeof.agent.history import History
from os_brick_nvmeof.agent.model import Memory, Seen, Wanted
from os_brick_nvmeof.agent.store import Store

LOG = log.getLogger(__name__)


class Known:
    """What is wanted, what was seen and done, and what is to be remembered of it.

    Who changes something, or reads two things of one moment, holds ``lock`` meanwhile.

    :ivar last: the last action of each volume, as the status shows it.
    :ivar seen: the last look of a round; None before the first one.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.lock = threading.RLock()
        # Taken before the other one, by who writes the memory down.
        self._writing = threading.Lock()
        self.memory = store.memory()
        self.wanted = store.wanted()
        self.history = History(store.history())
        self.last: dict[str, dict[str, Any]] = {}
        self.seen: Seen | None = None

    def now(self) -> tuple[Wanted, Memory]:
        """What is wanted and what is remembered, of one moment."""
        with self.lock:
            return self.wanted, self.memory

    def save(self, save: Callable[[], None], what: str) -> bool:
        """Write something down; False, and a line in the log, when that cannot be done."""
        try:
            save()
        except OSError as error:
            LOG.error("%s cannot be written down: %s", what, error)
            return False
        return True

    def save_memory(self, what: str) -> bool:
        """Write the memory down as it is now: whoever comes last must not write the older one."""
        with self._writing:
            with self.lock:
                memory = self.memory
            return self.save(lambda: self.store.save_memory(memory), what)
