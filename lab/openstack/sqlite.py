# SPDX-License-Identifier: Apache-2.0
"""SQLite shared by several writing processes: an engine plugin named in the connection URL."""

from __future__ import annotations

from typing import Any

import sqlalchemy
from sqlalchemy.engine import CreateEnginePlugin, Engine

PLUGIN = "kumo_lab_sqlite"


class ImmediatePlugin(CreateEnginePlugin):
    """Take the write lock when a transaction begins.

    oslo.db begins deferred transactions. One that reads first and then writes fails at once with
    "database is locked", whatever the busy timeout, if another process wrote in between (SQLite,
    "Write-Ahead Logging": SQLITE_BUSY_SNAPSHOT), and cinder's quota reservation is such a one.
    """

    def update_url(self, url: sqlalchemy.URL) -> sqlalchemy.URL:
        """Take nothing but our own name out of the URL, which SQLAlchemy did."""
        return url

    def engine_created(self, engine: Engine) -> None:
        """Begin first; oslo.db's own listener sees the mark and does not begin again
        (oslo_db.sqlalchemy.engines, ``_sqlite_emit_begin``)."""
        sqlalchemy.event.listen(engine, "begin", _begin_immediate)


def _begin_immediate(connection: Any) -> None:
    if "in_transaction" not in connection.info:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        connection.info["in_transaction"] = True
