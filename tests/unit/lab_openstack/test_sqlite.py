# SPDX-License-Identifier: Apache-2.0
import pytest
import sqlalchemy
from oslo_db.sqlalchemy import enginefacade

from lab.openstack import sqlite


@pytest.fixture
def engines(tmp_path):
    """Two engines, as two processes would have them, made the way the services make them."""
    url = f"sqlite:///{tmp_path}/x.db?plugin={sqlite.PLUGIN}&timeout=0"
    made = []
    for _ in range(2):
        manager = enginefacade.transaction_context()
        manager.configure(connection=url)
        made.append(manager.writer.get_engine())
    with made[0].begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (x INTEGER)")
    return made


def test_read_then_write_holds_the_lock_from_its_begin(engines):
    one, two = engines
    with one.begin() as first:
        first.exec_driver_sql("SELECT * FROM t")
        with pytest.raises(sqlalchemy.exc.SQLAlchemyError, match="locked"), two.begin() as second:
            second.exec_driver_sql("INSERT INTO t VALUES (1)")
        first.exec_driver_sql("INSERT INTO t VALUES (2)")
    with two.begin() as second:
        assert second.exec_driver_sql("SELECT x FROM t").fetchall() == [(2,)]
