# SPDX-License-Identifier: Apache-2.0
"""What the kernel's own time-outs do for a replicated volume, without an agent.

For each set of time-outs, two things pull in opposite directions: how long I/O waits when one node
falls silent, and whether the array outlives a moment in which all nodes are silent.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from bench.guest_io import Load
from bench.guest_log import DROPPED
from bench.guest_site import Attached, Site

# Names of a cell of the grid, and the options of the connector that they are.
OPTIONS = {
    "keep_alive": "replicated_keep_alive",
    "reconnect_delay": "replicated_reconnect_delay",
    "fast_io_fail": "replicated_fast_io_fail",
    "failfast": "md_failfast",
}
_WARM = 3.0
# As long as I/O is watched: time-outs of more than this are none.
_PATIENCE = 60.0
_AFTER = 2.0
# For reconnects, and for writes that were waiting.
_SETTLE = 8.0


def measure(site: Site, plan: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """All cells of ``plan``, each ``rounds`` times."""
    dice = random.Random(plan["seed"])
    for cell in plan["cells"]:
        site.tune({option: cell[name] for name, option in OPTIONS.items()})
        for number in range(plan["rounds"]):
            # Cut in turns: which leg the reader uses is md's choice.
            _one(site, cell, f"silent node {number % 2 + 1}", dice, say, silent=(number % 2, 0.0))
        for seconds in plan["outages"]:
            _one(site, cell, f"all silent for {seconds:g} s", dice, say, silent=(-1, seconds))


def _one(
    site: Site,
    cell: dict[str, Any],
    what: str,
    dice: random.Random,
    say: Callable[[dict[str, Any]], None],
    *,
    silent: tuple[int, float],
) -> None:
    node, outage = silent
    about = {"cell": cell, "what": what}
    load: Load | None = None
    try:
        (volume,) = site.attach(1)
        load = site.load([volume])
        time.sleep(_WARM + dice.uniform(0.0, cell["keep_alive"]))
        load.take()
        found = _lost(site, volume, node) if node >= 0 else _all_lost(site, volume, outage)
        told = load.take()
        for name, one in told.items():
            found |= {name: one["longest"], f"{name} error": one["error"]}
        say(about | found)
    except (OSError, RuntimeError) as error:
        say(about | {"error": f"{type(error).__name__}: {error}"})
    finally:
        site.clear(load)


def _lost(site: Site, volume: Attached, node: int) -> dict[str, Any]:
    begin = time.monotonic()
    site.nodes[node].cut()
    try:
        dropped = site.log.wait(DROPPED.format(array=volume.array), begin, _PATIENCE) - begin
    except TimeoutError:
        return {"detect": None}
    time.sleep(_AFTER)
    return {"detect": dropped}


def _all_lost(site: Site, volume: Attached, seconds: float) -> dict[str, Any]:
    for node in site.nodes[:2]:
        node.cut()
    time.sleep(seconds)
    for node in site.nodes[:2]:
        node.restore()
    site.all_live()
    time.sleep(_SETTLE)
    return {"state": volume.attribute("array_state"), "degraded": volume.attribute("degraded")}
