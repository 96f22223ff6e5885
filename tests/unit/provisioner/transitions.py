# SPDX-License-Identifier: Apache-2.0
"""Every row that the provisioner writes is held against the tables of the state machines."""

import pathlib
import sys

import sqlalchemy
from sqlalchemy import event

from kumo_provisioner import states
from kumo_provisioner.db import engine

TESTS = str(pathlib.Path(__file__).parents[1])
OURS = str(pathlib.Path(states.__file__).parent)
# They end the transactions of others.
BETWEEN = (__file__, engine.__file__, str(pathlib.Path(__file__).with_name("crashing.py")))


class Watch:
    """Listens to what sessions write.

    :ivar seen: (machine, before, after) of what was written.
    :ivar strange: those of them that no table has.
    """

    def __init__(self):
        self.seen, self.strange = set(), set()

    def listen(self):
        for machine in states.ALL:
            event.listen(machine.table, "after_insert", self._inserted(machine))
            event.listen(machine.table, "after_update", self._updated(machine))
            event.listen(machine.table, "after_delete", self._deleted(machine))

    def _note(self, machine, before, after):
        if _by_hand():
            return
        one = (machine.name, before, after)
        self.seen.add(one)
        if not machine.allows(before, after):
            self.strange.add(one)

    def _inserted(self, machine):
        def inserted(_mapper, _connection, row):
            self._note(machine, states.MADE, _shown(machine, getattr(row, machine.column)))

        return inserted

    def _updated(self, machine):
        def updated(_mapper, _connection, row):
            history = sqlalchemy.inspect(row).attrs[machine.column].history
            if history.deleted and history.added:
                self._note(
                    machine, _shown(machine, history.deleted[0]), _shown(machine, history.added[0])
                )

        return updated

    def _deleted(self, machine):
        def deleted(_mapper, _connection, row):
            self._note(machine, _shown(machine, getattr(row, machine.column)), states.GONE)

        return deleted


def _by_hand():
    """Whether a test writes the row itself."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name not in BETWEEN and name.startswith((TESTS, OURS)):
            return name.startswith(TESTS)
        frame = frame.f_back
    return False


def _shown(machine, value):
    return value or machine.empty


WATCH = Watch()
