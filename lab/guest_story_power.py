# SPDX-License-Identifier: Apache-2.0
"""Stories of one node: it loses power under each kind of load; it is merely slow."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from bench.guest_log import BEGUN, DROPPED, LIVE
from bench.guest_site import Attached
from kumo_client.schemas.volume import REPLICA_MISSING
from lab import guest_remote
from lab.guest_stage import Stage, check
from lab.guest_verified import Load

# Writers and readers.
_LOADS = {"writes": (4, 0), "reads": (0, 4), "both": (3, 3)}
_MIB = 1 << 20
# One bit of md's bitmap stands for 64 MiB.
_VOLUME_MIB = 2048
_NEVER = 600.0
_STALL_SECONDS = 4.0
_TOLD_SECONDS = 1.0
_ADDED_SECONDS = 5.0
_PART = 0.05
_DROP_SECONDS = 60.0
_GONE_SECONDS = 5.0
_LOOK = 0.02
_PAUSES, _PAUSE = 5, 1.5
_DELAYS = (0.3, 0.8)
_DELAYED_SECONDS = 20.0
_CUT = "Ended"
# The agent does not cut a node off twice within this (Limits.cut_pause).
_AGAIN_SECONDS = 31.0


def power(stage: Stage) -> None:
    """A node loses power under writes, under reads and under both, and comes back."""
    small = stage.site.size
    stage.site.size = _VOLUME_MIB * _MIB
    try:
        for name, jobs in _LOADS.items():
            with stage.volumes([(0, 1)], _NEVER, jobs=jobs) as (volumes, load):
                stage.good(volumes)
                time.sleep(_AGAIN_SECONDS)
                load.ask("take")
                _power(stage, name, volumes[0], load)
    finally:
        stage.site.size = small


def _power(stage: Stage, name: str, volume: Attached, load: Load) -> None:
    at = _read_most(volume)
    node, leg, device = stage.site.nodes[at], volume.volume.legs[at].uuid, volume.devices[at]
    begin = time.monotonic()
    node.cut()
    dropped = stage.site.log.wait(DROPPED.format(array=volume.array) + device, begin, _DROP_SECONDS)
    told = _moment(lambda: _recorded(stage, volume, leg) == REPLICA_MISSING, _DROP_SECONDS)
    time.sleep(_GONE_SECONDS)
    back = time.monotonic()
    node.restore()
    live = stage.site.log.wait(LIVE, back, _DROP_SECONDS)
    added = stage.site.log.wait(BEGUN.format(array=volume.array), live, _DROP_SECONDS)
    good = stage.good([volume])
    seen = stage.quiet(load)
    longest = max(one["longest"] for one in seen.values())
    (entry,) = stage.history(volume)
    part = entry["bytes"] / stage.site.size
    stage.note(
        f"{name}: dropped after {dropped - begin:.2f} s, Missing {told - dropped:.2f} s later,"
        f" longest I/O {longest:.2f} s; back by bitmap {added - live:.2f} s after the connection,"
        f" {100 * part:.1f} % written, redundant {good:.1f} s after that"
    )
    check(longest < _STALL_SECONDS, f"{name}: an I/O took {longest:.1f} s")
    check(told - dropped < _TOLD_SECONDS, f"{name}: Missing after {told - dropped:.2f} s")
    check(added - live < _ADDED_SECONDS, f"{name}: put back after {added - live:.2f} s")
    check(entry["kind"] == "partial" and part < _PART, f"{name}: copied {entry}")


def _read_most(volume: Attached) -> int:
    """The leg that md reads from: Documentation/block/stat.rst, the first number is reads."""
    reads = [
        int((Path("/sys/block") / device / "stat").read_text().split()[0])
        for device in volume.devices
    ]
    return reads.index(max(reads))


def _recorded(stage: Stage, volume: Attached, leg: str) -> str:
    wanted = stage.provisioner.pull(None, time.time())  # type: ignore[arg-type]
    (one,) = [each for each in wanted.volumes if each.uuid == volume.volume.uuid]
    return next(each.state for each in one.legs if each.uuid == leg)


def _moment(done: Callable[[], bool], seconds: float) -> float:
    """When something was so."""
    end = time.monotonic() + seconds
    while not done():
        check(time.monotonic() < end, f"not so in {seconds:.0f} s")
        time.sleep(_LOOK)
    return time.monotonic()


def slow(stage: Stage) -> None:
    """A node stands still for a moment, and one answers late: neither is cut off or dropped."""
    with stage.volumes([(0, 1)], _NEVER) as (volumes, load):
        stage.good(volumes)
        (volume,), node = volumes, stage.site.nodes[1]
        begin, log = time.monotonic(), Path(guest_remote.LOG)
        before = log.read_text().count(_CUT)
        for _ in range(_PAUSES):
            node.cut()
            time.sleep(_PAUSE)
            node.restore()
            time.sleep(stage.dice.uniform(1.0, 4.0))
        stage.note(f"{_PAUSES} pauses of {_PAUSE} s: {_waits(stage, load)}")
        for delay in _DELAYS:
            node.delay(delay)
            time.sleep(_DELAYED_SECONDS)
            node.delay(0.0)
            stage.note(f"answers {1000 * delay:.0f} ms late: {_waits(stage, load)}")
        check(log.read_text().count(_CUT) == before, "the agent cut it off")
        dropped = stage.site.log.find(DROPPED.format(array=volume.array), begin)
        check(dropped is None, "a leg was dropped")
        stage.good(volumes)


def _waits(stage: Stage, load: Load) -> str:
    seen = stage.quiet(load)
    stage.told.pop()
    return ", ".join(f"longest {name} {one['longest']:.2f} s" for name, one in seen.items())
