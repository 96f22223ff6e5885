# SPDX-License-Identifier: Apache-2.0
"""Connections to very many servers, which share what TLS needs.

requests makes a context for each connection, with the authorities in it: with a thousand servers
that is most of a program's memory. And what it does for each request besides (proxies, cookies,
another look at the URL) takes a third of the time of a short one, so urllib3 is asked directly.
"""

from __future__ import annotations

import ssl
from typing import Any

import requests
import urllib3
from requests.adapters import BaseAdapter
from requests.utils import get_encoding_from_headers
from urllib3.exceptions import ConnectTimeoutError, HTTPError, ReadTimeoutError

from kumo_client import errors

# Errors are raised as they are; the session decides what is sent again.
_ONCE = urllib3.Retry(False)


def verifying_context(ca_file: str | None) -> ssl.SSLContext:
    """A context that verifies certificate and host name of every server.

    :param ca_file: PEM file with the authority; None: those that the system trusts.
    :raises ConfigError: when it cannot be used.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise errors.ConfigError(f"the authorities in {ca_file} cannot be used: {exc}") from exc


class SharedTls(BaseAdapter):
    """A transport of :class:`kumo_client.session.Session` that uses a context of several.

    The context alone decides whom to trust. May be used by several threads at once.

    :param addresses: how many servers it is for.
    :param kept: idle connections that are kept to each of them.
    """

    def __init__(self, context: ssl.SSLContext, *, addresses: int = 1, kept: int = 8) -> None:
        super().__init__()
        self._manager = urllib3.PoolManager(
            addresses, maxsize=kept, ssl_context=context, cert_reqs="CERT_REQUIRED"
        )
        self._pools: dict[str, urllib3.HTTPConnectionPool] = {}

    def send(self, request: requests.PreparedRequest, *_: Any, **options: Any) -> requests.Response:
        """Send a request and read the whole answer.

        :param options: ``timeout`` in seconds, for a connection and for each wait for bytes.
        :raises RequestException: when there was no answer. The cause is an error of urllib3.
        """
        connect, read = options["timeout"]
        *origin, rest = (request.url or "").split("/", 3)
        try:
            answer = self._pool("/".join(origin)).urlopen(
                request.method or "GET",
                f"/{rest}",
                request.body,
                request.headers,
                retries=_ONCE,
                redirect=False,
                assert_same_host=False,
                timeout=urllib3.Timeout(connect=connect, read=read),
            )
        except ConnectTimeoutError as exc:
            raise requests.ConnectTimeout(exc, request=request) from exc
        except ReadTimeoutError as exc:
            raise requests.ReadTimeout(exc, request=request) from exc
        except HTTPError as exc:
            raise requests.ConnectionError(exc, request=request) from exc
        return _response(request, answer)

    def _pool(self, origin: str) -> urllib3.HTTPConnectionPool:
        # To find the pool of a server anew takes as long as a short exchange with it.
        found = self._pools.get(origin)
        if found is None:
            found = self._pools[origin] = self._manager.connection_from_url(origin)
        return found

    def close(self) -> None:
        """Close the idle connections."""
        self._pools.clear()
        self._manager.clear()


def _response(
    request: requests.PreparedRequest, answer: urllib3.BaseHTTPResponse
) -> requests.Response:
    made = requests.Response()
    made.request, made.url = request, request.url or ""
    made.status_code, made.reason = answer.status, answer.reason or ""
    made.headers = requests.structures.CaseInsensitiveDict(answer.headers)
    made.encoding = get_encoding_from_headers(made.headers)
    # There is no public way: requests fills it while it reads.
    made._content = answer.data
    return made
