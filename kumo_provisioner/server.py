# SPDX-License-Identifier: Apache-2.0
"""The HTTPS server, with an end in good order."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from oslo_log import log

from kumo_provisioner.services import watch

LOG = log.getLogger(__name__)


class Server(uvicorn.Server):
    """Uvicorn that ends in steps: it says so, serves on for a while, and then finishes.

    Uvicorn itself waits until the clients have closed their connections, and an idle client does
    not answer the end of its TLS session: each stop would last as long as the limit allows.

    :ivar patience: seconds that requests at work have left.
    :ivar grace: seconds between the signal and the end of listening; a second signal cuts them
        short.
    :ivar on_leaving: called when the signal arrives; in the signal handler, so it is short.
    :ivar on_stopping: called when nothing new is accepted any more.
    """

    patience: float = 60.0
    grace: float = 0.0
    on_leaving: Callable[[], None] = staticmethod(lambda: None)
    on_stopping: Callable[[], None] = staticmethod(lambda: None)
    _exit_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._exit_at is None and self.grace > 0:
            self._captured_signals.append(sig)
            self._exit_at = time.monotonic() + self.grace
        else:
            super().handle_exit(sig, frame)
        self.on_leaving()

    async def on_tick(self, counter: int) -> bool:
        over = self._exit_at is not None and time.monotonic() >= self._exit_at
        return await super().on_tick(counter) or over

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        watch.end()
        self.on_stopping()
        LOG.info("Ending; %s requests are at work", len(self.server_state.tasks))
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            sending = [_part(connection) for connection in list(self.server_state.connections)]
            if not self.server_state.tasks and not any(sending):
                break
            await asyncio.sleep(0.02)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await super().shutdown(sockets)


def _part(connection: Any) -> bool:
    """Close an idle connection; a busy one takes no further request after its answer.

    :returns: whether something is still to be sent.
    """
    transport, cycle = connection.transport, getattr(connection, "cycle", None)
    if transport is None:
        return False
    if transport.get_write_buffer_size():
        return True
    if cycle is None or cycle.response_complete:
        # Not close(): that waits for the client to answer the end of the TLS session.
        transport.abort()
    else:
        cycle.keep_alive = False
    return False


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def serve(server: Server) -> None:
    """Serve until a signal ends it, in order: the exit status is then 0."""
    # Uvicorn repeats the signal when it is done, to the handlers that were there before.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    server.run()
