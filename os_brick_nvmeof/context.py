# SPDX-License-Identifier: Apache-2.0
"""What every verb of the connector is given: the host, the options, who this host is, and time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from oslo_config import cfg

from os_brick_nvmeof import waiting
from os_brick_nvmeof.host import Host
from os_brick_nvmeof.locks import Locks


@dataclasses.dataclass(frozen=True)
class Context:
    """One call of the connector runs in one of these.

    :ivar conf: options, :mod:`os_brick_nvmeof.conf` registered.
    :ivar host_nqn: who this host is to storage nodes.
    :ivar host_id: its NVMe host identifier, a UUID; "" when it has none.
    :ivar multipath: the caller asked for all portals, and the kernel has native multipath.
    :ivar clock: monotonic seconds.
    :ivar sleep: waits that many seconds; other threads go on meanwhile.
    :ivar threads: how threads are started and waited for.
    """

    host: Host
    conf: cfg.ConfigOpts
    host_nqn: str
    host_id: str
    multipath: bool
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    locks: Locks = dataclasses.field(default_factory=Locks)
    threads: waiting.Threads = dataclasses.field(default_factory=waiting.Threads)
