# SPDX-License-Identifier: Apache-2.0
"""A storage node loses power for good: the agent has its leg replaced on another node."""

from __future__ import annotations

import time

from lab.errors import LabError
from lab.scenario import Context, Needs
from lab.scenarios._connector import GIB, leg_uuids
from lab.scenarios._healing import MISSING, Ward

SUMMARY = "healing: a node does not return; its leg is replaced on a third node, in full"
NEEDS = Needs(storage=3, compute=1)
IN_ALL = False
# The smallest maxReplicaDownTime there is.
_MINUTES = 1
# Bounds have room for emulated processors that share real ones.
_STALL_SECONDS = 60.0
_ASK_SECONDS = 120.0
_FULL_SECONDS = 900.0
_GONE_SECONDS = 180.0
# md copies no less than this of it: what fio writes beside comes on top.
_PART = 0.9


def run(ctx: Context) -> None:
    """Kill, wait, compare."""
    ward = Ward(ctx)
    with ctx.step("a volume of two legs is attached; kumo-agent starts"):
        volume, attachment = ward.admit(down_time=_MINUTES)
        ward.agent.start()
        ward.good(volume)
    before = set(leg_uuids(attachment))
    lost = leg_uuids(attachment)[0]
    node = ward.node(volume, lost)
    with ctx.step("fio writes, reads and verifies"):
        load = ward.load(attachment)
    with ctx.step(f"{node.name} loses power and stays away: replaced after a minute"):
        since, killed = ward.client.last_event(), time.time()
        node.kill()
        told = ward.told(volume, lost, MISSING, since)
        ctx.note(f"Missing {told - killed:.1f} s after the power was cut")
        _asked(ward, volume, before, killed)
    with ctx.step("the new leg is filled"):
        ward.good(volume, _FULL_SECONDS)
        new = _filled(ward, volume, before, killed)
    with ctx.step("the old leg is let go of although its node is away"):
        legs = set(ward.wait_legs(volume, 2))
        ctx.check(legs == before - {lost} | {new}, f"the volume's legs are {legs}")
    with ctx.step("fio ends: every block was what had been written"):
        stall = ward.end_load(load)
        ctx.check(stall < _STALL_SECONDS, f"an I/O took {stall:.1f} s")
        load.check()
    with ctx.step("detach by what was said at the attach; both legs hold the same"):
        ward.detach(attachment)
        ctx.note(f"md5 {ward.same_legs(volume)}")
    with ctx.step(f"{node.name} returns; nothing is left of the old leg on it"):
        ctx.note(f"up after {ward.back(node):.0f} s")
        _gone(ward, lost, node.name)
    ward.close()


def _asked(ward: Ward, volume: str, before: set[str], killed: float) -> None:
    """Wait for a leg that was not there before; it must not come too early."""
    deadline = time.monotonic() + 60 * _MINUTES + _ASK_SECONDS
    while not (new := set(ward.states(volume)) - before):
        ward.ctx.check(time.monotonic() < deadline, f"no replacement: {ward.states(volume)}")
        time.sleep(1)
    seconds = time.time() - killed
    ward.ctx.note(f"a replacement was there {seconds:.0f} s after the power was cut")
    # The agent counts from when md has dropped the leg; the provisioner hears of that later.
    ward.ctx.check(seconds > 60 * _MINUTES, "replaced before its time")
    ward.ctx.check(len(new) == 1, f"replaced more than once: {new}")


def _filled(ward: Ward, volume: str, before: set[str], killed: float) -> str:
    """The leg that has come into the array; it must be the only one, and was copied in full."""
    states = ward.states(volume)
    new = set(states) - before
    ward.ctx.check(len(new) == 1, f"there are {len(new)} new legs: {states}")
    leg = new.pop()
    found = [one for one in ward.agent.history(volume) if one["leg"] == leg]
    ward.ctx.check(len(found) == 1, f"history of the new leg: {found}")
    (entry,) = found
    seconds = entry["end"] - entry["start"]
    ward.ctx.note(
        f"{entry['kind']}, {entry['bytes']} bytes written to it in {seconds:.0f} s; redundant"
        f" {time.time() - killed:.0f} s after the power was cut"
    )
    ward.ctx.check(entry["kind"] == "full" and entry["ok"], f"history: {entry}")
    ward.ctx.check(entry["bytes"] >= _PART * GIB, f"history: {entry}")
    return leg


def _gone(ward: Ward, lost: str, name: str) -> None:
    """The logical volume and the export of a leg are removed from its node."""
    node = next(one for one in ward.ctx.lab.storage if one.name == name)
    look = "lvs --noheadings -o lv_name; cat /sys/kernel/config/nvmet/subsystems/*/namespaces/*/*"
    deadline = time.monotonic() + _GONE_SECONDS
    while lost in (shown := node.run(f"{{ {look}; }} 2>/dev/null; true").stdout):
        if time.monotonic() > deadline:
            raise LabError(f"{name} still has leg {lost}:\n{shown}")
        time.sleep(1)
