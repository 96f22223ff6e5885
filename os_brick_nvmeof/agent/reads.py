# SPDX-License-Identifier: Apache-2.0
"""Reading superblocks of many devices at once, of which some may hang.

A read of a device whose node is silent ends when the kernel lets its I/O fail, which can be never.
So each has a thread of its own, and one that hangs is left behind. The device is not asked again
until that read has ended: else each look would leave one more thread.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from os_brick_nvmeof import arrays, superblock, sysfs, waiting
from os_brick_nvmeof.context import Context

# Reads that are under way at the same time, in one look.
PARALLEL = 16
_Call = waiting.Call[superblock.Content]


class Reads:
    """Superblocks of block devices. Used by several threads."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        # The last read of a device that has not ended in time.
        self._hanging: dict[str, _Call] = {}

    def of(
        self, devices: Iterable[str], deadline: waiting.Deadline
    ) -> dict[str, superblock.Content]:
        """What is on devices ("nvme0n1"), of those that tell until then.

        :raises ValueError: a superblock that makes no sense.
        """
        calls: dict[str, _Call] = {}
        for device in devices:
            if not self._hangs(device) and self._may_begin(calls, deadline):
                calls[device] = self._begin(device)
        found = {}
        for device, call in calls.items():
            if call.wait(deadline):
                found[device] = call.result()
            else:
                self._hanging[device] = call
        return found

    def _hangs(self, device: str) -> bool:
        call = self._hanging.get(device)
        if call is None or not call.ended:
            return call is not None
        self._hanging.pop(device, None)
        return False

    def _may_begin(self, calls: dict[str, _Call], deadline: waiting.Deadline) -> bool:
        """Wait until one more may be under way; False when that is not in time."""

        def free() -> bool:
            return sum(not call.ended for call in calls.values()) < PARALLEL

        return waiting.until(self._ctx, free, deadline) or False

    def _begin(self, device: str) -> _Call:
        size = sysfs.size(self._ctx.host.root, device) or 0
        path = f"/dev/{device}"
        work = functools.partial(arrays.content, self._ctx, path, size)
        return waiting.Call(self._ctx, work, f"kumo-read-{path}")
