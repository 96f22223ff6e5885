# SPDX-License-Identifier: Apache-2.0
"""What stories about the whole agent have in common."""

import dataclasses

from os_brick_nvmeof.agent import loop
from os_brick_nvmeof.agent.means import Means
from os_brick_nvmeof.agent.store import Store
from tests.fakes.agent_world import LIMITS
from tests.unit.brick.volumes import LEGS

A, B, C, D = LEGS
GOOD = ("Available", "fresh")


class Run:
    """The agent, one round after the other, in this thread."""

    def __init__(self, host, path, **limits):
        self.host, self.path = host, path
        self.limits = dataclasses.replace(LIMITS, **limits)
        self.guarded = []
        # Whether what waits to be told is sent in each round.
        self.tells = True
        self.start()

    def start(self):
        """A new process."""
        self.agent = loop.Agent(
            self.host.ctx,
            self.host.storage,
            Store(self.path / "state"),
            self.limits,
            means=Means(guard=self.guard),
            publish=lambda shown: self.shown.update(shown),
            clock=lambda: 1_000_000.0 + self.host.kernel.sim.now,
        )
        self.shown = {}

    def guard(self, path, seconds):
        self.guarded.append((path, seconds))
        return lambda: self.guarded.append("off")

    def round(self, seconds=1.0):
        self.agent.asking.pull()
        made = self.agent.round()
        done = []
        for action in made.actions:
            done.append(action.kind)
            self.agent.perform(action)
        if self.tells:
            self.agent.messages.send()
        self.host.settle(seconds)
        return done

    def rounds(self, number, seconds=1.0):
        return [kind for _ in range(number) for kind in self.round(seconds)]

    def lose(self):
        """After two quiet rounds leg B is lost, and the array written."""
        self.rounds(2)
        self.host.hide(1)
        self.host.md.write("md127", b"second")

    def volume(self):
        return self.shown["volumes"][0]


def records(host):
    return {one.uuid: (one.state, one.freshness) for one in host.storage.records}
