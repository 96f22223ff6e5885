# SPDX-License-Identifier: Apache-2.0
"""Keystone: its config, its keys, its service, and tokens from it."""

from __future__ import annotations

import base64
import secrets
import sqlite3
from pathlib import Path

from lab.openstack import config, http
from lab.openstack.service import Service, wsgi_argv

# Stands for the stack's address in the endpoints of a database not yet given one (RFC 2606).
PLACEHOLDER = "address.invalid"

ENDPOINTS = {
    ("cinder", "block-storage"): f"http://{PLACEHOLDER}:{config.CINDER_PORT}/v3/$(project_id)s",
    ("glance", "image"): f"http://{PLACEHOLDER}:{config.GLANCE_PORT}",
}
BOOTSTRAP_URL = f"http://{PLACEHOLDER}:{config.KEYSTONE_PORT}/v3"


def sections(settings: config.Settings) -> config.Sections:
    """keystone.conf."""
    return config.merge(
        config.common_sections(),
        settings.database_section("keystone"),
        {
            "DEFAULT": {"public_endpoint": f"http://{settings.address}:{config.KEYSTONE_PORT}"},
            "token": {"provider": "fernet", "expiration": 86400},
            "fernet_tokens": {"key_repository": str(settings.state_dir / "keystone/fernet")},
            "fernet_receipts": {"key_repository": str(settings.state_dir / "keystone/fernet")},
            "credential": {"key_repository": str(settings.state_dir / "keystone/credential")},
            # The least that bcrypt allows: the lab checks passwords often and guards nothing.
            "identity": {"password_hash_rounds": 4, "max_password_length": 54},
            "cache": {"enabled": True, "backend": "oslo_cache.dict"},
        },
    )


def write_config(settings: config.Settings) -> Path:
    """Write keystone.conf and its token keys; return the config file.

    A key is 32 random bytes in URL-safe base64; 0 is the next key, the highest number signs
    (keystone, "Fernet tokens").
    """
    for repository in ("fernet", "credential"):
        for number in ("0", "1"):
            key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
            path = settings.directory(f"keystone/{repository}") / number
            if not path.exists():
                config.write_private(path, key)
    return config.write_private(
        settings.directory("keystone") / "keystone.conf", config.render_ini(sections(settings))
    )


def personalise(database: Path, address: str, passwords: dict[str, str]) -> None:
    """Give a copied database its address and its users' passwords.

    :raises ValueError: the database lacks one of the users, so it is not one this made.
    """
    import bcrypt

    with sqlite3.connect(database) as db:
        db.execute("UPDATE endpoint SET url = replace(url, ?, ?)", (PLACEHOLDER, address))
        for user in ("admin", *config.SERVICE_USERS):
            digest = bcrypt.hashpw(passwords[user].encode(), bcrypt.gensalt(rounds=4)).decode()
            done = db.execute(
                "UPDATE password SET password_hash = ? WHERE local_user_id IN"
                " (SELECT id FROM local_user WHERE name = ?)",
                (digest, user),
            )
            if done.rowcount != 1:
                raise ValueError(f"{database}: expected one password of user {user}")
    db.close()


def service(settings: config.Settings) -> Service:
    """The identity API."""
    write_config(settings)
    env = {
        **config.service_environment(settings),
        "OS_KEYSTONE_CONFIG_DIR": str(settings.state_dir / "keystone"),
    }
    argv = wsgi_argv("keystone.wsgi.api", settings.address, config.KEYSTONE_PORT, 4)
    return Service(
        "keystone",
        argv,
        lambda: http.is_ok(settings.auth_url),
        env,
    )


def token(settings: config.Settings, user: str = "admin", project: str = "admin") -> str:
    """A token of ``user`` in ``project``.

    :raises OSError: keystone could not be asked, or refused (requests.RequestException).
    """
    domain = {"name": "Default"}
    who = {"name": user, "password": settings.passwords[user], "domain": domain}
    body = {
        "auth": {
            "identity": {"methods": ["password"], "password": {"user": who}},
            "scope": {"project": {"name": project, "domain": domain}},
        }
    }
    answer = http.request("POST", f"{settings.auth_url}/auth/tokens", json=body)
    return answer.headers["X-Subject-Token"]
