# SPDX-License-Identifier: Apache-2.0
"""The HTTPS server, with an end in good order."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn


class Server(uvicorn.Server):
    """Uvicorn that ends when the requests at work are done.

    Uvicorn itself waits until the clients have closed their connections, and an idle client does
    not answer the end of its TLS session: each stop would last as long as the limit allows.

    :ivar patience: seconds that requests at work have left.
    """

    patience: float = 60.0

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        deadline = time.monotonic() + self.patience
        while self.server_state.tasks and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for connection in list(self.server_state.connections):
            transport = connection.transport
            if transport is not None:
                transport.abort()
        await super().shutdown(sockets)


def _end(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def serve(config: uvicorn.Config, patience: float) -> None:
    """Serve until a signal ends it, in order: the exit status is then 0."""
    # Uvicorn repeats the signal when it is done, to the handlers that were there before.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    server = Server(config)
    server.patience = patience
    server.run()
