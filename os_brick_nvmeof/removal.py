# SPDX-License-Identifier: Apache-2.0
"""Deleting controllers, with proof that their devices are gone.

The kernel deletes a controller in this order (nvme_do_delete_ctrl in drivers/nvme/host/core.c):
its state becomes "deleting", so that no new I/O waits for it and connecting anew is possible; its
block devices go; then it takes leave of the node, which takes a minute and more when the node
is silent. Who waits for the last part waits for nothing.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

from oslo_log import log as logging

from os_brick_nvmeof import errors, fabrics, sysfs, waiting
from os_brick_nvmeof.context import Context

LOG = logging.getLogger(__name__)

# Seconds that a controller has to go before its node is taken to be silent.
SILENT = 2.0
_DELETING = ("deleting", "deleting (no IO)", "dead")


def begin(ctx: Context, controllers: Sequence[sysfs.Controller]) -> list[waiting.Call[None]]:
    """Delete controllers at once, and wait for those of nodes that answer.

    Returns when all are gone, and after :data:`SILENT` seconds at most, so that it can be called
    with the subsystem's lock held.
    """
    calls = [
        waiting.Call(ctx, functools.partial(fabrics.delete, ctx, each), f"kumo-delete-{each.name}")
        for each in controllers
    ]
    deadline = waiting.Deadline(ctx.clock, SILENT)
    for call in calls:
        call.wait(deadline)
    return calls


def prove(
    ctx: Context,
    controllers: Sequence[sysfs.Controller],
    calls: Sequence[waiting.Call[None]],
    devices: Sequence[str],
    deadline: waiting.Deadline,
) -> None:
    """Wait until the controllers that :func:`begin` deletes are gone, and the block devices.

    A controller that only takes leave of a silent node is as good as gone.

    :param devices: names of block devices, "nvme0n1".
    :raises StillInUseError: naming what is left, with the kernel's reason if it gave one.
    """

    def gone() -> bool:
        refused = all(call.error for call in calls) and bool(calls)
        return refused or not _left(ctx, controllers, devices)

    waiting.until(ctx, gone, deadline)
    refused = "; ".join(str(call.error) for call in calls if call.error)
    left = _left(ctx, controllers, devices)
    if left:
        raise errors.StillInUseError(
            f"{', '.join(left)} not gone after {deadline.seconds:g} s {refused}".rstrip(),
            way_out="find who holds it open, then detach again",
        )
    for each in controllers:
        if _is(ctx.host.root, each):
            LOG.warning("Controller %s still takes leave of %s", each.name, each.address)


def _left(
    ctx: Context, controllers: Sequence[sysfs.Controller], devices: Sequence[str]
) -> list[str]:
    root = ctx.host.root
    return [name for name in devices if sysfs.size(root, name) is not None] + [
        each.name
        for each in controllers
        if _is(root, each) and sysfs.state(root, each.name) not in ("", *_DELETING)
    ]


def _is(root: pathlib.Path, controller: sysfs.Controller) -> bool:
    """Whether it is there: its number may have been given to another one."""
    now = sysfs.controller(root, controller.name, controller.nqn)
    return now is not None and now[:6] == controller[:6]
