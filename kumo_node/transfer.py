# SPDX-License-Identifier: Apache-2.0
"""Making one device like another: large direct reads, and writes of what differs only.

The destination is read as well. A thin volume answers for what was never written without asking a
disk, zeros stay unallocated, and what an earlier try has written is not written again.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator

BLOCK = 4 << 20
# Compared and written apart: the allocation unit of a pool.
PIECE = 64 << 10


class ShortError(OSError):
    """A device gave or took less than it should."""


class Transfer:
    """A copy of ``size`` bytes from one device to another; a context manager.

    :param direct: without the page cache. A host wrote to the source past our cache.
    """

    def __init__(self, source: str, target: str, size: int, *, direct: bool = True) -> None:
        self.source = source
        self.target = target
        self.size = size
        self._flags = os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Transfer:
        with contextlib.ExitStack() as stack:
            self._from = self._open(stack, self.source, os.O_RDONLY)
            self._to = self._open(stack, self.target, os.O_RDWR)
            # O_DIRECT needs aligned memory; a mapping begins on a page.
            self._wanted = stack.enter_context(mmap.mmap(-1, BLOCK))
            self._have = stack.enter_context(mmap.mmap(-1, BLOCK))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def _open(self, stack: contextlib.ExitStack, path: str, mode: int) -> int:
        handle = os.open(path, mode | self._flags)
        stack.callback(os.close, handle)
        return handle

    def flush(self) -> None:
        """What was written is durable when this returns."""
        os.fsync(self._to)

    def run(self, start: int) -> Iterator[int]:
        """Copy block by block from ``start``.

        :returns: the offset behind each block.
        :raises OSError: a device fails, or is shorter than it should be.
        """
        at = start
        while at < self.size:
            length = min(BLOCK, self.size - at)
            self._read(self._from, self._wanted, length, at, self.source)
            self._read(self._to, self._have, length, at, self.target)
            for first, end in differences(self._wanted[:length], self._have[:length]):
                self._write(first, end, at)
            at += length
            yield at

    def _read(self, handle: int, memory: mmap.mmap, length: int, at: int, path: str) -> None:
        with memoryview(memory) as whole, whole[:length] as view:
            got = os.preadv(handle, [view], at)
        if got != length:
            raise ShortError(f"{path} gave {got} of {length} bytes at {at}")

    def _write(self, first: int, end: int, at: int) -> None:
        with memoryview(self._wanted) as whole, whole[first:end] as view:
            took = os.pwritev(self._to, [view], at + first)
        if took != end - first:
            raise ShortError(f"{self.target} took {took} of {end - first} bytes at {at + first}")


def differences(wanted: bytes, have: bytes, piece: int = PIECE) -> Iterator[tuple[int, int]]:
    """Ranges, in whole pieces, in which two blocks of one length differ; neighbours as one."""
    if wanted == have:
        return
    first: int | None = None
    for at in range(0, len(wanted), piece):
        if wanted[at : at + piece] != have[at : at + piece]:
            first = at if first is None else first
        elif first is not None:
            yield first, at
            first = None
    if first is not None:
        yield first, len(wanted)


class Pace:
    """Keeps a rate.

    :param rate: bytes per second; 0 is no limit.
    :param wait: waits so many seconds.
    """

    def __init__(
        self, rate: int, clock: Callable[[], float], wait: Callable[[float], object]
    ) -> None:
        self.rate = rate
        self.clock = clock
        self.wait = wait
        self._start = clock()
        self._done = 0

    def did(self, size: int) -> None:
        """So many bytes were done: wait until they were not too fast."""
        self._done += size
        if self.rate:
            ahead = self._done / self.rate - (self.clock() - self._start)
            if ahead > 0:
                self.wait(ahead)
