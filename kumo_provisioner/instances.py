# SPDX-License-Identifier: Apache-2.0
"""The provisioners that run on one database, and which of them are dead.

Each instance raises a number in its row again and again. Another one declares it dead when it has
seen the same number for ``[instances] dead_after`` seconds of looking, by its own monotonic clock:
clocks of hosts are never compared, and time in which the database was away does not count. To
declare dead is to delete the row, on condition that the number is still the same; the leases of
the instance go with it.

An instance that could not raise its number for most of that time trusts its leases no more and
does not touch a node under them. One that finds its row gone begins anew under another id.
"""

from __future__ import annotations

import dataclasses
import math
import socket
import threading
import time
import uuid as uuidlib
from collections.abc import Callable

from oslo_config import cfg
from oslo_log import log
from sqlalchemy import delete, select, update

from kumo_client import errors
from kumo_provisioner.clock import now_ms
from kumo_provisioner.db import fence, models
from kumo_provisioner.db.engine import Database

LOG = log.getLogger(__name__)
# Of the time after which others may declare us dead, we trust our leases for this part.
TRUSTED_PART = 0.6


@dataclasses.dataclass
class _Sight:
    heartbeat: int
    looks: int = 0


class Instances:
    """This instance and what it knows of the others.

    :param on_death: called after another instance was declared dead.
    :ivar on_rebirth: called when this one found itself declared dead.
    :ivar on_beat: called after each beat.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        database: Database,
        on_death: Callable[[], None],
    ) -> None:
        self._db = database
        self._interval: float = conf.instances.heartbeat_interval
        self._dead_after: float = conf.instances.dead_after
        self._name = f"{socket.gethostname()}:{conf.server.listen_port}"[:255]
        self._on_death = on_death
        self.on_rebirth: Callable[[], None] = lambda: None
        self.on_beat: Callable[[], None] = lambda: None
        self.uuid = ""
        self._last_beat = -math.inf
        self._seen: dict[str, _Sight] = {}
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Register and begin to beat.

        :raises DatabaseUnavailableError: when the database cannot be used.
        """
        self._register()
        self._thread.start()

    def stop(self) -> None:
        """Leave: the leases that are left are free at once."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)
        try:
            with self._db.write() as session:
                session.execute(delete(models.Instance).filter_by(uuid=self.uuid))
        except errors.KumoError as exc:
            LOG.warning("The others will notice only later that this instance ended: %s", exc)

    def beating(self) -> bool:
        """Whether the thread that gives signs of life runs, and they arrive."""
        return self._thread.is_alive() and self.trusted()

    def trusted(self) -> bool:
        """Whether nobody can have declared this instance dead."""
        return time.monotonic() - self._last_beat < self._dead_after * TRUSTED_PART

    def check(self) -> None:
        """Begin anew if we were declared dead.

        :raises DatabaseUnavailableError: when the database cannot be used.
        """
        with self._guard, fence.unfenced():
            with self._db.read() as session:
                alive = session.get(models.Instance, self.uuid) is not None
            if not alive:
                self._rebirth()

    def beat(self) -> None:
        """Raise our number, look at those of the others.

        :raises DatabaseUnavailableError: when the database cannot be used.
        """
        begun = time.monotonic()
        with self._guard:
            if not self._raise_number():
                self._rebirth()
            self._last_beat = begun
        dead = self._look()
        for uuid, heartbeat in dead.items():
            self._declare_dead(uuid, heartbeat)
        self.on_beat()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval):
            try:
                self.beat()
            except errors.KumoError as exc:
                LOG.warning("No heartbeat could be written: %s", exc)
            except Exception:
                # Without a beat the others take over; so this loop has to outlive a defect.
                LOG.exception("The heartbeat failed and goes on")

    def _register(self) -> None:
        begun = time.monotonic()
        uuid = str(uuidlib.uuid4())
        now = now_ms()
        with self._db.write() as session:
            session.add(models.Instance(uuid=uuid, name=self._name, started=now, heartbeat=now))
        self.uuid = uuid
        self._last_beat = begun
        LOG.info("This is instance %s (%s)", self.uuid, self._name)

    def _rebirth(self) -> None:
        LOG.warning("Instance %s was declared dead by another one and begins anew", self.uuid)
        self.on_rebirth()
        self._register()

    def _raise_number(self) -> bool:
        mine = models.Instance.uuid == self.uuid
        with self._db.write() as session:
            value = session.scalar(select(models.Instance.heartbeat).where(mine))
            if value is None:
                return False
            changed = session.execute(
                update(models.Instance).where(mine).values(heartbeat=max(value + 1, now_ms()))
            )
            return bool(changed.rowcount)  # type: ignore[attr-defined]

    def _look(self) -> dict[str, int]:
        """The instances that are dead by now, with their last number."""
        with self._db.read() as session:
            rows = session.execute(select(models.Instance.uuid, models.Instance.heartbeat)).all()
        others = {uuid: heartbeat for uuid, heartbeat in rows if uuid != self.uuid}
        self._seen = {uuid: sight for uuid, sight in self._seen.items() if uuid in others}
        for uuid, heartbeat in others.items():
            sight = self._seen.setdefault(uuid, _Sight(heartbeat))
            if sight.heartbeat != heartbeat:
                self._seen[uuid] = _Sight(heartbeat)
            else:
                sight.looks += 1
        # The first look was at a number that may have been old already, or brand new.
        enough = math.ceil(self._dead_after / self._interval) + 1
        return {
            uuid: sight.heartbeat for uuid, sight in self._seen.items() if sight.looks >= enough
        }

    def _declare_dead(self, uuid: str, heartbeat: int) -> None:
        with self._db.write() as session:
            gone = session.execute(
                delete(models.Instance).filter_by(uuid=uuid, heartbeat=heartbeat)
            )
            if not gone.rowcount:  # type: ignore[attr-defined]
                return
            # What it was doing to which node, nobody knows.
            session.execute(
                update(models.Backend).values(next_reconcile=0),
                execution_options={"synchronize_session": False},
            )
        LOG.warning("Instance %s is dead; its work is free for others", uuid)
        self._on_death()
