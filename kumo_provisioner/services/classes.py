# SPDX-License-Identifier: Apache-2.0
"""Changing the storage class, or the alias, of a volume that may be attached.

Guarantees are admitted as for a new volume, in the transaction that records them. Caps are set on
the nodes afterwards; a node that cannot be asked gets them by a reconcile. One more replica is a
new leg that the host fills; one less is a leg that goes when the others are in sync.

What cannot change: a volume that was made with one replica has no array. Its data begins where md
would put its superblock, so it cannot become a leg, attached or not; and the data of a leg begins
behind its superblock, so it cannot become a plain volume.
"""

from __future__ import annotations

from typing import Any

from oslo_log import log
from sqlalchemy import select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.schemas import volume as wire
from kumo_provisioner import settling
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.services import (
    capacity,
    caps,
    events,
    guards,
    placing,
    replicas,
    tenants,
    view,
    volumes,
)
from kumo_provisioner.services.placing import Growth

LOG = log.getLogger(__name__)


def modify(core: Core, tenant: str, text: str, request: wire.VolumeModify) -> str:
    """Change a volume; gives what is still to come, empty when all is done.

    :raises NotExistsError: there is no such volume.
    :raises AlreadyExistsError: the alias is taken.
    :raises ConflictError: it cannot be changed so, with the way out.
    :raises BusyError: an extension, a revert or another change is unfinished.
    :raises NoSpaceError: a guarantee is not possible where the volume is, or no node can take one
        more replica.
    :raises OverBudgetError: its tenant would use more than its budget.
    :raises StaleError, TooManyReplicasError: there cannot be one more replica now.
    """
    uuid = view.normal_uuid(text)
    if uuid is None:
        raise volumes.missing(text)
    with core.locks.hold(uuid):
        kinds = capacity.retried(
            core,
            lambda session: _intend(core, session, volumes.find(session, tenant, uuid), request),
        )
        left = [_settled(core, uuid, kind) for kind in kinds]
    return "; ".join(one for one in left if one)


def _settled(core: Core, uuid: str, kind: str) -> str:
    """Do at once what was recorded; gives what is left of it."""
    try:
        if kind == settling.LIMITS:
            caps.apply(core, uuid)
        else:
            replicas.finish(core, uuid)
    except errors.KumoError as exc:
        LOG.warning("%s of volume %s is left for a reconcile: %s", kind, uuid, exc)
        core.db.run(lambda session: settling.add(session.get_one(models.Volume, uuid), kind))
        core.wake.set()
        return f"is finished later: {exc.description}"
    return ""


def _intend(
    core: Core, session: Session, row: models.Volume, request: wire.VolumeModify
) -> list[str]:
    """Record a change; gives the kinds of work that follow from it."""
    settling.refuse(row, settling.EXTEND, settling.REVERT)
    before = wire.StorageClass.model_validate(row.storage_class)
    changes = request.storage_class.model_dump(exclude_none=True)
    if request.allow_span is not None:
        changes["allow_span"] = request.allow_span
    changes = {key: value for key, value in changes.items() if getattr(before, key) != value}
    after = before.model_copy(update=changes)
    renamed = request.alias not in (None, row.alias)
    if not changes and not renamed:
        return []
    used = tenants.use(row)
    if after.num_replicas != before.num_replicas:
        _check_replicas(session, row, after.num_replicas)
    if request.alias is not None and renamed:
        _rename(session, row, request.alias)
    row.storage_class, row.num_replicas = after.wire(), after.num_replicas
    tenants.exchange(session, row.tenant_id, used, tenants.use(row))
    _guarantee(session, row, after)
    _check_span(row, after)
    row.generation += 1
    kinds = []
    if any(cap in changes for cap in caps.FIELDS):
        settling.add(row, settling.LIMITS)
        kinds.append(settling.LIMITS)
    if after.num_replicas > len(_staying(row)):
        # Where the leg goes is decided here, so that a refusal changes nothing.
        replicas.begin(core, session, row, wire.ReplicaAdd())
    if "num_replicas" in changes:
        settling.add(row, settling.REPLICAS)
        kinds.append(settling.REPLICAS)
    _tell(session, row, changes)
    return kinds


def _staying(row: models.Volume) -> list[models.Replica]:
    return [leg for leg in row.replicas if leg.state != wire.REPLICA_TERMINATING]


def _check_replicas(session: Session, row: models.Volume, wanted: int) -> None:
    settling.refuse(row, settling.REPLICAS)
    guards.no_migration(session, row)
    if row.replicated and wanted > 1:
        return
    what = "has one replica and no array" if wanted > 1 else "is an array"
    raise errors.ConflictError(
        f"volume {row.uuid} {what}; its data cannot stay where it is with {wanted} replica(s)",
        volume=row.uuid,
        way_out=f"create a volume with {wanted} replica(s) and copy the data; in Cinder, retype "
        "with migration",
    )


def _rename(session: Session, row: models.Volume, alias: str) -> None:
    """Give a volume another alias. That of a replicated one is the name of its array, which is in
    the superblocks and in the paths of its hosts."""
    if row.replicated and (row.publications or row.array_state != models.ARRAY_NEW):
        raise errors.ConflictError(
            f"the array of volume {row.uuid} has the name of its alias {row.alias}",
            volume=row.uuid,
            way_out="make a clone under the new alias",
        )
    taken = session.scalar(
        select(models.Volume.uuid).filter_by(tenant_id=row.tenant_id, alias=alias)
    )
    if taken is not None:
        raise errors.AlreadyExistsError(f"the alias {alias} is that of volume {taken}")
    row.alias = alias


def _guarantee(session: Session, row: models.Volume, after: wire.StorageClass) -> None:
    """Sell each leg what is guaranteed now."""
    iops, bw = capacity.guarantee(after, max(row.capacity, row.wanted_capacity))
    for leg in sorted(row.replicas, key=lambda one: one.backend_id):
        more_iops, more_bw = max(0, iops - leg.sold_iops), max(0, bw - leg.sold_bw)
        if more_iops or more_bw:
            growth = Growth(leg.backend, leg.pool, 0, more_iops, more_bw)
            placing.refuse_growth(session, [growth])
        capacity.change(session, leg, sold_iops=iops, sold_bw=bw)


def _check_span(row: models.Volume, after: wire.StorageClass) -> None:
    """A volume that spans disks stays one that may."""
    if after.allow_span:
        return
    for leg in row.replicas:
        pool = next((one for one in leg.backend.pools if one.name == leg.pool), None)
        if pool is not None and pool.spans:
            raise errors.ConflictError(
                f"replica {leg.uuid} of volume {row.uuid} is in pool {leg.pool}, which lies on "
                "several disks",
                volume=row.uuid,
                node=leg.backend_id,
                way_out="migrate the replica to a pool of one disk first",
            )


def _tell(session: Session, row: models.Volume, changes: dict[str, Any]) -> None:
    told = ", ".join(f"{name} {value}" for name, value in sorted(changes.items()))
    events.record(
        session,
        "volume.modified",
        f"volume {row.uuid} ({row.alias}) has {told or 'another alias'}",
        tenant=row.tenant_id,
        volume=row.uuid,
        alias=row.alias,
        changes=changes,
    )
