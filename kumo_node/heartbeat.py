# SPDX-License-Identifier: Apache-2.0
"""Telling the provisioner how this node is: on a timer, and at once when that has changed.

The provisioner asks nodes by itself as well; a heartbeat only lets it know earlier. So a heartbeat
that fails is logged once, tried again later, and keeps nothing else of the node waiting.
"""

from __future__ import annotations

import pathlib
import threading
import time
from collections.abc import Callable
from typing import Protocol

from oslo_config import cfg
from oslo_log import log

from kumo_client import errors
from kumo_client.api.provisioner import Provisioner
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.node import Heartbeat, NodeInfo
from kumo_client.session import Session

LOG = log.getLogger(__name__)
# Seconds that one heartbeat may take, and the longest pause after failures.
_BUDGET = 5.0
_LONGEST = 60.0
# Seconds between two heartbeats even when everything changes all the time.
_LEAST = 1.0


class Receiver(Protocol):
    """Who is told: :class:`kumo_client.api.provisioner.Provisioner`."""

    def heartbeat(self, beat: Heartbeat, *, budget: float | None = None) -> StatusAnswer:
        """:raises KumoError: it was not told."""


def receiver(conf: cfg.ConfigOpts, version: str) -> Provisioner | None:
    """The provisioner of the options; None when none is given.

    :raises ConfigError: URLs, token or CA file cannot be used.
    """
    if not conf.provisioner_urls:
        return None
    if not conf.provisioner_token_file:
        raise errors.ConfigError(
            "Option provisioner_token_file is needed with provisioner_urls",
            way_out="kumo-provisioner init makes heartbeat.token",
        )
    path = pathlib.Path(conf.provisioner_token_file)

    def token() -> str:
        # Read each time: it may be replaced while the daemon runs.
        try:
            return path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise errors.ConfigError(f"Option provisioner_token_file: {error}") from error

    token()
    session = Session(
        conf.provisioner_urls,
        token=token,
        ca_file=conf.provisioner_ca_file,
        connect_timeout=2.0,
        read_timeout=_BUDGET,
        budget=_BUDGET,
        user_agent=f"kumo-node/{version}",
        pool_size=1,
    )
    return Provisioner(session)


class Heartbeats:
    """The loop.

    :param tell: gives what is sent.
    :param interval: seconds between two heartbeats.
    :ivar ok: heartbeats that were taken. :ivar failed: those that were not.
    :ivar last: Unix time of the last that was taken, 0 for none.
    """

    def __init__(
        self,
        provisioner: Receiver,
        tell: Callable[[], NodeInfo],
        *,
        interval: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.provisioner = provisioner
        self.tell = tell
        self.interval = interval
        self.clock = clock
        self.ok = self.failed = 0
        self.last = 0.0
        self._failures = 0
        self._reason = ""
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the loop; a heartbeat that is under way is not waited for longer than it may take."""
        self._stopped.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_BUDGET)

    def hurry(self) -> None:
        """Something has changed: send one now."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            self.beat()
            if self._stopped.wait(min(_LEAST, self.interval)):
                return
            self._wake.wait(self.pause())

    def pause(self) -> float:
        """Seconds to the next one: longer after each failure."""
        wait = self.interval * 2 ** min(self._failures, 8)
        return max(self.interval, min(wait, _LONGEST)) - min(_LEAST, self.interval)

    def beat(self) -> bool:
        """Send one; False when it was not taken."""
        reason = self._send()
        # Outside the handler: the log would add the exception to the message.
        if reason:
            self._fail(reason)
        else:
            self._succeed()
        return not reason

    def _send(self) -> str:
        """Why it was not taken; "" when it was."""
        try:
            self.provisioner.heartbeat(Heartbeat(**dict(self.tell())), budget=_BUDGET)
        except errors.KumoError as error:
            return error.description
        except Exception as error:
            # Whatever is wrong here must not end the loop, and is a defect that is to be seen.
            LOG.exception("A heartbeat could not be made")
            return type(error).__name__
        return ""

    def _fail(self, reason: str) -> None:
        self.failed += 1
        self._failures += 1
        # The reason names the request and its time; what is wrong is told once.
        if not self._reason:
            LOG.warning("The provisioner cannot be told how this node is: %s", reason)
        self._reason = reason

    def _succeed(self) -> None:
        self.ok += 1
        self.last = self.clock()
        if self._reason:
            LOG.info("The provisioner is told again how this node is")
        self._failures, self._reason = 0, ""
