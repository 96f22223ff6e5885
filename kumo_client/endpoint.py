# SPDX-License-Identifier: Apache-2.0
"""Check addresses, certificates and tokens before anything is sent with them."""

from __future__ import annotations

import ipaddress
import pathlib
import ssl
from collections.abc import Callable, Sequence
from urllib.parse import SplitResult, urlsplit

from kumo_client import errors, redact


def endpoints(urls: Sequence[str], *, allow_http: bool = False) -> tuple[str, ...]:
    """Base URLs without trailing slash, in the order given, each once.

    :raises ConfigError: there is none, or one cannot be used.
    """
    if isinstance(urls, str):
        urls = urls.split(",")
    found = [_endpoint(url.strip(), allow_http) for url in urls if url.strip()]
    if not found:
        raise errors.ConfigError("no endpoint is given", way_out="give at least one https:// URL")
    return tuple(dict.fromkeys(found))


def _endpoint(url: str, allow_http: bool) -> str:
    way_out = "use the form https://NAME_OR_IP:PORT, with an IPv6 address in brackets"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise errors.ConfigError("an endpoint is not a URL", way_out=way_out) from None
    if "@" in parts.netloc:
        # The text is not shown: what stands before the @ may be a password.
        raise errors.ConfigError("an endpoint must not contain credentials", way_out=way_out)
    if not host or parts.query or parts.fragment or any(char.isspace() for char in url):
        raise errors.ConfigError(f"{url!r} is not an endpoint", way_out=way_out)
    if parts.scheme != "https" and not (allow_http and _is_loopback_http(parts)):
        raise errors.ConfigError(f"the endpoint {url!r} is not https", way_out=way_out)
    return url.rstrip("/")


def _is_loopback_http(parts: SplitResult) -> bool:
    try:
        address = ipaddress.ip_address(parts.hostname or "")
    except ValueError:
        return False
    return parts.scheme == "http" and address.is_loopback


def verify_setting(ca_file: str | None) -> str | bool:
    """What requests is to verify server certificates with: this file, or the system's store.

    :raises ConfigError: the file is missing or holds no certificate.
    """
    if ca_file is not None:
        _load(ca_file, "CA file", lambda context: context.load_verify_locations(cafile=ca_file))
        return ca_file
    paths = ssl.get_default_verify_paths()
    # Without either, requests falls back to the certificates of the certifi package.
    return paths.cafile or paths.capath or True


def check_client_cert(client_cert: str | None) -> None:
    """:raises ConfigError: the PEM file is missing or is not a certificate with its key."""
    if client_cert is not None:
        _load(
            client_cert,
            "client certificate",
            # Without a password callback OpenSSL would ask at the terminal.
            lambda context: context.load_cert_chain(client_cert, password=lambda: ""),
        )


def _load(path: str, what: str, load: Callable[[ssl.SSLContext], None]) -> None:
    if not pathlib.Path(path).is_file():
        raise errors.ConfigError(f"the {what} {path} does not exist")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        load(context)
    except OSError as exc:
        raise errors.ConfigError(f"the {what} {path} cannot be used: {exc}") from exc


def check_token(token: str) -> str:
    """A bearer token without surrounding white space.

    :raises ConfigError: it is empty or cannot be sent in a header; the text is not shown.
    """
    token = token.strip()
    if not redact.TOKEN_FORM.fullmatch(token):
        raise errors.ConfigError(
            "the token is empty or contains characters that a bearer token cannot have",
            way_out="give the text that `kumo-provisioner init` wrote, or a JSON Web Token",
        )
    return token
