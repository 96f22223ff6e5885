# SPDX-License-Identifier: Apache-2.0
"""Making volumes and snapshots on nodes: intent, do, commit.

The rows are committed, with the uuid of every object on a node, before a node is asked. When all
nodes have done their part the object becomes ``available``. Otherwise its parts are moved to the
list of removals, and so nothing is left of it for users at once, and on the nodes as soon as they
can be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from oslo_log import log
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.api.node import Node
from kumo_client.schemas.backend import AVAILABLE
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address, Call, Outcome
from kumo_provisioner.services import removals

LOG = log.getLogger(__name__)

Retire = Callable[[Session], list[str]]


def build(
    core: Core,
    calls: Mapping[str, Call[Any]],
    commit: Callable[[], object],
    retire: Retire,
    name: str,
) -> None:
    """Make all parts of an object, or none.

    :param calls: what to ask of which node, by the uuid of the part.
    :param commit: records that the object is there.
    :param retire: moves what there is of it to the list of removals.
    :raises KumoError: the error of the first node that failed, after everything was undone.
    """
    outcomes = core.nodes.call_all(calls)
    failed = first_error(outcomes)
    if failed is None:
        commit()
        LOG.debug("Created %s", name)
        return
    LOG.warning("Creation of %s failed and is undone: %s", name, failed)
    with core.db.write() as session:
        parts = retire(session)
    dead = silent(calls, outcomes)
    removals.carry_out(core, parts, leave=dead)
    if dead:
        core.wake.set()
    raise failed


def silent(calls: Mapping[str, Call[Any]], outcomes: Mapping[str, Outcome[Any]]) -> set[str]:
    """Ids of the backends that gave no answer in the time of a call: a second call would wait as
    long again."""
    return {
        calls[key][0].backend_id
        for key, outcome in outcomes.items()
        if isinstance(outcome.error, errors.BackendUnavailableError) and outcome.error.transient
    }


def first_error(outcomes: Mapping[Any, Outcome[Any]]) -> errors.KumoError | None:
    """The most telling error: a definite refusal before an unknown outcome."""
    failed = [outcome for outcome in outcomes.values() if outcome.error is not None]
    failed.sort(key=lambda outcome: outcome.unknown)
    error = failed[0].error if failed else None
    if isinstance(error, errors.NotExistsError):
        # To a client this would say that its volume does not exist.
        return errors.ConflictError(
            f"storage node {error.node} lacks what it should hold: {error.message}",
            node=error.node,
            way_out="look at the states of the replicas, and at the log of the node",
        )
    return error


def retire_volume(uuid: str) -> Retire:
    def retire(session: Session) -> list[str]:
        row = session.get(models.Volume, uuid)
        return [] if row is None else removals.retire_volume(session, row)

    return retire


def retire_snapshot(uuid: str) -> Retire:
    def retire(session: Session) -> list[str]:
        row = session.get(models.Snapshot, uuid)
        return [] if row is None else removals.retire_snapshot(session, row)

    return retire


def need_available(backend: models.Backend) -> None:
    """Refuse early what needs a node that is down.

    :raises BackendUnavailableError: when it is.
    """
    if backend.state != AVAILABLE:
        raise errors.BackendUnavailableError(
            f"storage node {backend.name or backend.persistent_id} is {backend.state}",
            node=backend.persistent_id,
            way_out="repeat the call when the node is back",
        )


def put_replica(address: Address, uuid: str, spec: Any) -> Call[Any]:
    def call(node: Node) -> Any:
        return node.put_replica(uuid, spec)

    return address, call


def put_snapshot(backend: models.Backend, uuid: str, spec: Any) -> Call[Any]:
    def call(node: Node) -> Any:
        return node.put_snapshot(uuid, spec)

    return Address.of(backend), call
