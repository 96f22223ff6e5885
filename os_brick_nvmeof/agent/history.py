# SPDX-License-Identifier: Apache-2.0
"""What was healed: one entry for each time that a leg was put back or replaced. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from os_brick_nvmeof.agent import judge
from os_brick_nvmeof.agent.actions import Action, AddSpare, ReAdd
from os_brick_nvmeof.agent.judge import View
from os_brick_nvmeof.agent.model import Place

# Entries kept, in all.
KEPT = 1000
# Part of a volume that is all of it.
MOST = 0.9
PARTIAL = "partial"
FULL = "full"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One healing.

    :ivar lost: when the leg was lost. :ivar start: when it was put in. :ivar end: when it was in
        sync or lost again; 0 while it is synchronised. Seconds since the epoch.
    :ivar kind: "partial" (what the bitmap said) or "full"; told by what was written, too, because
        md takes a leg back in full where its bitmap is of no use. :ivar ok: it came to be in sync.
    :ivar bytes: written to the leg meanwhile: what was copied, and new writes.
    :ivar written: counter of the leg's device at the start.
    :ivar placed: when md had taken it; 0 until then.
    """

    volume: str
    leg: str
    kind: str
    reason: str
    lost: float
    start: float
    end: float = 0.0
    ok: bool = False
    bytes: int = 0
    written: int = 0
    placed: float = 0.0


class History:
    """Entries, oldest first."""

    def __init__(self, told: Iterable[dict[str, Any]] = ()) -> None:
        names = {field.name for field in dataclasses.fields(Entry)}
        found = [
            Entry(**{key: value for key, value in one.items() if key in names}) for one in told
        ]
        # Whoever wrote it down has ended meanwhile, and nobody else is to say that md has it.
        self.entries = [dataclasses.replace(one, placed=one.placed or one.start) for one in found]

    def began(self, action: ReAdd | AddSpare, view: View, lost: float, now: float) -> None:
        """A leg is put in."""
        leg = view.leg(action.leg)
        written = leg.namespace.written if leg is not None and leg.namespace is not None else 0
        kind = FULL if isinstance(action, AddSpare) else PARTIAL
        entry = Entry(
            action.volume, action.leg, kind, action.reason, lost or now, now, written=written
        )
        self.entries = [*self.entries, entry][-KEPT:]

    def placed(self, action: Action, now: float) -> None:
        """A leg was put in: from now on it is followed. Of other actions nothing follows."""
        if not isinstance(action, ReAdd | AddSpare):
            return
        for number, entry in enumerate(self.entries):
            if (entry.volume, entry.leg, entry.placed) == (action.volume, action.about, 0.0):
                self.entries[number] = dataclasses.replace(entry, placed=now)

    def forget(self, action: Action) -> None:
        """A leg was not put in after all; of other actions there is nothing to forget."""
        if not isinstance(action, ReAdd | AddSpare):
            return
        for entry in reversed(self.entries):
            if (entry.volume, entry.leg, entry.end) == (action.volume, action.about, 0.0):
                self.entries.remove(entry)
                return

    def follow(self, views: Iterable[judge.View], now: float) -> list[Entry]:
        """Bring entries up to date with a look that began at ``now``; gives those that ended."""
        views = list(views)
        legs = {one.uuid: one for view in views for one in view.legs if view.array is not None}
        sizes = {one.uuid: view.volume.size for view in views for one in view.legs}
        ended = []
        for number, entry in enumerate(self.entries):
            leg = legs.get(entry.leg)
            # A look that began while mdadm worked saw the leg outside still.
            early = not 0 < entry.placed < now
            if entry.end or early or leg is None or leg.place is Place.UNKNOWN:
                continue
            entry = _followed(entry, leg, now, sizes[leg.uuid])
            self.entries[number] = entry
            if entry.end:
                ended.append(entry)
        return ended

    def of(self, volume: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.volume == volume]

    def shown(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(entry) for entry in self.entries]


def _followed(entry: Entry, leg: judge.LegView, now: float, size: int) -> Entry:
    written = leg.namespace.written if leg.namespace is not None else 0
    # A device that came back begins to count anew.
    copied = written - entry.written if written >= entry.written else written
    entry = dataclasses.replace(entry, bytes=max(entry.bytes, copied))
    if leg.place is Place.SYNCING:
        return entry
    ok = leg.place is Place.IN_SYNC
    whole = ok and size and entry.bytes >= MOST * size
    return dataclasses.replace(entry, end=now, ok=ok, kind=FULL if whole else entry.kind)
