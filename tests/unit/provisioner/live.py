# SPDX-License-Identifier: Apache-2.0
"""What the stories of snapshots, reverts and live changes share."""

import contextlib
import threading
import time

from sqlalchemy import select

from kumo_client import errors
from kumo_client.schemas import task as wire
from kumo_client.schemas.host import (
    ABILITY_ARRAY_REPORT,
    ABILITY_FRESHNESS,
    ABILITY_HOLD_WRITES,
    HostProbe,
)
from kumo_client.schemas.node import ArrayIdentity
from kumo_provisioner.db import models
from kumo_provisioner.services import migration
from tests.unit.provisioner.stories import node_of, shown

ABLE = HostProbe(
    host_nqn="nqn.2014-08.org.nvmexpress:uuid:able",
    host_id="able",
    abilities=[ABILITY_FRESHNESS, ABILITY_ARRAY_REPORT, ABILITY_HOLD_WRITES],
)


def legs(core, uid):
    """What the nodes hold of a volume, in the order of its replicas."""
    return [node_of(core, one).state.replicas[one.uuid] for one in shown(core, uid).location]


def freshness(core, uid):
    return [one.freshness for one in rows_of(core, uid)]


def rows_of(core, uid):
    with core.db.read() as session:
        query = select(models.Replica).filter_by(volume_id=uid).order_by(models.Replica.position)
        return session.scalars(query).all()


def write(core, uid, *contents):
    """As its host: write to the legs in sync, all alike or each its own."""
    places = shown(core, uid).location
    identity = None
    if len(places) > 1:
        identity = ArrayIdentity(uuid=uid, name=shown(core, uid).alias[:27])
    contents = contents if len(contents) > 1 else contents * len(places)
    for place, row, content in zip(places, rows_of(core, uid), contents, strict=True):
        if row.in_sync:
            node_of(core, place).write(place.uuid, content, identity)


def data(core, uid):
    """Contents of the legs of a volume that count as a source."""
    both = zip(legs(core, uid), rows_of(core, uid), strict=True)
    return [leg.content for leg, row in both if row.in_sync]


def note(core, uid, number, **values):
    """Write into the row of a replica what a host has reported."""
    with core.db.write() as session:
        row = session.get_one(models.Replica, rows_of(core, uid)[number].uuid)
        for key, value in values.items():
            setattr(row, key, value)


def note_volume(core, uid, **values):
    with core.db.write() as session:
        for key, value in values.items():
            setattr(session.get_one(models.Volume, uid), key, value)


class Agent(threading.Thread):
    """An imitation of a host's agent that holds writes.

    :param answer: the state that it reports when asked; None to be silent.
    :param last: seconds that its hold lasts; 0: it has ended before it looks again.
    """

    def __init__(self, core, *, answer=wire.RUNNING, last=5.0, on_held=None, dies=False):
        super().__init__(daemon=True)
        self.core, self.answer, self.last = core, answer, last
        self.on_held, self.dies = on_held, dies
        self.holding = threading.Event()
        self.stopping = threading.Event()
        self.seen = []

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.join(10)

    def run(self):
        while not self.stopping.is_set():
            for task in self.tasks(wire.IDLE):
                self.seen.append(task)
                self.hold(task)
            time.sleep(0.005)

    def tasks(self, state):
        query = select(models.Task).filter_by(type=wire.HOLD_WRITES, state=state)
        with self.core.db.read() as session:
            return session.scalars(query).all()

    def report(self, task, state, status=None):
        update = wire.TaskUpdate(
            task_id=task.uuid, host_id=task.host_id, state=state, task_status=status
        )
        with contextlib.suppress(errors.NotExistsError):
            migration.update_task(self.core, update)

    def hold(self, task):
        deadline = time.monotonic() + self.last
        self.holding.set()
        if self.on_held is not None:
            self.on_held()
        if self.answer is None:
            self.stopping.wait()
            return
        self.report(task, self.answer)
        if self.dies:
            self.stopping.set()
            return
        taken = given_up = False
        while time.monotonic() < deadline and not (taken or given_up or self.stopping.is_set()):
            with self.core.db.read() as session:
                row = session.get_one(models.Task, task.uuid)
            taken, given_up = row.task_status == "Taken", row.state == wire.FAILED
            time.sleep(0.002)
        self.holding.clear()
        if taken:
            self.report(task, wire.FINISHED, "Success")
        else:
            self.report(task, wire.FAILED, "HoldExpired")


class KilledError(BaseException):
    """The process dies here: nothing after it runs, not even an ``except Exception``."""


@contextlib.contextmanager
def killed(monkeypatch, target, name, *, after=False, number=1):
    """Let the process die at the ``number``-th call of ``target.name``, before or after it."""
    real, calls = getattr(target, name), []

    def dying(*args, **options):
        calls.append(1)
        if len(calls) == number and not after:
            raise KilledError
        result = real(*args, **options)
        if len(calls) == number:
            raise KilledError
        return result

    with monkeypatch.context() as patch:
        patch.setattr(target, name, dying)
        with contextlib.suppress(KilledError):
            yield
