# SPDX-License-Identifier: Apache-2.0
"""Volumes with one replica: the namespace itself is the device.

Who calls holds the volume's lock. Every function can be repeated.
"""

from __future__ import annotations

from oslo_log import log as logging

from os_brick_nvmeof import conf, errors, fabrics, sysfs, waiting
from os_brick_nvmeof import paths as legs
from os_brick_nvmeof.context import Context
from os_brick_nvmeof.props import Leg, Volume

LOG = logging.getLogger(__name__)


def attach(ctx: Context, volume: Volume) -> str:
    """Have the volume as a block device.

    :returns: its path, "/dev/nvme0n1".
    :raises UnreachableError: no portal could be connected in time.
    :raises NamespaceMissingError: the node does not have the volume.
    :raises OSError: sysfs or the lock directory cannot be used.
    """
    outcome = legs.connect_legs(ctx, volume, [_leg(volume)])[0]
    if outcome.device:
        return outcome.device.path
    try:
        legs.undo(ctx, [outcome])
    except (errors.KumoBrickError, OSError) as error:
        LOG.warning("What a failed attach of %s connected stays: %s", volume, error)
    raise outcome.error or errors.UnreachableError("no device", volume=volume.uuid)


def detach(ctx: Context, volume: Volume, force: bool = False) -> None:
    """Write out what is cached, and let the volume go; fine when it is not there.

    :param force: also when the data cannot be written out or a device is made of it; that error
        is raised when the volume is gone.
    :raises StillInUseError: somebody uses it, or it could not be written out; without ``force``
        nothing was undone.
    :raises OSError: sysfs or the lock directory cannot be used.
    """
    leg = _leg(volume)
    device = sysfs.find(ctx.host.root, leg.nqn, leg.uuid)
    lost = None
    if device:
        try:
            _flush(ctx, volume, leg, device.name, force)
        except errors.StillInUseError as error:
            if not force:
                raise
            lost = error
    legs.release_legs(ctx, volume, [leg], force)
    if lost:
        raise lost


def _flush(ctx: Context, volume: Volume, leg: Leg, name: str, force: bool) -> None:
    held = sysfs.holders(ctx.host.root, name)
    reason = f"{', '.join(held)} is made of {name}" if held else ""
    if not held:
        live = fabrics.live(ctx, leg.nqn)
        options = ctx.conf[conf.GROUP]
        seconds = options.stop_timeout
        if not live:
            LOG.info("No connection of %s is live: its last writes have to wait for one", volume)
            seconds = min(seconds, options.connect_timeout) if force else seconds
        for each in live if force else ():
            # Otherwise a write to a node that falls silent waits until the node is back.
            fabrics.set_time_out(ctx, each, "fast_io_fail_tmo", 0)
        call = waiting.Call(ctx, lambda: ctx.host.flush(f"/dev/{name}"), f"kumo-flush-{name}")
        if not call.wait(waiting.Deadline(ctx.clock, seconds)):
            reason = f"cached writes to {name} are not written out after {seconds:g} s"
        elif isinstance(call.error, FileNotFoundError):
            return
        elif call.error:
            reason = f"cached writes to {name} cannot be written out: {call.error}"
    if reason:
        raise errors.StillInUseError(
            reason,
            volume=volume.uuid,
            leg=leg.uuid,
            node=leg.node,
            portal=", ".join(str(each) for each in leg.portals),
            way_out="bring the node back, or detach by force and lose those writes",
        )


def extend(ctx: Context, volume: Volume) -> int:
    """Let the host see the new size of an attached volume.

    The properties may be older than the resize, so the target is asked how large it is.

    :returns: bytes.
    :raises NamespaceMissingError: the volume is not attached here.
    :raises SizeError: the size could not be told, or did not show in time.
    """
    leg = _leg(volume)
    device = legs.usable(ctx, leg)
    if not device:
        raise errors.NamespaceMissingError(
            "it is not attached to this host, or its connection is lost",
            volume=volume.uuid,
            leg=leg.uuid,
            node=leg.node,
            way_out="attach it first",
        )
    return legs.grown(ctx, device, max(volume.size, legs.offered_size(ctx, device)))


def paths(ctx: Context, volume: Volume) -> list[str]:
    """Paths of the volume's block devices on this host: one, or none."""
    leg = _leg(volume)
    found = sysfs.find(ctx.host.root, leg.nqn, leg.uuid)
    return [f"/dev/{found.name}"] if found else []


def _leg(volume: Volume) -> Leg:
    """The replica that is handed out."""
    return next((leg for leg in volume.legs if leg.nqn), volume.legs[0])
