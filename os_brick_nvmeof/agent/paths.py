# SPDX-License-Identifier: Apache-2.0
"""Rules for connections: every portal has one, with the time-outs of its class. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from os_brick_nvmeof.agent import silence
from os_brick_nvmeof.agent.actions import Action, Export, Reconnect, SetTimeOuts
from os_brick_nvmeof.agent.judge import LegView, Path, View
from os_brick_nvmeof.agent.model import AVAILABLE, LIVE, TERMINATING, Controller
from os_brick_nvmeof.agent.round import Round
from os_brick_nvmeof.conf import TimeOuts


def of_volume(this: Round, view: View) -> Iterator[Action]:
    for leg in view.legs:
        yield from _time_outs(this, view, leg)
        if leg.leg.state != TERMINATING and leg.path is not Path.UNKNOWN:
            yield from _reconnect(this, view, leg)
            yield from _export(this, view, leg)


def _time_outs(this: Round, view: View, leg: LegView) -> Iterator[Action]:
    wanted = this.limits.time_outs[view.volume.io_class]
    for one in leg.controllers:
        if one.time_outs is not None and not _alike(this, one, wanted):
            yield SetTimeOuts(
                volume=view.volume.uuid,
                controller=one.name,
                nqn=one.nqn,
                io_class=view.volume.io_class,
                reason=f"{one.name} does not have the time-outs of its class",
            )


def _alike(this: Round, one: Controller, wanted: TimeOuts) -> bool:
    """Whether those are as wanted that can be changed: the keep-alive cannot.

    The one for I/O counts from the loss of the connection, so it is set while there is one. It is
    shorter while the node is in doubt.
    """
    now = one.time_outs
    if now is None:
        return False
    if one.state != LIVE or (now.fast_io_fail == 0 and silence.in_doubt(this, one)):
        wanted = dataclasses.replace(wanted, fast_io_fail=now.fast_io_fail)
    delay, loss = wanted.reconnect_delay, wanted.ctrl_loss
    # The kernel keeps it as a number of tries.
    loss = loss if loss < 0 else math.ceil(loss / delay) * delay
    return (now.reconnect_delay, now.fast_io_fail, now.ctrl_loss) == (
        delay,
        wanted.fast_io_fail,
        loss,
    )


def _reconnect(this: Round, view: View, leg: LegView) -> Iterator[Action]:
    if not leg.leg.nqn or (leg.controllers and not this.seen.multipath):
        return
    for portal in leg.leg.portals:
        if any(one.at(portal) for one in leg.controllers):
            continue
        yield Reconnect(
            volume=view.volume.uuid,
            leg=leg.uuid,
            nqn=leg.leg.nqn,
            portal=portal,
            io_class=view.volume.io_class,
            reason=f"no connection to {portal}",
        )


def _export(this: Round, view: View, leg: LegView) -> Iterator[Action]:
    """A leg that the array lacks and that its live connections do not show.

    The kernel drops a namespace that comes back with another number, and looks for the new one when
    it is told to (nvme_validate_ns() in drivers/nvme/host/core.c; seen with Linux 6.12).

    A node that this host had no leg on may refuse connections until it exports one.
    """
    if not view.volume.replicated or not leg.lost or leg.namespace is not None:
        return
    if this.seen.namespaces is None or view.volume.shared:
        return
    nodes = {} if this.wanted.stale else this.wanted.nodes
    first = not leg.controllers and nodes.get(leg.leg.node) == AVAILABLE
    if leg.path is Path.LIVE or not leg.leg.nqn or first:
        yield Export(
            volume=view.volume.uuid,
            leg=leg.uuid,
            reason="its node does not show it to this host",
        )
