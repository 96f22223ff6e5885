# SPDX-License-Identifier: Apache-2.0
"""Versions of the schema."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Iterator

import alembic.command
import alembic.config
import alembic.util
import sqlalchemy
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from kumo_client import errors
from kumo_provisioner.db.dialects import COLLATION

MIGRATIONS = pathlib.Path(__file__).with_name("migrations")


def _config() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def upgrade(engine: sqlalchemy.Engine) -> None:
    """Bring the schema to the newest version.

    On SQLite all or nothing of it is done.

    :raises ConfigError: when the database cannot be used, or is newer than this program.
    """
    config = _config()
    try:
        with engine.connect() as connection, _references_checked_at_the_end(connection):
            if engine.dialect.name in ("mysql", "mariadb"):
                _set_collation(connection, engine.url.database or "")
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")
    except sqlalchemy.exc.DBAPIError as exc:
        raise unusable(engine, exc) from exc
    except alembic.util.CommandError as exc:
        raise errors.ConfigError(
            f"the schema of the database is not known here: {exc}",
            way_out="run the release that made it, or a newer one",
        ) from exc


@contextlib.contextmanager
def _references_checked_at_the_end(connection: sqlalchemy.Connection) -> Iterator[None]:
    """Commit what is done inside, on SQLite only if every row that is referred to is there.

    SQLite cannot change a column: Alembic makes the table anew and drops the old one, which is an
    error as long as rows refer to it, unless foreign keys are off. That has to be said before the
    transaction, and the rows be checked before its end ("Making Other Kinds Of Table Schema
    Changes", sqlite.org/lang_altertable.html).

    :raises ConfigError: when rows refer to others that are not there; nothing was changed.
    """
    if connection.dialect.name != "sqlite":
        yield
        connection.commit()
        return
    raw = connection.connection.cursor()
    raw.execute("PRAGMA foreign_keys = OFF")
    try:
        before = current(connection)
        yield
        if current(connection) != before:
            _check_references(connection)
        connection.commit()
    finally:
        connection.rollback()
        raw.execute("PRAGMA foreign_keys = ON")
        raw.close()


def _check_references(connection: sqlalchemy.Connection) -> None:
    # Table, row, table that is referred to, number of the key (sqlite.org/pragma.html).
    found = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    if found:
        table, row, other, _ = found[0]
        raise errors.ConfigError(
            f"the database {connection.engine.url.render_as_string()} cannot be brought up to "
            f"date: {len(found)} rows refer to others that are not there, the first is row {row} "
            f"of {table}, which refers to {other}",
            way_out="nothing was changed; restore a copy of the database that is whole",
        )


def _set_collation(connection: sqlalchemy.Connection, database: str) -> None:
    """Names that differ in case or in blanks at their end are different, as elsewhere."""
    quoted = connection.dialect.identifier_preparer.quote_identifier(database)
    connection.exec_driver_sql(f"ALTER DATABASE {quoted} CHARACTER SET utf8mb4 COLLATE {COLLATION}")
    connection.commit()


def check(engine: sqlalchemy.Engine) -> None:
    """Refuse to work on another schema than that of this program.

    :raises ConfigError: when it is another one, or the database cannot be used.
    """
    try:
        with engine.connect() as connection:
            found = current(connection)
    except sqlalchemy.exc.DBAPIError as exc:
        raise unusable(engine, exc) from exc
    if found != head():
        raise errors.ConfigError(
            f"the schema of the database is {found or 'not there'} and must be {head()}",
            way_out="run 'kumo-provisioner db upgrade' while no instance runs",
        )


@functools.cache
def head() -> str:
    """The version that this program works with."""
    found = ScriptDirectory.from_config(_config()).get_current_head()
    return found or ""


def current(connection: sqlalchemy.Connection) -> str:
    """The version of the database; empty if it has none."""
    return MigrationContext.configure(connection).get_current_revision() or ""


def unusable(engine: sqlalchemy.Engine, exc: sqlalchemy.exc.DBAPIError) -> errors.ConfigError:
    """The error of a database that cannot be opened; tells no password."""
    return errors.ConfigError(
        f"the database {engine.url.render_as_string()} cannot be used: {exc.orig}",
        way_out="check [database] connection, and that the database (for SQLite: its directory) "
        "exists and may be used",
    )
