# SPDX-License-Identifier: Apache-2.0
"""Stories of healing in one machine whose clock counts instructions.

The nodes are network namespaces of that machine, and the provisioner is a stand-in
(:mod:`lab.guest_stories`). Every block that the load reads is verified, the whole time.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from typing import Any

from lab.agent import python_path
from lab.machine import Machine
from lab.scenario import Context, Needs

SUMMARY = "healing: all nodes are away, a third is, one loses power under load or is slow"
NEEDS = Needs(storage=0, compute=1, icount=True)
IN_ALL = False
STORIES = {
    "both-brief": "both legs cannot be reached for 3 s: I/O waits, and nothing else happens",
    "power": "a node loses power under writes, reads and both: no I/O waits for 4 s",
    "slow": "a node stands still for a moment, or answers late: it is not cut off",
    "third": "a third of the nodes goes at once: reconnects only, until most are back",
}
# Not played often enough yet to be relied on: played when they are named. What makes "both-long"
# fail now and then is told in doc/source/contributor/healing-behaviour.rst.
ON_REQUEST = {
    "both-long": "both legs cannot be reached for 10 s: I/O fails, the agent repairs the array",
    "flapping": "one node's link is cut and healed 20 times: no leg but that one is ever lost",
    "many": "ten volumes lose a leg at once: healed in the time of the slowest, not of the sum",
}
UNIT = "kumo-stories"
_TOLD = "/run/kumo-stories.told"
_SEED, _NAMES = "KUMO_LAB_SEED", "KUMO_LAB_STORIES"
# Of this machine's clock, for each story: virtual seconds are much longer on a busy one.
_PATIENCE = 3600.0
_POLL = 3.0


def run(ctx: Context) -> None:
    """Play them, one step each."""
    (machine,) = ctx.lab.compute
    seed = int(os.environ.get(_SEED) or time.time())
    ctx.note(f"seed {seed}; {_SEED} chooses another one")
    stories = _named(ctx)
    begin(machine, seed, stories)
    for number, (name, text) in enumerate(stories.items()):
        with ctx.step(text):
            told = wait(ctx, machine, number)
            ctx.check(told["story"] == name, f"{told['story']} was told of instead of {name}")
            for note in told["notes"]:
                ctx.note(note)
            ctx.check("error" not in told, f"{name}: {told.get('error')}")
            ctx.note(f"{told['seconds']:.0f} virtual seconds")


def _named(ctx: Context) -> dict[str, str]:
    """The stories to play: those that are always played, or those that are named.

    :raises ScenarioFailedError: there is none of that name.
    """
    known, names = STORIES | ON_REQUEST, os.environ.get(_NAMES, "")
    if not names:
        return STORIES
    wanted = names.split(",")
    unknown = sorted(set(wanted) - set(known))
    ctx.check(not unknown, f"{_NAMES}: no story {unknown}; there are {', '.join(known)}")
    return {name: known[name] for name in wanted}


def begin(machine: Machine, seed: int, stories: Iterable[str]) -> None:
    """Start what plays stories in a machine; an earlier one there is killed."""
    machine.run(
        f"systemctl kill -s KILL {UNIT} 2>/dev/null; systemctl stop {UNIT} 2>/dev/null;"
        f" systemctl reset-failed {UNIT} 2>/dev/null; rm -f {_TOLD}"
    )
    command = (
        f"PYTHONPATH={python_path()} exec /usr/bin/python3 -W ignore -m lab.guest_stories"
        f" {seed} {' '.join(stories)} >{_TOLD}"
    )
    machine.run(["systemd-run", "--collect", "--unit", UNIT, "bash", "-c", command])


def wait(ctx: Context, machine: Machine, number: int) -> dict[str, Any]:
    """What was told of a story, by its number, as soon as it is over.

    :raises ScenarioFailedError: nothing is told, or it cannot be any more.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        state = machine.run(["systemctl", "is-active", "-q", UNIT], check=False)
        lines = machine.run(f"cat {_TOLD} 2>/dev/null; true").stdout.splitlines()
        if len(lines) > number:
            return dict(json.loads(lines[number]))
        if state.returncode:
            log = machine.run(f"journalctl -u {UNIT} -n 20 --no-pager -o cat").stdout
            ctx.check(False, f"the stories have ended before their time:\n{log}")
        ctx.check(time.monotonic() < deadline, f"no story was over in {_PATIENCE:.0f} s")
        time.sleep(_POLL)
