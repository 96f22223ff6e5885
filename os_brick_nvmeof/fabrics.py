# SPDX-License-Identifier: Apache-2.0
"""Controllers of NVMe over fabrics: connect, rescan, delete, and their time-outs.

Done as nvme-cli does it, without a process: connect options are written to /dev/nvme-fabrics
(drivers/nvme/host/fabrics.c), everything else to attributes in sysfs (drivers/nvme/host/sysfs.c).
"""

from __future__ import annotations

import errno
import functools
import math
import os
import re
from collections.abc import Iterable

from oslo_log import log as logging

from os_brick_nvmeof import conf, errors, security, sysfs, waiting
from os_brick_nvmeof.context import Context
from os_brick_nvmeof.props import Portal

LOG = logging.getLogger(__name__)

_CONNECTED = (errno.EALREADY, errno.EEXIST)
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENXIO)
_INSTANCE = re.compile(r"instance=(\d+)")
_NEVER = -1
# Options that a connection can do without where the kernel does not know them: Linux 5.11 for
# this one. Those of security are not among them.
_OPTIONAL = {"fast_io_fail_tmo"}


def connect(
    ctx: Context,
    nqn: str,
    portal: Portal,
    timeouts: conf.TimeOuts,
    deadline: waiting.Deadline | None = None,
) -> sysfs.Controller:
    """Have a live controller to a subsystem through a portal; the one that is there, if any.

    The kernel's write can block past the deadline: call it in a thread that can be left.

    :param deadline: by when the controller has to be live; ``connect_timeout`` from now if None.
    :raises UnreachableError: naming the portal.
    """
    until = deadline or waiting.Deadline(ctx.clock, ctx.conf[conf.GROUP].connect_timeout)
    if not existing(ctx, nqn, portal):
        probe(ctx, portal, until)
    return connect_answering(ctx, nqn, portal, timeouts, until)[0]


def probe(ctx: Context, portal: Portal, deadline: waiting.Deadline) -> None:
    """Whether a portal answers; one of RDMA is taken to.

    :raises UnreachableError: when it does not.
    """
    if portal.transport != "tcp":
        return
    try:
        ctx.host.probe(portal.address, portal.port, max(deadline.left, waiting.FIRST_POLL))
    except OSError as error:
        raise unreachable(portal, _reason(error)) from error


def connect_answering(
    ctx: Context,
    nqn: str,
    portal: Portal,
    timeouts: conf.TimeOuts,
    deadline: waiting.Deadline,
) -> tuple[sysfs.Controller, bool]:
    """As :func:`connect`, without a probe; and whether this very call made the controller."""
    again = False
    while True:
        found = existing(ctx, nqn, portal)
        if found:
            set_time_outs(ctx, found, timeouts)
            found = _live(ctx, found, portal, deadline)
            set_time_outs(ctx, found, timeouts)
            return found, False
        asked = security.options(ctx.conf[conf.GROUP], portal)
        try:
            security.check_known(portal, asked, functools.partial(_known, ctx))
            answer = _write(ctx, ",".join([options(ctx, nqn, portal, timeouts), *asked]))
        except OSError as error:
            # Connected by somebody else just now: look again. Not found then, it has been
            # deleted in between, so once more; or another NQN of this host made it.
            if error.errno not in _CONNECTED:
                raise _refused(ctx, portal, error) from error
            if again:
                raise unreachable(portal, "connected already, but not by this host NQN") from error
            again = True
            continue
        return _made(ctx, nqn, portal, answer, asked, deadline), True


def _made(
    ctx: Context,
    nqn: str,
    portal: Portal,
    answer: str,
    asked: list[str],
    deadline: waiting.Deadline,
) -> sysfs.Controller:
    instance = _INSTANCE.search(answer)
    made = instance and sysfs.controller(ctx.host.root, f"nvme{instance.group(1)}", nqn)
    if not made:
        raise unreachable(portal, "the new connection was lost at once")
    try:
        home = f"{ctx.host.root}/{sysfs.CONTROLLERS}/{made.name}"
        security.check_made(portal, asked, sysfs.names(home))
        return _live(ctx, made, portal, deadline)
    except errors.UnreachableError:
        delete(ctx, made)
        raise


def existing(ctx: Context, nqn: str, portal: Portal) -> sysfs.Controller | None:
    """The controller of this host to a subsystem through a portal, live or about to be."""
    return through(portal, ours(ctx, nqn))


