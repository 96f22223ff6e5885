# SPDX-License-Identifier: Apache-2.0
"""Stories of connections that are lost: of one node again and again, of all, of a third of them."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from bench.guest_log import DROPPED
from bench.guest_site import Attached
from lab.guest_stage import GOOD_SECONDS, Stage, check, kernel_names
from lab.guest_verified import Load

_FLAPS = 20
_BRIEF, _LONG = 3.0, 10.0
_SETTLE = 5.0
_DROP_SECONDS = 60.0
_LINK_SECONDS = 30.0
_RUNNING = ("clean", "active", "write-pending", "active-idle")
# Of replacement where none is expected.
_NEVER = 600.0
_DOWN_TIME = 5.0
_PAIRS = [(0, 1), (2, 3), (4, 5)]
_ASKED = "request_replacement"


def flapping(stage: Stage) -> None:
    """One node's link is cut and healed twenty times at random intervals."""
    with stage.volumes([(0, 1)], _NEVER) as (volumes, load):
        stage.good(volumes)
        (volume,) = volumes
        before, calls, node = kernel_names(), len(stage.desk.calls), stage.site.nodes[1]
        begin = time.monotonic()
        for _ in range(_FLAPS):
            node.cut()
            time.sleep(stage.dice.uniform(0.2, 9.0))
            node.restore()
            time.sleep(stage.dice.uniform(0.2, 9.0))
        took = stage.good(volumes)
        stage.note(
            f"cut {_FLAPS} times in {time.monotonic() - begin:.0f} s, redundant {took:.1f} s after"
        )
        stage.quiet(load)
        check(kernel_names() == before, f"controllers and arrays: {kernel_names()}, not {before}")
        _only_lost(stage, volume, begin)
        done = Counter(stage.desk.calls[calls:])
        for name in (_ASKED, "retire", "confirm"):
            check(not done[name], f"{name} was called {done[name]} times")
        legs = [leg["uuid"] for leg in stage.status(volume)["legs"]]
        check(legs == [leg.uuid for leg in volume.volume.legs], f"legs: {legs}")


def _only_lost(stage: Stage, volume: Attached, begin: float) -> None:
    """No leg but the one that was cut off may have failed, and all copies were partial."""
    kept = DROPPED.format(array=volume.array) + volume.devices[0]
    check(stage.site.log.find(kept, begin) is None, f"{volume.devices[0]} was dropped")
    healed = stage.history(volume)
    check(healed, "nothing was healed")
    kinds = Counter(one["kind"] for one in healed)
    check(set(kinds) == {"partial"}, f"copied: {healed}")
    most = max(one["bytes"] for one in healed) / stage.site.size
    stage.note(f"put back {len(healed)} times, each by bitmap, at most {100 * most:.0f} % written")


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
    # udev makes the link, later than the array is there.
    stage.wait("linked", _LINK_SECONDS, path.exists)
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


def third(stage: Stage) -> None:
    """A third of the nodes goes at once: reconnects only. Then most are back, and it goes on."""
    with stage.volumes(_PAIRS, _DOWN_TIME) as (volumes, load):
        stage.good(volumes)
        calls, gone = len(stage.desk.calls), [stage.site.nodes[at] for at in (1, 3)]
        begin = time.monotonic()
        for node in gone:
            node.cut()
        for one in volumes[:2]:
            stage.site.log.wait(DROPPED.format(array=one.array), begin, _DROP_SECONDS)
        stage.wait("said why", GOOD_SECONDS, lambda: stage.shown()["network"])
        stage.note(f"status: {stage.shown()['network']}")
        time.sleep(6 * _DOWN_TIME)
        asked = stage.desk.calls[calls:].count(_ASKED)
        check(not asked, f"{asked} replacements were asked for")
        gone[0].restore()
        back = time.monotonic()
        stage.good(volumes[:1])
        stage.note(f"{gone[0].name} back: healed after {time.monotonic() - back:.1f} s")
        stage.good(volumes)
        asked = stage.desk.calls[calls:].count(_ASKED)
        check(asked == 1, f"{asked} replacements were asked for, not 1")
        stage.note(f"{gone[1].name} replaced after {time.monotonic() - back:.1f} s")
        stage.quiet(load)
        gone[1].restore()
