# SPDX-License-Identifier: Apache-2.0
"""What every service shares: addresses, passwords, files, and how a config file is written."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.openstack import sqlite

Value = str | int | bool | list[str]
Sections = dict[str, dict[str, Value]]

KEYSTONE_PORT = 5000
CINDER_PORT = 8776
GLANCE_PORT = 9292
RABBIT_PORT = 5672
DATABASE_PORT = 3306

REGION = "RegionOne"
SERVICE_USERS = ("cinder", "glance", "nova")

# Where pip put the data files of cinder and glance (paste pipelines, rootwrap filters).
VENV = Path(sys.prefix)
BIN = VENV / "bin"
ETC = VENV / "etc"


def cache_root() -> Path:
    """The lab's cache directory: ``$KUMO_CACHE``, else ``~/.cache/kumo``."""
    return Path(os.environ.get("KUMO_CACHE") or Path.home() / ".cache/kumo")


def render_ini(sections: Mapping[str, Mapping[str, Value]]) -> str:
    """Render ``sections`` as an oslo.config file.

    A ``$`` is doubled because oslo.config substitutes ``$name`` inside values (oslo.config,
    "Option Value Interpolation").

    :raises ValueError: a key or value holds a line break, which would start another option.
    """
    lines: list[str] = []
    for section, options in sections.items():
        lines.append(f"[{section}]")
        for key, value in options.items():
            text = _text(value)
            if "\n" in key + text or "\r" in key + text:
                raise ValueError(f"line break in option {section}.{key}")
            lines.append(f"{key} = {text}".rstrip())
        lines.append("")
    return "\n".join(lines)


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(_text(item) for item in value)
    return str(value).replace("$", "$$")


def merge(*parts: Sections) -> Sections:
    """Merge config sections; a later part wins."""
    merged: Sections = {}
    for part in parts:
        for section, options in part.items():
            merged.setdefault(section, {}).update(options)
    return merged


