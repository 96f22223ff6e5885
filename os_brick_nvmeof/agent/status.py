# SPDX-License-Identifier: Apache-2.0
"""What the agent shows of itself: one JSON object, and tables made of it."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from os_brick_nvmeof.agent import judge, model
from os_brick_nvmeof.agent.actions import Action
from os_brick_nvmeof.agent.history import History
from os_brick_nvmeof.agent.model import Memory, Wanted
from os_brick_nvmeof.agent.plan import Plan

FILE = "status.json"
WIDE = 300
# Healings shown of each volume.
SHOWN = 5
GOOD = "good"
DEGRADED = "degraded"
HEALING = "healing"
DETACHED = "not here"
FAILED = "no path"
BROKEN = model.BROKEN


def make(
    wanted: Wanted,
    memory: Memory,
    plan: Plan,
    now: float,
    last: Mapping[str, Mapping[str, Any]] | None = None,
    history: History | None = None,
) -> dict[str, Any]:
    """The object. Times are seconds since the epoch, speeds KB/s, progress percent.

    :param plan: for what is wanted and remembered.
    """
    return {
        "time": now,
        "provisioner": {"away": wanted.stale, "pulled": wanted.time},
        "network": plan.network,
        "volumes": [
            _volume(one, plan, memory, (last or {}).get(one.volume.uuid))
            | {"healed": _healed(history, one.volume.uuid)}
            for one in plan.views
        ],
        "actions": [_action(one, memory) for one in plan.actions],
        "waiting": [_action(one, memory) for one in plan.waiting],
    }


def _volume(
    view: judge.View, plan: Plan, memory: Memory, last: Mapping[str, Any] | None
) -> dict[str, Any]:
    array = view.array
    syncing = array is not None and bool(array.total)
    return {
        "uuid": view.volume.uuid,
        "alias": view.volume.alias,
        "state": state(view),
        "array": array.name if array else "",
        "arrayState": array.state if array else "",
        "progress": round(array.percent, 1) if array and syncing else None,
        "speed": array.speed if array and syncing else None,
        "shared": view.volume.shared,
        "legs": [_leg(one, memory) for one in view.legs],
        "notes": [
            {"leg": note.leg, "text": note.text}
            for note in plan.notes
            if note.volume == view.volume.uuid
        ],
        "last": dict(last) if last else None,
    }


def _healed(history: History | None, volume: str) -> list[dict[str, Any]]:
    """The last few entries of a volume, the newest first."""
    found = history.of(volume) if history else []
    return [dataclasses.asdict(entry) for entry in reversed(found[-SHOWN:])]


def _leg(one: judge.LegView, memory: Memory) -> dict[str, Any]:
    return {
        "uuid": one.uuid,
        "node": one.leg.node,
        "place": one.place.value,
        "path": one.path.value,
        "device": one.namespace.name if one.namespace else "",
        "recorded": one.leg.state,
        "freshness": one.leg.freshness,
        "lostSince": memory.lost.get(one.uuid),
    }


def state(view: judge.View) -> str:
    """One word for a volume."""
    if not view.attached:
        return DETACHED
    if not view.volume.replicated:
        live = any(one.path is judge.Path.LIVE for one in view.legs)
        return GOOD if live else FAILED
    staying = [one for one in view.legs if one in view.good()]
    wanted = view.volume.replicas or len(view.volume.staying)
    if not staying:
        return FAILED
    if view.array is not None and view.array.state == BROKEN:
        return BROKEN
    if any(one.place.value == "synchronising" for one in view.legs):
        return HEALING
    return GOOD if len(staying) >= wanted else DEGRADED


def _action(one: Action, memory: Memory) -> dict[str, Any]:
    tried = memory.tried.get(one.key)
    return {
        "kind": one.kind,
        "volume": one.volume,
        "about": one.about,
        "reason": one.reason,
        "failed": tried.count if tried else 0,
        "error": tried.error if tried else "",
        "next": tried.next if tried else None,
    }


def write(directory: str, shown: Mapping[str, Any]) -> None:
    """Put it where others may read it. :raises OSError: that is not possible."""
    path = pathlib.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    new = path / f".{FILE}.new"
    new.write_text(json.dumps(shown))
    # There is no secret in it.
    new.chmod(0o644)
    new.replace(path / FILE)


def read(directory: str) -> dict[str, Any]:
    """What :func:`write` wrote last. :raises OSError: there is none. :raises ValueError: odd."""
    found = json.loads((pathlib.Path(directory) / FILE).read_text())
    if not isinstance(found, dict):
        raise ValueError(f"{os.path.join(directory, FILE)} has no object")
    return found


# -- tables ---------------------------------------------------------------------------------------


def table(shown: Mapping[str, Any], now: float) -> Group:
    """Volumes and their legs."""
    found = Table(box=None, pad_edge=False)
    for name in ("VOLUME", "STATE", "ARRAY", "SYNC", "LEG", "NODE", "PLACE", "PATH", "LAST"):
        found.add_column(name, no_wrap=name != "LAST")
    for volume in shown["volumes"]:
        first = True
        for leg in volume["legs"] or [dict.fromkeys(("uuid", "node", "place", "path"), "")]:
            head = _head(volume, now) if first else ["", "", "", ""]
            lines = [leg["uuid"], leg["node"], leg["place"], leg["path"]]
            found.add_row(*head, *map(str, lines), _last(volume, now) if first else "")
            first = False
    notes = [
        Text(
            f"{volume['alias']}: {note['text']}" + (f" (leg {note['leg']})" if note["leg"] else "")
        )
        for volume in shown["volumes"]
        for note in volume["notes"]
    ]
    return Group(*_heading(shown, now), found, *notes)


def _heading(shown: Mapping[str, Any], now: float) -> list[Text]:
    found = []
    age = now - shown["time"]
    if age > 60:
        found.append(Text(f"This is {age:.0f} s old: is the agent running?", style="bold red"))
    if shown["provisioner"]["away"]:
        found.append(Text("The provisioner is away.", style="bold yellow"))
    if shown["network"]:
        found.append(Text(f"Reconnects only: {shown['network']}.", style="bold red"))
    return found


def _head(volume: Mapping[str, Any], now: float) -> list[str]:
    sync = ""
    if volume["progress"] is not None:
        sync = f"{volume['progress']:.1f} % {volume['speed'] / 1024:.0f} MiB/s"
    return [volume["alias"], volume["state"], volume["array"], sync]


def _last(volume: Mapping[str, Any], now: float) -> str:
    last = volume["last"]
    if not last:
        return ""
    text = f"{last['kind']} {now - last['time']:.0f} s ago: {last['reason']}"
    return f"{text}; failed: {last['error']}" if last["error"] else text


def plan_table(shown: Mapping[str, Any]) -> Group:
    """What is to be done, and why."""
    found = Table(box=None, pad_edge=False)
    for name in ("ACTION", "VOLUME", "ABOUT", "WHY", "WHEN"):
        found.add_column(name, no_wrap=name != "WHY")
    for one in shown["actions"]:
        found.add_row(one["kind"], one["volume"], one["about"], one["reason"], "now")
    for one in shown["waiting"]:
        when = time.strftime("%H:%M:%S", time.localtime(one["next"] or 0))
        found.add_row(
            one["kind"], one["volume"], one["about"], f"{one['reason']}; {one['error']}", when
        )
    notes = [
        Text(
            f"{volume['alias']}: {note['text']}" + (f" (leg {note['leg']})" if note["leg"] else "")
        )
        for volume in shown["volumes"]
        for note in volume["notes"]
    ]
    body = [found] if shown["actions"] or shown["waiting"] else [Text("Nothing is to be done.")]
    return Group(*_heading(shown, shown["time"]), *body, *notes)


def show(group: Group) -> None:
    """Print, in colour on a terminal."""
    console = Console()
    if not console.is_terminal:
        # Nobody's window: nothing is to be cut.
        console.width = WIDE
    console.print(group)
