# SPDX-License-Identifier: Apache-2.0
"""Run a function inside a network namespace without leaving it for the rest of the process."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

# sched.h
_CLONE_NEWNET = 0x40000000
# Where ip-netns(8) keeps them.
DIRECTORY = Path("/run/netns")

T = TypeVar("T")


class Inside:
    """One thread that lives in a named network namespace (setns(2) moves only the caller).

    :param name: a namespace made by ``ip netns add``; None for the namespace we are in.
    """

    def __init__(self, name: str | None) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"netns-{name}")
        if name is not None:
            self._pool.submit(_enter, name).result()

    def call(self, function: Callable[[], T]) -> T:
        """Return ``function()`` as called inside the namespace; its exceptions pass through."""
        return self._pool.submit(function).result()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()


def _enter(name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with (DIRECTORY / name).open("rb") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot enter network namespace {name}: {os.strerror(number)}")
