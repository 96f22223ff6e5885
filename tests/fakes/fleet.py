# SPDX-License-Identifier: Apache-2.0
"""A fleet of fake storage nodes: real HTTPS servers with the node API, and faults on demand."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from kumo_client import errors, stamp
from kumo_client.schemas.node import (
    AdoptSpec,
    CopySpec,
    ExportSpec,
    Limits,
    ReleaseSpec,
    ReplicaResize,
    ReplicaSpec,
    RevertSpec,
    SnapshotSpec,
    StampSpec,
)
from tests.fakes.node_model import NodeModel, State

ADDRESS = "127.0.0.1"
FOREVER = 1 << 30


class VanishError(Exception):
    """Close the connection without an answer."""


@dataclass
class Hold:
    """A call that a node keeps waiting; make it with :meth:`FakeNode.hold`."""

    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    drop: bool = False
    count: int = 0

    def wait(self, calls: int = 1, seconds: float = 60.0) -> None:
        """Wait until that many calls have arrived there."""
        deadline = time.monotonic() + seconds
        while self.count < calls:
            assert time.monotonic() < deadline, f"{self.count} of {calls} calls arrived"
            self.reached.wait(0.02)
            time.sleep(0.005)

    def release(self, *, drop: bool = False) -> None:
        """Let the call go on, or end its connection without an answer."""
        self.drop = drop
        self.released.set()


@dataclass
class Rule:
    """What happens to the calls that match. ``act`` runs ``before`` or after they take effect."""

    method: str
    path: str
    act: Callable[[], None]
    before: bool
    times: int

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and re.search(self.path, path) is not None


class FakeNode:
    """One node: its model behind HTTPS.

    ``.state`` shows replicas, snapshots and exports; ``.calls`` the (method, path) of each call
    that arrived, those of probes (``/v1/info``) left out.
    """

    def __init__(self, model: NodeModel, certificate: Path, token: str) -> None:
        self.model = model
        self.calls: list[tuple[str, str]] = []
        self._rules: list[Rule] = []
        self._token = token
        self._guard = threading.Lock()
        # Calls at work, also those whose caller is gone.
        self.busy = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._server: _Server | None = None
        with socket.socket() as probe:
            probe.bind((ADDRESS, 0))
            self.port: int = probe.getsockname()[1]
        self.up()

    @property
    def state(self) -> State:
        return self.model.state

    @property
    def persistent_id(self) -> str:
        return self.model.persistent_id

    # -- faults -------------------------------------------------------------------------------

    def up(self) -> None:
        """Begin to listen, always on the same port."""
        if self._server is None:
            self._server = _Server((ADDRESS, self.port), self, self._context)
            threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        """Stop as if the power was lost: connections break, new ones are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.break_connections()
            self._server = None

    def reboot(self) -> None:
        """Come back with another boot id; what it held is still there."""
        self.down()
        self.model.boot_id = f"boot-{time.monotonic_ns()}"
        self.up()

    def clear_faults(self) -> None:
        self._rules = []

    def fail(
        self, method: str, path: str, error: errors.KumoError, *, times: int = FOREVER
    ) -> None:
        """Answer matching calls with an error."""

        def act() -> None:
            raise error

        self._rules.append(Rule(method, path, act, True, times))

    def lose_answer(self, method: str, path: str, *, times: int = 1) -> None:
        """Carry matching calls out and break the connection instead of answering."""

        def act() -> None:
            raise VanishError

        self._rules.append(Rule(method, path, act, False, times))

    def lose_request(self, method: str, path: str, *, times: int = 1) -> None:
        """Break the connection before matching calls take effect."""

        def act() -> None:
            raise VanishError

        self._rules.append(Rule(method, path, act, True, times))

    def slow(self, method: str, path: str, seconds: float, *, times: int = FOREVER) -> None:
        """Let matching calls take effect late."""
        self._rules.append(Rule(method, path, lambda: time.sleep(seconds), True, times))

    def hold(self, method: str, path: str, *, before: bool = True, times: int = 1) -> Hold:
        """Stop matching calls before, or after, they take effect."""
        hold = Hold()

        def act() -> None:
            with self._guard:
                hold.count += 1
            hold.reached.set()
            hold.released.wait(60)
            if hold.drop:
                raise VanishError

        self._rules.append(Rule(method, path, act, before, times))
        return hold

    def _apply_rules(self, method: str, path: str, before: bool) -> None:
        for rule in self._rules:
            if rule.before is before and rule.matches(method, path):
                rule.times -= 1
                rule.act()

    # -- the API ------------------------------------------------------------------------------

    def handle(
        self, method: str, target: str, authorization: str, body: bytes, told: str = ""
    ) -> dict[str, Any]:
        """Answer one call.

        :param told: which state of the provisioner's database is behind it.
        """
        with self._guard:
            self.busy += 1
        try:
            return self._handle(method, target, authorization, body, told)
        finally:
            with self._guard:
                self.busy -= 1

    def _handle(
        self, method: str, target: str, authorization: str, body: bytes, told: str
    ) -> dict[str, Any]:
        if authorization != f"Bearer {self._token}":
            raise errors.UnauthorizedError("a valid bearer token is needed")
        url = urllib.parse.urlsplit(target)
        if url.path != "/v1/info":
            self.calls.append((method, url.path))
        self._apply_rules(method, url.path, True)
        self.model.hear(told, taking=takes_away(method, url.path))
        query = urllib.parse.parse_qs(url.query)
        result = self._route(method, url.path, query.get("hostNqn", [None])[0], body)
        self._apply_rules(method, url.path, False)
        return result.wire()

    def _route(self, method: str, path: str, host_nqn: str | None, body: bytes) -> Any:
        model = self.model
        if (method, path) == ("GET", "/v1/info"):
            return model.info()
        if (method, path) == ("PUT", "/v1/stamp"):
            return model.put_stamp(_body(StampSpec, body))
        if (method, path) == ("GET", "/v1/inventory"):
            return model.inventory()
        if (method, path) == ("GET", "/v1/adoptable"):
            return model.adoptable()
        match = re.fullmatch(r"/v1/(\w+)/([0-9a-f-]{36})(?:/(\w+))?", path)
        if match is None:
            raise errors.NotExistsError(f"there is no resource {path}")
        kind, uuid, part = match.groups()
        route = ROUTES.get((method, f"{kind}/{part}" if part else kind))
        if route is not None:
            return route(model, uuid, body)
        if (method, kind, part) == ("DELETE", "replicas", "exports"):
            return model.delete_export(uuid, host_nqn)
        raise errors.MethodNotAllowedError(f"{method} is not possible for {path}")


