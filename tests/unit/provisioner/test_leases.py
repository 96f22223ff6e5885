# SPDX-License-Identifier: Apache-2.0
"""Leases between instances, over one database file that two of them share."""

import contextvars
import shutil
import threading
import time

import pytest
import sqlalchemy
from sqlalchemy import select

from kumo_client import errors
from kumo_provisioner.db import dialects, failures, fence, models
from kumo_provisioner.db.engine import TRIES, Database
from kumo_provisioner.instances import Instances
from kumo_provisioner.leases import Leases
from kumo_provisioner.locks import Locks


class Shared(Database):
    """An SQLite file used as if it was a database of several instances."""

    def __init__(self, path):
        super().__init__(f"sqlite:///{path}")
        self.is_sqlite = False
        self.lease_engine = sqlalchemy.create_engine(self.url, isolation_level="AUTOCOMMIT")
        sqlalchemy.event.listen(
            self.lease_engine,
            "connect",
            lambda connection, _record: connection.execute("PRAGMA foreign_keys = ON"),
        )

    def close(self):
        self.lease_engine.dispose()
        super().close()


class One:
    """An instance whose heart is beaten by the test."""

    def __init__(self, conf, path):
        self.db = Shared(path)
        self.deaths = []
        self.instances = Instances(conf, self.db, on_death=lambda: self.deaths.append(1))
        self.leases = Leases(self.db, self.instances)
        self.locks = Locks(0.1, self.leases)
        self.instances._register()
        self.leases.start()

    def names(self):
        with self.db.read() as session:
            return set(session.scalars(select(models.Lease.name)))

    def wait_for_no_lease(self):
        deadline = time.monotonic() + 5
        while self.names():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def close(self):
        self.leases.stop()
        self.instances.stop()
        self.db.close()


@pytest.fixture
def pair(tmp_path, conf, empty_database):
    path = tmp_path / "shared.db"
    shutil.copy(empty_database, path)
    conf.set_override("heartbeat_interval", 1.0, group="instances")
    conf.set_override("dead_after", 4.0, group="instances")
    made = [One(conf, path), One(conf, path)]
    yield made
    for one in made:
        one.close()


def test_two_instances_exclude_each_other(pair):
    first, second = pair
    with first.locks.hold("a", "b"):
        assert first.names() == {"a", "b"}
        for wanted in (["a"], ["b", "c"]):
            with (
                pytest.raises(errors.BusyError, match="another instance") as caught,
                second.locks.hold(*wanted),
            ):
                pass
            assert caught.value.transient
        with second.locks.hold("c", timeout=0):
            pass
    first.wait_for_no_lease()
    with second.locks.hold("a", "b"):
        second.locks.verify()
    assert second.locks.held() == 0


def test_who_waits_gets_it_when_it_is_free(pair):
    first, second = pair
    got = []

    def wait():
        with second.locks.hold("a", timeout=5):
            got.append(time.monotonic())

    thread = threading.Thread(target=wait)
    with first.locks.hold("a"):
        thread.start()
        time.sleep(0.05)
        assert got == []
    thread.join(5)
    assert got


def test_a_lease_is_taken_back_before_it_is_deleted(pair):
    first, _ = pair
    with first.locks.hold("a"):
        pass
    # However far the release is, the same instance never waits for itself.
    for _ in range(50):
        with first.locks.hold("a", timeout=0):
            first.locks.verify()
    first.wait_for_no_lease()


def test_a_release_that_fails_is_repeated(pair, monkeypatch):
    first, second = pair
    monkeypatch.setattr("kumo_provisioner.leases.RELEASE_AGAIN", 0.01)
    whole, tries = first.leases._delete, []
    outcomes = iter([errors.DatabaseUnavailableError("away"), ZeroDivisionError()])

    class Broken:
        def connect(self):
            failed = next(outcomes, None)
            tries.append(failed)
            if failed is not None:
                raise failed
            first.leases._engine = engine
            return engine.connect()

    with first.locks.hold("a"):
        engine, first.leases._engine = first.leases._engine, Broken()
    first.wait_for_no_lease()
    assert len(tries) == 3
    assert whole({}) is True
    with second.locks.hold("a", timeout=0):
        pass


def aside(function, *args):
    """Do something in the name of another instance: not under the leases that are held here."""
    return contextvars.Context().run(function, *args)


