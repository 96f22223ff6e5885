# SPDX-License-Identifier: Apache-2.0
"""A storage node loses power under load and returns: the agent brings its leg back by bitmap."""

from __future__ import annotations

import time
from dataclasses import dataclass

from lab import guest_log
from lab.scenario import Context, Needs
from lab.scenarios._connector import GIB, leg_uuids
from lab.scenarios._healing import AVAILABLE, MISSING, Ward

SUMMARY = "healing: a node loses power under fio --verify, returns, and its leg is re-added"
NEEDS = Needs(storage=3, compute=1)
IN_ALL = False
# mdadm's bitmaps have chunks of 64 MiB, which is what one changed block costs.
_GIB = 2
# The bound on a machine of its own is 10 s; processors that are emulated and shared need more.
_STALL_SECONDS = 30.0
_MISSING_SECONDS = 1.0
# An emulated processor that shares its own with others needs longer for a look.
_MISSING_MARGIN = 20.0
# The agent looks at once, but an emulated processor needs seconds for a look and for mdadm.
_ADD_SECONDS = 5.0
_ADD_MARGIN = 30.0
_PART = 0.05
_AWAY_SECONDS = 5.0


@dataclass(frozen=True)
class Lost:
    """Times of a loss, in seconds since the epoch by the lab's own clock."""

    killed: float
    dropped: float
    told: float


def run(ctx: Context) -> None:
    """Kill, return, compare."""
    ward = Ward(ctx, patient=False)
    with ctx.step("a volume of two legs is attached; kumo-agent starts"):
        volume, attachment = ward.admit(_GIB, down_time=60)
        ward.agent.start()
        ward.good(volume)
    leg = leg_uuids(attachment)[0]
    node = ward.node(volume, leg)
    with ctx.step("fio writes, reads and verifies"):
        load = ward.load(attachment)
    with ctx.step(f"{node.name} loses power: reported as Missing, I/O goes on"):
        lost = _lose(ward, volume, leg)
        time.sleep(_AWAY_SECONDS)
    with ctx.step(f"{node.name} returns: its leg is put back without anybody's help"):
        ctx.note(f"up after {ward.back(node):.0f} s")
        ward.good(volume)
        _returned(ward, volume, leg, lost)
    with ctx.step("fio ends: every block was what had been written"):
        stall = ward.end_load(load)
        ctx.check(stall < _STALL_SECONDS, f"an I/O took {stall:.1f} s")
        load.check()
    with ctx.step("detach; both legs hold the same"):
        ward.detach(attachment)
        ctx.note(f"md5 {ward.same_legs(volume, _GIB)}")
    ward.close()


def _lose(ward: Ward, volume: str, leg: str) -> Lost:
    ctx = ward.ctx
    since = ward.client.last_event()
    killed = time.time()
    ward.node(volume, leg).kill()
    told = ward.told(volume, leg, MISSING, since)
    lines = ward.kernel()
    dropped = guest_log.first(lines, r"Disk failure on", killed)
    ctx.check(dropped is not None, "md's message of the failure is not in the kernel's log")
    assert dropped is not None  # noqa: S101 - checked above, for mypy
    _, exact = ward.machine.clock()
    ctx.note(
        f"md dropped it {dropped.time - killed:.2f} s after the power was cut, the provisioner had"
        f" it as Missing {told - dropped.time:.2f} s later (clocks compared to {exact:.3f} s)"
    )
    late = told - dropped.time
    ctx.check(
        late < _MISSING_SECONDS + _MISSING_MARGIN, f"reported {late:.2f} s after md had dropped it"
    )
    return Lost(killed, dropped.time, told)


def _returned(ward: Ward, volume: str, leg: str, lost: Lost) -> None:
    ctx = ward.ctx
    lines = ward.kernel()
    live = guest_log.first(lines, r"Successfully reconnected|new ctrl: NQN", lost.told)
    begun = guest_log.first(lines, r"recover(y)? of RAID array", lost.told)
    ctx.check(live and begun, "no new connection or no recovery in the kernel's log")
    assert live is not None  # noqa: S101 - checked above, for mypy
    assert begun is not None  # noqa: S101
    waited = begun.time - live.time
    (*_, entry) = [one for one in ward.agent.history(volume) if one["leg"] == leg]
    part = entry["bytes"] / (_GIB * GIB)
    ctx.note(
        f"re-added {waited:.2f} s after its connection was live ({live.text}); in sync"
        f" {entry['end'] - entry['start']:.1f} s later; {entry['kind']}, {entry['bytes']} bytes"
        f" written to it, {100 * part:.1f} % of the volume"
    )
    ctx.check(waited < _ADD_SECONDS + _ADD_MARGIN, f"re-added after {waited:.1f} s only")
    ctx.check(entry["kind"] == "partial", f"copied in full: {entry}")
    ctx.check(part < _PART, f"{100 * part:.1f} % of the volume was copied")
    states = set(ward.states(volume).values())
    ctx.check(states == {AVAILABLE}, f"for the provisioner the legs are {states}")
