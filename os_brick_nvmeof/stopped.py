# SPDX-License-Identifier: Apache-2.0
"""What an array was when it was stopped in order: written down for the agent, who reports it.

The provisioner needs the final event counters: by them a leg that is alone at a later attach is
known to have all writes. When an agent looks, the array is gone and so are its legs. So the
connector reads the superblocks between the two and keeps what they tell, in one small file for
each volume in the lock directory. The file goes before the volume is attached again.

Without a file nothing is lost but the proof: a later attach then needs every leg that was in use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping

from oslo_log import log as logging

from os_brick_nvmeof.locks import Locks
from os_brick_nvmeof.props import AVAILABLE, MISSING, SYNCHRONIZING, Volume
from os_brick_nvmeof.superblock import Content, Superblock

LOG = logging.getLogger(__name__)

FILE = "os-brick-kumo-stopped-"
_UUID = re.compile(r"[0-9a-f-]{36}")


@dataclasses.dataclass(frozen=True)
class Stopped:
    """The end of an array.

    :ivar volume: uuid. :ivar tenant: of the volume.
    :ivar publication: number of the publication that it was attached by.
    :ivar legs: uuid, state of the wire and event counter of each leg; 0 when it is not known.
    """

    volume: str
    tenant: str
    publication: int
    legs: tuple[tuple[str, str, int], ...]


def judge(
    volume: Volume, legs: Iterable[str], used: Collection[str], contents: Mapping[str, Content]
) -> tuple[tuple[str, str, int], ...]:
    """State and counter of each leg after its array was stopped; empty when it cannot be told.

    It can be told when every device that had a place at the end is seen: one that is not seen may
    have been lost at the last moment.

    :param legs: uuids of all legs.
    :param used: of those that were in sync before the stop. Others may have a history of their own.
    :param contents: what is on those that could be read, by uuid.
    """
    blocks = {leg: seen for leg, seen in contents.items() if isinstance(seen, Superblock)}
    numbers = [block.number for block in blocks.values()]
    if not all(block.of(volume) for block in blocks.values()) or len(set(numbers)) < len(numbers):
        return ()
    last = [block for leg, block in blocks.items() if leg in used]
    newest = max(last, key=lambda block: block.events, default=None)
    if newest is None or not newest.events or not newest.active <= set(numbers):
        return ()
    found = []
    for leg in sorted(legs):
        block = blocks.get(leg)
        if block is None or block.number not in newest.active:
            found.append((leg, MISSING, block.events if block else 0))
        elif not block.in_sync:
            found.append((leg, SYNCHRONIZING, 0))
        elif leg in used and _same(block, newest):
            found.append((leg, AVAILABLE, block.events))
        else:
            return ()
    return tuple(found) if any(state == AVAILABLE for _, state, _ in found) else ()


def _same(one: Superblock, other: Superblock) -> bool:
    """They were written by one update."""
    return (one.array_uuid, one.events, one.active) == (
        other.array_uuid,
        other.events,
        other.active,
    )


# -- files --------------------------------------------------------------------------------------


def keep(locks: Locks, stopped: Stopped) -> None:
    """Write it down durably.

    :raises OSError: it cannot be written.
    """
    if locks.directory is None:
        return
    path = _path(locks.directory, stopped.volume)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(dataclasses.asdict(stopped), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
    _sync(locks.directory)


def forget(locks: Locks, volume: str) -> None:
    """Drop what is known of a volume, durably: its array begins to change. It may not be there.

    :raises OSError: it stays.
    """
    if locks.directory is None:
        return
    try:
        os.unlink(_path(locks.directory, volume))
    except FileNotFoundError:
        return
    _sync(locks.directory)


def known(locks: Locks) -> list[Stopped]:
    """All that are written down. What makes no sense is dropped.

    :raises OSError: it cannot be read.
    """
    found = []
    for volume, _ in sorted(marks(locks)):
        with contextlib.suppress(FileNotFoundError):
            one = read(locks, volume)
            if one is not None:
                found.append(one)
    return found


def marks(locks: Locks) -> frozenset[tuple[str, int]]:
    """Uuids of the volumes of which something is written down, and when it was (ns).

    :raises OSError: it cannot be told.
    """
    found = set()
    try:
        for entry in os.scandir(locks.directory) if locks.directory is not None else ():
            volume = entry.name.removeprefix(FILE)
            if volume != entry.name and _UUID.fullmatch(volume):
                found.add((volume, entry.stat().st_mtime_ns))
    except FileNotFoundError:
        # Nothing was locked yet, or one was dropped just now.
        return frozenset(found)
    return frozenset(found)


def read(locks: Locks, volume: str) -> Stopped | None:
    """What is written down of a volume; None when that makes no sense, and is dropped.

    :raises FileNotFoundError: nothing is.
    :raises OSError: it cannot be read.
    """
    try:
        with open(_path(str(locks.directory), volume), encoding="utf-8") as file:
            told = json.load(file)
        legs = tuple((str(leg), str(state), int(events)) for leg, state, events in told["legs"])
        return Stopped(volume, str(told["tenant"]), int(told["publication"]), legs)
    except (ValueError, TypeError, KeyError) as error:
        LOG.warning("What is written down of the stopped array of %s is dropped: %s", volume, error)
        forget(locks, volume)
        return None


def _sync(directory: str) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _path(directory: str, volume: str) -> str:
    return os.path.join(directory, FILE + volume)
