# SPDX-License-Identifier: Apache-2.0
"""Handing on what the connector wrote down of arrays that were stopped in order.

The provisioner takes it once the volume is published to this host no more, and until it is
published again: so it is asked often for a while after an array was stopped.
"""

from __future__ import annotations

from collections.abc import Callable

from oslo_log import log

from os_brick_nvmeof import stopped
from os_brick_nvmeof.agent.model import Wanted
from os_brick_nvmeof.agent.vendor import Vendor, VendorError
from os_brick_nvmeof.locks import Locks

LOG = log.getLogger(__name__)
# Seconds after an array was stopped in which the end of its publication is waited for.
HURRY = 60.0


class LastWords:
    """:param clock: seconds. Used by the rounds (:meth:`news`) and by who asks the provisioner."""

    def __init__(self, locks: Locks, vendor: Vendor, clock: Callable[[], float]) -> None:
        self._locks, self._vendor, self._clock = locks, vendor, clock
        self._seen: frozenset[tuple[str, int]] = frozenset()
        self._since: dict[stopped.Stopped, float] = {}

    def news(self) -> bool:
        """Whether something was written down since the last call."""
        try:
            now = stopped.marks(self._locks)
        except OSError as error:
            LOG.error("Whether arrays were stopped cannot be told: %s", error)
            return False
        new, self._seen = now - self._seen, now
        return bool(new)

    @property
    def urgent(self) -> bool:
        """Whether the provisioner is to be asked again soon."""
        now = self._clock()
        return any(0 <= now - since < HURRY for since in self._since.values())

    def send(self, wanted: Wanted) -> None:
        """Tell what can be told now.

        :param wanted: an answer of this moment.
        """
        try:
            known = stopped.known(self._locks)
            self._since = {one: self._since.get(one, self._clock()) for one in known}
            for one in known:
                if wanted.volume(one.volume) is None and self._said(one):
                    self._drop(one)
        except VendorError as error:
            # Each further one might be waited for as long, and nothing else be asked meanwhile.
            LOG.debug("What is known of stopped arrays is told later: %s", error)
        except OSError as error:
            LOG.error("What is known of stopped arrays cannot be handed on: %s", error)

    def _said(self, one: stopped.Stopped) -> bool:
        """Whether it is told, or never will be.

        :raises VendorError: nobody answers.
        """
        try:
            done = self._vendor.last_word(one)
        except VendorError as error:
            if error.away:
                raise
            level = LOG.warning if error.definite else LOG.debug
            level("The last word of the array of %s was not taken: %s", one.volume, error)
            return error.definite
        if done:
            LOG.info("The end of the array of %s is told", one.volume)
        return done

    def _drop(self, one: stopped.Stopped) -> None:
        self._since.pop(one, None)
        try:
            if stopped.read(self._locks, one.volume) == one:
                stopped.forget(self._locks, one.volume)
        except FileNotFoundError:
            # The volume is being attached again.
            return
