# SPDX-License-Identifier: Apache-2.0
"""The id that ties together the log lines of one request in every part.

The form and the header are those of OpenStack (oslo.context), so that an id given out by Cinder
can be followed down to a storage node.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator
from contextvars import ContextVar

HEADER = "X-Openstack-Request-Id"

_FORM = re.compile(r"req-[0-9A-Za-z-]{1,64}")
_CURRENT: ContextVar[str | None] = ContextVar("kumo_request_id", default=None)


def new() -> str:
    """A fresh id: ``req-`` and a UUID."""
    return f"req-{uuid.uuid4()}"


def valid(text: str | None) -> bool:
    """Whether a text from outside may be used as an id and written to logs."""
    return text is not None and _FORM.fullmatch(text) is not None


def current() -> str | None:
    """The id of the request that this thread or task works on, if there is one."""
    return _CURRENT.get()


@contextlib.contextmanager
def use(request_id: str | None) -> Iterator[str]:
    """Work on a request with this id; a missing or malformed one is replaced by a fresh one."""
    chosen = request_id if request_id is not None and valid(request_id) else new()
    token = _CURRENT.set(chosen)
    try:
        yield chosen
    finally:
        _CURRENT.reset(token)
