# SPDX-License-Identifier: Apache-2.0
"""Be interrupted once, and clean up undisturbed after that."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType


class Interruption:
    """The handler: the first signal raises KeyboardInterrupt, later ones change nothing."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = number
        if number == signal.SIGHUP:
            _leave_terminal()
        raise KeyboardInterrupt


def _leave_terminal() -> None:
    """Every write to a terminal that has hung up fails, and would break the cleaning up."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if os.isatty(descriptor):
            os.dup2(null, descriptor)
    os.close(null)


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn the first SIGINT, SIGTERM or SIGHUP in the block into KeyboardInterrupt.

    An ignored SIGHUP stays so, for that is what nohup(1) means. An ignored SIGINT does not: shells
    do that to every background job, and whoever sends one to it nevertheless means it.
    """
    handler = Interruption()
    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield handler
    finally:
        for number, old in before.items():
            signal.signal(number, old)
