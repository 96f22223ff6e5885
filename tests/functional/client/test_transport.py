# SPDX-License-Identifier: Apache-2.0
"""Connections that share one TLS context: they verify as strictly as others do."""

import http.server
import socket
import ssl
import threading
import time

import pytest
from urllib3.util import wait_for_read

from kumo_client import errors, transport
from kumo_client.session import Session
from kumo_provisioner.init import Authority


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


class Handler(http.server.BaseHTTPRequestHandler):
    # A client that does not trust us goes away in the middle of the handshake.
    timeout = 5.0

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format, *args):
        """Nothing to print."""


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A broken connection is nothing to print."""


@pytest.fixture
def serve():
    servers = []

    def start(certificate, handler=Handler):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server = Server(("127.0.0.1", 0), handler)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"https://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(url, ca_file):
    shared = transport.SharedTls(transport.verifying_context(str(ca_file)))
    # The file that the session is given is not what counts.
    with Session([url], token="t", ca_file=None, budget=3.0, transport=shared) as session:
        return session.request("GET", "/")


def test_a_server_of_the_authority_is_trusted(authority, serve, tmp_path):
    authority.certify(tmp_path / "server.pem", ["127.0.0.1"])
    assert ask(serve(tmp_path / "server.pem"), tmp_path / "ca.pem") == {}


def test_others_are_not(authority, serve, tmp_path):
    authority.certify(tmp_path / "other-name.pem", ["10.0.0.1"])
    (tmp_path / "strange").mkdir()
    Authority(tmp_path / "strange").certify(tmp_path / "strange.pem", ["127.0.0.1"])
    for name in ("other-name.pem", "strange.pem"):
        with pytest.raises(errors.KumoError, match=r"(?i)certificate"):
            ask(serve(tmp_path / name), tmp_path / "ca.pem")


def test_an_authority_that_cannot_be_read_is_said_at_once(tmp_path):
    with pytest.raises(errors.ConfigError, match="authorities"):
        transport.verifying_context(str(tmp_path / "missing.pem"))


class Keeping(Handler):
    """Keeps connections, but for that of ``/last``, and notes from which port each call came."""

    protocol_version = "HTTP/1.1"
    served = ()

    def do_GET(self):
        type(self).served = (*self.served, self.client_address[1])
        if self.path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", "/")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().do_GET()
        self.close_connection = self.path == "/last"

    def do_POST(self):
        """Take the request, and say nothing until the client has gone."""
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).served = (*self.served, self.client_address[1])
        self.connection.settimeout(5.0)
        self.rfile.read(1)
        self.close_connection = True


@pytest.fixture
def session(authority, serve, tmp_path, monkeypatch):
    # Nobody there: who used it would get no answer.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    authority.certify(tmp_path / "server.pem", ["127.0.0.1"])
    Keeping.served = ()
    shared = transport.SharedTls(transport.verifying_context(str(tmp_path / "ca.pem")))
    url = serve(tmp_path / "server.pem", Keeping)
    with Session([url], token="t", ca_file=None, budget=3.0, transport=shared) as made:
        yield made


def test_a_connection_is_used_again_until_the_server_ends_it(session):
    for path in ("/", "/?a=b", "/last"):
        assert session.request("GET", path) == {}
    (pool,) = session._http.get_adapter("https://")._pools.values()
    (idle,) = [one for one in pool.pool.queue if one is not None]
    deadline = time.monotonic() + 5.0
    while not wait_for_read(idle.sock, timeout=0.1):
        assert time.monotonic() < deadline, "its end is to be seen"
    # Also what must not be sent twice: nothing is sent over the old one.
    assert session.request("GET", "/", idempotent=False) == {}
    first, second, third, fourth = Keeping.served
    assert first == second == third != fourth


def test_a_redirection_is_not_followed(session):
    with pytest.raises(errors.ProtocolError, match="a redirection"):
        session.request("GET", "/elsewhere")
    assert len(Keeping.served) == 1


def test_an_answer_that_does_not_come_is_told_from_nobody_there(session):
    session.request("GET", "/")
    with pytest.raises(errors.CommunicationError, match="no answer in time") as caught:
        session.request("POST", "/", json={"a": 1}, budget=1.0)
    assert caught.value.details["outcome"] == "unknown"
    assert len(Keeping.served) <= 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        shared = session._http.get_adapter("https://")
        url = f"https://127.0.0.1:{taken.getsockname()[1]}"
        with (
            Session([url], token="t", ca_file=None, budget=1.0, transport=shared) as other,
            # In a hurry at the end of the budget even a refusal may be too late.
            pytest.raises(errors.CommunicationError, match=r"refused|no connection") as refused,
        ):
            other.request("POST", "/", json={})
    assert refused.value.details["outcome"] == "not sent"


def test_an_answer_that_ends_early_is_a_loss(session, monkeypatch):
    def half(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "200")
        self.end_headers()
        self.wfile.write(b"{")
        self.close_connection = True

    monkeypatch.setattr(Keeping, "do_GET", half)
    with pytest.raises(errors.CommunicationError, match="connection was lost") as caught:
        session.request("GET", "/", idempotent=False)
    assert caught.value.details["outcome"] == "unknown"
