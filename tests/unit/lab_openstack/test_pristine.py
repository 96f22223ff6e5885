# SPDX-License-Identifier: Apache-2.0
import queue
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.openstack import config, keystone, pristine

SCHEMA = """
CREATE TABLE endpoint (url TEXT);
CREATE TABLE local_user (id INTEGER, name TEXT);
CREATE TABLE password (local_user_id INTEGER, password_hash TEXT);
"""


def make_database(path, users=("admin", *config.SERVICE_USERS)):
    with sqlite3.connect(path) as db:
        db.executescript(SCHEMA)
        db.execute("INSERT INTO endpoint VALUES (?)", (keystone.BOOTSTRAP_URL,))
        for number, user in enumerate(users):
            db.execute("INSERT INTO local_user VALUES (?, ?)", (number, user))
            db.execute("INSERT INTO password VALUES (?, 'old')", (number,))
    db.close()


def query(path, statement):
    with sqlite3.connect(path) as db:
        rows = db.execute(statement).fetchall()
    db.close()
    return rows


class Migrations:
    """Stands for the services' own tools: the last of each makes its database."""

    def __init__(self, fail=None):
        self.calls, self.fail = [], fail

    def __call__(self, arguments, env, cwd):
        self.calls.append(arguments)
        tool = arguments[0].rpartition("/")[2]
        if tool == self.fail:
            raise pristine.PristineError(f"{tool} failed")
        if arguments[-2:] == ["db", "sync"]:
            make_database(cwd / f"db/{tool.partition('-')[0]}.db")
        elif arguments[-1] == "db_sync":
            make_database(cwd / "db/keystone.db")


def use(monkeypatch, migrations):
    monkeypatch.setattr(pristine.Tools, "run", lambda tools, *arguments: migrations(*arguments))


@given(st.dictionaries(st.text("abc", min_size=1), st.text("123.", min_size=1), min_size=1))
def test_cache_key_depends_on_content_not_order(versions):
    backwards = dict(reversed(list(versions.items())))
    key = pristine.cache_key(versions, "recipe")
    assert pristine.cache_key(backwards, "recipe") == key
    assert pristine.cache_key(versions, "other recipe") != key
    name = next(iter(versions))
    assert pristine.cache_key({**versions, name: versions[name] + "0"}, "recipe") != key


def test_missing_service_says_what_to_install(monkeypatch):
    monkeypatch.setattr(pristine, "DISTRIBUTIONS", ("no-such-distribution",))
    with pytest.raises(pristine.PristineError, match=r"\[openstack\]"):
        pristine.installed_versions()


def test_databases_are_made_once_and_then_only_copied(settings, monkeypatch):
    migrations, said = Migrations(), []
    use(monkeypatch, migrations)

    first = pristine.provide(said.append)
    count = len(migrations.calls)
    again = pristine.provide(said.append)

    assert first == again
    assert len(migrations.calls) == count == 5
    assert {path.name for path in first.iterdir()} == {"keystone.db", "glance.db", "cinder.db"}
    assert query(first / "cinder.db", "PRAGMA journal_mode") == [("wal",)]
    assert len([line for line in said if line.endswith("ready")]) == 3


def test_failed_migration_leaves_nothing_and_can_be_tried_again(settings, monkeypatch):
    use(monkeypatch, Migrations(fail="glance-manage"))
    with pytest.raises(pristine.PristineError, match="glance-manage failed"):
        pristine.provide(print)
    assert [path.name for path in (config.cache_root() / "openstack").iterdir()] == ["lock"]

    use(monkeypatch, Migrations())
    assert pristine.provide(print).is_dir()


def test_copy_gets_address_and_passwords_and_the_original_does_not(settings, tmp_path):
    source = tmp_path / "pristine"
    source.mkdir()
    for name in pristine.DATABASES:
        make_database(source / f"{name}.db")

    pristine.copy(source, settings)

    copied = settings.database("keystone")
    assert query(copied, "SELECT url FROM endpoint") == [(settings.auth_url,)]
    hashes = dict(
        query(
            copied, "SELECT name, password_hash FROM password JOIN local_user ON local_user_id=id"
        )
    )
    for user in ("admin", "cinder", "glance", "nova"):
        assert bcrypt.checkpw(settings.passwords[user].encode(), hashes[user].encode())
    assert query(source / "keystone.db", "SELECT url FROM endpoint") == [(keystone.BOOTSTRAP_URL,)]


def test_database_without_a_service_user_is_refused(settings, tmp_path):
    make_database(tmp_path / "k.db", users=("admin", "cinder"))
    with pytest.raises(ValueError, match="user glance"):
        keystone.personalise(tmp_path / "k.db", settings.address, settings.passwords)


class FakePopen:
    """A tool that ends with ``code``, or runs until it is killed."""

    code, killed = 3, None

    def __init__(self, argv, **options):
        self.argv, self.returncode = argv, None
        self.killed = threading.Event()
        started.put(self)

    def communicate(self):
        if self.code is None:
            assert self.killed.wait(10)
            self.returncode = -9
        else:
            self.returncode = self.code
        return "\n".join([*(f"line {number}" for number in range(40)), "the reason"]), None

    def kill(self):
        self.killed.set()


started = queue.Queue()


@pytest.fixture
def fake_popen(monkeypatch):
    monkeypatch.setattr(pristine.subprocess, "Popen", FakePopen)
    return FakePopen


def test_failed_tool_is_reported_with_the_end_of_its_output(fake_popen, tmp_path):
    with pytest.raises(pristine.PristineError) as caught:
        pristine.Tools().run(["tool", "db", "sync"], {}, tmp_path)
    assert str(caught.value).startswith("tool db sync failed with 3:")
    assert str(caught.value).endswith("the reason")
    assert "line 1\n" not in str(caught.value)
    started.get_nowait()


def test_cancel_ends_what_runs_and_starts_nothing_more(fake_popen, monkeypatch, tmp_path):
    monkeypatch.setattr(fake_popen, "code", None)
    tools = pristine.Tools()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(tools.run, ["tool"], {}, tmp_path)
        started.get(timeout=10)
        tools.cancel()
        with pytest.raises(pristine.PristineError, match="failed with -9"):
            running.result()
    with pytest.raises(pristine.PristineError, match="was cancelled"):
        tools.run(["next"], {}, tmp_path)
    assert started.empty()
