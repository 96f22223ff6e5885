# SPDX-License-Identifier: Apache-2.0
"""A provisioner that can die between any two steps, or do something else there, over node models.

A step is the beginning or the end of a write transaction, and the moment before or after a call to
a node takes effect.
"""

import contextlib
import random
import shutil
import types
import uuid
from concurrent.futures import ThreadPoolExecutor

from kumo_provisioner import clock
from kumo_provisioner.core import Core
from kumo_provisioner.db.engine import Database
from kumo_provisioner.locks import Locks
from kumo_provisioner.reconcile import act, rounds
from kumo_provisioner.services import restored
from tests.unit.provisioner.conftest import FakeNodes


class CrashError(BaseException):
    """The process is gone; nothing that catches errors may see this one."""


class Repeatable:
    """The same calls make the same steps each time: uuids and the time of day are counted, and of
    the threads of a reconcile one works at a time."""

    def __init__(self, monkeypatch):
        self.begin()
        monkeypatch.setattr(uuid, "uuid4", self._uuid4)
        monkeypatch.setattr(clock, "time", types.SimpleNamespace(time_ns=self._time_ns))
        monkeypatch.setattr(rounds, "PARALLEL_NODES", 1)
        monkeypatch.setattr(act, "PARALLEL_VOLUMES", 1)

    def begin(self):
        """Begin another run."""
        self._random = random.Random(0)
        self._ms = 1_800_000_000_000

    def _uuid4(self):
        return uuid.UUID(int=self._random.getrandbits(128), version=4)

    def _time_ns(self):
        self._ms += 1
        return self._ms * 1_000_000


class Steps:
    """Counts steps; ``left`` is how many may still be made, None for any number.

    When none is left the process dies, or, once, another thread does ``meanwhile``.
    """

    def __init__(self):
        self.left = None
        self.meanwhile = None
        self.made = 0

    def step(self):
        self.made += 1
        if self.left is None:
            return
        if self.left > 0:
            self.left -= 1
            return
        if self.meanwhile is None:
            raise CrashError
        function, self.meanwhile, self.left = self.meanwhile, None, None
        in_another_thread(function)


def in_another_thread(function):
    """Run it as another caller does, to its end; what it raises is raised here."""
    with ThreadPoolExecutor(1) as one:
        one.submit(function).result()


class CrashingNodes(FakeNodes):
    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def call(self, call, *, probing=False):
        self.steps.step()
        outcome = super().call(call, probing=probing)
        self.steps.step()
        return outcome


class CrashingDatabase(Database):
    def __init__(self, url, steps):
        super().__init__(url)
        self.steps = steps

    @contextlib.contextmanager
    def write(self):
        self.steps.step()
        with super().write() as session:
            yield session
        self.steps.step()


class Plant:
    """A database file and nodes that outlive the provisioner, and the provisioner.

    ``plant.core`` is another one after each crash.
    """

    def __init__(self, directory, empty_database, conf):
        self.path = directory / "provisioner.db"
        shutil.copy(empty_database, self.path)
        self.conf = conf
        self.steps = Steps()
        self.nodes = CrashingNodes(self.steps)
        self.other = None
        self.core = self._start()

    def _start(self):
        database = CrashingDatabase(f"sqlite:///{self.path}", self.steps)
        core = Core(self.conf, database, self.nodes, Locks(0))
        core.stamps.start()
        # Others wait for who asks the nodes, and nobody can wait for a caller that is stopped.
        restored.hear(core)
        return core

    @contextlib.contextmanager
    def dying(self, after):
        """Let the provisioner die after so many steps (None: not at all); it is started again.

        ``.died`` of what this gives tells whether it did.
        """
        self.steps.left = after
        if self.other is not None:
            (self.steps.left, self.steps.meanwhile), self.other = self.other, None
        self.died = False
        try:
            yield self
        except CrashError:
            self.died, self.steps.left = True, None
            self.core.close()
            self.core = self._start()
        finally:
            self.steps.left = self.steps.meanwhile = None

    @contextlib.contextmanager
    def meanwhile(self, after, function):
        """Let another caller do something after so many steps of the next call, if it has so
        many; that call does not die."""
        self.other = (after, function)
        try:
            yield
        finally:
            self.other = None

    def close(self):
        self.core.close()
