# SPDX-License-Identifier: Apache-2.0
"""A network for the agent's probes, and a clock."""

import collections
import errno
import itertools


class Now:
    """Monotonic seconds that pass when they are told to."""

    def __init__(self):
        self.value = 1000.0

    def __call__(self):
        return self.value

    def pass_by(self, seconds):
        self.value += seconds


class Net:
    """:class:`os_brick_nvmeof.agent.probes.Net`.

    :ivar delay: seconds until a portal answers, of those that do not at once; None: never.
    :ivar problem: error that the sockets of a portal end with. :ivar at_once: when they are begun.
    :ivar begun: number of sockets of a portal.
    """

    def __init__(self, now):
        self.now = now
        self.delay, self.problem, self.at_once = {}, {}, True
        self.open = {}
        self.begun = collections.Counter()
        self._keys = itertools.count(1)

    def begin(self, portal):
        self.begun[portal] += 1
        problem = self.problem.get(portal, 0)
        if problem and self.at_once and problem != errno.ECONNREFUSED:
            raise OSError(problem, "no probe")
        key = next(self._keys)
        self.open[key] = (portal, self.now())
        return key

    def ready(self, _seconds):
        return [
            (key, self.problem.get(portal, 0))
            for key, (portal, begun) in self.open.items()
            if (delay := self.delay.get(portal, 0.01)) is not None and self.now() - begun >= delay
        ]

    def end(self, key):
        del self.open[key]
