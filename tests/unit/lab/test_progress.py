# SPDX-License-Identifier: Apache-2.0
import threading

import pytest
from rich.console import Console

from lab.progress import Progress
from tests.unit.lab.fakes import Screen


def test_a_task_is_a_line_at_each_event(screen, clock):
    with screen.task("building [image]") as task:
        clock.now += 2
        task.update("installing")
        clock.now += 10.25
    assert screen.text.splitlines() == [
        "building [image] ...",
        "building [image]: installing",
        "ok        12.2 s  building [image]",
    ]


def test_a_step_is_one_line(screen, clock):
    with screen.step("create a volume"):
        clock.now += 1.5
    assert screen.text == "ok         1.5 s  create a volume\n"


def test_a_dumb_terminal_gets_lines(clock):
    screen = Screen(clock, terminal=True, kind="dumb")
    with screen.step("attach"):
        clock.now += 1
    assert screen.text == "ok         1.0 s  attach\n"


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_is_shown_and_passes_through(clock, error, terminal):
    screen = Screen(clock, terminal)
    with pytest.raises(error), screen.step("attach"):
        raise error
    assert "FAILED" in screen.text
    assert screen._running == 0


def test_a_terminal_shows_running_tasks_and_keeps_a_line_of_each(clock):
    screen = Screen(clock, terminal=True)
    with screen.task("outer") as outer, screen.task("inner"):
        outer.update("half [way]")
        screen._bar.refresh()
        assert len(screen._bar.tasks) == 2
        assert "outer: half" in screen.text
    assert screen._bar is None
    assert screen.text.count("ok") == 2


def test_threads_may_use_it_at_once(clock):
    screen = Screen(clock, terminal=True)
    inside = threading.Barrier(4)

    def work(number):
        with screen.task(f"machine {number}"):
            inside.wait(10)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert screen._bar is None
    assert all(f"s  machine {number}" in screen.text for number in range(4))


@pytest.mark.parametrize("error", [OSError, BrokenPipeError, SystemExit])
def test_work_goes_on_when_nobody_reads_any_more(error):
    class Closed:
        def write(self, text):
            raise error

        def flush(self):
            raise error

    progress = Progress(Console(file=Closed()))
    done = []
    with progress.task("taking the lab down"):
        done.append(1)
    assert done == [1]
    assert progress.console.quiet
