# SPDX-License-Identifier: Apache-2.0
"""Turn the answer of a server into JSON data or a typed error."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import requests

from kumo_client import errors, redact
from kumo_client.schemas.common import SUCCESS

# Made by what stands before a server (a proxy, a load balancer), which may know a better one.
_GATEWAY_STATUSES = frozenset({429, 502, 503, 504})
_EXCERPT_CHARACTERS = 120

JSON = "application/json"


class NoJsonError(errors.ProtocolError):
    """An answer that is not JSON at all: perhaps it is not one of our servers that gave it."""


def decode(response: requests.Response, secrets: Iterable[str], accept: Collection[str]) -> Any:
    """The decoded JSON of a good answer.

    A body whose ``status`` is neither ``Success`` nor in ``accept`` is an error whatever the HTTP
    status: KumoScale servers answer 200 to all that they understand.

    :raises KumoError: the typed error of an error answer.
    :raises ProtocolError: the answer is not what the API promises.
    """
    secrets = list(secrets)
    if 300 <= response.status_code < 400:
        raise _not_json(response, "a redirection", secrets)
    if not response.content.strip():
        raise _not_json(response, "an empty body", secrets)
    try:
        data = response.json()
    except (ValueError, RecursionError):
        raise _not_json(response, "a body that is not JSON", secrets) from None
    if isinstance(data, dict):
        return _object(data, response.status_code, secrets, accept)
    if not isinstance(data, list):
        raise errors.ProtocolError(
            f"the server answered HTTP {response.status_code} with a bare JSON value"
        )
    if response.status_code >= 400:
        raise errors.ProtocolError(
            f"the server answered HTTP {response.status_code} with a list instead of an error"
        )
    return data


def is_good(response: requests.Response, media: str) -> bool:
    """Whether this is no error and of this media type."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return response.status_code == 200 and kind == media


def _object(
    data: dict[str, Any], http_status: int, secrets: list[str], accept: Collection[str]
) -> dict[str, Any]:
    status = data.get("status")
    good = http_status < 400
    if good and (status is None or status == SUCCESS):
        return data
    if isinstance(status, str) and status in accept:
        return data
    if status is None or status == SUCCESS:
        # Never NotExists: a proxy answers 404 for paths it does not know.
        raise errors.ProtocolError(
            f"the server answered HTTP {http_status} without saying which error it is"
        )
    raise errors.from_wire(redact.known(data, secrets), http_status)


def _not_json(response: requests.Response, what: str, secrets: list[str]) -> errors.KumoError:
    status = response.status_code
    # Redacted before it is cut: half a token is still a secret.
    body = redact.text(response.content.decode("utf-8", "replace"), secrets)
    excerpt = "".join(char for char in " ".join(body.split()) if char.isprintable())
    message = f"the server answered HTTP {status} with {what}"
    if excerpt:
        message += f": {excerpt[:_EXCERPT_CHARACTERS]}"
    if status == 401:
        return errors.UnauthorizedError(message)
    if status == 403:
        return errors.ForbiddenError(message)
    error = NoJsonError(message)
    error.transient = status in _GATEWAY_STATUSES
    return error
