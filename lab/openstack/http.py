# SPDX-License-Identifier: Apache-2.0
"""HTTP to the stack's own services, never through a proxy named in the environment."""

from __future__ import annotations

from typing import Any

import requests

_session = requests.Session()
_session.trust_env = False


def is_ok(url: str) -> bool:
    """Whether ``url`` answers 200.

    :raises OSError: it could not be asked (requests.RequestException).
    """
    return _session.get(url, timeout=5).status_code == requests.codes.ok


def request(method: str, url: str, *, timeout: float = 10.0, **options: Any) -> requests.Response:
    """Send a request and return its answer.

    :param timeout: seconds, for the connection and for each read.

    :raises OSError: no answer, or an error status (requests.RequestException).
    """
    answer = _session.request(method, url, timeout=timeout, **options)
    answer.raise_for_status()
    return answer
