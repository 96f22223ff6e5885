# SPDX-License-Identifier: Apache-2.0
"""Errors of databases as errors of ours.

Codes: PostgreSQL manual, appendix A; mariadb.com/kb/en/mariadb-error-code-reference; SQLite tells
by the text alone (sqlite.org/rescode.html).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy.exc
from sqlalchemy.orm.exc import StaleDataError

from kumo_client import errors

# Deadlock and serialization failure; on MariaDB also the end of the wait for a row.
_POSTGRESQL_REPEAT = frozenset({"40001", "40P01", "55P03"})
_MARIADB_REPEAT = frozenset({1020, 1205, 1213})
# Connection exception, insufficient resources, operator intervention, system error.
_POSTGRESQL_AWAY = ("08", "53", "57", "58")
# Cannot connect, gone away, lost during query, too many connections, shutdown, killed, read only,
# Galera not ready, disk full.
_MARIADB_AWAY = frozenset({0, 1021, 1040, 1047, 1053, 1290, 1836, 1927, 2002, 2003, 2006, 2013})
_SQLITE_LOCKED = ("database is locked", "database table is locked")
_SQLITE_AWAY = ("disk I/O error", "disk is full", "unable to open", "readonly database")


class RolledBackError(errors.BusyError):
    """Another transaction was in the way; nothing of this one was written."""


class LostConnectionError(errors.DatabaseUnavailableError):
    """The connection broke before the commit was asked for; nothing was written."""


def translate(exc: Exception, *, sqlite: bool, committing: bool) -> errors.KumoError | None:
    """The error of ours for one of SQLAlchemy's; None for a defect.

    :param committing: the commit had been asked for, so it may have happened.
    """
    # SQLite runs one write transaction at a time, so there these two are defects.
    if isinstance(exc, sqlalchemy.exc.IntegrityError | StaleDataError):
        return None if sqlite else _rolled_back()
    if isinstance(exc, sqlalchemy.exc.TimeoutError):
        return LostConnectionError(
            "all connections to the database are in use",
            way_out="repeat the call later; [database] max_connections bounds them",
        )
    if not isinstance(exc, sqlalchemy.exc.DBAPIError):
        return None
    kind = _kind(exc.orig, sqlite)
    if kind == "repeat":
        return _rolled_back()
    if kind != "away" and not exc.connection_invalidated:
        return None
    if committing:
        return errors.DatabaseUnavailableError(
            "the database went away during a commit; it may have been carried out",
            way_out="repeat the call when the database is back",
        )
    return LostConnectionError(
        "the database cannot be used at the moment",
        way_out="repeat the call when the database is back",
    )


def _rolled_back() -> RolledBackError:
    return RolledBackError(
        "another request changed the same at the same moment", way_out="repeat the call"
    )


def _kind(orig: Any, sqlite: bool) -> str:
    if sqlite:
        text = str(orig)
        if any(part in text for part in _SQLITE_LOCKED):
            return "repeat"
        return "away" if any(part in text for part in _SQLITE_AWAY) else ""
    state = getattr(orig, "sqlstate", "")
    code = orig.args[0] if orig is not None and orig.args else None
    if state in _POSTGRESQL_REPEAT or code in _MARIADB_REPEAT:
        return "repeat"
    if code in _MARIADB_AWAY and isinstance(code, int):
        return "away"
    if state is None:
        # psycopg has no SQLSTATE for what libpq itself tells: no connection.
        return "away" if type(orig).__name__ == "OperationalError" else ""
    return "away" if state.startswith(_POSTGRESQL_AWAY) else ""
