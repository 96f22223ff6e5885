# SPDX-License-Identifier: Apache-2.0
"""Connections that share one TLS context: they verify as strictly as others do."""

import http.server
import ssl
import threading

import pytest

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

    def start(certificate):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server = Server(("127.0.0.1", 0), Handler)
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