def through(portal: Portal, controllers: Iterable[sysfs.Controller]) -> sysfs.Controller | None:
    """The first one that is connected through a portal."""
    for each in controllers:
        if (
            each.transport == portal.transport
            and each.port == portal.port
            and sysfs.same_address(each.address, portal.address)
        ):
            return each
    return None


def ours(
    ctx: Context, nqn: str, seen: Iterable[sysfs.Controller] | None = None
) -> list[sysfs.Controller]:
    """Controllers to a subsystem that this host's NQN made, but for those that are going away.

    :param seen: those of the subsystem, if they have just been read.
    """
    return [
        each
        for each in (sysfs.controllers(ctx.host.root, nqn) if seen is None else seen)
        if each.host_nqn in ("", ctx.host_nqn)
        and (each.state == sysfs.LIVE or each.state in sysfs.COMING)
    ]


def live(
    ctx: Context, nqn: str, seen: Iterable[sysfs.Controller] | None = None
) -> list[sysfs.Controller]:
    """Those of :func:`ours` that are live."""
    return [each for each in ours(ctx, nqn, seen) if each.state == sysfs.LIVE]


def waits(ctx: Context, controller: sysfs.Controller) -> bool:
    """Whether I/O to a controller that lost its node waits without end."""
    return _attribute_of(ctx, controller, "fast_io_fail_tmo") in ("off", None)


def options(ctx: Context, nqn: str, portal: Portal, timeouts: conf.TimeOuts) -> str:
    """What to write to /dev/nvme-fabrics, but for keys and TLS: :mod:`os_brick_nvmeof.security`."""
    chosen = ctx.conf[conf.GROUP]
    given: list[tuple[str, object]] = [
        ("transport", portal.transport),
        ("traddr", portal.address),
        ("trsvcid", portal.port),
        ("nqn", nqn),
        ("hostnqn", ctx.host_nqn),
        ("hostid", ctx.host_id),
        ("nr_io_queues", chosen.io_queues or ""),
        ("queue_size", chosen.queue_size),
        ("keep_alive_tmo", timeouts.keep_alive),
        ("reconnect_delay", timeouts.reconnect_delay),
        ("ctrl_loss_tmo", timeouts.ctrl_loss),
        # The kernel's own default is never.
        ("fast_io_fail_tmo", "" if timeouts.fast_io_fail < 0 else timeouts.fast_io_fail),
    ]
    for name, value in given:
        if re.search(r"[,\s]", str(value)):
            raise errors.BadPropertiesError(f"{name} holds a comma or white space")
    return ",".join(f"{name}={value}" for name, value in given if value != "")


def _write(ctx: Context, text: str) -> str:
    try:
        return ctx.host.fabrics(text)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        less = _without(text, _unknown(ctx, text))
        if less == text:
            raise
    return ctx.host.fabrics(less)


def _unknown(ctx: Context, text: str) -> set[str]:
    """Names of options in ``text`` that the kernel does not know."""
    given = {part.partition("=")[0] for part in text.split(",")}
    known = _known(ctx)
    return given & _OPTIONAL if known is None else given - known


def _known(ctx: Context) -> set[str] | None:
    """Names of the options that the kernel knows; None if it does not tell (before 5.17)."""
    try:
        return {part.partition("=")[0] for part in ctx.host.fabrics("").strip().split(",")}
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        LOG.debug("The kernel does not tell its connect options: %s", error)
        return None


def _without(text: str, unknown: set[str]) -> str:
    if unknown - _OPTIONAL:
        raise OSError(
            errno.EOPNOTSUPP, f"the kernel does not know {', '.join(sorted(unknown - _OPTIONAL))}"
        )
    if unknown:
        LOG.warning("This kernel cannot do %s: connecting without", ", ".join(sorted(unknown)))
    return ",".join(part for part in text.split(",") if part.partition("=")[0] not in unknown)


def _live(
    ctx: Context, found: sysfs.Controller, portal: Portal, deadline: waiting.Deadline
) -> sysfs.Controller:
    def settled() -> str:
        state = sysfs.state(ctx.host.root, found.name)
        return "" if state in sysfs.COMING else state or "gone"

    state = waiting.until(ctx, settled, deadline)
    if state != sysfs.LIVE:
        was = state or f"still {found.state} after {deadline.seconds:g} s"
        raise unreachable(portal, f"controller {found.name} is {was}")
    return found._replace(state=state)


