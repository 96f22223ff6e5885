# SPDX-License-Identifier: Apache-2.0
import os
import signal

import pytest

from lab import cleanup
from lab.cleanup import interruptible


@pytest.fixture(autouse=True)
def usual_handlers():
    """A test runner may itself have been started with signals ignored."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_interrupts_and_later_ones_do_not(number, monkeypatch):
    left = []
    monkeypatch.setattr(cleanup, "_leave_terminal", lambda: left.append(1))
    done = []
    with interruptible() as handler:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        done.append("cleaned up")
    assert handler.received == number
    assert done == ["cleaned up"]
    assert left == ([1] if number == signal.SIGHUP else [])
    assert signal.getsignal(number) == signal.SIG_DFL


def test_an_ignored_hangup_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible() as handler:
        signal.raise_signal(signal.SIGHUP)
    assert handler.received is None


def test_an_interrupt_reaches_a_background_job():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_output_to_a_terminal_that_hung_up_goes_nowhere(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "isatty", lambda descriptor: descriptor == 2)
    monkeypatch.setattr(os, "dup2", lambda old, new: calls.append(new))
    cleanup._leave_terminal()
    assert calls == [2]
