# SPDX-License-Identifier: Apache-2.0
"""The database: engine, transactions and migrations.

SQLite is the default: write-ahead log, every commit synced to disk, and write transactions that
take the write lock at their beginning, so that what a transaction read is still true when it
commits. Statements and their meaning: sqlite.org/pragma.html and sqlite.org/lang_transaction.html.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import alembic.command
import alembic.config
import sqlalchemy
from oslo_log import log
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

from kumo_client import errors
from kumo_provisioner.db import failures

LOG = log.getLogger(__name__)
T = TypeVar("T")
MIGRATIONS = pathlib.Path(__file__).with_name("migrations")
BUSY_TIMEOUT_MS = 15000
TRIES = 6
# Seconds before the second try; twice as long before each further one.
FIRST_PAUSE = 0.02


class _Phase:
    committing = False


class Database:
    """Transactions over one engine.

    :param url: SQLAlchemy URL, for example ``sqlite:////var/lib/kumo/provisioner.db``.
    :raises ConfigError: when the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = make_url(url)
        except sqlalchemy.exc.ArgumentError as exc:
            raise errors.ConfigError("[database] connection is no database URL") from exc
        self._claim: int | None = None
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"pool_pre_ping": not self.is_sqlite}
        if self.is_sqlite and self.url.database in (None, "", ":memory:"):
            raise errors.ConfigError("[database] connection: an SQLite database needs a file")
        if self.is_sqlite:
            options = {"pool_size": 20, "max_overflow": 60, "pool_timeout": 20}
        self.engine = sqlalchemy.create_engine(self.url, **options)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _on_sqlite_connect)
            event.listen(self.engine, "begin", _on_sqlite_begin)
        self._reader = sessionmaker(self.engine, expire_on_commit=False)
        writing = self.engine.execution_options(kumo_write=True)
        self._writer = sessionmaker(writing, expire_on_commit=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that reads.

        :raises DatabaseUnavailableError: when the database cannot be used.
        """
        with self._translated(), self._reader() as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits at its end, or rolls back on an exception.

        :raises BusyError: when another transaction was in the way; nothing was written.
        :raises DatabaseUnavailableError: when the database cannot be used.
        """
        with self._translated() as phase, self._writer() as session, session.begin():
            yield session
            session.flush()
            phase.committing = True

    def run(self, function: Callable[[Session], T]) -> T:
        """Run a write transaction, again when another one was in the way.

        :param function: may be called several times; it does nothing but read and write the record.
        :raises BusyError: when there was always another one in the way.
        :raises DatabaseUnavailableError: when the database cannot be used.
        """
        for number in range(1, TRIES + 1):
            try:
                with self.write() as session:
                    return function(session)
            except (failures.RolledBackError, failures.LostConnectionError) as exc:
                if number == TRIES:
                    raise
                LOG.info("Try %s of a transaction failed: %s", number, exc.__cause__ or exc)
                time.sleep(FIRST_PAUSE * 2 ** (number - 1) * random.uniform(0.5, 1))
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def _translated(self) -> Iterator[_Phase]:
        phase = _Phase()
        try:
            yield phase
        except (sqlalchemy.exc.SQLAlchemyError, StaleDataError) as exc:
            error = failures.translate(exc, sqlite=self.is_sqlite, committing=phase.committing)
            if error is None:
                raise
            raise error from exc

    def upgrade(self) -> None:
        """Bring the schema to the newest version.

        :raises ConfigError: when the database cannot be opened.
        """
        config = alembic.config.Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        try:
            with self.engine.execution_options(kumo_write=True).connect() as connection:
                config.attributes["connection"] = connection
                alembic.command.upgrade(config, "head")
        except sqlalchemy.exc.OperationalError as exc:
            raise errors.ConfigError(
                f"the database {self.url.render_as_string()} cannot be used: {exc.orig}",
                way_out="check [database] connection, and that its directory exists",
            ) from exc

    def claim(self) -> None:
        """Make sure that no second provisioner works on this SQLite file.

        It would take operations of this one for the remains of a dead process. The kernel gives
        the claim back when the process ends, however it ends.

        :raises ConfigError: when another process has claimed it.
        """
        if not self.is_sqlite:
            return
        path = f"{self.url.database}.lock"
        try:
            self._claim = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise errors.ConfigError(
                f"another provisioner uses the database {self.url.database}",
                way_out="end it first; one SQLite file serves one provisioner",
            ) from exc
        except OSError as exc:
            raise errors.ConfigError(f"{path}: {exc.strerror}") from exc

    def close(self) -> None:
        self.engine.dispose()
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None


def _on_sqlite_connect(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling begins transactions late; ours is explicit.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _on_sqlite_begin(connection: Any) -> None:
    writing = connection.get_execution_options().get("kumo_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
