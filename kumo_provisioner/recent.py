# SPDX-License-Identifier: Apache-2.0
"""Answers that stay good for a moment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """What was found lately, by question; may be used by several threads.

    :param seconds: for how long an answer counts.
    :param most: how many are kept; the oldest goes first.
    """

    def __init__(
        self, seconds: float, most: int = 64, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._most, self._clock = seconds, most, clock
        self._guard = threading.Lock()
        self._kept: dict[K, tuple[float, V]] = {}

    def get(self, key: K) -> V | None:
        """The answer; None when there is none or it is too old."""
        with self._guard:
            since, value = self._kept.get(key, (float("-inf"), None))
        return value if self._clock() - since < self._seconds else None

    def put(self, key: K, value: V) -> None:
        """Keep an answer from now on."""
        with self._guard:
            self._kept.pop(key, None)
            self._kept[key] = (self._clock(), value)
            if len(self._kept) > self._most:
                del self._kept[next(iter(self._kept))]

    def forget(self) -> None:
        """Keep nothing."""
        with self._guard:
            self._kept.clear()
