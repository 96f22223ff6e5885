# SPDX-License-Identifier: Apache-2.0
"""How the agent does what needs root, beside the verbs of :mod:`os_brick_nvmeof.host`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from os_brick_nvmeof.agent import cutting, hold
from os_brick_nvmeof.props import Portal


def _never(_work: Callable[[], None]) -> None:
    """There is no daemon that could end."""


@dataclasses.dataclass(frozen=True)
class Means:
    """:ivar end: ends the connections to a portal, as :func:`.cutting.end`.
    :ivar guard: of a hold of writes.
    :ivar when_lost: has its argument called when the means are there no more.
    :ivar user: name of the user that the process is; "" when it is who has started it.
    """

    end: Callable[[Portal], int] = cutting.end
    guard: hold.Guard = hold.shell_guard
    when_lost: Callable[[Callable[[], None]], None] = _never
    user: str = ""


# The process does it itself.
HERE = Means()
