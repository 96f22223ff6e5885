# SPDX-License-Identifier: Apache-2.0
"""Who may call. Tokens are compared by digest, in constant time, and never logged."""

from __future__ import annotations

import hashlib
import hmac
import os

from kumo_client import errors

_PREFIX = "sha256:"
MIN_LENGTH = 16


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Tokens:
    """The tokens of ``token_file``, read again when the file changes."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._stamp: tuple[int, int] | None = None
        self._digests: list[str] = []
        self.reload()

    def reload(self) -> None:
        """Read the file when it changed.

        :raises ConfigError: when it cannot be read or holds no token.
        """
        try:
            stat = os.stat(self.path)
            stamp = (stat.st_mtime_ns, stat.st_size)
            if stamp == self._stamp:
                return
            with open(self.path) as stream:
                lines = [line.strip() for line in stream]
        except (OSError, UnicodeDecodeError) as error:
            raise errors.ConfigError(f"Option token_file: {error}") from error
        digests = [self._parse(line) for line in lines if line and not line.startswith("#")]
        if not digests:
            raise errors.ConfigError(f"Option token_file: {self.path} holds no token")
        self._stamp, self._digests = stamp, digests

    def _parse(self, line: str) -> str:
        if line.startswith(_PREFIX):
            return line.removeprefix(_PREFIX).lower()
        if len(line) < MIN_LENGTH:
            raise errors.ConfigError(
                f"Option token_file: a token in {self.path} has fewer than {MIN_LENGTH} characters"
            )
        return _digest(line)

    def check(self, header: str | None) -> None:
        """Check an ``Authorization`` header.

        :raises UnauthorizedError: unless it carries one of the tokens.
        """
        kind, _, token = (header or "").partition(" ")
        if kind.lower() == "bearer" and token.strip():
            mine = _digest(token.strip())
            # No early end: the time must not tell which token came near.
            if sum(hmac.compare_digest(mine, digest) for digest in self._digests):
                return
        raise errors.UnauthorizedError(
            "A valid bearer token is needed", way_out="Check the node token of the provisioner"
        )
