# SPDX-License-Identifier: Apache-2.0
"""Who may call what.

Two kinds of bearer tokens are accepted:

* Signed ones (JSON Web Tokens, RFC 7519), which say who the caller is and until when; see
  :mod:`kumo_provisioner.keys`.
* Random texts whose digests stand in the token file, with a name, a role, and perhaps a tenant and
  an end (seconds since the epoch)::

    {"tokens": [{"name": "admin", "role": "admin", "sha256": "...", "tenant": "", "expires": 0}]}

Both files are read again when they change.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from oslo_log import log

from kumo_client import errors
from kumo_provisioner import keys, permissions
from kumo_provisioner.permissions import ADMIN, MONITOR, NODE, ROLES, STORAGE

__all__ = ["ADMIN", "MONITOR", "NODE", "ROLES", "STORAGE", "Identity", "Tokens", "authorize"]

LOG = log.getLogger(__name__)
# Seconds between two looks at whether a file has changed.
LOOK_SECONDS = 1.0

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who calls. ``tenant``: the only one that the caller may see; empty for all.

    :ivar token_id: of a signed token; empty for one of the token file.
    """

    name: str
    role: str
    tenant: str = ""
    expires: int = 0
    token_id: str = ""


# Who calls what is open to all.
NOBODY = Identity("", MONITOR)


def digest(token: str) -> str:
    """Digest of a token as it stands in the token file."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def read_token_file(path: str) -> dict[str, Identity]:
    """Identities by the digests of their tokens.

    :raises ConfigError: when the file cannot be read, is wrong, or is empty.
    """
    try:
        entries = json.loads(pathlib.Path(path).read_text())["tokens"]
        known = {
            str(entry["sha256"]).lower(): Identity(
                str(entry["name"]),
                str(entry["role"]),
                str(entry.get("tenant") or ""),
                int(entry.get("expires") or 0),
            )
            for entry in entries
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise errors.ConfigError(
            f"the token file {path} cannot be used: {type(exc).__name__}: {exc}",
            way_out="'kumo-provisioner init' makes one",
        ) from exc
    if not known or any(identity.role not in ROLES for identity in known.values()):
        raise errors.ConfigError(
            f"the token file {path} must hold tokens of the roles {', '.join(ROLES)}"
        )
    return known


class Watched(Generic[T]):
    """What is in a file, read again when the file changes.

    :param read: raises ConfigError; what was read before then stays good.
    """

    def __init__(self, path: str, read: Callable[[str], T]) -> None:
        self._path, self._read = path, read
        self._guard = threading.Lock()
        self._stamp = self._look()
        self._looked = time.monotonic()
        self._value = read(path)

    def _look(self) -> tuple[int, int]:
        try:
            status = os.stat(self._path)
        except OSError:
            return 0, 0
        return status.st_mtime_ns, status.st_ino

    @property
    def value(self) -> T:
        now = time.monotonic()
        with self._guard:
            if now - self._looked >= LOOK_SECONDS:
                self._looked = now
                stamp = self._look()
                if stamp != self._stamp:
                    self._reload(stamp)
            return self._value

    def _reload(self, stamp: tuple[int, int]) -> None:
        self._stamp = stamp
        try:
            self._value = self._read(self._path)
            LOG.info("Read %s again", self._path)
        except errors.ConfigError as exc:
            # Somebody is editing it.
            LOG.error("%s; what it held before still counts", exc)


class Tokens:
    """The tokens that the provisioner accepts.

    :param known: identities by the digests of their tokens.
    :param signing: the keys of signed tokens, the first one signs.
    :param leeway: seconds by which clocks may differ.
    :ivar revoked: ids of signed tokens that count no more.
    """

    def __init__(
        self,
        known: dict[str, Identity],
        signing: list[keys.Key] | None = None,
        *,
        leeway: float = 30.0,
    ) -> None:
        self._known: Callable[[], dict[str, Identity]] = lambda: known
        self._signing: Callable[[], list[keys.Key]] = lambda: signing or []
        self._leeway = leeway
        self.revoked: frozenset[str] = frozenset()

    @classmethod
    def load(cls, path: str, key_file: str | None = None, *, leeway: float = 30.0) -> Tokens:
        """Read token file and key file, now and whenever they change.

        :raises ConfigError: when one cannot be read, is wrong, or is empty.
        """
        made = cls({}, leeway=leeway)
        known = Watched(path, read_token_file)
        made._known = lambda: known.value
        if key_file:
            signing = Watched(key_file, keys.load)
            made._signing = lambda: signing.value
        return made

    @property
    def signing(self) -> list[keys.Key]:
        """The signing keys; empty when there is no key file."""
        return self._signing()

    def identify(self, header: str | None) -> Identity:
        """Identity behind an ``Authorization`` header.

        :raises UnauthorizedError: when it is missing or carries no token we know.
        """
        kind, _, token = (header or "").partition(" ")
        token = token.strip()
        found = None
        if kind.lower() == "bearer" and token:
            # A signed token has three parts; none of the random ones has a dot.
            found = self._signed(token) if token.count(".") == 2 else self._random(token)
        if found is None:
            raise errors.UnauthorizedError(
                "a valid bearer token is needed", way_out="check the token that the client uses"
            )
        return found

    def _random(self, token: str) -> Identity | None:
        mine, found = digest(token), None
        # No early end: the time must not tell which digest came near.
        for known, identity in self._known().items():
            if hmac.compare_digest(mine, known):
                found = identity
        if found is not None and 0 < found.expires < time.time() - self._leeway:
            return None
        return found

    def _signed(self, token: str) -> Identity | None:
        claims = keys.verify(self._signing(), token, self._leeway)
        if claims is None or claims["role"] not in ROLES or claims["jti"] in self.revoked:
            return None
        return Identity(
            str(claims["sub"]),
            str(claims["role"]),
            str(claims.get("tenant") or ""),
            int(claims["exp"]),
            str(claims["jti"]),
        )


def authorize(
    identity: Identity, method: str, path: str, resources: frozenset[str] = frozenset()
) -> None:
    """Let a call pass or not.

    :param resources: first segments of the paths of the API; anything else there is a tenant.
    :raises ForbiddenError: when the role of the caller does not allow it.
    """
    first, _, rest = path.strip("/").partition("/")
    if resources and first not in resources:
        first = rest.partition("/")[0]
    if not permissions.allowed(identity.role, identity.tenant, method, first):
        bound = f" of tenant {identity.tenant}" if identity.tenant else ""
        raise errors.ForbiddenError(f"the role {identity.role}{bound} does not allow this call")
