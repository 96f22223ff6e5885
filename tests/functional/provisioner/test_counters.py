# SPDX-License-Identifier: Apache-2.0
"""Counters of what is promised, on the databases of grown installations: several instances that
place, extend and delete at the same time never promise more than there is."""

import random
import threading

import pytest
from sqlalchemy import select

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_provisioner import conf as provisioner_conf
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.db.engine import Database
from kumo_provisioner.locks import Locks
from kumo_provisioner.services import capacity, volumes
from tests.fakes.databases import MariaDB, PostgreSQL
from tests.unit.provisioner.conftest import FakeNodes, add_node, volume

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
