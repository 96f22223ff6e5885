# SPDX-License-Identifier: Apache-2.0
"""What the nodes are asked for to copy a replica from one to the other.

Every step can be repeated: what has been done is found to be done.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from oslo_log import log
from sqlalchemy.orm import Session

from kumo_client import errors, naming
from kumo_client.api.node import Node
from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.common import Portal
from kumo_client.schemas.node import CopySpec
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address, Call
from kumo_provisioner.services import exports, newleg

LOG = log.getLogger(__name__)
DONE, FAILED = "done", "failed"


@dataclasses.dataclass(frozen=True)
class Ends:
    """Both ends of a copy, and the calls they need."""

    old: models.Replica
    new: models.Replica
    source: Address
    destination: Address
    host_nqn: str
    io_class: str
    put: Call[Any]
    spec: CopySpec
    states: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Step:
    """How far a copy is, in percent; a transient error means that it is to be looked at again."""

    progress: float = 0.0
    done: bool = False
    error: errors.KumoError | None = None


def ends(session: Session, task: models.Task) -> Ends | str:
    """Both ends of the copy of a task, or why it has lost one."""
    old = session.get(models.Replica, task.replica_id)
    new = session.get(models.Replica, task.new_replica_id)
    if old is None or new is None:
        return "the volume, or one of the replicas, was deleted"
    nqn = naming.node_host_nqn(new.backend_id)
    io_class = naming.io_class(old.volume.num_replicas)
    return Ends(
        old=old,
        new=new,
        source=Address.of(old.backend),
        destination=Address.of(new.backend),
        host_nqn=nqn,
        io_class=io_class,
        put=newleg.put_call(new),
        spec=CopySpec(
            source_replica=old.uuid,
            subsystem_nqn=naming.subsystem_nqn(old.backend_id, nqn, io_class),
            host_nqn=nqn,
            portals=[Portal.model_validate(portal) for portal in old.backend.portals],
            bytes=old.bytes,
        ),
        states={one.backend_id: one.backend.state for one in (old, new)},
    )


def hopeless(ends: Ends) -> str:
    """Why a copy cannot go on; empty when it can. A node reads from a dead one for ever."""
    for backend_id, state in ends.states.items():
        if state != AVAILABLE:
            return f"storage node {backend_id} is {state}"
    return ""


def look(core: Core, ends: Ends) -> Step:
    """See how far a copy is, and begin it when it has not begun."""

    def ask(node: Node) -> Any:
        return node.copy(ends.new.uuid)

    found = core.nodes.call((ends.destination, ask))
    if isinstance(found.error, errors.NotExistsError):
        found = _begin(core, ends)
    if found.error is not None or found.value is None:
        return Step(error=found.error)
    copy = found.value
    if copy.state == FAILED:
        reason = f"the copy failed on node {ends.destination}: {copy.reason}"
        return Step(error=errors.NotAvailableError(reason, node=ends.new.backend_id))
    progress = 100.0 * copy.copied / copy.bytes if copy.bytes else 0.0
    return Step(progress=progress, done=copy.state == DONE)


def _begin(core: Core, ends: Ends) -> Any:
    export = exports.export_call(ends.old.uuid, ends.host_nqn, ends.io_class)
    made = core.nodes.call_all({"put": ends.put, "export": (ends.source, export)})
    for outcome in made.values():
        if outcome.error is not None:
            return outcome

    def begin(node: Node) -> Any:
        return node.put_copy(ends.new.uuid, ends.spec)

    return core.nodes.call((ends.destination, begin))


def clean(core: Core, ends: Ends, *, exported: bool) -> None:
    """Take away what a copy needed. What cannot be asked for now is left to a reconcile.

    :param exported: the source stays, and its export has to go.
    """

    def forget(node: Node) -> Any:
        return node.delete_copy(ends.new.uuid)

    calls: dict[str, Call[Any]] = {}
    if ends.states[ends.new.backend_id] == AVAILABLE:
        calls["The copy"] = (ends.destination, forget)
    if exported and ends.states[ends.old.backend_id] == AVAILABLE:
        unexport = exports.unexport_call(ends.old.uuid, ends.host_nqn)
        calls["The export"] = (ends.source, unexport)
    for what, outcome in core.nodes.call_all(calls).items():
        if outcome.error is not None:
            LOG.warning(
                "The %s of replica %s stays for now: %s", what, ends.new.uuid, outcome.error
            )
            core.wake.set()
