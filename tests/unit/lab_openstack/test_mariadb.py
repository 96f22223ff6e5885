# SPDX-License-Identifier: Apache-2.0
import configparser
import dataclasses
import subprocess

import pymysql
import pytest

from lab.openstack import cinder, config, mariadb, pristine


@pytest.fixture
def shared(settings):
    return dataclasses.replace(settings, shared_database=True)


@pytest.fixture
def installed(tmp_path):
    """What the package installs: the server and its SQL."""
    server, share = tmp_path / "usr/sbin/mariadbd", tmp_path / "usr/share/mysql"
    share.mkdir(parents=True)
    server.parent.mkdir()
    server.touch()
    for name in mariadb._SYSTEM_FILES:
        (share / name).write_text(f"-- {name}\n")
    return server, share


class FakeServer:
    """``mariadbd --bootstrap``: makes a file in the data directory that its config names."""

    def __init__(self, monkeypatch):
        self.code, self.runs = 0, []
        monkeypatch.setattr(subprocess, "run", self)

    def __call__(self, argv, *, input, **_):
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(argv[1].removeprefix("--defaults-file="))
        self.runs.append((argv[2], input))
        (mariadb.Path(parser["mariadbd"]["datadir"]) / "ibdata1").write_text("tables")
        return subprocess.CompletedProcess(argv, self.code, stdout="first\nno space left\n")


@pytest.fixture
def fake_server(monkeypatch):
    return FakeServer(monkeypatch)


def test_data_directory_is_made_once(shared, installed, fake_server):
    conf = mariadb.prepare(shared, *installed)
    mariadb.prepare(shared, *installed)
    ((mode, sql),) = fake_server.runs
    assert mode == "--bootstrap"
    assert "SET @auth_root_socket='root';" in sql
    assert sql.endswith("-- mysql_system_tables_data.sql\n")
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(conf)
    data = shared.state_dir / "mariadb/data"
    assert parser["mariadbd"]["datadir"] == str(data)
    assert (data / "ibdata1").read_text() == "tables"
    assert parser["mariadbd"]["bind_address"] == shared.address


def test_failed_attempt_leaves_no_data_and_can_be_tried_again(shared, installed, fake_server):
    fake_server.code = 1
    with pytest.raises(mariadb.DatabaseServerError, match="no space left"):
        mariadb.prepare(shared, *installed)
    assert list((shared.state_dir / "mariadb").glob("new-*")) == []
    assert not (shared.state_dir / "mariadb/data").exists()
    fake_server.code = 0
    mariadb.prepare(shared, *installed)
    assert (shared.state_dir / "mariadb/data").is_dir()


def test_missing_server_says_what_to_install(shared, installed, tmp_path):
    with pytest.raises(mariadb.DatabaseServerError, match="mariadb-server-core"):
        mariadb.prepare(shared, tmp_path / "none", installed[1])


def test_directory_too_deep_for_a_socket_is_refused(tmp_path):
    deep = config.Settings.new("192.0.2.7", tmp_path / ("d" * 100))
    with pytest.raises(mariadb.DatabaseServerError, match="too long for a unix socket"):
        mariadb.socket(deep)


def test_password_is_in_private_files_only(shared, installed, fake_server, monkeypatch):
    monkeypatch.setattr(mariadb, "SERVER", installed[0])
    monkeypatch.setattr(mariadb.prepare, "__defaults__", installed)
    service = mariadb.service(shared)
    password = shared.passwords["database"]
    assert password not in " ".join(service.argv)
    holders = [
        path
        for path in shared.state_dir.rglob("*")
        if path.is_file() and password in path.read_text()
    ]
    assert [path.name for path in holders] == ["accounts.sql"]
    assert holders[0].stat().st_mode & 0o777 == 0o600


def test_ready_when_cinder_is_let_in(shared, monkeypatch):
    asked = {}

    class Connection:
        def close(self):
            asked["closed"] = True

    monkeypatch.setattr(pymysql, "connect", lambda **words: asked.update(words) or Connection())
    assert mariadb._answers(shared)
    assert asked["closed"]
    assert (asked["user"], asked["host"]) == ("cinder", shared.address)


def test_server_that_refuses_is_not_yet_ready_and_no_bug(shared, monkeypatch):
    def refuse(**_):
        raise pymysql.err.OperationalError(1045, "Access denied for user 'cinder'")

    monkeypatch.setattr(pymysql, "connect", refuse)
    with pytest.raises(OSError, match="Access denied"):
        mariadb._answers(shared)


def test_schema_is_brought_up_to_date_once_per_set_of_versions(shared, monkeypatch):
    versions, runs = {"cinder": "1"}, []
    monkeypatch.setattr(pristine, "installed_versions", lambda: versions)
    monkeypatch.setattr(
        pristine.Tools, "run", lambda self, argv, env, cwd: runs.append((argv, env))
    )
    mariadb.migrate(shared)
    mariadb.migrate(shared)
    ((argv, env),) = runs
    assert argv[-2:] == ["db", "sync"]
    assert "unix_socket=" in env["OS_DATABASE__CONNECTION"]
    assert shared.passwords["database"] not in " ".join(argv)
    versions["cinder"] = "2"
    mariadb.migrate(shared)
    assert len(runs) == 2


def test_failed_migration_is_tried_again(shared, monkeypatch):
    monkeypatch.setattr(pristine, "installed_versions", lambda: {"cinder": "1"})

    def fail(self, argv, env, cwd):
        raise pristine.PristineError("db sync failed")

    monkeypatch.setattr(pristine.Tools, "run", fail)
    for _ in range(2):
        with pytest.raises(pristine.PristineError):
            mariadb.migrate(shared)


def test_only_cinder_uses_the_shared_database(shared):
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(cinder.volume_config(shared, {"one": {}}))
    url = parser["database"]["connection"]
    assert url.startswith("mysql+pymysql://cinder:")
    assert f"@{shared.address}:{config.DATABASE_PORT}/cinder" in url
    for other in ("keystone", "glance"):
        assert str(shared.database_section(other)["database"]["connection"]).startswith("sqlite")
