# SPDX-License-Identifier: Apache-2.0
"""What nova-compute does with os-brick, as a small service inside a compute machine.

It stays resident as nova-compute does, so that what is timed is the connector and not the start of
a Python interpreter. One JSON object per connection on a unix socket, one answer. One service for
each edition of os-brick (:mod:`lab.brick_site`); both may run at once, as after an upgrade.

Calls follow nova/virt/libvirt/volume/nvme.py and nova/virt/libvirt/driver.py
(``get_volume_connector``), Nova 2026.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socketserver
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LOCKS = "/run/lock/os-brick"
# Options of the connector, as nova.conf has them; there need not be any.
CONFIG = "/etc/kumo/brick.conf"


def socket_path(edition: str) -> str:
    """Where the service of an edition listens."""
    return f"/run/kumo-brick-{edition}.sock"


class Brick:
    """os-brick's connector for ``nvmeof`` connection information."""

    def __init__(self, address: str) -> None:
        import os_brick
        from os_brick.initiator import connector
        from os_brick.privileged import default
        from oslo_concurrency import lockutils
        from oslo_config import cfg

        conf = self._conf = cfg.CONF
        lockutils.set_defaults(LOCKS)
        files = [CONFIG] if os.path.exists(CONFIG) else []
        conf([], project="kumo-brick", default_config_files=files)
        os_brick.setup(conf)
        conf.set_override("lock_path", LOCKS, group="os_brick")
        # This process is root: privileged calls need no helper process.
        default.set_client_mode(False)
        self._module = connector
        self._address = address
        self._connectors: dict[bool, Any] = {}

    def _connector(self, multipath: bool) -> Any:
        if multipath not in self._connectors:
            self._connectors[multipath] = self._module.InitiatorConnector.factory(
                "NVMEOF", "sudo", use_multipath=multipath, device_scan_attempts=5
            )
        return self._connectors[multipath]

    def properties(self, multipath: bool = False) -> dict[str, Any]:
        """What the host tells Cinder about itself."""
        return dict(
            self._module.get_connector_properties(
                "sudo", self._address, multipath=multipath, enforce_multipath=False
            )
        )

    def connect(self, data: dict[str, Any], multipath: bool = False) -> dict[str, Any]:
        """Attach; the answer has the device's path."""
        return dict(self._connector(multipath).connect_volume(data))

    def disconnect(self, data: dict[str, Any], force: bool, multipath: bool = False) -> None:
        """Detach; Nova gives no device information but ``device_path`` in ``data``."""
        self._connector(multipath).disconnect_volume(data, None, force=force)

    def extend(self, data: dict[str, Any], multipath: bool = False) -> int:
        """Let the device grow; the answer is its size in bytes."""
        return int(self._connector(multipath).extend_volume(data))

    def together(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Carry several requests out at the same time; an answer for each, in their order."""
        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(lambda call: perform(self, json.dumps(call).encode()), calls))

    def configure(self, group: str, options: dict[str, Any]) -> None:
        """Set options of this process alone; None: as its configuration has it."""
        for name, value in options.items():
            if value is None:
                self._conf.clear_override(name, group)
            else:
                self._conf.set_override(name, value, group)

    def talk(self) -> None:
        """Write everything to the log from now on."""
        logging.basicConfig(level=logging.DEBUG)

    def kind(self) -> str:
        """Class of the connector that the factory gives."""
        cls = type(self._connector(False))
        return f"{cls.__module__}.{cls.__qualname__}"


def perform(brick: Any, line: bytes) -> dict[str, Any]:
    """Carry a request out: a line of JSON with ``call`` and ``arguments``.

    With ``kill_after`` (seconds) in it, a process of its own does it and gets a SIGKILL then, as
    nova-compute may; the answer says whether it was done before.

    :return: ``result`` or ``error``, and ``seconds``.
    """
    begin = time.monotonic()
    try:
        request = json.loads(line)
        if "kill_after" in request:
            result: Any = _killed(brick, request)
        else:
            result = getattr(brick, request["call"])(**request["arguments"])
        answer: dict[str, Any] = {"result": result}
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller is told
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    return answer | {"seconds": time.monotonic() - begin}


def _killed(brick: Any, request: dict[str, Any]) -> bool:
    child = os.fork()
    if not child:
        code = 1
        try:
            getattr(brick, request["call"])(**request["arguments"])
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + request["kill_after"]
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        answer = perform(self.server.brick, self.rfile.readline())  # type: ignore[attr-defined]
        self.wfile.write(json.dumps(answer).encode() + b"\n")


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def serve(address: str, edition: str) -> None:
    """Serve for ever."""
    path = socket_path(edition)
    Path(path).unlink(missing_ok=True)
    brick = Brick(address)
    with _Server(path, _Handler) as server:
        server.brick = brick  # type: ignore[attr-defined]
        server.serve_forever()


if __name__ == "__main__":
    serve(*sys.argv[1:])
