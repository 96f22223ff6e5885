# SPDX-License-Identifier: Apache-2.0
"""Story of ten volumes that lose a leg at once: they are healed side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bench.guest_log import DROPPED
from bench.guest_site import Attached
from lab.guest_limits import copying_at, volumes_of
from lab.guest_stage import Stage, check

# Each has a leg on the second node; the other one is on one of the rest.
_AWAY, _OTHERS = 1, (0, 2, 3, 4, 5)
_COUNT = 10
# So that all legs fit into the machine, and comparing them does not take longer than healing them.
_SIZE_MIB = 32
# KB/s. A leg, which is less than a chunk of its bitmap, takes a quarter of a minute, and all ten
# leave the processor idle: so it is the limit of each array that says how long they take, and not
# the one processor that they share.
_SPEED = 2000
_NEVER = 600.0
_DROP_SECONDS = 120.0
_HEAL_SECONDS = 900.0
# All together may take so many times what the slowest takes.
_TIMES = 1.5
_COPYING = ("recover", "resync")


def many(stage: Stage) -> None:
    """Ten volumes are degraded at once, and healed in the time of the slowest, not of the sum."""
    places = [(_OTHERS[at % len(_OTHERS)], _AWAY) for at in range(_COUNT)]
    with (
        volumes_of(stage.site, _SIZE_MIB),
        copying_at(_SPEED),
        stage.volumes(places, _NEVER) as (volumes, load),
    ):
        stage.good(volumes)
        node, begin = stage.site.nodes[_AWAY], time.monotonic()
        node.cut()
        for one in volumes:
            stage.site.log.wait(DROPPED.format(array=one.array), begin, _DROP_SECONDS)
        stage.note(f"all without a leg {time.monotonic() - begin:.1f} s after the cut")
        since, back = time.time(), time.monotonic()
        node.restore()
        most = _watched(stage, volumes)
        stage.note(f"all redundant {time.monotonic() - back:.1f} s after the node was back")
        _side_by_side(stage, volumes, since, most)
        stage.quiet(load)


def _watched(stage: Stage, volumes: Sequence[Attached]) -> int:
    """Wait until all are redundant; how many were copied to at the same time, at most."""
    counts = [0]

    def done() -> bool:
        counts.append(sum(one.attribute("sync_action") in _COPYING for one in volumes))
        return stage.all_good(volumes)

    stage.wait("redundant", _HEAL_SECONDS, done)
    return max(counts)


def _side_by_side(stage: Stage, volumes: Sequence[Attached], since: float, most: int) -> None:
    found: list[dict[str, Any]] = []
    for one in volumes:
        healed = [each for each in stage.history(one) if each["start"] >= since]
        check(len(healed) == 1 and healed[0]["ok"], f"{one.array} was healed so: {healed}")
        found += healed
    each = [one["end"] - one["start"] for one in found]
    total = max(one["end"] for one in found) - min(one["start"] for one in found)
    stage.note(
        f"{len(found)} legs, {most} at once at most, in {total:.1f} s: the slowest took"
        f" {max(each):.1f} s, the fastest {min(each):.1f} s, all one by one {sum(each):.1f} s;"
        f" {total / max(each):.2f} of the slowest, {total / sum(each):.2f} of the sum"
    )
    check(most == len(volumes), f"only {most} were copied to at once")
    check(total <= _TIMES * max(each), f"{total:.1f} s in all, {max(each):.1f} s the slowest")
