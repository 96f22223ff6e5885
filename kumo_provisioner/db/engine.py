# SPDX-License-Identifier: Apache-2.0
"""The database: transactions, whatever kind it is."""

from __future__ import annotations

import fcntl
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import sqlalchemy
from oslo_log import log
from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

from kumo_client import errors
from kumo_provisioner.db import dialects, failures, fence, generation, schema

LOG = log.getLogger(__name__)
T = TypeVar("T")
DEFAULT_CONNECTIONS = 30
TRIES = 6
# Seconds before the second try; twice as long before each further one.
FIRST_PAUSE = 0.02


class _Phase:
    committing = False


class Database:
    """Transactions over one database.

    :param url: SQLAlchemy URL, for example ``sqlite:////var/lib/kumo/provisioner.db``.
    :param connections: most connections at the same time, for databases other than SQLite.
    :ivar on_retry: called before a transaction is repeated.
    :ivar lease_engine: commits each statement by itself; None for SQLite.
    :raises ConfigError: when the URL cannot be used.
    """

    def __init__(self, url: str, connections: int = DEFAULT_CONNECTIONS) -> None:
        try:
            self.url = make_url(url)
        except sqlalchemy.exc.ArgumentError as exc:
            raise errors.ConfigError("[database] connection is no database URL") from exc
        self.on_retry: Callable[[], None] = lambda: None
        self._claim: int | None = None
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        # Who finds SQLite's write lock taken sleeps and tries again, longer each time, while
        # newcomers overtake him; so the threads of this process queue here instead.
        self._turn = threading.Lock()
        self._engines = dialects.make(self.url, connections)
        self.engine = self._engines.writing
        self.lease_engine = self._engines.leases
        self._reader = sessionmaker(self._engines.reading, expire_on_commit=False)
        self._writer = sessionmaker(self._engines.writing, expire_on_commit=False)
        event.listen(self._writer, "before_flush", generation.bump)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that reads.

        :raises DatabaseUnavailableError: when the database cannot be used.
        """
        with self.translated(), self._reader() as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits at its end, or rolls back on an exception.

        :raises BusyError: when another transaction was in the way, or a lease under which this
            is done has been lost; nothing was written.
        :raises DatabaseUnavailableError: when the database cannot be used.
        """
        with self.translated() as phase, self._queue(), self._writer() as session, session.begin():
            fence.check(session)
            yield session
            session.flush()
            phase.committing = True

    @contextmanager
    def _queue(self) -> Iterator[None]:
        if not self.is_sqlite:
            yield
            return
        # As long as SQLite itself would wait.
        if not self._turn.acquire(timeout=dialects.BUSY_TIMEOUT_MS / 1000):
            raise errors.BusyError(
                "other transactions held the database for too long", way_out="repeat the call"
            )
        try:
            yield
        finally:
            self._turn.release()

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
                self.on_retry()
                LOG.info("Try %s of a transaction failed: %s", number, exc.__cause__ or exc)
                time.sleep(FIRST_PAUSE * 2 ** (number - 1) * random.uniform(0.5, 1))
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def translated(self) -> Iterator[_Phase]:
        """Make errors of the database errors of ours; see :mod:`kumo_provisioner.db.failures`."""
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

        :raises ConfigError: when the database cannot be used.
        """
        schema.upgrade(self.engine)

    def check_schema(self) -> None:
        """:raises ConfigError: when the schema is not that of this program."""
        schema.check(self.engine)

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
        self._engines.dispose()
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None
