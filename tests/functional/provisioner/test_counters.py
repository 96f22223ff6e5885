# SPDX-License-Identifier: Apache-2.0
"""Counters of what is promised, on the databases of grown installations: several instances that
place, extend and delete at the same time never promise more than there is, and no counter is
corrected that was right."""

import random
import threading

import pytest
from sqlalchemy import event, select

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_provisioner import conf as provisioner_conf
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.db.engine import Database
from kumo_provisioner.locks import Locks
from kumo_provisioner.services import capacity, removals, snapshots, volumes
from tests.fakes.databases import MariaDB, PostgreSQL
from tests.unit.provisioner.conftest import FakeNodes, add_node, volume
from tests.unit.provisioner.stories import made_snapshot, rows

T = "0"
GUARANTEE = {"desired_iops_per_gb": 100}


@pytest.fixture(params=[PostgreSQL, MariaDB], ids=lambda cls: cls.__name__)
def server(request, tmp_path):
    made = request.param(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def instances(server):
    """Three provisioners without processes; the nodes behind them are the same."""
    options = provisioner_conf.make()
    options([], project="kumo-provisioner", default_config_files=[])
    nodes = FakeNodes()
    made = [Core(options, Database(server.url), nodes, Locks(5)) for _ in range(3)]
    made[0].db.upgrade()
    yield made
    for core in made:
        core.db.close()


class Client(threading.Thread):
    """Creates, extends and deletes at random; knows what it has and what went wrong."""

    def __init__(self, core, seed):
        super().__init__()
        self.core, self.seed, self.draw = core, seed, random.Random(seed)
        self.mine, self.failed = [], []

    def run(self):
        for step in range(25):
            try:
                self.step(step)
            except (errors.NoSpaceError, errors.InvalidInputError):
                continue
            except errors.KumoError as exc:
                self.failed.append(exc)

    def step(self, step):
        if self.mine and self.draw.random() < 0.3:
            volumes.delete(self.core, T, self.mine.pop())
        elif self.mine and self.draw.random() < 0.3:
            volumes.extend(self.core, T, self.mine[-1], self.draw.randint(1, 3))
        else:
            asked = GUARANTEE if self.draw.random() < 0.5 else {}
            replicas = self.draw.randint(1, 3)
            request = volume(f"{self.seed}-{step}", replicas=replicas, asked=asked)
            self.mine.append(volumes.create(self.core, T, request))


def filled(core):
    """Volumes until there is no more room."""
    made = []
    while True:
        try:
            made.append(volumes.create(core, T, volume(f"more-{len(made)}")))
        except errors.NoSpaceError:
            return made


def check(core):
    with core.db.write() as session:
        for one in session.scalars(select(models.Pool)):
            assert 0 <= one.total_bytes - one.charged_bytes < GIB, "room for one more, or too much"
            assert one.sold_iops <= 1000
        ids = session.scalars(select(models.Backend.persistent_id)).all()
        assert not any([capacity.recount(session, one) for one in ids])


def test_nothing_is_sold_twice(instances):
    for number in range(3):
        pools = {"a": 10 * GIB, "b": 10 * GIB}
        add_node(instances[0], pools=pools, max_iops=1000, max_bw=1000, rack=f"r{number}")
    clients = [Client(instances[number % 3], number) for number in range(9)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert [exc for client in clients for exc in client.failed] == []
    core = instances[0]
    made = [uid for client in clients for uid in client.mine] + filled(core)
    check(core)
    for uid in made:
        volumes.delete(core, T, uid)
    with core.db.read() as session:
        assert {one.charged_bytes for one in session.scalars(select(models.Pool))} == {0}
        assert {one.sold_iops for one in session.scalars(select(models.Backend))} == {0}


def beside(core, table, action):
    """Run an action in a thread once the first statement of an instance has read a table.

    Gives a list with the thread; it may wait for a lock that the instance holds.
    """
    started = []

    def after(_connection, _cursor, statement, *_more):
        if not started and statement.startswith("SELECT") and f"FROM {table}" in statement:
            started.append(threading.Thread(target=action))
            started[0].start()
            started[0].join(1)

    event.listen(core.db.engine, "after_cursor_execute", after)
    return started


def test_what_is_retired_while_it_is_counted_is_counted_once(instances):
    core, other, _third = instances
    model = add_node(core, pools={"pool": 10 * GIB})
    snapshot = made_snapshot(core, volumes.create(core, T, volume("one")))
    core.nodes.faults[(1000, "delete_snapshot")] = errors.CommunicationError("no answer")
    started = beside(core, "snapshot_parts", lambda: snapshots.delete(other, T, snapshot))
    with core.db.write() as session:
        assert not capacity.recount(session, model.persistent_id)
    started[0].join()
    assert [one.charged_bytes for one in rows(core, models.Pool)] == [2 * GIB]
    assert rows(core, models.SnapshotPart) == []


def test_a_removal_that_two_confirm_is_given_back_once(instances):
    core, other, _third = instances
    add_node(core, pools={"pool": 10 * GIB})
    uid, _kept = (volumes.create(core, T, volume(name)) for name in ("one", "two"))
    core.nodes.faults[(1000, "delete_replica")] = errors.CommunicationError("no answer")
    volumes.delete(core, T, uid)
    (gone,) = [one.uuid for one in rows(core, models.Removal) if one.done is None]
    started = beside(core, "removals", lambda: removals.confirm(other, [gone]))
    removals.confirm(core, [gone])
    started[0].join()
    assert [one.charged_bytes for one in rows(core, models.Pool)] == [GIB]
    assert all(one.done for one in rows(core, models.Removal))
