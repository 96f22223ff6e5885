# SPDX-License-Identifier: Apache-2.0
"""What the rules of a plan are given, and what they say besides actions."""

from __future__ import annotations

import dataclasses

from os_brick_nvmeof.agent.model import Limits, Memory, Seen, Wanted


@dataclasses.dataclass(frozen=True)
class Note:
    """Why something is not done. ``leg`` may be ""."""

    volume: str
    leg: str
    text: str


@dataclasses.dataclass(frozen=True)
class Round:
    """The input of a plan. ``now`` in seconds since the epoch."""

    wanted: Wanted
    seen: Seen
    memory: Memory
    now: float
    limits: Limits

    def lost_for(self, leg: str) -> float:
        """Seconds since when a leg is lost; 0 when it is not."""
        return max(0.0, self.now - self.memory.lost.get(leg, self.now))

    def dead_for(self, leg: str) -> float:
        """Seconds since when a leg has no live path; 0 when it has one."""
        return max(0.0, self.now - self.memory.dead.get(leg, self.now))

    def dead(self, leg: str) -> bool:
        """Whether its path has been dead for so long that it is no blip."""
        return leg in self.memory.dead and self.dead_for(leg) >= self.limits.fail_after