def takes_away(method: str, path: str) -> bool:
    filling = method == "PUT" and path.startswith("/v1/copies/")
    return method == "DELETE" or path.endswith(("/revert", "/release")) or filling


def _resize(model: NodeModel, uuid: str, body: bytes) -> Any:
    wish = _body(ReplicaResize, body)
    return model.resize_replica(uuid, wish.bytes, grow_array=wish.grow_array)


def _body(cls: Any, body: bytes) -> Any:
    try:
        return cls.model_validate_json(body)
    except pydantic.ValidationError as exc:
        raise errors.InvalidInputError(str(exc)) from exc


Route = Callable[[NodeModel, str, bytes], Any]
ROUTES: dict[tuple[str, str], Route] = {
    ("PUT", "replicas"): lambda node, uuid, body: node.put_replica(uuid, _body(ReplicaSpec, body)),
    ("PATCH", "replicas"): lambda node, uuid, body: _resize(node, uuid, body),
    ("GET", "replicas"): lambda node, uuid, _: node.replica(uuid),
    ("DELETE", "replicas"): lambda node, uuid, _: node.delete_replica(uuid),
    ("PUT", "snapshots"): lambda node, uuid, body: node.put_snapshot(
        uuid, _body(SnapshotSpec, body)
    ),
    ("DELETE", "snapshots"): lambda node, uuid, _: node.delete_snapshot(uuid),
    ("PUT", "replicas/exports"): lambda node, uuid, body: node.put_export(
        uuid, _body(ExportSpec, body)
    ),
    ("PUT", "replicas/limits"): lambda node, uuid, body: node.set_limits(uuid, _body(Limits, body)),
    ("PUT", "replicas/revert"): lambda node, uuid, body: node.revert_replica(
        uuid, _body(RevertSpec, body)
    ),
    ("PUT", "replicas/adopt"): lambda node, uuid, body: node.adopt_replica(
        uuid, _body(AdoptSpec, body)
    ),
    ("PUT", "replicas/release"): lambda node, uuid, body: node.release_replica(
        uuid, _body(ReleaseSpec, body)
    ),
    ("PUT", "copies"): lambda node, uuid, body: node.put_copy(uuid, _body(CopySpec, body)),
    ("GET", "copies"): lambda node, uuid, _: node.copy(uuid),
    ("DELETE", "copies"): lambda node, uuid, _: node.delete_copy(uuid),
}


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], node: FakeNode, context: ssl.SSLContext) -> None:
        self.node = node
        self.context = context
        self.connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        # The handshake belongs into the thread of the connection, not into the accept loop.
        with contextlib.suppress(OSError), self.context.wrap_socket(request, True) as secure:
            self.connections.add(secure)
            try:
                super().finish_request(secure, client_address)
            finally:
                self.connections.discard(secure)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A broken connection is nothing to print."""

    def break_connections(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One segment for each answer: two would wait 40 ms for a delayed acknowledgement.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    server: _Server

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        try:
            status, content = (
                200,
                self.server.node.handle(
                    self.command,
                    self.path,
                    self.headers.get("Authorization", ""),
                    body,
                    self.headers.get(stamp.HEADER, ""),
                ),
            )
        except errors.KumoError as exc:
            status, content = exc.http_status, exc.to_wire()
        except VanishError:
            self.close_connection = True
            return
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST = _answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing to print."""


class Fleet:
    """Fake nodes that one provisioner can reach."""

    def __init__(self, certificate: Path, token: str) -> None:
        self._certificate = certificate
        self._token = token
        self.nodes: list[FakeNode] = []

    def add(self, count: int = 1, **options: Any) -> list[FakeNode]:
        """Start nodes; ``options`` are those of NodeModel."""
        added = [
            FakeNode(
                NodeModel(f"node-{len(self.nodes) + number}", **options),
                self._certificate,
                self._token,
            )
            for number in range(count)
        ]
        self.nodes += added
        return added

    def by_id(self, persistent_id: str) -> FakeNode:
        return next(node for node in self.nodes if node.persistent_id == persistent_id)

    def clear_faults(self) -> None:
        for node in self.nodes:
            node.clear_faults()

    def settle(self, seconds: float = 60.0) -> None:
        """Wait until no node works on a call any more."""
        deadline = time.monotonic() + seconds
        while any(node.busy for node in self.nodes):
            assert time.monotonic() < deadline, "a call does not end"
            time.sleep(0.02)

    def objects(self) -> set[str]:
        """uuids of all replicas and snapshots on all nodes."""
        return {
            uuid for node in self.nodes for uuid in (*node.state.replicas, *node.state.snapshots)
        }

    def exports(self) -> set[tuple[str, str]]:
        return {export for node in self.nodes for export in node.state.exports}

    def close(self) -> None:
        for node in self.nodes:
            node.down()
