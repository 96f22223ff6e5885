# SPDX-License-Identifier: Apache-2.0
"""Taking objects away from nodes.

:func:`retire_volume` and :func:`retire_snapshot` move the parts of an object to the list of
removals inside the transaction of the caller; :func:`carry_out` asks the nodes. What a node does
not confirm stays on the list and is carried out by a later reconcile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from oslo_log import log
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.api.node import Node
from kumo_client.schemas.backend import UNAVAILABLE
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address, Call
from kumo_provisioner.services import capacity, restored, tenants

LOG = log.getLogger(__name__)
DAY_MS = 86_400_000
# One short transaction.
FORGET_AT_ONCE = 500


def retire_volume(session: Session, volume: models.Volume) -> list[str]:
    """Delete the rows of a volume and list its replicas for removal; gives their uuids."""
    for replica in sorted(volume.replicas, key=lambda one: one.backend_id):
        session.add(capacity.retire(session, models.REPLICA, replica))
    uuids = [replica.uuid for replica in volume.replicas]
    tenants.give_back(session, volume)
    session.delete(volume)
    session.flush()
    return uuids


def retire_snapshot(session: Session, snapshot: models.Snapshot) -> list[str]:
    """Delete the rows of a snapshot and list its parts for removal; gives their uuids."""
    for part in sorted(snapshot.parts, key=lambda one: one.backend_id):
        session.add(capacity.retire(session, models.SNAPSHOT, part))
    uuids = [part.uuid for part in snapshot.parts]
    session.delete(snapshot)
    session.flush()
    return uuids


def retire_part(session: Session, part: models.SnapshotPart) -> str:
    """Delete the row of one part of a snapshot and list it for removal; gives its uuid."""
    session.add(capacity.retire(session, models.SNAPSHOT, part))
    part.snapshot.parts.remove(part)
    session.flush()
    return part.uuid


def retire_replica(session: Session, replica: models.Replica) -> str:
    """Delete the row of one replica of a volume and list it for removal; gives its uuid."""
    session.add(capacity.retire(session, models.REPLICA, replica))
    replica.volume.replicas.remove(replica)
    session.flush()
    return replica.uuid


def remove_call(kind: str, uuid: str) -> Callable[[Node], None]:
    """The call that takes an object away, its exports included."""

    def snapshot(node: Node) -> None:
        node.delete_snapshot(uuid)

    def replica(node: Node) -> None:
        try:
            node.delete_replica(uuid)
        except errors.InUseError:
            # No row publishes it any more, and none wants it filled: that did not reach the node.
            node.delete_copy(uuid)
            node.delete_export(uuid, None)
            node.delete_replica(uuid)

    return snapshot if kind == models.SNAPSHOT else replica


def carry_out(
    core: Core, uuids: Iterable[str], *, also_down: bool = False, leave: Collection[str] = ()
) -> int:
    """Ask the nodes to remove the listed objects.

    :param also_down: ask nodes whose last probes failed, too.
    :param leave: ids of backends that are not asked now.
    :returns: how many are left for a later reconcile.
    """
    wanted = list(uuids)
    if not wanted:
        return 0
    if restored.looking_only(core):
        return len(wanted)
    calls: dict[str, Call[None]] = {}
    with core.db.read() as session:
        rows = session.scalars(select(models.Removal).where(models.Removal.uuid.in_(wanted)))
        for row in rows.all():
            backend = session.get(models.Backend, row.backend_id)
            if backend is None or row.backend_id in leave:
                continue
            if also_down or backend.state != UNAVAILABLE:
                calls[row.uuid] = (Address.of(backend), remove_call(row.kind, row.uuid))
    done = []
    for uuid, outcome in core.nodes.call_all(calls).items():
        if outcome.error is None:
            done.append(uuid)
        else:
            LOG.warning("Removal of %s is left for later: %s", uuid, outcome.error)
    confirm(core, done)
    return len(wanted) - len(done)


def confirm(core: Core, uuids: list[str]) -> None:
    """Record that the nodes have removed these objects."""
    if not uuids:
        return
    with core.db.write() as session:
        # Locked: another instance may confirm the same, and what is given back is given back once.
        # All lock in one order.
        query = select(models.Removal).where(models.Removal.uuid.in_(uuids))
        query = query.where(models.Removal.done.is_(None)).order_by(models.Removal.uuid)
        rows = session.scalars(query.with_for_update()).all()
        for row in sorted(rows, key=lambda one: one.backend_id):
            capacity.give_back(session, row)
            row.done = now_ms()
            row.reserved_bytes = 0


def forget_old(core: Core) -> None:
    """Forget a number of objects that are gone for ``[reconcile] removal_memory_days``."""
    oldest = now_ms() - core.conf.reconcile.removal_memory_days * DAY_MS
    with core.db.read() as session:
        query = select(models.Removal.uuid).where(models.Removal.done < oldest)
        old = session.scalars(query.limit(FORGET_AT_ONCE)).all()
    if old:
        with core.db.write() as session:
            session.execute(delete(models.Removal).where(models.Removal.uuid.in_(old)))
