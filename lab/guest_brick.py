# SPDX-License-Identifier: Apache-2.0
"""What nova-compute does with os-brick, as a small service inside a compute machine.

It stays resident as nova-compute does, so that what is timed is the connector and not the start of
a Python interpreter. One JSON object per connection on a unix socket, one answer.

Calls follow nova/virt/libvirt/volume/nvme.py and nova/virt/libvirt/driver.py
(``get_volume_connector``), Nova 2026.
"""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import time
import traceback
from pathlib import Path
from typing import Any

SOCKET = "/run/kumo-brick.sock"
_LOCKS = "/run/lock/os-brick"


class Brick:
    """os-brick's connector for ``nvmeof`` connection information."""

    def __init__(self, address: str) -> None:
        import os_brick
        from os_brick.initiator import connector
        from os_brick.privileged import default
        from oslo_concurrency import lockutils
        from oslo_config import cfg

        conf = cfg.CONF
        lockutils.set_defaults(_LOCKS)
        conf([], project="kumo-brick", default_config_files=[])
        os_brick.setup(conf)
        conf.set_override("lock_path", _LOCKS, group="os_brick")
        # This process is root: privileged calls need no helper process.
        default.set_client_mode(False)
        self._module = connector
        self._address = address
        self._connector = connector.InitiatorConnector.factory(
            "NVMEOF", "sudo", use_multipath=False, device_scan_attempts=5
        )

    def properties(self) -> dict[str, Any]:
        """What the host tells Cinder about itself."""
        return dict(
            self._module.get_connector_properties(
                "sudo", self._address, multipath=False, enforce_multipath=False
            )
        )

    def connect(self, data: dict[str, Any]) -> dict[str, Any]:
        """Attach; the answer has the device's path."""
        return dict(self._connector.connect_volume(data))

    def disconnect(self, data: dict[str, Any], force: bool) -> None:
        """Detach; Nova gives no device information but ``device_path`` in ``data``."""
        self._connector.disconnect_volume(data, None, force=force)

    def extend(self, data: dict[str, Any]) -> int:
        """Let the device grow; the answer is its size in bytes."""
        return int(self._connector.extend_volume(data))


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        begin = time.monotonic()
        try:
            request = json.loads(self.rfile.readline())
            brick = self.server.brick  # type: ignore[attr-defined]
            result = getattr(brick, request["call"])(**request["arguments"])
            answer = {"result": result}
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answer["seconds"] = time.monotonic() - begin
        self.wfile.write(json.dumps(answer).encode() + b"\n")


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def serve(address: str) -> None:
    """Serve for ever."""
    Path(SOCKET).unlink(missing_ok=True)
    brick = Brick(address)
    with _Server(SOCKET, _Handler) as server:
        server.brick = brick  # type: ignore[attr-defined]
        server.serve_forever()


def ask() -> None:
    """Send standard input to the service and print its answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(SOCKET)
        sock.sendall(sys.stdin.readline().encode())
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile() as stream:
            print(stream.read())


if __name__ == "__main__":
    if sys.argv[1:] == ["ask"]:
        ask()
    else:
        serve(sys.argv[1])
