# SPDX-License-Identifier: Apache-2.0
"""Rules for the tasks that the provisioner has for this host. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from os_brick_nvmeof.agent import ladder
from os_brick_nvmeof.agent.actions import Action, HoldWrites, ReportTask
from os_brick_nvmeof.agent.judge import View
from os_brick_nvmeof.agent.model import (
    FAILED,
    FINISHED,
    HOLD_WRITES,
    IDLE,
    MIGRATION,
    RUNNING,
    Place,
    Task,
)
from os_brick_nvmeof.agent.round import Note, Round

# Percent by which progress has to move to be told.
STEP = 1.0


def of_volume(this: Round, view: View) -> Iterator[Action | Note]:
    for task in this.wanted.tasks:
        if task.volume != view.volume.uuid or not task.open:
            continue
        if task.kind == MIGRATION:
            yield from _migration(this, view, task)
        elif task.kind == HOLD_WRITES and task.state == IDLE:
            yield from _hold(this, view, task)


def _tell(task: Task, state: str, status: str, progress: float, reason: str) -> ReportTask:
    return ReportTask(
        volume=task.volume,
        task=task.uuid,
        state=state,
        status=status,
        progress=progress,
        reason=reason,
    )


def _migration(this: Round, view: View, task: Task) -> Iterator[Action | Note]:
    old = view.volume.leg(task.tags.get("replicaId", ""))
    if old is None:
        yield _tell(task, FINISHED, "Success", 100.0, "the old leg is gone")
        return
    new = ladder.replacement(this, view, old.uuid)
    if new is None:
        yield from _begin(this, view, task)
        return
    if new.lost and this.lost_for(new.uuid) >= this.limits.move_wait:
        yield _tell(task, FAILED, "ConnectionFailed", task.progress, "its new leg cannot be used")
        return
    syncing = new.place is Place.SYNCING and view.array is not None
    progress = round(view.array.percent, 1) if syncing and view.array is not None else 0.0
    if new.place is Place.IN_SYNC:
        progress = 100.0
    if task.state == IDLE or progress - task.progress >= STEP:
        yield _tell(task, RUNNING, "", max(progress, task.progress), "its new leg is synchronised")


def _begin(this: Round, view: View, task: Task) -> Iterator[Action | Note]:
    old = view.volume.leg(task.tags.get("replicaId", ""))
    if old is None or view.array is None or not view.array.writable or view.volume.shared:
        return
    if not view.good():
        yield Note(view.volume.uuid, "", f"task {task.uuid}: no leg is in sync and reachable")
    elif why := ladder.may_ask(this, view, old):
        yield Note(view.volume.uuid, old.uuid, f"task {task.uuid} waits: {why}")
    else:
        yield ladder.ask(view, old, f"task {task.uuid} moves it")


def _hold(this: Round, view: View, task: Task) -> Iterator[Action]:
    legs = frozenset(filter(None, task.tags.get("legs", "").split(",")))
    good = {one.uuid for one in view.good()}
    if view.array is None or not view.array.writable or not legs or not legs <= good:
        yield _tell(task, FAILED, "NotEnoughReplicas", 0.0, "not all legs are in sync")
        return
    yield HoldWrites(
        volume=view.volume.uuid,
        array=view.array.uuid,
        name=view.array.name,
        task=task.uuid,
        seconds=min(this.limits.hold, _seconds(task, this.limits.hold)),
        legs=legs,
        reason="a snapshot is taken",
    )


def _seconds(task: Task, default: float) -> float:
    try:
        return max(0.0, float(task.tags.get("holdSeconds", "")))
    except ValueError:
        return default