def write_private(path: Path, text: str) -> Path:
    """Write ``text`` to ``path`` so that only its owner can read it; parents are made."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return path


def _password() -> str:
    # bcrypt, which keystone uses, takes no more than 72 bytes; hex needs no quoting in URLs.
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Settings:
    """One stack: its address, its directory, and its passwords (never in ``repr``).

    ``shared_database``: Cinder's database is one that other machines reach, not a local file.
    """

    address: str
    state_dir: Path
    passwords: dict[str, str] = field(repr=False)
    shared_database: bool = False

    @classmethod
    def new(cls, address: str, state_dir: Path, shared_database: bool = False) -> Settings:
        """Settings with fresh random passwords."""
        users = ("admin", *SERVICE_USERS, "rabbit", "database")
        passwords = {user: _password() for user in users}
        return cls(address, state_dir, passwords, shared_database)

    @classmethod
    def open(cls, address: str, state_dir: Path, shared_database: bool = False) -> Settings:
        """The settings kept in ``state_dir``, made and kept there if there are none.

        :raises ValueError: those kept are of another address, or of a stack without the shared
            database that is asked for.
        """
        file = state_dir / "stack.json"
        if file.exists():
            kept = json.loads(file.read_text())
            if kept["address"] != address:
                raise ValueError(f"{file} is of address {kept['address']}, not {address}")
            shared = bool(kept.get("shared_database"))
            if shared_database and not shared:
                raise ValueError(f"{file} is of a stack without a shared database")
            return cls(address, state_dir, kept["passwords"], shared)
        new = cls.new(address, state_dir, shared_database)
        kept = {"address": address, "shared_database": shared_database, "passwords": new.passwords}
        write_private(file, json.dumps(kept))
        return new

    @property
    def auth_url(self) -> str:
        """Keystone's public URL."""
        return f"http://{self.address}:{KEYSTONE_PORT}/v3"

    @property
    def image_url(self) -> str:
        """Glance's public URL."""
        return f"http://{self.address}:{GLANCE_PORT}"

    @property
    def volume_url(self) -> str:
        """Cinder's public URL, without the project."""
        return f"http://{self.address}:{CINDER_PORT}/v3"

    @property
    def transport_url(self) -> str:
        """The message bus, with its password."""
        return f"rabbit://kumo:{self.passwords['rabbit']}@{self.address}:{RABBIT_PORT}/"

    def directory(self, name: str) -> Path:
        """A directory of this stack, made if missing."""
        path = self.state_dir / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def database(self, service: str) -> Path:
        """The SQLite file of ``service``."""
        return self.directory("db") / f"{service}.db"

    def database_section(self, service: str) -> Sections:
        """The ``[database]`` section of ``service``.

        The busy timeout (seconds, sqlite3.connect) lets writers of several processes queue.
        """
        if service == "cinder" and self.shared_database:
            where = f"cinder:{self.passwords['database']}@{self.address}:{DATABASE_PORT}"
            url = f"mysql+pymysql://{where}/cinder?charset=utf8"
            return {"database": {"connection": url, "max_pool_size": 2, "max_overflow": 10}}
        return {
            "database": {
                "connection": f"sqlite:///{self.database(service)}?plugin={sqlite.PLUGIN}&timeout=60",
                "sqlite_synchronous": False,
            }
        }

    def authtoken_section(self, user: str) -> Sections:
        """The ``[keystone_authtoken]`` section for service user ``user``."""
        return {
            "keystone_authtoken": {
                "www_authenticate_uri": self.auth_url,
                **self.service_credentials(user),
                "service_token_roles_required": True,
            }
        }

    def service_credentials(self, user: str) -> dict[str, Value]:
        """keystoneauth password options for service user ``user``."""
        return {
            "auth_type": "password",
            "auth_url": self.auth_url,
            "username": user,
            "password": self.passwords[user],
            "user_domain_name": "Default",
            "project_name": "service",
            "project_domain_name": "Default",
            "region_name": REGION,
        }

    def exports(self) -> dict[str, str]:
        """The environment with which the ``openstack`` command is the admin of this stack."""
        return {
            "OS_AUTH_TYPE": "password",
            "OS_AUTH_URL": self.auth_url,
            "OS_USERNAME": "admin",
            "OS_PASSWORD": self.passwords["admin"],
            "OS_PROJECT_NAME": "admin",
            "OS_USER_DOMAIN_NAME": "Default",
            "OS_PROJECT_DOMAIN_NAME": "Default",
            "OS_REGION_NAME": REGION,
            "OS_IDENTITY_API_VERSION": "3",
            "OS_VOLUME_API_VERSION": "3.70",
        }


def clean_environment() -> dict[str, str]:
    """The caller's environment without its OpenStack and RabbitMQ settings and its proxies."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OS_", "RABBITMQ_"))}
    return {
        **inherited,
        "PATH": f"{BIN}:{inherited.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}",
        # stevedore keeps what it found in the entry points of all packages there.
        "XDG_CACHE_HOME": str(cache_root()),
        "NO_PROXY": "*",
        "no_proxy": "*",
    }


def service_environment(settings: Settings) -> dict[str, str]:
    """The environment every Python service is started with."""
    return {
        **clean_environment(),
        "HOME": str(settings.directory("home")),
        "TMPDIR": str(settings.directory("tmp")),
        "PYTHONUNBUFFERED": "1",
        # glibc makes an arena per thread by default; two keep a threaded server small.
        "MALLOC_ARENA_MAX": "2",
    }


def common_sections() -> Sections:
    """Logging alike for all services: to stderr, never at debug (which prints URLs)."""
    return {
        "DEFAULT": {"debug": False, "use_stderr": True, "log_date_format": "%H:%M:%S"},
        "oslo_messaging_notifications": {"driver": "noop"},
    }
