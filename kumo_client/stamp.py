# SPDX-License-Identifier: Apache-2.0
"""Which state of which database is behind a request of the provisioner to a storage node.

A database has a uuid. It grows along a branch, with a number that only rises, and goes on along a
new branch after each start of a provisioner: two provisioners that start from two copies never go
on along the same one. Branch and number are in the database before any node is told of them. A node
remembers the latest state it was told of, in its own record. So when a database does not come from
the state that a node remembers, it is an older copy, or the continuation of one.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable

HEADER = "X-Kumo-Record"
# Branches in a header, and a database remembers.
TOLD_MAX = 8
PAST_MAX = 256
# What the number in a database is at most (a signed column of 64 bits).
NUMBER_MAX = 1 << 62


@dataclasses.dataclass(frozen=True)
class Stamp:
    """A state of a database: its uuid, the uuid of the branch, and the number on that."""

    database: str
    branch: str
    number: int

    def __str__(self) -> str:
        return f"{self.database} {self.branch}:{self.number}"


@dataclasses.dataclass(frozen=True)
class Line:
    """A state with the ends of the branches that it comes from, the last one first."""

    now: Stamp
    past: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        branches = [f"{branch}:{number}" for branch, number in self.past]
        return " ".join([str(self.now), *branches])

    def told(self) -> Line:
        """The part of it that fits in a header."""
        return Line(self.now, self.past[: TOLD_MAX - 1])

    def covers(self, other: Stamp) -> bool:
        """Whether this comes from that state, or is the same."""
        if other.database != self.now.database:
            return False
        ends: Iterable[tuple[str, int]] = ((self.now.branch, self.now.number), *self.past)
        return any(branch == other.branch and other.number <= end for branch, end in ends)


def parse(text: str | None) -> Line | None:
    """What is in a header; None when there is nothing.

    :raises ValueError: it is something else.
    """
    if not text:
        return None
    database, *branches = text.split(" ")
    ends = [_end(one) for one in branches]
    if not ends or len(ends) > PAST_MAX:
        raise ValueError("it names no branch, or too many")
    (branch, number), *past = ends
    return Line(Stamp(str(uuid.UUID(database)), branch, number), tuple(past))


def _end(text: str) -> tuple[str, int]:
    branch, _, number = text.partition(":")
    if not (number.isascii() and number.isdigit()) or len(number) > 19:
        raise ValueError(f"{text[:80]!r} is no branch with its number")
    if int(number) > NUMBER_MAX:
        raise ValueError("a number is too large")
    return str(uuid.UUID(branch)), int(number)
