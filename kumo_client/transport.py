# SPDX-License-Identifier: Apache-2.0
"""Connections to very many servers, which share what TLS needs.

urllib3 makes a context for each connection, with the authorities in it: with a thousand servers
that is most of a program's memory.
"""

from __future__ import annotations

import ssl
from typing import Any

from requests.adapters import HTTPAdapter

from kumo_client import errors


def verifying_context(ca_file: str | None) -> ssl.SSLContext:
    """A context that verifies certificate and host name of every server.

    :param ca_file: PEM file with the authority; None: those that the system trusts.
    :raises ConfigError: when it cannot be used.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise errors.ConfigError(f"the authorities in {ca_file} cannot be used: {exc}") from exc


class SharedTls(HTTPAdapter):
    """A transport of :class:`kumo_client.session.Session` that uses a context of several.

    The context alone decides whom to trust.
    """

    def __init__(self, context: ssl.SSLContext, **options: Any) -> None:
        self._context = context
        self._pools: dict[tuple[str, ...], Any] = {}
        super().__init__(max_retries=0, **options)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> Any:
        return super().init_poolmanager(*args, ssl_context=self._context, **kwargs)

    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        # To find the pool of a server anew takes as long as a short exchange with it.
        origin = tuple(request.url.split("/", 3)[:3])
        found = self._pools.get(origin)
        if found is None:
            found = super().get_connection_with_tls_context(request, verify, proxies, cert)
            self._pools[origin] = found
        return found

    def build_connection_pool_key_attributes(
        self, request: Any, verify: Any, cert: Any = None
    ) -> Any:
        host, pool = super().build_connection_pool_key_attributes(request, verify, cert)
        # A file named here would be read again for each connection.
        pool.pop("ca_certs", None)
        pool.pop("ca_cert_dir", None)
        return host, pool | {"cert_reqs": "CERT_REQUIRED"}

    def close(self) -> None:
        self._pools.clear()
        super().close()

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"
