# SPDX-License-Identifier: Apache-2.0
"""A provisioner whose database is copied and put back, for the tests of that."""

import contextlib
import shutil
import sqlite3

from kumo_client import errors
from kumo_client.schemas.restored import Accept
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.db.engine import Database
from kumo_provisioner.locks import Locks
from kumo_provisioner.reconcile.differences import look
from kumo_provisioner.services import (
    volumes,
)
from tests.unit.provisioner.conftest import FakeNodes, add_node, volume
from tests.unit.provisioner.stories import T, rows

KEEP, DROP = Accept(exports="keep"), Accept(exports="drop")


class Site:
    """Nodes, and a provisioner over a database file of which copies are made and put back."""

    def __init__(self, directory, empty_database, conf):
        self.path, self.saved = directory / "site.db", directory / "copy.db"
        self.conf, self.nodes = conf, FakeNodes()
        shutil.copy(empty_database, self.path)
        self.core = None
        self.start()

    def start(self):
        """A new process; gives its core."""
        if self.core is not None:
            self.core.close()
        database = Database(f"sqlite:///{self.path}")
        self.core = Core(self.conf, database, self.nodes, Locks(0))
        self.core.stamps.start()
        return self.core

    def copy(self):
        with (
            contextlib.closing(sqlite3.connect(self.path)) as source,
            contextlib.closing(sqlite3.connect(self.saved)) as target,
        ):
            source.backup(target)

    def replace(self):
        """The provisioner ends, and the copy takes the place of its database."""
        self.core.close()
        self.core = None
        for path in self.path.parent.glob(f"{self.path.name}-*"):
            path.unlink()
        shutil.copy(self.saved, self.path)

    def put_back(self):
        """The same, and the provisioner is started."""
        self.replace()
        return self.start()

    def state(self):
        """What the nodes hold."""
        return self.nodes.objects(), self.nodes.exports()


def made(core, alias="v", replicas=1, **extra):
    return volumes.create(core, T, volume(alias, replicas=replicas, **extra))


def doubt(core):
    return core.stamps.load().doubt


def actions(core):
    return sorted((one.action, one.kind) for one in look(core).shown.differences)


def events_of(core, kind):
    return [one for one in rows(core, models.Event) if one.type == kind]


def away(_function):
    raise errors.DatabaseUnavailableError("it is away")


@contextlib.contextmanager
def a_site(directory, empty_database, conf):
    """One with three nodes, until the end."""
    made = Site(directory, empty_database, conf)
    for _ in range(3):
        add_node(made.core)
    yield made
    made.core.close()
