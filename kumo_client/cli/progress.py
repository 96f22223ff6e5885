# SPDX-License-Identifier: Apache-2.0
"""Wait for a task and show how far it is."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from kumo_client import errors
from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import output
from kumo_client.schemas.task import DRAIN, FAILED, FINISHED, RUNNING, Task

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 5.0

# Replaced by tests.
sleep = time.sleep
clock = time.monotonic


def options(parser: argparse.ArgumentParser, *, always: bool = False) -> None:
    """Add the options of a verb that begins a task or waits for one."""
    if not always:
        parser.add_argument("--wait", action="store_true", help="wait until it is done")
    parser.add_argument(
        "--at-most",
        type=float,
        metavar="SECONDS",
        help="stop waiting after this time; the task goes on",
    )


def begun(provisioner: Provisioner, task: Task, args: argparse.Namespace) -> None:
    """Show a task that was begun; with ``--wait`` when it has ended."""
    if args.wait:
        task = wait(provisioner, task, args.at_most)
    output.show_one(task, args.format)


def wait(provisioner: Provisioner, task: Task, at_most: float | None = None) -> Task:
    """The task when it is finished.

    :param at_most: seconds; ``None`` waits for ever.
    :raises RemoteError: it failed.
    :raises CommunicationError: it took longer.
    """
    deadline = None if at_most is None else clock() + at_most
    pause = FIRST_PAUSE
    try:
        with _shown() as show:
            while True:
                task, parts = _look(provisioner, task)
                show(task, parts)
                if task.state in (FINISHED, FAILED):
                    break
                if deadline is not None and clock() >= deadline:
                    raise errors.CommunicationError(
                        f"task {task.task_id} did not end within {at_most:g} s",
                        way_out=f"it goes on; kumo task wait {task.task_id}",
                    )
                sleep(pause)
                pause = min(pause * 1.5, LONGEST_PAUSE)
    except KeyboardInterrupt:
        output.note(f"the task goes on; kumo task wait {task.task_id}")
        raise
    if task.state == FAILED:
        raise _failure(task)
    return task


def _look(provisioner: Provisioner, task: Task) -> tuple[Task, list[Task]]:
    """The task as it is now, with its parts that are under way."""
    try:
        if task.type != DRAIN:
            return provisioner.task(task.task_id), []
        found = provisioner.tasks()
    except errors.KumoError as exc:
        # The task does not depend on whether it can be asked for.
        if not exc.transient:
            raise
        output.note(str(exc))
        return task, []
    now = [item for item in found if item.task_id == task.task_id]
    if not now:
        raise errors.NotExistsError(f"task {task.task_id} does not exist any more")
    parts = [item for item in found if item.parent == task.task_id and item.state == RUNNING]
    return now[0], parts


def _failure(task: Task) -> errors.KumoError:
    reason = task.status_description or "no reason was given"
    code = task.task_status if task.task_status not in ("", "Success") else "TaskFailed"
    return errors.RemoteError(
        f"task {task.task_id} ({task.type}) failed: {reason}", remote_code=code
    )


def title(task: Task) -> str:
    """A task in few words."""
    return f"{task.type} {task.volume_id or task.backend_id or task.host_id}".strip()


@contextlib.contextmanager
def _shown() -> Iterator[Any]:
    console = output.console(stderr=True)
    if not console.is_terminal:
        yield _Lines().show
        return
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    with bars:
        yield _Bars(bars).show


class _Bars:
    """A bar for the task and one for each part under way."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._ids: dict[str, Any] = {}

    def show(self, task: Task, parts: list[Task]) -> None:
        """Move the bars."""
        for item in (task, *parts):
            if item.task_id not in self._ids:
                indent = "" if item is task else "  "
                text = indent + output.plain(title(item))
                self._ids[item.task_id] = self._bars.add_task(text, total=100.0)
            self._bars.update(self._ids[item.task_id], completed=item.progress)
        present = {item.task_id for item in (task, *parts)}
        for gone in set(self._ids) - present:
            self._bars.remove_task(self._ids.pop(gone))


class _Lines:
    """A line whenever there is something new to say."""

    def __init__(self) -> None:
        self._told = ""

    def show(self, task: Task, parts: list[Task]) -> None:
        """Say how far it is, in whole percent."""
        text = f"{title(task)}: {task.state}, {int(task.progress)} %"
        if parts:
            text += f", {len(parts)} under way"
        if text != self._told:
            self._told = text
            output.note(text)
