# SPDX-License-Identifier: Apache-2.0
"""Background work: what is done again and again, by one instance at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from kumo_provisioner.core import Core


@dataclasses.dataclass(frozen=True)
class Duty:
    """Something to do every ``interval`` seconds.

    :ivar name: its lease is ``duty:<name>``; only the instance that holds it does the work.
    :ivar run: one round; it ends soon, and what it could not do is left for the next one.
    :ivar interval: seconds between two rounds, from the configuration.
    """

    name: str
    run: Callable[[Core], object]
    interval: Callable[[Core], float]
