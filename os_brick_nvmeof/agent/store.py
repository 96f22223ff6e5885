# SPDX-License-Identifier: Apache-2.0
"""What survives the agent, as JSON: its memory, the provisioner's last answer, the history, and
what could not be told yet.

Written beside and renamed, so that a kill at any moment leaves one whole file. A file that cannot
be read is put aside and said so: the agent then knows less, and the provisioner guards what that
could lead to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from oslo_log import log

from os_brick_nvmeof.agent.model import (
    Asked,
    Leg,
    Memory,
    Task,
    Tried,
    Volume,
    Wanted,
)
from os_brick_nvmeof.props import Portal

LOG = log.getLogger(__name__)
T = TypeVar("T")
MEMORY = "memory.json"
WANTED = "wanted.json"
HISTORY = "history.json"
MESSAGES = "messages.json"


class Store:
    """:param directory: made when it is not there."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._path = pathlib.Path(directory)
        self._path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def save_memory(self, memory: Memory) -> None:
        """:raises OSError: it cannot be written; then nothing may be done that relies on it."""
        self.save(MEMORY, dataclasses.asdict(memory))

    def memory(self) -> Memory:
        return self._load(MEMORY, _memory) or Memory()

    def save_wanted(self, wanted: Wanted) -> None:
        self.save(WANTED, dataclasses.asdict(wanted))

    def wanted(self) -> Wanted:
        """What was pulled last; always stale."""
        return self._load(WANTED, _wanted) or Wanted()

    def history(self) -> list[dict[str, Any]]:
        return self._load(HISTORY, list) or []

    def save_messages(self, messages: list[dict[str, Any]]) -> None:
        """:raises OSError: they cannot be written."""
        self.save(MESSAGES, messages)

    def messages(self) -> list[dict[str, Any]]:
        """Those that could not be told: level, text, details, tried."""
        return self._load(MESSAGES, _messages) or []

    def save(self, name: str, value: Any) -> None:
        """Write a file durably."""
        path, new = self._path / name, self._path / f".{name}.new"
        with new.open("w") as stream:
            # Not json.dump, which is many times slower: it does not use the encoder in C.
            stream.write(json.dumps(value, default=sorted))
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(path)

    def _load(self, name: str, make: Callable[[Any], T]) -> T | None:
        path = self._path / name
        try:
            return make(json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            LOG.error("%s cannot be used and is put aside: %s", path, error)
        with contextlib.suppress(OSError):
            path.replace(path.with_suffix(".bad"))
        return None


def _memory(told: Mapping[str, Any]) -> Memory:
    return Memory(
        lost={key: float(value) for key, value in told["lost"].items()},
        dead={key: float(value) for key, value in told["dead"].items()},
        asked={
            key: Asked(**{**one, "before": frozenset(one["before"])})
            for key, one in told["asked"].items()
        },
        tried={key: Tried(**one) for key, one in told["tried"].items()},
        members=dict(told["members"]),
        counted={key: float(value) for key, value in told["counted"].items()},
        # Agents before did not write it.
        cut={key: float(value) for key, value in told.get("cut", {}).items()},
        restarts={key: float(value) for key, value in told.get("restarts", {}).items()},
    )


def _messages(told: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "level": str(one["level"]),
            "text": str(one["text"]),
            "details": dict(one["details"]),
            "tried": int(one["tried"]),
        }
        for one in told
    ]


def _wanted(told: Mapping[str, Any]) -> Wanted:
    volumes = tuple(
        Volume(**{**one, "legs": tuple(_leg(leg) for leg in one["legs"])})
        for one in told["volumes"]
    )
    return Wanted(
        volumes=volumes,
        tasks=tuple(Task(**one) for one in told["tasks"]),
        nodes=dict(told["nodes"]),
        time=float(told["time"]),
        stale=True,
        abilities=frozenset(told["abilities"]),
    )


def _leg(told: Mapping[str, Any]) -> Leg:
    return Leg(**{**told, "portals": tuple(Portal(**one) for one in told["portals"])})
