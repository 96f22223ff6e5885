# SPDX-License-Identifier: Apache-2.0
"""What udev is doing with block devices that have just appeared.

udevd keeps a file for each device, ``/run/udev/data/b<major>:<minor>``. It has the moment of the
device's first event ("I:", which libudev's ``udev_device_get_is_initialized()`` looks for), and is
written when all rules of that event were applied, programs that they import from included. Systemd
256 and later mark it with ``ID_PROCESSING=1`` until programs that the rules start have ended, too.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Collection

from oslo_log import log as logging

from os_brick_nvmeof import sysfs, waiting
from os_brick_nvmeof.context import Context

LOG = logging.getLogger(__name__)

DATA = "run/udev/data"
CONTROL = "run/udev/control"
# Seconds that udev gets; many devices may have appeared at once.
PATIENCE = 3.0
_POLL = 0.02
_INITIALIZED = "I:"
_PROCESSING = "E:ID_PROCESSING=1"


def settle(ctx: Context, names: Collection[str]) -> bool:
    """Wait until udev has dealt with block devices, or is not there; :data:`PATIENCE` at most.

    :param names: of the block devices.
    :returns: False when it was waited for in vain.
    """
    root = ctx.host.root
    if not (os.path.exists(f"{root}/{CONTROL}") and os.path.isdir(f"{root}/{DATA}")):
        # Neither here nor in a container that does not see the host's.
        return True
    left = list(names)

    def step() -> bool:
        left[:] = [name for name in left if not _done(root, name)]
        return not left

    deadline = waiting.Deadline(ctx.clock, PATIENCE)
    if waiting.until(ctx, step, deadline, _POLL):
        return True
    LOG.info("udev has not dealt with %s after %g s", ", ".join(left), deadline.seconds)
    return False


def _done(root: pathlib.Path, name: str) -> bool:
    """Whether nothing of udev is to be awaited for a device: also when that cannot be told."""
    try:
        number = sysfs.read(f"{root}/{sysfs.BLOCK}/{name}/dev")
        if number is None:
            return True
        lines = (sysfs.read(f"{root}/{DATA}/b{number}") or "").splitlines()
    except OSError as error:
        LOG.debug("What udev does with %s cannot be told: %s", name, error)
        return True
    return _PROCESSING not in lines and any(line.startswith(_INITIALIZED) for line in lines)