def write(one, name):
    with one.locks.hold("a", timeout=1), one.db.write() as session:
        session.add(models.Counter(name=name, value=1))


def die(other):
    """Let an instance see no heartbeat of the first one for long enough."""
    for _ in range(8):
        other.instances.beat()


def test_an_instance_without_heartbeat_is_dead_and_its_leases_are_free(pair):
    first, second = pair
    with first.locks.hold("a"):
        for _ in range(8):
            aside(first.instances.beat)
            aside(second.instances.beat)
        assert first.names() == {"a"}
        aside(die, second)
        assert second.deaths == [1]
        aside(write, second, "mine")
        # It does not know yet, but cannot write any more.
        with pytest.raises(fence.LeaseLostError), first.db.write() as session:
            session.add(models.Counter(name="late", value=1))
        aside(first.instances.beat)
        with pytest.raises(errors.BusyError):
            first.locks.verify()
    with first.db.read() as session:
        assert session.scalars(select(models.Counter.name)).all() == ["mine"]
    write(first, "anew")
    first.wait_for_no_lease()


def test_a_dead_instance_takes_no_lease_before_it_begins_anew(pair):
    first, second = pair
    before = first.instances.uuid
    die(second)
    write(first, "anew")
    assert first.instances.uuid != before


def test_all_nodes_are_looked_at_after_a_death(pair):
    _, second = pair
    row = {"mgmt_ips": [], "mgmt_port": 1, "portals": [], "state": "Available"}
    with second.db.write() as session:
        session.add(models.Backend(persistent_id="n1", next_reconcile=99, **row))
    die(second)
    with second.db.read() as session:
        assert session.get(models.Backend, "n1").next_reconcile == 0


def test_who_could_not_beat_trusts_its_leases_no_more(pair):
    first, _ = pair
    with first.locks.hold("a"):
        first.locks.verify()
        first.instances._last_beat -= 3.0
        with pytest.raises(errors.BusyError, match="lost its lease of a"):
            first.locks.verify()
    first.locks.verify()


def test_a_lease_whose_insertion_was_not_answered_is_deleted_at_the_next_beat(pair):
    first, second = pair
    mine = {"instance_id": first.instances.uuid, "token": "t", "taken": 0}
    with first.db.write() as session:
        session.add(models.Lease(name="stray", **mine))
    with first.locks.hold("a"):
        aside(first.instances.beat)
        assert first.names() == {"a"}
    with second.locks.hold("stray", timeout=0):
        pass


def test_an_insertion_without_an_answer_is_an_error_and_leaves_nothing_in_memory(pair):
    first, _ = pair

    class Broken:
        def connect(self):
            raise errors.DatabaseUnavailableError("away")

    engine, first.leases._engine = first.leases._engine, Broken()
    with pytest.raises(errors.DatabaseUnavailableError), first.locks.hold("a"):
        pass
    first.leases._engine = engine
    assert first.leases._taking == {}
    with first.locks.hold("a", timeout=0):
        pass


def test_the_heart_beats_on_after_failures(tmp_path, conf, empty_database, monkeypatch):
    path = tmp_path / "shared.db"
    shutil.copy(empty_database, path)
    conf.set_override("heartbeat_interval", 0.1, group="instances")
    one = Instances(conf, Shared(path), on_death=lambda: None)
    beats, whole = [], one.beat

    def beat():
        beats.append(1)
        if len(beats) in (1, 2):
            raise (errors.DatabaseUnavailableError("away"), ZeroDivisionError())[len(beats) - 1]
        whole()

    monkeypatch.setattr(one, "beat", beat)
    one.start()
    deadline = time.monotonic() + 5
    while len(beats) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    one.stop()
    with one._db.read() as session:
        assert session.scalars(select(models.Instance)).all() == []
    one._db.close()


# -- transactions ---------------------------------------------------------------------------------


def test_a_transaction_in_the_way_of_another_is_repeated(core, monkeypatch):
    monkeypatch.setattr("kumo_provisioner.db.engine.FIRST_PAUSE", 0.0)
    tries = []

    def write(session):
        tries.append(1)
        session.add(models.Counter(name="n", value=1))
        session.flush()
        if len(tries) < 3:
            raise failures.RolledBackError("in the way")
        return "done"

    assert core.db.run(write) == "done"
    with core.db.read() as session:
        assert session.scalars(select(models.Counter.value)).all() == [1]

    def never(_session):
        tries.append(1)
        raise failures.LostConnectionError("away")

    tries.clear()
    with pytest.raises(errors.DatabaseUnavailableError):
        core.db.run(never)
    assert len(tries) == TRIES


