# SPDX-License-Identifier: Apache-2.0
"""How connections to each kind of database are set up.

SQLite: write-ahead log, every commit synced to disk, and write transactions that take the write
lock at their beginning (sqlite.org/pragma.html, sqlite.org/lang_transaction.html). PostgreSQL and
MariaDB: reads see one moment (REPEATABLE READ), writes see what is committed (READ COMMITTED) and
are guarded by conditional statements and row locks. A transaction whose process stands still is
ended by the server, so that it keeps nobody waiting (postgresql.org/docs/15/runtime-config-client;
mariadb.com/kb/en/server-system-variables).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.engine import URL

from kumo_client import errors

BUSY_TIMEOUT_MS = 15000
LOCK_WAIT_S = 15
STANDSTILL_S = 60
CONNECT_S = 5
# A connection that was not used for longer is tried before it is given out.
TRUSTED_IDLE_S = 1.0
COLLATION = "utf8mb4_nopad_bin"
LEASE_CONNECTIONS = 6


@dataclasses.dataclass
class Engines:
    """``leases`` commits each statement by itself; SQLite has none."""

    reading: sqlalchemy.Engine
    writing: sqlalchemy.Engine
    leases: sqlalchemy.Engine | None

    def dispose(self) -> None:
        for engine in (self.reading, self.writing, self.leases):
            if engine is not None:
                engine.dispose()


def make(url: URL, connections: int) -> Engines:
    """Engines for a database.

    :param connections: most connections at the same time; SQLite has its own bound.
    :raises ConfigError: when this kind of database is not supported, or its driver is missing.
    """
    kind = url.get_backend_name()
    if kind == "sqlite":
        return _sqlite(url)
    if url.drivername not in ("postgresql+psycopg", "mysql+pymysql", "mariadb+pymysql"):
        raise errors.ConfigError(
            f"[database] connection: {url.drivername} is not supported",
            way_out="use sqlite, postgresql+psycopg or mysql+pymysql",
        )
    if not url.database:
        raise errors.ConfigError("[database] connection names no database")
    try:
        return _server(url, connections)
    except ImportError as exc:
        raise errors.ConfigError(
            f"the driver for {url.drivername} is not installed: {exc}",
            way_out="install cinder-kumo with the extra 'postgresql' or 'mariadb'",
        ) from exc


def _sqlite(url: URL) -> Engines:
    if url.database in (None, "", ":memory:"):
        raise errors.ConfigError("[database] connection: an SQLite database needs a file")
    # Each connection has a page cache of its own (2 MiB), so the same few are used again.
    reading = sqlalchemy.create_engine(
        url, pool_size=12, max_overflow=68, pool_timeout=20, pool_use_lifo=True
    )
    event.listen(reading, "connect", _on_sqlite_connect)
    writing = sqlalchemy.create_engine(url, pool=reading.pool)
    # Not the event "begin": each statement of an engine with listeners is more work.
    for engine, text in ((reading, "BEGIN"), (writing, "BEGIN IMMEDIATE")):
        engine.dialect.do_begin = _begin_by(text)  # type: ignore[assignment]
    return Engines(reading, writing, None)


def _server(url: URL, connections: int) -> Engines:
    half = max(1, (connections - LEASE_CONNECTIONS) // 2)
    return Engines(
        _engine(url, half, "REPEATABLE READ"),
        _engine(url, half, "READ COMMITTED"),
        _engine(url, LEASE_CONNECTIONS, "AUTOCOMMIT"),
    )


def _engine(url: URL, size: int, isolation: Any) -> sqlalchemy.Engine:
    postgresql = url.get_backend_name() == "postgresql"
    if postgresql:
        connect_args = _postgresql_arguments(leases=isolation == "AUTOCOMMIT")
    else:
        connect_args = _mariadb_arguments()
    engine = sqlalchemy.create_engine(
        url,
        isolation_level=isolation,
        pool_size=size,
        max_overflow=0,
        pool_timeout=20,
        connect_args=connect_args,
    )
    event.listen(engine, "checkin", _on_checkin)
    event.listen(engine, "checkout", _on_checkout(engine.dialect))
    return engine


def _postgresql_arguments(*, leases: bool) -> dict[str, Any]:
    settings = {
        "lock_timeout": f"{LOCK_WAIT_S}s",
        "idle_in_transaction_session_timeout": f"{STANDSTILL_S}s",
    }
    if leases:
        # A lease counts only together with a later commit, which makes it durable, too.
        settings["synchronous_commit"] = "off"
    options = " ".join(f"-c {key}={value}" for key, value in settings.items())
    return {"options": options, "connect_timeout": CONNECT_S, "application_name": "kumo"}


def _mariadb_arguments() -> dict[str, Any]:
    return {
        "charset": "utf8mb4",
        "collation": COLLATION,
        "connect_timeout": CONNECT_S,
        "read_timeout": 2 * LOCK_WAIT_S,
        "write_timeout": 2 * LOCK_WAIT_S,
        "init_command": f"SET SESSION innodb_lock_wait_timeout = {LOCK_WAIT_S}, "
        f"SESSION idle_transaction_timeout = {STANDSTILL_S}",
    }


def _on_checkin(_connection: Any, record: Any) -> None:
    record.info["kumo_idle_since"] = time.monotonic()


def _on_checkout(dialect: sqlalchemy.Dialect) -> Any:
    def checkout(connection: Any, record: Any, _proxy: Any) -> None:
        since = record.info.get("kumo_idle_since")
        if since is None or time.monotonic() - since < TRUSTED_IDLE_S:
            return
        try:
            alive = dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error:
            alive = False
        if not alive:
            # The pool then makes a new connection.
            raise sqlalchemy.exc.DisconnectionError

    return checkout


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling begins transactions late; ours is explicit.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_by(text: str) -> Callable[[Any], None]:
    def begin(connection: Any) -> None:
        connection.cursor().execute(text).close()

    return begin
