# SPDX-License-Identifier: Apache-2.0
"""Who may call what.

A token is an opaque random text. The token file holds only digests, with a name and a role::

    {"tokens": [{"name": "admin", "role": "admin", "sha256": "..."}]}
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import pathlib

from kumo_client import errors

ADMIN = "admin"
STORAGE = "storage"
MONITOR = "monitor"
ROLES = (ADMIN, STORAGE, MONITOR)
# What changes the fleet itself is for administrators.
ADMIN_PATHS = ("backends", "reconcile", "tenants")


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who calls. ``tenant``: the only one that the caller may see; empty for all."""

    name: str
    role: str
    tenant: str = ""


def digest(token: str) -> str:
    """Digest of a token as it stands in the token file."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


class Tokens:
    """The tokens that the provisioner accepts."""

    def __init__(self, known: dict[str, Identity]) -> None:
        self._known = known

    @classmethod
    def load(cls, path: str) -> Tokens:
        """Read the token file.

        :raises ConfigError: when it cannot be read, is wrong, or is empty.
        """
        try:
            entries = json.loads(pathlib.Path(path).read_text())["tokens"]
            known = {
                str(entry["sha256"]).lower(): Identity(str(entry["name"]), str(entry["role"]))
                for entry in entries
            }
        except (OSError, ValueError, TypeError, KeyError) as exc:
            raise errors.ConfigError(
                f"the token file {path} cannot be used: {type(exc).__name__}: {exc}",
                way_out="'kumo-provisioner init' makes one",
            ) from exc
        if not known or any(identity.role not in ROLES for identity in known.values()):
            raise errors.ConfigError(
                f"the token file {path} must hold tokens of the roles {', '.join(ROLES)}"
            )
        return cls(known)

    def identify(self, header: str | None) -> Identity:
        """Identity behind an ``Authorization`` header.

        :raises UnauthorizedError: when it is missing or carries no token we know.
        """
        kind, _, token = (header or "").partition(" ")
        found = None
        if kind.lower() == "bearer" and token.strip():
            mine = digest(token.strip())
            # No early end: the time must not tell which digest came near.
            for known, identity in self._known.items():
                if hmac.compare_digest(mine, known):
                    found = identity
        if found is None:
            raise errors.UnauthorizedError(
                "a valid bearer token is needed", way_out="check the token that the client uses"
            )
        return found


def authorize(identity: Identity, method: str, path: str) -> None:
    """Let a call pass or not.

    :raises ForbiddenError: when the role of the caller does not allow it.
    """
    if identity.role == ADMIN or method in ("GET", "HEAD"):
        return
    first = path.strip("/").partition("/")[0]
    if identity.role == STORAGE and first not in ADMIN_PATHS:
        return
    raise errors.ForbiddenError(f"the role {identity.role} does not allow this call")
