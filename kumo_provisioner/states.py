# SPDX-License-Identifier: Apache-2.0
"""What can be in which state, and what moves it from one to the next.

The pictures of the documentation are made of these tables. The tests of the services hold every
row that is written against them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from kumo_client.schemas import backend, task
from kumo_client.schemas.volume import (
    REPLICA_AVAILABLE,
    REPLICA_MISSING,
    REPLICA_SYNCHRONIZING,
    REPLICA_TERMINATING,
    REPLICA_UNKNOWN,
)
from kumo_provisioner.db import models

# Before there is a row, and after.
MADE, GONE = "", "gone"
NO_MODE = "no mode"


class Transition(NamedTuple):
    """``why`` is what moves it, in words."""

    before: str
    after: str
    why: str


@dataclasses.dataclass(frozen=True)
class StateMachine:
    """The states that a column of a table has.

    :ivar states: in the order of a usual life.
    :ivar empty: the name of a state that is empty text in the column.
    """

    name: str
    table: type[models.Base]
    column: str
    states: tuple[str, ...]
    transitions: tuple[Transition, ...]
    empty: str = ""

    def allows(self, before: str, after: str) -> bool:
        """Whether something may go from one state to another."""
        return any((one.before, one.after) == (before, after) for one in self.transitions)


def _from(some: Iterable[str], after: str, why: str) -> tuple[Transition, ...]:
    return tuple(Transition(before, after, why) for before in some)


_REPLICA_STATES = (
    REPLICA_UNKNOWN,
    REPLICA_SYNCHRONIZING,
    REPLICA_AVAILABLE,
    REPLICA_MISSING,
    REPLICA_TERMINATING,
)
_STAYING = _REPLICA_STATES[:-1]
_REPORTED = "its host reports it; Available of a leg that is not fresh is believed the second time"
_LOST = "its host reports that it is lost, or its node that it does not have it"

REPLICA = StateMachine(
    "Replica",
    models.Replica,
    "state",
    _REPLICA_STATES,
    (
        Transition(MADE, REPLICA_AVAILABLE, "it is created with its volume"),
        Transition(MADE, REPLICA_UNKNOWN, "it is added and is to be filled, or a move begins"),
        Transition(
            REPLICA_UNKNOWN,
            REPLICA_AVAILABLE,
            "a move has copied it, a revert has filled it, or a host reports it that reports whole "
            "arrays",
        ),
        Transition(REPLICA_UNKNOWN, REPLICA_SYNCHRONIZING, _REPORTED),
        Transition(REPLICA_SYNCHRONIZING, REPLICA_AVAILABLE, _REPORTED),
        Transition(REPLICA_AVAILABLE, REPLICA_SYNCHRONIZING, _REPORTED),
        Transition(REPLICA_MISSING, REPLICA_SYNCHRONIZING, _REPORTED),
        Transition(
            REPLICA_MISSING,
            REPLICA_AVAILABLE,
            "its host or its node has it again, and it has missed nothing; or a revert",
        ),
        *_from((REPLICA_UNKNOWN, REPLICA_SYNCHRONIZING, REPLICA_AVAILABLE), REPLICA_MISSING, _LOST),
        *_from(_STAYING, REPLICA_TERMINATING, "PATCH /replica: it is to go, and the guards allow"),
        Transition(
            REPLICA_TERMINATING,
            GONE,
            "DELETE /replica by its host, or no host has the volume; or the volume is deleted",
        ),
        *_from(_STAYING, GONE, "its volume is deleted, another leg has taken its place, or undone"),
    ),
)

FRESHNESS = StateMachine(
    "Freshness of a replica",
    models.Replica,
    "freshness",
    (models.BLANK, models.FRESH, models.STALE),
    (
        Transition(MADE, models.FRESH, "it is created with its volume"),
        Transition(MADE, models.BLANK, "it is added and is to be filled"),
        Transition(models.BLANK, models.FRESH, "it is filled: by its host, a move or a revert"),
        Transition(models.FRESH, models.STALE, "it is not Available, and another leg is in sync"),
        Transition(models.STALE, models.FRESH, "its host or a revert has filled it again"),
        *_from((models.BLANK, models.FRESH, models.STALE), GONE, "the replica goes"),
    ),
)

ARRAY = StateMachine(
    "Array",
    models.Volume,
    "array_state",
    (models.ARRAY_NEW, models.ARRAY_OPEN, models.ARRAY_CLEAN),
    (
        Transition(MADE, models.ARRAY_NEW, "the volume is created, or copied from a new one"),
        Transition(MADE, models.ARRAY_CLEAN, "the volume is a copy of one that has an array"),
        Transition(
            models.ARRAY_NEW,
            models.ARRAY_OPEN,
            "a host reports the array or a leg, or an old copy of the database is accepted",
        ),
        Transition(
            models.ARRAY_OPEN,
            models.ARRAY_CLEAN,
            "its last host reports that it has stopped it, or is named in an unpublish; or a "
            "revert",
        ),
        Transition(
            models.ARRAY_CLEAN,
            models.ARRAY_OPEN,
            "the volume is published again, or an old copy of the database is accepted",
        ),
        *_from(
            (models.ARRAY_OPEN, models.ARRAY_CLEAN),
            models.ARRAY_NEW,
            "a revert to what was captured before there was an array",
        ),
        Transition(
            models.ARRAY_NEW, models.ARRAY_CLEAN, "a revert to what was captured with an array"
        ),
        *_from((models.ARRAY_NEW, models.ARRAY_OPEN, models.ARRAY_CLEAN), GONE, "the volume goes"),
    ),
)

_UNDONE = "a node refused, or the process died: it is undone"

VOLUME = StateMachine(
    "Volume",
    models.Volume,
    "status",
    (models.CREATING, models.ADOPTING, models.AVAILABLE, models.RELEASING),
    (
        Transition(MADE, models.CREATING, "POST /volumes, /snapshot_volumes or /clone_volume"),
        Transition(MADE, models.ADOPTING, "POST /adopt_volume"),
        Transition(
            models.CREATING,
            models.AVAILABLE,
            "every node did its part, or may have: an old copy of the database is accepted",
        ),
        Transition(models.ADOPTING, models.AVAILABLE, "the node did its part"),
        Transition(models.CREATING, GONE, _UNDONE),
        Transition(models.ADOPTING, GONE, "the node refused; the data stays"),
        Transition(models.AVAILABLE, GONE, "DELETE /volumes: its replicas are removed"),
        Transition(models.AVAILABLE, models.RELEASING, "POST /unmanage_volume"),
        Transition(models.RELEASING, models.AVAILABLE, "every node refused"),
        Transition(models.RELEASING, GONE, "every node did its part; the data stays"),
    ),
)

SNAPSHOT = StateMachine(
    "Snapshot",
    models.Snapshot,
    "status",
    (models.CREATING, models.AVAILABLE),
    (
        Transition(MADE, models.CREATING, "POST /snapshots"),
        Transition(models.CREATING, models.AVAILABLE, "every node that it needs did its part"),
        Transition(models.CREATING, GONE, _UNDONE),
        Transition(models.AVAILABLE, GONE, "DELETE /snapshots"),
    ),
)

PUBLICATION = StateMachine(
    "Publication",
    models.Publication,
    "status",
    (models.PUBLISHING, models.PUBLISHED),
    (
        Transition(MADE, models.PUBLISHING, "POST /publish"),
        Transition(
            models.PUBLISHING,
            models.PUBLISHED,
            "one export or more was made, or may have been: an old copy of the database is "
            "accepted",
        ),
        Transition(
            MADE,
            models.PUBLISHED,
            "an old copy of the database is accepted, and a node exports the volume to the host",
        ),
        Transition(
            models.PUBLISHING,
            GONE,
            "no export could be made, only stale legs could be given to a host that cannot tell, a "
            "leg was lacking for a host that needs all of them, or the process died",
        ),
        Transition(models.PUBLISHED, GONE, "POST /unpublish, or its host is deleted"),
    ),
)

TASK = StateMachine(
    "Task",
    models.Task,
    "state",
    (task.IDLE, task.RUNNING, task.FINISHED, task.FAILED),
    (
        Transition(MADE, task.IDLE, "the agent of a host is to do it"),
        Transition(MADE, task.RUNNING, "the provisioner does it, or its host is about to end it"),
        Transition(task.IDLE, task.RUNNING, "the agent begins"),
        *_from((task.IDLE, task.RUNNING), task.FINISHED, "it is done"),
        *_from(
            (task.IDLE, task.RUNNING),
            task.FAILED,
            "it failed, gave way or was stopped; its host left the volume, or its agent told "
            "nothing for [tasks] host_timeout seconds",
        ),
        *_from(
            (task.IDLE, task.FINISHED, task.FAILED),
            GONE,
            "DELETE /tasks, or it ended [tasks] memory_days ago",
        ),
    ),
)

BACKEND = StateMachine(
    "Backend",
    models.Backend,
    "state",
    (backend.AVAILABLE, backend.UNAVAILABLE),
    (
        Transition(MADE, backend.AVAILABLE, "it is registered"),
        Transition(
            backend.AVAILABLE,
            backend.UNAVAILABLE,
            "[reconcile] probe_failures probes in a row fail",
        ),
        Transition(backend.UNAVAILABLE, backend.AVAILABLE, "a probe or heartbeat arrives"),
        *_from((backend.AVAILABLE, backend.UNAVAILABLE), GONE, "DELETE /backends"),
    ),
)

MODE = StateMachine(
    "Mode of a backend",
    models.Backend,
    "mode",
    (NO_MODE, models.DRAINING, models.MAINTENANCE),
    (
        Transition(MADE, NO_MODE, "it is registered"),
        Transition(NO_MODE, models.DRAINING, "POST /backends/{id}/drain"),
        Transition(models.DRAINING, NO_MODE, "DELETE /backends/{id}/drain"),
        Transition(NO_MODE, models.MAINTENANCE, 'PUT /backends/{id} {"maintenance": true}'),
        Transition(models.MAINTENANCE, NO_MODE, 'PUT /backends/{id} {"maintenance": false}'),
        *_from((NO_MODE, models.DRAINING, models.MAINTENANCE), GONE, "DELETE /backends"),
    ),
    empty=NO_MODE,
)

ALL = (REPLICA, FRESHNESS, ARRAY, VOLUME, SNAPSHOT, PUBLICATION, TASK, BACKEND, MODE)
