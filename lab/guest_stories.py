# SPDX-License-Identifier: Apache-2.0
"""Plays stories of healing inside a virtual machine, one after the other, as root.

``python -m lab.guest_stories SEED STORY...``; writes one line of JSON for each: ``story``,
``seconds`` (virtual ones), ``notes``, and ``error`` when it failed, with which it ends.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from bench.guest_site import Site
from lab import guest_evidence, guest_story_many, guest_story_paths, guest_story_power
from lab.guest_brick import LOCKS
from lab.guest_remote import Agent
from lab.guest_stage import Stage
from os_brick_nvmeof.agent import conf, main

NODES = 6
SIZE_MIB = 256
_CONFIG = Path("/run/kumo-stories.conf")
_LIMITS = {"min": 50_000, "max": 200_000}
STORIES: dict[str, Callable[[Stage], None]] = {
    "flapping": guest_story_paths.flapping,
    "both-brief": guest_story_paths.brief,
    "both-long": guest_story_paths.long,
    "third": guest_story_paths.third,
    "power": guest_story_power.power,
    "slow": guest_story_power.slow,
    "many": guest_story_many.many,
}


def play(stage: Stage, name: str) -> bool:
    """One story, and what is told of it; whether it went well."""
    stage.told.clear()
    begin, error = time.monotonic(), ""
    try:
        STORIES[name](stage)
    except Exception as problem:  # noqa: BLE001 - it is told, and the run ends
        traceback.print_exc()
        error = f"{type(problem).__name__}: {problem}"
    told = {"story": name, "seconds": time.monotonic() - begin, "notes": stage.told}
    print(json.dumps(told | ({"error": error} if error else {})), flush=True)
    return not error


def start(seed: int, names: list[str]) -> int:
    """Entry point. What an earlier run in the same machine has left is removed first."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    _CONFIG.write_text(f"[kumo_agent]\nlock_path = {LOCKS}\nhost_id = stories\n")
    guest_evidence.clear()
    agent = Agent(str(_CONFIG))
    agent.start()
    site = Site(main.context(conf.load([str(_CONFIG)])), SIZE_MIB, NODES)
    for name, value in _LIMITS.items():
        Path(f"/proc/sys/dev/raid/speed_limit_{name}").write_text(str(value))
    stage = Stage(site, agent, seed)
    well = all(play(stage, name) for name in names)
    agent.stop()
    return int(not well)


if __name__ == "__main__":
    code = 1
    try:
        code = start(int(sys.argv[1]), sys.argv[2:])
    except Exception:  # noqa: BLE001 - it is told, and the run ends
        traceback.print_exc()
    # Threads that wait for the kernel, or the agent, would keep the process from ending.
    os._exit(code)
