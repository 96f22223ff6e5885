# SPDX-License-Identifier: Apache-2.0
"""What is going on, with the seconds it has taken so far.

On a terminal, running tasks are shown live and leave one line each. Elsewhere, every event is one
line. All of it may be used from several threads at once.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class Task:
    """One running task."""

    def __init__(self, text: str, show: Callable[[str], None]) -> None:
        self.text = text
        self._show = show

    def update(self, text: str) -> None:
        """Say what the task does now."""
        self._show(text)


class Progress:
    """Shows tasks on ``console``.

    :param console: where; by default standard output.
    :param clock: seconds, monotonic.
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._clock = clock
        self._lock = threading.Lock()
        self._bar: Bar | None = None
        self._running = 0

    def say(self, text: str) -> None:
        """Print one line."""
        self.show(escape(text))

    def show(self, what: RenderableType) -> None:
        """Print a table or text with rich markup."""
        try:
            self.console.print(what)
        except (OSError, SystemExit):
            # The reader of our output is gone (rich turns a broken pipe into SystemExit). What we
            # do, above all taking a lab down, must not stop for that.
            self.console = Console(quiet=True)

    @contextlib.contextmanager
    def task(self, text: str) -> Iterator[Task]:
        """Show ``text`` while the block runs, and how long it took in the end."""
        with self._shown(text, announce=True) as task:
            yield task

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[Task]:
        """Like :meth:`task`, with its one line only at the end where there is no terminal."""
        with self._shown(text, announce=False) as task:
            yield task

    @contextlib.contextmanager
    def _shown(self, text: str, announce: bool) -> Iterator[Task]:
        begin = self._clock()
        # A terminal that cannot move its cursor gets the lines of a file.
        live = self.console.is_terminal and not self.console.is_dumb_terminal
        if announce and not live:
            self.say(f"{text} ...")
        with self._live(text) if live else self._plain(text) as task:
            try:
                yield task
            except BaseException:
                self._end("[bold red]FAILED[/]", text, self._clock() - begin)
                raise
            self._end("[green]ok[/]    ", text, self._clock() - begin)

    def _end(self, mark: str, text: str, seconds: float) -> None:
        self.show(f"{mark} {seconds:7.1f} s  {escape(text)}")

    @contextlib.contextmanager
    def _plain(self, text: str) -> Iterator[Task]:
        yield Task(text, lambda detail: self.say(f"{text}: {detail}"))

    @contextlib.contextmanager
    def _live(self, text: str) -> Iterator[Task]:
        bar, task_id = self._enter(text)

        def show(detail: str) -> None:
            bar.update(task_id, description=escape(f"{text}: {detail}"))

        try:
            yield Task(text, show)
        finally:
            self._leave(bar, task_id)

    def _enter(self, text: str) -> tuple[Bar, TaskID]:
        with self._lock:
            if self._bar is None:
                columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
                self._bar = Bar(*columns, console=self.console, transient=True)
                self._bar.start()
            self._running += 1
            return self._bar, self._bar.add_task(escape(text), total=None)

    def _leave(self, bar: Bar, task_id: TaskID) -> None:
        with self._lock:
            bar.remove_task(task_id)
            self._running -= 1
            if not self._running:
                bar.stop()
                self._bar = None
