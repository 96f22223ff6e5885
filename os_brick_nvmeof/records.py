# SPDX-License-Identifier: Apache-2.0
"""Which namespaces of a subsystem this host has attached, and which it has let go.

A target lists a namespace for as long as the volume is published to the host, which begins before
the attach and ends after the detach. So what is listed does not tell whether the connection is
still needed. The connectors of a host write down what they did, in one small file for each
subsystem in the lock directory; the lock of the subsystem is held meanwhile. A namespace without
a record was attached by somebody else, or by nobody: it counts as attached.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable

from oslo_log import log as logging

from os_brick_nvmeof import sysfs
from os_brick_nvmeof.context import Context

LOG = logging.getLogger(__name__)

FILE = "os-brick-kumo-subsystem-"
ATTACHED = "attached"
RELEASED = "released"
_BOOT_ID = "proc/sys/kernel/random/boot_id"
# Of hosts without a lock directory: one process alone.
_memory: dict[tuple[str, str], dict[str, str]] = {}


def of(ctx: Context, nqn: str) -> dict[str, str]:
    """UUID of a namespace -> :data:`ATTACHED` or :data:`RELEASED`."""
    if ctx.locks.directory is None:
        return dict(_memory.get((str(ctx.host.root), nqn), {}))
    try:
        with open(_path(ctx, nqn), encoding="utf-8") as file:
            kept = json.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        LOG.warning("Records of subsystem %s cannot be read: %s", nqn, error)
        return {}
    # Nothing is attached when a host has just started.
    if not isinstance(kept, dict) or kept.get("boot") != _boot(ctx):
        return {}
    return dict(kept.get("namespaces") or {})


def note(
    ctx: Context, nqn: str, uuids: Iterable[str], what: str, listed: Iterable[str] | None = None
) -> None:
    """Write down what was done with namespaces.

    :param listed: UUIDs that the subsystem offers now, if known: records of others that were
        released are dropped, since those were released for good.
    :raises OSError: when neither new records can be written nor old ones removed.
    """
    uuids = set(uuids)
    before = of(ctx, nqn)
    # One that is being attached may not be listed yet.
    keep = uuids.union(before if listed is None else listed)
    now = {uuid: did for uuid, did in before.items() if uuid in keep or did == ATTACHED}
    now.update(dict.fromkeys(uuids, what))
    if now != before:
        _write(ctx, nqn, now)


def forget(ctx: Context, nqn: str) -> None:
    """Drop all records of a subsystem: it is not connected any more."""
    _write(ctx, nqn, {})


def _write(ctx: Context, nqn: str, namespaces: dict[str, str]) -> None:
    if ctx.locks.directory is None:
        _memory[str(ctx.host.root), nqn] = namespaces
        return
    path = _path(ctx, nqn)
    try:
        if namespaces:
            with open(f"{path}.new", "w", encoding="utf-8") as file:
                json.dump({"boot": _boot(ctx), "nqn": nqn, "namespaces": namespaces}, file)
            os.replace(f"{path}.new", path)
            return
    except OSError as error:
        # Without records a connection may stay that nobody needs; none that is needed is lost.
        LOG.warning("Records of subsystem %s cannot be written: %s", nqn, error)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _path(ctx: Context, nqn: str) -> str:
    name = FILE + hashlib.sha256(nqn.encode()).hexdigest()[:24]
    return os.path.join(str(ctx.locks.directory), name)


def _boot(ctx: Context) -> str:
    return sysfs.read(f"{ctx.host.root}/{_BOOT_ID}") or ""
