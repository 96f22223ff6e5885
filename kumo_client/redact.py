# SPDX-License-Identifier: Apache-2.0
"""Hide secrets in everything that is logged or shown."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterable
from typing import Any

HIDDEN = "***"

# RFC 6750, section 2.1: the only form a bearer token can have in the header. Refusing any other
# form also keeps requests from quoting the header in an InvalidHeader exception.
TOKEN_FORM = re.compile(r"[A-Za-z0-9._~+/-]+=*")

_HEADER = re.compile(
    r"(?i)(authorization[\\\"']{0,4}\s{0,4}[:=]\s{0,4}[\\\"']{0,4}(?:(?:bearer|basic)\s{1,4})?)"
    r"[^\s,;\\\"']+"
)
# Not the words of a sentence about bearer tokens.
_BEARER = re.compile(r"(?i)\b(bearer\s{1,4})(?!tokens?\b)[A-Za-z0-9._~+/=-]+")
_SECRET_KEY = re.compile(r"(?i)token|password|passwd|secret|authorization|private|dhchap|psk")
# The repetitions are bounded: bodies of megabytes pass through here.
_ASSIGNMENT = re.compile(
    r"(?i)((?:token|password|passwd|secret|dhchap)[\w-]{0,40}[\"']?\s{0,4}[:=]\s{0,4})"
    r"(\"[^\"]*\"|'[^']*'|[^\s,;}&\"']+)"
)


def text(value: str, secrets: Iterable[str] = ()) -> str:
    """``value`` without these secrets, without bearer tokens and without ``password=...``."""
    for secret in sorted(secrets, key=len, reverse=True):
        if secret:
            value = value.replace(secret, HIDDEN)
    for pattern in (_HEADER, _BEARER, _ASSIGNMENT):
        value = pattern.sub(rf"\1{HIDDEN}", value)
    return value


def known(value: Any, secrets: Iterable[str]) -> Any:
    """A JSON value with these secrets hidden in every text, key and number, otherwise unchanged."""
    secrets = [secret for secret in secrets if secret]
    if isinstance(value, str):
        for secret in sorted(secrets, key=len, reverse=True):
            value = value.replace(secret, HIDDEN)
        return value
    if isinstance(value, dict):
        return {known(key, secrets): known(item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [known(item, secrets) for item in value]
    if isinstance(value, (int, float)) and any(secret in repr(value) for secret in secrets):
        return HIDDEN
    return value


def json_value(value: Any, secrets: Iterable[str] = ()) -> Any:
    """A JSON value for a log: like :func:`known`, and fields named like a secret are hidden."""
    secrets = list(secrets)
    if isinstance(value, dict):
        return {
            known(key, secrets): HIDDEN
            if isinstance(key, str) and _SECRET_KEY.search(key)
            else json_value(item, secrets)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [json_value(item, secrets) for item in value]
    return text(value, secrets) if isinstance(value, str) else known(value, secrets)


class RedactingFilter(logging.Filter):
    """Logging filter that hides secrets in messages and tracebacks; put it on a handler."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._secrets = list(secrets)

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = text(record.getMessage(), self._secrets)
        record.args = None
        if record.exc_info and not record.exc_text:
            record.exc_text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        if record.exc_text:
            record.exc_text = text(record.exc_text, self._secrets)
        return True
