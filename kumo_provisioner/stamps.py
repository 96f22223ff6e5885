# SPDX-License-Identifier: Apache-2.0
"""Whether our database comes from what nodes remember of it; see :mod:`kumo_client.stamp`.

The database goes on along a new branch at each start. On a branch the number rises every
:data:`PAUSE` seconds in which nodes were asked to change something, and always before any node is
told of it. So a crash never looks like an old copy, nothing is written while nothing happens, and
no request waits for it. What a copy does not know is noticed when a provisioner was started, or the
number has risen, since the copy was made.
"""

from __future__ import annotations

import dataclasses
import threading
import uuid as uuidlib

from sqlalchemy import update
from sqlalchemy.orm import Session

from kumo_client import errors, stamp
from kumo_client.schemas.node import Stamp as Memory
from kumo_client.stamp import Line, Stamp
from kumo_provisioner.clock import now_ms
from kumo_provisioner.db import models
from kumo_provisioner.db.engine import Database

# Seconds.
PAUSE = 10.0
# What Identity.doubt may be, and what a judgement may give besides FINE and BEHIND.
# The database is an old copy; a node was away when a copy was accepted, and has changed since that
# copy was made; the node follows a database that we know nothing of.
OLDER, LEFT, OTHER = "older", "left", "other"
RANK = {"": 0, LEFT: 1, OTHER: 2, OLDER: 3}
FINE = "fine"
# The node remembers a state so long ago that it is not in the header any more.
BEHIND = "behind"
LOOKS = frozenset({"GET", "HEAD"})


@dataclasses.dataclass(frozen=True)
class Known:
    """The identity of the database, as it was read. Times in ms since the epoch."""

    line: Line
    made: int = 0
    doubt: str = ""
    since: int = 0
    reason: str = ""
    away: frozenset[str] = frozenset()

    def judge(self, backend_id: str, memory: Memory | None) -> str:
        """What follows from what a node remembers; this has to be read after the node was asked."""
        if memory is None:
            return FINE
        if memory.database != self.line.now.database:
            return OTHER
        if self.line.covers(memory.plain):
            return FINE if self.line.told().covers(memory.plain) else BEHIND
        return LEFT if backend_id in self.away else OLDER


def row(session: Session) -> models.Identity:
    """The identity of the database, locked until the transaction ends.

    One without any, of which nobody knows where it comes from, gets a new one.
    """
    found = session.get(models.Identity, 1, with_for_update=True, populate_existing=True)
    if found is None:
        names = {"uuid": str(uuidlib.uuid4()), "branch": str(uuidlib.uuid4())}
        found = models.Identity(id=1, **names, number=0, made=now_ms(), past=[], away=[])
        session.add(found)
        session.flush()
    return found


def read(session: Session) -> Known:
    """What the database says of itself."""
    return known(session.get_one(models.Identity, 1, populate_existing=True))


def known(found: models.Identity) -> Known:
    """A row as it is used."""
    past = tuple((str(branch), int(number)) for branch, number in found.past)
    return Known(
        Line(Stamp(found.uuid, found.branch, found.number), past),
        found.made,
        found.doubt,
        found.since,
        found.reason,
        frozenset(found.away),
    )


def fork(found: models.Identity) -> None:
    """Go on along a new branch."""
    found.past = [[found.branch, found.number], *found.past][: stamp.PAST_MAX]
    found.branch, found.number = str(uuidlib.uuid4()), 0


class Stamps:
    """What this process knows of its database.

    :ivar known: as last read; None before.
    :ivar heard: whether nodes were asked since the start what they remember.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._changes = False
        self.known: Known | None = None
        self.heard = True
        self.hearing = threading.Lock()

    def start(self) -> None:
        """Go on along a new branch.

        :raises DatabaseUnavailableError: when the database cannot be used.
        """
        self._db.run(lambda session: fork(row(session)))
        self.load()
        self.heard = False

    def headers(self, method: str) -> dict[str, str]:
        """What goes with a request to a node."""
        if self.known is None:
            return {}
        if method not in LOOKS:
            self._changes = True
        return {stamp.HEADER: str(self.known.line.told())}

    def load(self) -> Known:
        """Read it again."""
        with self._db.read() as session:
            self.known = read(session)
        return self.known

    def advance(self) -> Stamp | None:
        """Raise the number if nodes were asked to change something under the last one.

        :returns: what was known before, when the database has gone back behind it.
        """
        before = self.known
        if self._changes:
            self._changes = False
            try:
                self._raise_number()
            except errors.KumoError:
                self._changes = True
                raise
        else:
            self.load()
        now = self.known
        if before is None or now is None or now.line.covers(before.line.now):
            return None
        return before.line.now

    def _raise_number(self) -> None:
        def write(session: Session) -> None:
            session.execute(
                update(models.Identity).values(number=models.Identity.number + 1),
                execution_options={"synchronize_session": False},
            )

        self._db.run(write)
        self.load()

    @property
    def doubted(self) -> bool:
        """Whether nothing may be taken away from nodes."""
        return self.known is not None and self.known.doubt != ""
