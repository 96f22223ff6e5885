# SPDX-License-Identifier: Apache-2.0
"""Stories of connections that are lost: those of all nodes at once."""

from __future__ import annotations

import time
from pathlib import Path

from bench.guest_log import DROPPED
from bench.guest_site import Attached
from lab.guest_stage import GOOD_SECONDS, Stage, check
from lab.guest_verified import Load

_BRIEF, _LONG = 3.0, 10.0
_SETTLE = 5.0
_RUNNING = ("clean", "active", "write-pending", "active-idle")
# Of replacement where none is expected.
_NEVER = 600.0


def brief(stage: Stage) -> None:
    """Both legs cannot be reached for three seconds: I/O waits, nothing else happens."""
    with stage.volumes([(0, 1)], _NEVER) as (volumes, load):
        stage.good(volumes)
        begin = time.monotonic()
        _all_away(stage, _BRIEF)
        time.sleep(_SETTLE)
        stage.quiet(load)
        (volume,) = volumes
        state = volume.attribute("array_state")
        check(state in _RUNNING, f"the array is {state}")
        dropped = stage.site.log.find(DROPPED.format(array=volume.array), begin)
        stage.note("a leg was dropped and put back" if dropped else "no leg was dropped")
        stage.note(f"redundant {stage.good(volumes):.1f} s after that")


def long(stage: Stage) -> None:
    """Both legs cannot be reached for ten seconds: what I/O does; the array is repaired."""
    with stage.volumes([(0, 1)], _NEVER) as (volumes, load):
        stage.good(volumes)
        _all_away(stage, _LONG)
        time.sleep(_SETTLE)
        (volume,) = volumes
        state = volume.attribute("array_state")
        seen = load.ask("take")
        for name, one in seen.items():
            check(not one["wrong"], one["wrong"])
            failed = f"{one['errors']} of {one['count']} failed ({one['error']})"
            text = failed if one["errors"] else "none failed"
            stage.note(f"{name}: longest {one['longest']:.1f} s, {text}")
        stage.note(f"the array is {state}")
        if state == "broken":
            _restarted(stage, volume, load)
        stage.note(f"redundant {stage.good(volumes):.1f} s after that")
        stage.quiet(load)


def _restarted(stage: Stage, volume: Attached, load: Load) -> None:
    """Whoever has it open lets go of it: the agent stops and assembles it anew."""
    check(stage.status(volume)["state"] == "broken", f"the agent shows {stage.status(volume)}")
    check(not load.ask("close")["hangs"], "I/O hangs for good")
    found = stage.wait("started again", GOOD_SECONDS, lambda: _running(stage, volume))
    stage.note(f"started again by the agent {found:.1f} s after it was closed")
    path = Path("/dev/md") / volume.volume.alias
    wrong = load.ask("open", paths=[str(path)])["wrong"]
    check(not wrong, f"acknowledged data is lost: {wrong}")
    load.ask("take")


def _running(stage: Stage, volume: Attached) -> bool:
    """Whether it takes writes: with the first one the kernel's "read-auto" ends as well."""
    shown = stage.status(volume)
    return shown.get("state") != "broken" and shown.get("arrayState") in (*_RUNNING, "read-auto")


def _all_away(stage: Stage, seconds: float) -> None:
    for node in stage.site.nodes[:2]:
        node.cut()
    time.sleep(seconds)
    for node in stage.site.nodes[:2]:
        node.restore()
    stage.site.all_live()