def delete(ctx: Context, controller: sysfs.Controller) -> None:
    """Delete a controller with its devices; one that is gone is fine.

    Blocks until it is gone, which can be a minute and more when the node is silent (time-outs of
    outstanding commands): call it in a thread that can be left.

    :raises OSError: as the kernel answers; EBUSY when it was still being made after
        ``stop_timeout``.
    """
    deadline = waiting.Deadline(ctx.clock, ctx.conf[conf.GROUP].stop_timeout)

    def attempt() -> bool:
        try:
            _attribute(ctx, controller, "delete_controller", "1")
        except OSError as error:
            # It is being made (NVME_CTRL_STARTED_ONCE, Linux 6.11).
            if error.errno != errno.EBUSY or deadline.passed:
                raise
            return False
        return True

    waiting.until(ctx, attempt, deadline)


def rescan(ctx: Context, controller: sysfs.Controller) -> None:
    """Have the kernel look for new, changed and removed namespaces; it does so later by itself."""
    _attribute(ctx, controller, "rescan_controller", "1")


def set_time_outs(ctx: Context, controller: sysfs.Controller, timeouts: conf.TimeOuts) -> None:
    """Give a controller the time-outs of a class, those that can be changed while it is there.

    The keep-alive time-out cannot. ``fast_io_fail_tmo`` counts from the next time that the
    connection breaks, so it is left as it is while the connection is broken: see :func:`waits`.
    """
    delay = timeouts.reconnect_delay
    # The kernel keeps the time-out of the controller as a number of tries.
    loss = timeouts.ctrl_loss
    loss = loss if loss < 0 else math.ceil(loss / delay) * delay
    for name, value in (
        ("reconnect_delay", delay),
        ("ctrl_loss_tmo", loss),
        ("fast_io_fail_tmo", timeouts.fast_io_fail),
    ):
        if controller.state == sysfs.LIVE or name != "fast_io_fail_tmo":
            set_time_out(ctx, controller, name, value)


def set_time_out(ctx: Context, controller: sysfs.Controller, name: str, value: int) -> None:
    """Set one of them, in seconds, -1 for never, if it is not so already.

    A connection with other time-outs is better than none: a refusal is logged, not raised.
    """
    now = _attribute_of(ctx, controller, name)
    # Kernels before 5.11 do not have all of them.
    if now is None or now == ("off" if value < 0 else str(value)):
        return
    try:
        _attribute(ctx, controller, name, str(value))
    except OSError as error:
        LOG.warning("Cannot set %s of %s to %s: %s", name, controller.name, value, error)


def _attribute_of(ctx: Context, controller: sysfs.Controller, name: str) -> str | None:
    return sysfs.read(f"{ctx.host.root}/{sysfs.CONTROLLERS}/{controller.name}/{name}")


def _attribute(ctx: Context, controller: sysfs.Controller, name: str, value: str) -> None:
    # The number of a controller that went can be given to another one at once.
    now = sysfs.controller(ctx.host.root, controller.name, controller.nqn)
    if not now or (now.address, now.port) != (controller.address, controller.port):
        return
    try:
        ctx.host.write(f"/{sysfs.CONTROLLERS}/{controller.name}/{name}", value)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def _refused(ctx: Context, portal: Portal, error: OSError) -> errors.UnreachableError:
    """The error of a portal that answers, and of which the kernel makes no controller."""
    found = security.explain(ctx.conf[conf.GROUP], portal, error)
    if not found and error.errno in (errno.ENOENT, errno.EINVAL):
        return errors.UnreachableError(
            _reason(error),
            portal=str(portal),
            way_out=f"load the module nvme-{portal.transport}, and see the log of the kernel",
        )
    return found or unreachable(portal, _reason(error))


def unreachable(portal: Portal | None, reason: str) -> errors.UnreachableError:
    """The error of one portal, or of any if None."""
    return errors.UnreachableError(
        reason, portal=str(portal or ""), way_out="check the node and the network to it"
    )


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError) and not error.errno:
        return "no answer in time"
    if error.errno == errno.EIO:
        # Any refusal of the Connect command ends as EIO (nvme_tcp_create_ctrl).
        return "the subsystem refuses this host or its keys, or is not there"
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error))
