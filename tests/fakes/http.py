# SPDX-License-Identifier: Apache-2.0
"""Servers behind a requests transport adapter, without a network.

Only what opens connections is replaced: requests and the exception translation of its adapter run
for real. A server is a callable that takes a :class:`Request` and returns an :class:`Answer`, or
raises one of the failures below.
"""

import dataclasses
import io
import json
import socket
import ssl
from http.client import RemoteDisconnected
from urllib.parse import parse_qsl, unquote, urlsplit

import requests.adapters
import urllib3
from urllib3 import exceptions


class FakeClock:
    """Time that passes only when somebody sleeps or waits for an answer."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


@dataclasses.dataclass
class Request:
    """What a server sees. ``timeout``: (connect, read) seconds that the client would wait."""

    base: str
    method: str
    path: str
    params: dict
    headers: dict
    body: bytes
    timeout: tuple

    @property
    def json(self):
        return json.loads(self.body) if self.body else None


@dataclasses.dataclass
class Answer:
    """What a server says; ``content`` bytes are sent as they are, anything else as JSON."""

    content: object = dataclasses.field(default_factory=lambda: {"status": "Success"})
    status: int = 200
    headers: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def raw(self):
        if isinstance(self.content, bytes):
            return self.content
        return json.dumps(self.content).encode()


class Failure(Exception):  # noqa: N818 - the names say what happens to the client
    """Base of what can happen instead of an answer."""


class Refused(Failure):
    """Nothing listens there."""


class UnknownName(Failure):
    """The name is not in the DNS."""


class ConnectTimeout(Failure):
    """The address does not answer at all."""


class ReadTimeout(Failure):
    """The request was sent, no answer came in time."""


class Reset(Failure):
    """The request was sent and the connection ended."""


class BrokenBody(Failure):
    """The answer ended in the middle."""


class BadCertificate(Failure):
    """The certificate is not signed by the CA."""


class _Truncated(io.BytesIO):
    def read(self, *args):
        raise ConnectionResetError(104, "Connection reset by peer")

    read1 = readinto = read


class _Pool:
    """In place of a urllib3 connection pool."""

    cert_reqs = ca_certs = ca_cert_dir = None

    def __init__(self, transport, base):
        self.transport = transport
        self.base = base

    def urlopen(self, method, url, body=None, headers=None, timeout=None, **kwargs):
        parts = urlsplit(url)
        request = Request(
            base=self.base,
            method=method,
            path=unquote(parts.path),
            params=dict(parse_qsl(parts.query, keep_blank_values=True)),
            headers=dict(headers),
            body=body or b"",
            timeout=(timeout.connect_timeout, timeout.read_timeout),
        )
        self.transport.verified.append((self.cert_reqs, self.ca_certs, self.ca_cert_dir))
        try:
            answer = self.transport.handle(request)
        except Failure as failure:
            return self._fail(failure, request, url)
        self.transport.advance(answer.seconds)
        raw = answer.raw()
        return urllib3.HTTPResponse(
            body=io.BytesIO(raw),
            status=answer.status,
            headers={"Content-Length": str(len(raw))} | answer.headers,
            preload_content=False,
        )

    def _fail(self, failure, request, url):
        connection = urllib3.connection.HTTPConnection("fake")
        match failure:
            case Refused():
                reason = exceptions.NewConnectionError(connection, "refused")
                reason.__cause__ = ConnectionRefusedError(111, "Connection refused")
                raise exceptions.MaxRetryError(None, url, reason)
            case UnknownName():
                reason = exceptions.NameResolutionError("fake", connection, socket.gaierror())
                raise exceptions.MaxRetryError(None, url, reason)
            case ConnectTimeout():
                self.transport.advance(request.timeout[0])
                reason = exceptions.ConnectTimeoutError(connection, "timed out")
                raise exceptions.MaxRetryError(None, url, reason)
            case ReadTimeout():
                self.transport.advance(request.timeout[1])
                raise exceptions.ReadTimeoutError(None, url, "Read timed out.")
            case Reset():
                raise exceptions.ProtocolError(
                    "Connection aborted.", RemoteDisconnected("Remote end closed connection")
                )
            case BadCertificate():
                cause = ssl.SSLCertVerificationError(1, "certificate verify failed")
                raise exceptions.MaxRetryError(None, url, exceptions.SSLError(cause))
            case BrokenBody():
                return urllib3.HTTPResponse(
                    body=_Truncated(),
                    status=200,
                    headers={"Content-Length": "100"},
                    preload_content=False,
                )
        raise failure


class Transport(requests.adapters.HTTPAdapter):
    """The network: base URL -> server. An address that is not there refuses connections."""

    def __init__(self, servers=None, clock=None):
        super().__init__()
        self.servers = dict(servers or {})
        self.clock = clock
        self.requests = []
        self.verified = []

    def get_connection_with_tls_context(self, request, verify, proxies=None, cert=None):
        parts = urlsplit(request.url)
        return _Pool(self, f"{parts.scheme}://{parts.netloc}")

    def advance(self, seconds):
        if self.clock is not None:
            self.clock.now += seconds

    def handle(self, request):
        self.requests.append(request)
        server = self.servers.get(request.base)
        if server is None:
            raise Refused
        return server(request)

    def calls(self):
        """Short form of what was asked: (base URL, method, path)."""
        return [(item.base, item.method, item.path) for item in self.requests]


class Script:
    """A server that gives these answers or failures in turn, the last one for ever."""

    def __init__(self, *steps):
        self.steps = list(steps)

    def __call__(self, request):
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if callable(step) and not isinstance(step, type):
            step = step(request)
        if isinstance(step, Failure) or (isinstance(step, type) and issubclass(step, Failure)):
            raise step
        return step
