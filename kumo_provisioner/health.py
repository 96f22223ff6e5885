# SPDX-License-Identifier: Apache-2.0
"""Whether this provisioner can do its work."""

from __future__ import annotations

from kumo_client import errors
from kumo_provisioner.core import Core
from kumo_provisioner.db import schema
from kumo_provisioner.worker import Worker


def problems(core: Core, worker: Worker | None) -> list[str]:
    """Why a balancer should send no requests here; empty when all is well.

    :param worker: the background work; None when there is to be none.
    """
    if core.leaving.is_set() or core.stopping.is_set():
        return ["it is about to end"]
    found = _of_database(core)
    if worker is not None:
        found += [f"the background thread {name} has ended" for name in worker.dead()]
    if core.instances is not None and not core.instances.beating():
        found.append("its signs of life do not reach the database")
    return found


def _of_database(core: Core) -> list[str]:
    try:
        with core.db.read() as session:
            seen = schema.current(session.connection())
    except errors.KumoError as exc:
        return [exc.message]
    if seen != schema.head():
        return [f"the schema of the database is {seen or 'not there'} and must be {schema.head()}"]
    return []


def remark(core: Core) -> str:
    """What an operator has to look at although requests are served; empty for nothing."""
    known = core.stamps.known
    if known is None or not known.doubt:
        return ""
    return f"nothing is taken away from storage nodes until 'kumo restored accept': {known.reason}"


def check(core: Core, worker: Worker | None) -> None:
    """:raises NotReadyError: when a balancer should send no requests here; tells the reasons."""
    reasons = problems(core, worker)
    if reasons:
        raise errors.NotReadyError(
            f"this provisioner is not ready: {'; '.join(reasons)}", details={"reasons": reasons}
        )
