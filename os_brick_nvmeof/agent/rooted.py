# SPDX-License-Identifier: Apache-2.0
"""What the agent does as root, in a privileged daemon of its own (oslo.privsep).

The daemon is forked while the process is root (:func:`begin`), before the process becomes an
ordinary user (:mod:`.user`). It serves that one process, over a pair of sockets that nobody else
can open, and ends with it. It can do what the functions here do and nothing else: the verbs of
``os_brick.privileged.kumo``, which look at what they are asked for, ending connections of NVMe
controllers, and the guard of a hold. os-brick's own context would run any command as root.

It stays user 0, whose files are the devices and the attributes, with the capabilities below.
"""

from __future__ import annotations

import errno
import os
import pathlib
import re
import signal
import threading
from collections.abc import Callable
from typing import Any

from os_brick import privileged
from os_brick.privileged import kumo
from oslo_config import cfg
from oslo_privsep import capabilities, daemon, priv_context

from os_brick_nvmeof import sysfs
from os_brick_nvmeof.agent import cutting, hold
from os_brick_nvmeof.agent.means import Means
from os_brick_nvmeof.agent.user import UserError
from os_brick_nvmeof.props import Portal

# Of controllers, devices and arrays; and of ending connections.
CAPABILITIES = (capabilities.CAP_SYS_ADMIN, capabilities.CAP_NET_ADMIN)
SECTION = "privsep_kumo_agent"
# Calls are quick, since verbs have threads of their own; a netlink socket may take a moment.
_THREADS = 4
_LONGEST_HOLD = 60.0
_MD = re.compile(r"/sys/class/block/md[\w.-]+/md")
_ROOT = pathlib.Path("/")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Context(priv_context.PrivContext):
    """A context whose daemon is forked once, and never started again by sudo."""

    def start(self, method: priv_context.Method = priv_context.Method.ROOTWRAP) -> None:
        if method is not priv_context.Method.FORK:
            raise BrokenPipeError("the privileged daemon of kumo-agent has ended")
        super().start(method)

    def stop(self) -> None:
        """Nothing: what is called on its channel fails by itself."""


context = _Context(
    __name__,
    cfg_section=SECTION,
    pypath=f"{__name__}.context",
    capabilities=CAPABILITIES,
    logger_name=__name__,
)


# -- in the daemon ---------------------------------------------------------------------------------


@context.entrypoint
def start(verb: str, *arguments: Any) -> kumo.Answer:
    """Begin a verb of :mod:`os_brick.privileged.kumo`; its answer, or ``("pending", ticket)``."""
    return kumo.start(verb, *arguments)


@context.entrypoint
def outcome(ticket: int) -> kumo.Answer:
    """The answer of a verb, once; ``("pending", ticket)`` while there is none."""
    return kumo.outcome(ticket)


@context.entrypoint
def forget(ticket: int) -> None:
    """Nobody waits for the answer of this one any more."""
    kumo.forget(ticket)


@context.entrypoint
def end_connections(address: str, port: str) -> int:
    """End the TCP connections to a portal of an NVMe controller; how many.

    Where no controller of this host goes to, there is nothing of ours to end.

    :raises OSError: as :func:`.cutting.cut`.
    """
    portal = Portal(address, port, "tcp")
    if not any(
        (one.transport, one.port) == (portal.transport, port)
        and sysfs.same_address(one.address, address)
        for one in sysfs.controllers(_ROOT)
    ):
        return 0
    return cutting.end(portal)


_guards: dict[int, Callable[[], None]] = {}
_lock = threading.Lock()
_last = 0


@context.entrypoint
def begin_guard(path: str, seconds: float) -> int:
    """Start the guard of a hold, :func:`.hold.shell_guard`; a ticket to call it off with.

    :raises OSError: it could not be started, or is none.
    """
    if not _MD.fullmatch(path) or not 0 < seconds <= _LONGEST_HOLD:
        raise PermissionError(errno.EPERM, f"no hold of {path} for {seconds} s is guarded")
    call_off = hold.shell_guard(path, seconds)
    global _last
    with _lock:
        _last += 1
        _guards[_last] = call_off
        return _last


@context.entrypoint
def call_off(ticket: int) -> None:
    """End a guard."""
    with _lock:
        end = _guards.pop(ticket)
    end()


# -- in the agent ----------------------------------------------------------------------------------


def begin() -> None:
    """Fork the daemon; this process must have no other thread yet.

    :raises UserError: it did not start.
    """
    # Made for one process: it can be reached no other way, and its functions run there.
    privileged.default.set_client_mode(False)
    cfg.CONF.set_override("thread_pool_size", _THREADS, group=SECTION)
    parent = os.getpid()
    # The daemon keeps them blocked: it ends with this process, not before it (Ctrl-C, systemctl
    # kill), because what is under way may need it to end well.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        context.start(priv_context.Method.FORK)
    except BaseException as error:
        if os.getpid() != parent:
            # Whatever it is, the daemon must not go on as if it were the agent.
            os._exit(1)
        if isinstance(error, daemon.FailedToDropPrivileges | OSError):
            raise UserError(
                f"the privileged daemon did not start: {error}; what it said is in the log above"
            ) from error
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def when_ended(work: Callable[[], None]) -> None:
    """Have a thread call ``work`` when the daemon has ended, which it does not before us."""
    channel = context.channel
    if channel is None:
        return
    reader = channel.reader_thread

    def wait() -> None:
        reader.join()
        work()

    threading.Thread(target=wait, name="privileged", daemon=True).start()


def means(user: str) -> Means:
    """Those of a process that has become a user. :param user: its name."""
    return Means(_end, _guard, when_ended, user)


def _end(portal: Portal) -> int:
    return int(end_connections(portal.address, portal.port))


def _guard(path: str, seconds: float) -> Callable[[], None]:
    ticket = begin_guard(path, seconds)
    return lambda: call_off(ticket)
