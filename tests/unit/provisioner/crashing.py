# SPDX-License-Identifier: Apache-2.0
"""A provisioner that can die between any two steps, over node models.

A step is the beginning or the end of a write transaction, and the moment before or after a call to
a node takes effect.
"""

import contextlib
import shutil

from kumo_provisioner.core import Core
from kumo_provisioner.db.engine import Database
from kumo_provisioner.locks import Locks
from tests.unit.provisioner.conftest import FakeNodes


class CrashError(BaseException):
    """The process is gone; nothing that catches errors may see this one."""


class Steps:
    """Counts steps; ``left`` is how many may still be made, None for any number."""

    def __init__(self):
        self.left = None
        self.made = 0

    def step(self):
        self.made += 1
        if self.left is not None:
            if self.left == 0:
                raise CrashError
            self.left -= 1


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
        self.core = self._start()

    def _start(self):
        database = CrashingDatabase(f"sqlite:///{self.path}", self.steps)
        return Core(self.conf, database, self.nodes, Locks(0))

    @contextlib.contextmanager
    def dying(self, after):
        """Let the provisioner die after so many steps (None: not at all); it is started again.

        ``.died`` of what this gives tells whether it did.
        """
        self.steps.left = after
        self.died = False
        try:
            yield self
        except CrashError:
            self.died = True
            self.core.close()
            self.core = self._start()
        finally:
            self.steps.left = None

    def close(self):
        self.core.close()
