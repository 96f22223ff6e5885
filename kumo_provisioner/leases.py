# SPDX-License-Identifier: Apache-2.0
"""Locks by name between instances: rows in the database.

To take leases is one statement that inserts all of them or none. To release them costs the caller
nothing: they are handed to a thread that deletes what has gathered, and taking one back before
that is free. What keeps data safe is not that a lease is there when it is taken, but that each
write transaction finds it still there (:mod:`kumo_provisioner.db.fence`).
"""

from __future__ import annotations

import random
import threading
import time
import uuid as uuidlib
from collections.abc import Iterator
from contextlib import contextmanager

from oslo_log import log
from sqlalchemy import delete, insert, select

from kumo_client import errors
from kumo_provisioner.clock import now_ms
from kumo_provisioner.db import failures, fence, models
from kumo_provisioner.db.engine import Database
from kumo_provisioner.instances import Instances

LOG = log.getLogger(__name__)
FIRST_PAUSE = 0.005
LONGEST_PAUSE = 0.2
# Seconds until a failed release is tried again.
RELEASE_AGAIN = 1.0
_INSERT = insert(models.Lease)


class Leases:
    """The leases of this instance. The caller has the in-process lock of each name it asks for."""

    def __init__(self, database: Database, instances: Instances) -> None:
        self._db = database
        engine = database.lease_engine
        assert engine is not None  # noqa: S101 - SQLite has no leases
        self._engine = engine
        self._instances = instances
        instances.on_rebirth = self._forget_all
        instances.on_beat = self._clean_up
        self._guard = threading.Condition()
        # Token by name: held, about to be inserted, free but not yet deleted, being deleted.
        self._held: dict[str, str] = {}
        self._taking: dict[str, str] = {}
        self._free: dict[str, str] = {}
        self._going: dict[str, str] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="lease-release", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Release what is free."""
        with self._guard:
            self._stopping = True
            self._guard.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    @contextmanager
    def hold(self, names: list[str], deadline: float) -> Iterator[None]:
        """Hold leases.

        :param deadline: by time.monotonic(); one try is always made.
        :raises BusyError: when another instance holds one for longer.
        :raises DatabaseUnavailableError: when the database cannot be used.
        """
        taken = self._take(names, deadline)
        before = fence.HELD.set({**(fence.HELD.get() or {}), **taken})
        try:
            yield
        finally:
            fence.HELD.reset(before)
            self._release(taken)

    def verify(self) -> None:
        """Make sure, as far as can be told without the database, that our leases are ours.

        :raises LeaseLostError: when they may not be.
        """
        held = fence.HELD.get()
        if not held:
            return
        with self._guard:
            gone = [name for name, token in held.items() if self._held.get(name) != token]
        if gone or not self._instances.trusted():
            raise fence.lost(", ".join(sorted(gone or held)))

    # -- take ------------------------------------------------------------------------------------

    def _take(self, names: list[str], deadline: float) -> dict[str, str]:
        pause = FIRST_PAUSE
        while True:
            kept = self._take_back(names)
            wanted = {name: str(uuidlib.uuid4()) for name in names if name not in kept}
            if self._insert(wanted):
                return self._note_held(kept | wanted)
            # Whoever waits holds nothing, or two could wait for each other.
            self._give_up(kept)
            while True:
                if time.monotonic() + pause > deadline:
                    raise errors.BusyError(
                        f"another instance is at work on {', '.join(names)}",
                        way_out="repeat the call later",
                    )
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, LONGEST_PAUSE)
                if not self._any_taken(names):
                    break

    def _take_back(self, names: list[str]) -> dict[str, str]:
        """Take what is free but not yet deleted; wait for what is just being deleted."""
        with self._guard:
            while any(name in self._going for name in names):
                self._guard.wait()
            kept = {name: self._free.pop(name) for name in names if name in self._free}
            self._taking |= kept
            return kept

    def _note_held(self, taken: dict[str, str]) -> dict[str, str]:
        with self._guard:
            for name in taken:
                self._taking.pop(name, None)
            self._held |= taken
            return taken

    def _give_up(self, kept: dict[str, str]) -> None:
        with self._guard:
            for name, token in kept.items():
                if self._taking.pop(name, None) == token:
                    self._free[name] = token
            self._guard.notify_all()

    def _insert(self, wanted: dict[str, str]) -> bool:
        """Insert leases; False when one of them is not free."""
        if not wanted:
            return True
        with self._guard:
            self._taking |= wanted
        try:
            if self._try_insert(wanted):
                return True
        except BaseException:
            self._drop(wanted)
            raise
        self._drop(wanted)
        return False

    def _drop(self, wanted: dict[str, str]) -> None:
        """What may have been inserted although we were told otherwise goes at the next beat."""
        with self._guard:
            for name in wanted:
                self._taking.pop(name, None)

    def _try_insert(self, wanted: dict[str, str]) -> bool:
        now, instance = now_ms(), self._instances.uuid
        rows = [
            {"name": name, "instance_id": instance, "token": token, "taken": now}
            for name, token in wanted.items()
        ]
        try:
            with self._db.translated(), self._engine.connect() as connection:
                # All rows by one statement, or none; one row by a statement that is made already.
                if len(rows) == 1:
                    connection.execute(_INSERT, rows[0])
                else:
                    connection.execute(insert(models.Lease).values(rows))
            return True
        except failures.RolledBackError as exc:
            LOG.debug("Not all of %s are free: %s", ", ".join(wanted), exc.__cause__)
        self._instances.check()
        return False

    def _any_taken(self, names: list[str]) -> bool:
        query = select(models.Lease.name).where(models.Lease.name.in_(names)).limit(1)
        with self._db.translated(), self._engine.connect() as connection:
            return connection.scalar(query) is not None

    # -- release ---------------------------------------------------------------------------------

    def _release(self, taken: dict[str, str]) -> None:
        with self._guard:
            for name, token in taken.items():
                # Another token, or none, when we were declared dead meanwhile.
                if self._held.get(name) == token:
                    self._free[name] = self._held.pop(name)
            self._guard.notify_all()

    def _run(self) -> None:
        while True:
            with self._guard:
                while not self._free and not self._stopping:
                    self._guard.wait()
                if not self._free:
                    return
                self._going, self._free = self._free, {}
            done = self._delete(self._going)
            with self._guard:
                if not done:
                    self._free = self._going | self._free
                self._going = {}
                self._guard.notify_all()
                if self._stopping and not done:
                    return
            if not done:
                time.sleep(RELEASE_AGAIN)

    def _delete(self, leases: dict[str, str]) -> bool:
        statement = delete(models.Lease).where(
            models.Lease.name.in_(list(leases)), models.Lease.token.in_(list(leases.values()))
        )
        try:
            with self._db.translated(), self._engine.connect() as connection:
                connection.execute(statement)
            return True
        except errors.KumoError as exc:
            LOG.warning("Leases are released later: %s", exc)
        except Exception:
            # Nobody else would release them.
            LOG.exception("Leases could not be released")
        return False

    # -- instance --------------------------------------------------------------------------------

    def _forget_all(self) -> None:
        """All leases went with the row of the instance."""
        with self._guard:
            self._held = {}
            self._free = {}

    def _clean_up(self) -> None:
        """Delete leases of ours that nobody here knows: their insertion was not answered."""
        mine = select(models.Lease.name, models.Lease.token).filter_by(
            instance_id=self._instances.uuid
        )
        with self._db.translated(), self._engine.connect() as connection:
            rows = [(name, token) for name, token in connection.execute(mine)]
        with self._guard:
            known = {
                *self._held.items(),
                *self._taking.items(),
                *self._free.items(),
                *self._going.items(),
            }
        lost = {name: token for name, token in rows if (name, token) not in known}
        if lost:
            LOG.info("Deleting leases that nobody holds: %s", ", ".join(sorted(lost)))
            self._delete(lost)
