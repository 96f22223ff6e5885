# SPDX-License-Identifier: Apache-2.0
"""A private MariaDB server for Cinder's database: one that other machines can share.

Debian's mariadb-server-core, which has the server and no system service. Its data, socket, port
and passwords are the stack's own.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from lab.errors import PreflightError
from lab.openstack import cinder, config, pristine
from lab.openstack.service import Service

NAME = "mariadb"
SERVER = Path("/usr/sbin/mariadbd")
# What Debian's mariadb-install-db feeds to the server; the script itself needs the client package.
SYSTEM_TABLES = Path("/usr/share/mysql")
_SYSTEM_FILES = (
    "mysql_system_tables.sql",
    "mysql_performance_tables.sql",
    "mysql_system_tables_data.sql",
)
# Of unix(7), with the zero that ends it.
_SOCKET_PATH_BYTES = 108
_BOOTSTRAP_SECONDS = 60


class DatabaseServerError(PreflightError):
    """The server is not installed, or could not be set up; the message says what to do."""


def render_conf(settings: config.Settings, data: Path) -> str:
    """my.cnf for ``data``, made small: a database of a few MiB, and nothing in it is precious.

    The server is root like everything in the lab, which it only is if told.
    """
    root = settings.directory(NAME)
    options: config.Sections = {
        "mariadbd": {
            "user": "root",
            "datadir": str(data),
            "socket": str(socket(settings)),
            "pid_file": str(root / "server.pid"),
            "tmpdir": str(settings.directory(f"{NAME}/temporary")),
            "bind_address": settings.address,
            "port": str(config.DATABASE_PORT),
            "skip_name_resolve": "ON",
            "max_connections": "100",
            "open_files_limit": "1024",
            "table_open_cache": "200",
            "performance_schema": "OFF",
            "innodb_buffer_pool_size": "16M",
            "innodb_log_file_size": "8M",
            "innodb_file_per_table": "OFF",
            "innodb_flush_log_at_trx_commit": "0",
            "innodb_doublewrite": "OFF",
            "innodb_buffer_pool_dump_at_shutdown": "OFF",
            "key_buffer_size": "1M",
            "aria_pagecache_buffer_size": "1M",
        }
    }
    return config.render_ini(options)


def socket(settings: config.Settings) -> Path:
    """The server's unix socket, which is reached from any network namespace.

    :raises DatabaseServerError: the stack's directory is too deep for one.
    """
    path = settings.directory(NAME) / "server.sock"
    if len(os.fsencode(path)) >= _SOCKET_PATH_BYTES:
        raise DatabaseServerError(
            f"{path} is too long for a unix socket",
            "Keep the lab in a shorter path (KUMO_LAB_DIR).",
        )
    return path


def prepare(settings: config.Settings, server: Path = SERVER, share: Path = SYSTEM_TABLES) -> Path:
    """Make the data directory, unless there is one, and the config; return the config file.

    :raises DatabaseServerError: no server, or it failed.
    """
    if not server.exists():
        raise DatabaseServerError(f"{server} not found", "Install the package mariadb-server-core.")
    root = settings.directory(NAME)
    data = root / "data"
    if not data.exists():
        with tempfile.TemporaryDirectory(dir=root, prefix="new-") as scratch:
            _bootstrap(settings, Path(scratch), server, share)
            # One that is complete has this name; an interrupted attempt never gets it.
            os.rename(Path(scratch) / "data", data)
    config.write_private(root / "accounts.sql", accounts(settings))
    return config.write_private(root / "my.cnf", render_conf(settings, data))


def _bootstrap(settings: config.Settings, scratch: Path, server: Path, share: Path) -> None:
    (scratch / "data").mkdir(mode=0o700)
    conf = config.write_private(scratch / "my.cnf", render_conf(settings, scratch / "data"))
    # In this mode the server wants each statement to end its line.
    text = ["CREATE DATABASE mysql;\nUSE mysql;\n"]
    # The account of root is for the local root, by the socket's word, without a password.
    text += ["SET @auth_root_socket='root';\n"]
    text += [(share / name).read_text() for name in _SYSTEM_FILES]
    done = subprocess.run(
        [str(server), f"--defaults-file={conf}", "--bootstrap"],
        input="".join(text),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_BOOTSTRAP_SECONDS,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise DatabaseServerError(f"{server} could not make its tables:\n{tail}")


def accounts(settings: config.Settings) -> str:
    """SQL that the server runs at each start: Cinder's database and account, from anywhere."""
    password = settings.passwords["database"]
    return "\n".join(
        [
            "CREATE DATABASE IF NOT EXISTS cinder CHARACTER SET utf8mb3;",
            f"CREATE OR REPLACE USER 'cinder'@'%' IDENTIFIED BY '{password}';",
            "GRANT ALL ON cinder.* TO 'cinder'@'%';",
            "",
        ]
    )


def service(settings: config.Settings) -> Service:
    """The database server; ready when Cinder's account is let in where Cinder comes from.

    :raises DatabaseServerError: it could not be set up.
    """
    conf = prepare(settings)
    root = settings.directory(NAME)
    return Service(
        NAME,
        [str(SERVER), f"--defaults-file={conf}", f"--init-file={root / 'accounts.sql'}"],
        lambda: _answers(settings),
    )


def _answers(settings: config.Settings) -> bool:
    import pymysql  # type: ignore[import-untyped]

    try:
        pymysql.connect(
            host=settings.address,
            port=config.DATABASE_PORT,
            user="cinder",
            password=settings.passwords["database"],
            database="cinder",
            connect_timeout=2,
        ).close()
    except pymysql.err.MySQLError as error:
        raise OSError(f"MariaDB did not let Cinder in: {error}") from error
    return True


def migrate(settings: config.Settings) -> None:
    """Bring the schema of Cinder's database up to date; a few seconds when it is empty.

    :raises lab.openstack.pristine.PristineError: cinder-manage failed.
    """
    marker = settings.directory(NAME) / "migrated"
    versions = "\n".join(f"{k}={v}" for k, v in sorted(pristine.installed_versions().items()))
    if marker.exists() and marker.read_text() == versions:
        return
    # oslo.config takes OS_<GROUP>__<OPTION> before what is in the files. By the socket, since we
    # are not in the namespace.
    password, path = settings.passwords["database"], socket(settings)
    url = f"mysql+pymysql://cinder:{password}@localhost/cinder?unix_socket={path}&charset=utf8"
    env = {**config.service_environment(settings), "OS_DATABASE__CONNECTION": url}
    argv = [str(config.BIN / "cinder-manage"), *cinder.config_args(settings), "db", "sync"]
    pristine.Tools().run(argv, env, settings.state_dir)
    marker.write_text(versions)
