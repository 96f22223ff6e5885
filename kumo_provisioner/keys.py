# SPDX-License-Identifier: Apache-2.0
"""Signing keys of the JSON Web Tokens that the provisioner gives out.

The file holds ``{"keys": [{"kid": ..., "key": <base64url>, "created": <seconds>}]}``. The first key
signs, all of them verify. The signature is HMAC with SHA-256 (``HS256``, RFC 7518 section 3.2): the
only ones who verify are the provisioners, which also sign, so a public key would have no reader.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import os
import pathlib
import secrets
import time
import uuid
from typing import Any

import jwt

from kumo_client import errors
from kumo_client.schemas.token import MAX_LIFE

ALGORITHM = "HS256"
AUDIENCE = "kumo"
KEY_BYTES = 32


@dataclasses.dataclass(frozen=True)
class Key:
    """A key; ``created`` in seconds since the epoch."""

    kid: str
    secret: bytes = dataclasses.field(repr=False)
    created: int

    def wire(self) -> dict[str, Any]:
        text = base64.urlsafe_b64encode(self.secret).decode()
        return {"kid": self.kid, "key": text, "created": self.created}


def new_key() -> Key:
    return Key(uuid.uuid4().hex, secrets.token_bytes(KEY_BYTES), int(time.time()))


def load(path: str | os.PathLike[str]) -> list[Key]:
    """Read the key file.

    :raises ConfigError: when it cannot be read, is wrong, or is empty.
    """
    try:
        entries = json.loads(pathlib.Path(path).read_text())["keys"]
        keys = [
            Key(str(one["kid"]), base64.urlsafe_b64decode(one["key"]), int(one["created"]))
            for one in entries
        ]
        if not keys or any(len(key.secret) < KEY_BYTES for key in keys):
            raise ValueError(f"a key of at least {KEY_BYTES} bytes is needed")
    except (OSError, ValueError, TypeError, KeyError, binascii.Error) as exc:
        raise errors.ConfigError(
            f"the key file {path} cannot be used: {type(exc).__name__}: {exc}",
            way_out="'kumo-provisioner init' makes one",
        ) from exc
    return keys


def dump(keys: list[Key]) -> str:
    """The text of a key file."""
    return json.dumps({"keys": [key.wire() for key in keys]}, indent=2) + "\n"


def rotated(keys: list[Key], now: float) -> list[Key]:
    """The keys with a new one in front, without those that no token can need any more."""
    # A key stopped to sign when the next one was made.
    ended = [now, *(float(key.created) for key in keys)]
    kept = [key for key, end in zip(keys, ended, strict=False) if now - end <= MAX_LIFE]
    return [new_key(), *kept]


def sign(
    keys: list[Key], *, name: str, role: str, tenant: str, life: int, now: float | None = None
) -> tuple[str, str, int]:
    """Make a token.

    :param life: seconds.
    :returns: the token, its id, and when it expires (seconds since the epoch).
    """
    begin = int(time.time() if now is None else now)
    token_id = str(uuid.uuid4())
    claims = {
        "sub": name,
        "role": role,
        "tenant": tenant,
        "jti": token_id,
        "iat": begin,
        "exp": begin + life,
        "aud": AUDIENCE,
    }
    key = keys[0]
    text = jwt.encode(claims, key.secret, algorithm=ALGORITHM, headers={"kid": key.kid})
    return text, token_id, begin + life


def verify(keys: list[Key], token: str, leeway: float) -> dict[str, Any] | None:
    """The claims of a token; None when it is none of ours, or has expired.

    :param leeway: seconds by which clocks may differ.
    """
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except jwt.PyJWTError:
        return None
    for key in keys:
        if key.kid != kid:
            continue
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.secret,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                leeway=leeway,
                options={"require": ["sub", "role", "jti", "exp", "aud"]},
            )
        except jwt.PyJWTError:
            return None
        return claims
    return None
