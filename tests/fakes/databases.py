# SPDX-License-Identifier: Apache-2.0
"""Private database servers on loopback: Debian's PostgreSQL and MariaDB, not the system's services.

They sync each commit, as in production. A server that is not installed is a failure, never a
reason to skip: bindep.txt lists the packages.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import sqlalchemy

ADDRESS = "127.0.0.1"
START_SECONDS = 120.0
POSTGRESQL = Path("/usr/lib/postgresql/15/bin")
MARIADB = Path("/usr/sbin/mariadbd")
MARIADB_TABLES = Path("/usr/share/mysql")
MARIADB_FILES = (
    "mysql_system_tables.sql",
    "mysql_performance_tables.sql",
    "mysql_system_tables_data.sql",
)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A database server of one's own; ``url`` is for SQLAlchemy.

    :param directory: where it may keep its data, unless this is root: then the server runs as
        another user, who might not get there.
    """

    program: ClassVar[Path]
    package: ClassVar[str]
    account: ClassVar[str]

    def __init__(self, directory: Path | None = None) -> None:
        assert self.program.exists(), (
            f"{self.program} is missing: install the package {self.package} (see bindep.txt)"
        )
        above = directory.parent if directory and os.geteuid() else Path("/tmp")
        self.root = Path(tempfile.mkdtemp(prefix="kumo-db-", dir=above))
        self.user: str | None = None
        if os.geteuid() == 0:
            known = {one.pw_name for one in pwd.getpwall()}
            self.user = self.account if self.account in known else "nobody"
            os.chown(self.root, pwd.getpwnam(self.user).pw_uid, pwd.getpwnam(self.user).pw_gid)
        self.port = _free_port()
        self.password = secrets.token_hex(8)
        self.log = self.root / "log"
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self._prepare()
        except BaseException:
            self.stop()
            raise

    url: str

    def _prepare(self) -> None:
        raise NotImplementedError

    def _argv(self) -> list[str]:
        raise NotImplementedError

    def _owned(self, path: Path, text: str) -> Path:
        path.write_text(text)
        if self.user is not None:
            os.chown(path, pwd.getpwnam(self.user).pw_uid, -1)
        path.chmod(0o600)
        return path

    def _popen(self, argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(self.root)}
        if self.user is not None:
            options |= {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid}
            options |= {"extra_groups": []}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                argv, stdout=log, stderr=log, cwd=self.root, env=environment, **options
            )

    def _run(self, argv: list[str], text: str = "") -> None:
        process = self._popen(argv, stdin=subprocess.PIPE)
        process.communicate(text.encode(), timeout=START_SECONDS)
        assert process.returncode == 0, f"{argv[0]} failed:\n{self.log.read_text()[-3000:]}"

    def start(self) -> None:
        """Start the server and wait until it lets us in."""
        self.process = self._popen(self._argv(), stdin=subprocess.DEVNULL)
        engine = sqlalchemy.create_engine(self.url, poolclass=sqlalchemy.NullPool)
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                with engine.connect():
                    return
            except sqlalchemy.exc.OperationalError:
                assert time.monotonic() < deadline, self.log.read_text()[-3000:]
                time.sleep(0.1)

    def kill(self) -> None:
        """End it at once (SIGKILL); it may be started again."""
        self._end(signal.SIGKILL)

    def end(self) -> None:
        """End it in order, without waiting for its clients; it may be started again."""
        self._end(signal.SIGINT if self.package.startswith("postgresql") else signal.SIGTERM)

    def stop(self) -> None:
        """End it for good and leave nothing behind."""
        self.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(timeout=60)
            self.process = None


class PostgreSQL(Server):
    program = POSTGRESQL / "postgres"
    package = "postgresql-15"
    account = "postgres"

    def _prepare(self) -> None:
        self.url = f"postgresql+psycopg://kumo:{self.password}@{ADDRESS}:{self.port}/postgres"
        password = self._owned(self.root / "password", self.password)
        self._run(
            [
                *(str(POSTGRESQL / "initdb"), "--pgdata", str(self.root / "data")),
                *("--username", "kumo", "--pwfile", str(password)),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"),
            ]
        )

    def _argv(self) -> list[str]:
        settings = {
            "listen_addresses": ADDRESS,
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "on",
            "max_connections": 150,
            "shared_buffers": "32MB",
            "deadlock_timeout": "200ms",
        }
        options = [f"--{key}={value}" for key, value in settings.items()]
        return [str(self.program), "-D", str(self.root / "data"), *options]


class MariaDB(Server):
    program = MARIADB
    package = "mariadb-server-core"
    account = "mysql"

    def _prepare(self) -> None:
        self.url = f"mysql+pymysql://kumo:{self.password}@{ADDRESS}:{self.port}/kumo"
        data = self.root / "data"
        data.mkdir(mode=0o700)
        if self.user is not None:
            os.chown(data, pwd.getpwnam(self.user).pw_uid, -1)
        self._owned(self.root / "my.cnf", self._configuration(data))
        accounts = [
            "CREATE DATABASE IF NOT EXISTS kumo;",
            f"CREATE OR REPLACE USER 'kumo'@'{ADDRESS}' IDENTIFIED BY '{self.password}';",
            f"GRANT ALL ON kumo.* TO 'kumo'@'{ADDRESS}';",
        ]
        self._owned(self.root / "accounts.sql", "\n".join(accounts) + "\n")
        # In this mode the server wants each statement to end its line.
        text = "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket='root';\n"
        text += "".join((MARIADB_TABLES / name).read_text() for name in MARIADB_FILES)
        self._run([str(self.program), f"--defaults-file={self.root}/my.cnf", "--bootstrap"], text)

    def _configuration(self, data: Path) -> str:
        options = {
            "datadir": data,
            "socket": self.root / "server.sock",
            "pid_file": self.root / "server.pid",
            "tmpdir": self.root,
            "bind_address": ADDRESS,
            "port": self.port,
            "skip_name_resolve": "ON",
            "max_connections": 200,
            "performance_schema": "OFF",
            "innodb_buffer_pool_size": "32M",
            "innodb_log_file_size": "16M",
            "innodb_flush_log_at_trx_commit": 1,
            "character_set_server": "latin1",
        }
        lines = [f"{key} = {value}" for key, value in options.items()]
        return "\n".join(["[mariadbd]", *lines, ""])

    def _argv(self) -> list[str]:
        init = f"--init-file={self.root}/accounts.sql"
        return [str(self.program), f"--defaults-file={self.root}/my.cnf", init]


KINDS: dict[str, type[Server]] = {"postgresql": PostgreSQL, "mariadb": MariaDB}