class OriginalError(Exception):
    """What a driver raises."""

    def __init__(self, *args, sqlstate=""):
        super().__init__(*args)
        self.sqlstate = sqlstate


class OperationalError(OriginalError):
    pass


def made(orig, cls=sqlalchemy.exc.OperationalError, *, lost=False):
    return cls("statement", {}, orig, connection_invalidated=lost)


@pytest.mark.parametrize(
    ("exc", "sqlite", "expected"),
    [
        (made(OriginalError(sqlstate="40P01")), False, failures.RolledBackError),
        (made(OriginalError(1213, "Deadlock")), False, failures.RolledBackError),
        (made(OriginalError("database is locked")), True, failures.RolledBackError),
        (made(OriginalError(), sqlalchemy.exc.IntegrityError), False, failures.RolledBackError),
        (made(OriginalError(), sqlalchemy.exc.IntegrityError), True, None),
        (made(OriginalError(sqlstate="57P01")), False, failures.LostConnectionError),
        (made(OperationalError("refused", sqlstate=None)), False, failures.LostConnectionError),
        (made(OriginalError("x", sqlstate=None)), False, None),
        (made(OriginalError(2013, "Lost connection")), False, failures.LostConnectionError),
        (made(OriginalError(sqlstate="XX000"), lost=True), False, failures.LostConnectionError),
        (made(OriginalError("disk I/O error")), True, failures.LostConnectionError),
        (made(OriginalError("no such table: volumes")), True, None),
        (made(OriginalError(1054, "Unknown column")), False, None),
        (sqlalchemy.exc.TimeoutError("QueuePool"), False, failures.LostConnectionError),
        (sqlalchemy.exc.InvalidRequestError("a defect"), False, None),
    ],
)
def test_errors_of_databases(exc, sqlite, expected):
    found = failures.translate(exc, sqlite=sqlite, committing=False)
    assert type(found) is (expected or type(None))
    assert found is None or found.transient


def test_a_commit_without_an_answer_is_never_repeated_by_us():
    exc = made(OriginalError(sqlstate="57P01"))
    found = failures.translate(exc, sqlite=False, committing=True)
    assert type(found) is errors.DatabaseUnavailableError
    assert found.transient


def test_a_database_that_is_away_is_a_transient_answer(web, core, monkeypatch):
    def away():
        raise made(OriginalError("disk I/O error"))

    monkeypatch.setattr(core.db, "_reader", away)
    answer = web.get("/volumes")
    assert answer.status_code == 503
    assert answer.json()["status"] == "DatabaseUnavailable"
    assert answer.json()["transient"] is True


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql+psycopg2://u@h/d", "is not supported"),
        ("mysql+pymysql://u@h", "names no database"),
        ("oracle://h/d", "is not supported"),
    ],
)
def test_urls_that_are_refused(url, told):
    with pytest.raises(errors.ConfigError, match=told):
        Database(url)


def test_a_missing_driver_is_told(monkeypatch):
    def missing(*_args, **_options):
        raise ModuleNotFoundError("No module named 'psycopg'")

    monkeypatch.setattr(dialects, "_engine", missing)
    with pytest.raises(errors.ConfigError, match="extra 'postgresql' or 'mariadb'"):
        Database("postgresql+psycopg://u@h/d")


def test_a_connection_that_stood_idle_is_tried_before_use(monkeypatch):
    class Record:
        info = {}

    class Dialect:
        class loaded_dbapi:  # noqa: N801 - SQLAlchemy's name
            Error = OSError

        def do_ping(self, connection):
            return connection()

    def broken():
        raise OSError

    checkout = dialects._on_checkout(Dialect())
    checkout(broken, Record, None)
    dialects._on_checkin(None, Record)
    checkout(broken, Record, None)
    monkeypatch.setattr(dialects, "TRUSTED_IDLE_S", 0.0)
    checkout(lambda: True, Record, None)
    for connection in (broken, lambda: False):
        with pytest.raises(sqlalchemy.exc.DisconnectionError):
            checkout(connection, Record, None)
