# SPDX-License-Identifier: Apache-2.0
"""Rows as objects of the wire."""

from __future__ import annotations

import uuid as uuidlib
from typing import TypeVar

from sqlalchemy.orm import selectinload
from sqlalchemy.orm.interfaces import ORMOption

from kumo_client import naming
from kumo_client.naming import GIB
from kumo_client.schemas import backend as wire_backend
from kumo_client.schemas import host as wire_host
from kumo_client.schemas import snapshot as wire_snapshot
from kumo_client.schemas import volume as wire_volume
from kumo_client.schemas.common import Portal
from kumo_client.schemas.node import Ssd
from kumo_provisioner import placement
from kumo_provisioner.core import now_ms
from kumo_provisioner.db import models

T = TypeVar("T", bound=wire_backend.BackendRef)

# What a volume on the wire is made of, read in one query each.
WHOLE_VOLUME: tuple[ORMOption, ...] = (
    selectinload(models.Volume.replicas).joinedload(models.Replica.backend),
    selectinload(models.Volume.publications),
)
HOST_MISSED_PROBES = 3


def normal_uuid(text: str) -> str | None:
    """The canonical form of a UUID; None when it is none, so that nothing can have that id."""
    try:
        return str(uuidlib.UUID(text.strip()))
    except ValueError:
        return None


def backend_ref(row: models.Backend) -> wire_backend.BackendRef:
    return _fill(wire_backend.BackendRef, row)


def _fill(cls: type[T], row: models.Backend) -> T:
    return cls(
        persistent_id=row.persistent_id,
        mgmt_ips=list(row.mgmt_ips),
        mgmt_port=row.mgmt_port,
        state=backend_state(row),
        portals=[Portal.model_validate(portal) for portal in row.portals],
        rack=row.rack,
        zone=row.zone,
        region=row.region,
        host_id=row.host_id,
        name=row.name,
    )


def backend(row: models.Backend, probe_interval: float) -> wire_backend.Backend:
    """A node with its pools. Where an operator limited the node as a whole, that counts."""
    full = _fill(wire_backend.Backend, row)
    full.pools = [pool(one) for one in row.pools]
    full.in_use = any(one.charged_bytes > 0 for one in row.pools)
    full.total_capacity = sum(one.total_bytes for one in row.pools) // GIB
    free = (max(0, one.total_bytes - one.charged_bytes) for one in row.pools)
    full.available_capacity = sum(free) // GIB
    full.total_iops = row.max_iops or sum(one.max_iops for one in row.pools)
    full.available_iops = max(0, full.total_iops - row.sold_iops)
    full.total_bw = row.max_bw or sum(one.max_bw for one in row.pools)
    full.available_bw = max(0, full.total_bw - row.sold_bw)
    full.cordoned = row.cordoned
    full.last_heartbeat = row.last_heartbeat
    full.replicas = sum(one.replicas for one in row.pools)
    full.problems = list(row.problems)
    full.abilities = list(row.abilities)
    full.last_probe_time = row.last_probe
    full.probe_interval = int(probe_interval * 1000)
    full.version = row.version
    return full


def pool(row: models.Pool) -> wire_backend.BackendPool:
    return wire_backend.BackendPool(
        name=row.name,
        state=row.state,
        spans=row.spans,
        total_bytes=row.total_bytes,
        used_bytes=row.used_bytes,
        charged_bytes=row.charged_bytes,
        max_iops=row.max_iops,
        max_bw=row.max_bw,
        sold_iops=row.sold_iops,
        sold_bw=row.sold_bw,
        iops=row.iops,
        bw=row.bw,
        ssds=[Ssd.model_validate(one) for one in row.ssds],
    )


def verdict(one: placement.Verdict) -> wire_volume.NodeVerdict:
    return wire_volume.NodeVerdict(
        backend_id=one.backend_id,
        backend_name=one.name,
        pool=one.pool,
        refused_by=one.refused_by,
        reason=one.reason,
        weight=round(one.weight, 4),
        chosen=one.chosen,
    )


def backend_state(row: models.Backend) -> str:
    """What the probes say; of a node that answers, its mode counts."""
    return row.mode if row.mode and row.state == wire_backend.AVAILABLE else row.state


def location(row: models.Replica) -> wire_volume.Location:
    return wire_volume.Location(
        uuid=row.uuid,
        backend=backend_ref(row.backend),
        replica_state=row.state,
        current_state_time=max(0, now_ms() - row.state_since),
        freshness=row.freshness,
        events=row.events,
        pool=row.pool,
        replaces=row.replaces,
    )


def volume(row: models.Volume) -> wire_volume.Volume:
    asked = wire_volume.StorageClass.model_validate(row.storage_class)
    published = [one.host_id for one in row.publications if one.status == models.PUBLISHED]
    return wire_volume.Volume(
        uuid=row.uuid,
        alias=row.alias,
        capacity=row.capacity,
        num_replicas=len(row.replicas),
        max_replica_down_time=asked.max_replica_down_time,
        writable=row.writable,
        location=[location(replica) for replica in row.replicas],
        replicable=True,
        protocol=row.protocol,
        snapshot_id=row.snapshot_id,
        max_iops=asked.max_iops_per_gb * row.capacity,
        desired_iops=asked.desired_iops_per_gb * row.capacity,
        max_bw=asked.max_bw_per_gb * row.capacity,
        desired_bw=asked.desired_bw_per_gb * row.capacity,
        block_size=asked.block_size,
        reserved_space_percentage=row.reserved_space_percentage,
        provisioning_type=row.provisioning_type,
        tenant_id=row.tenant_id,
        source_volume_id=row.source_volume_id,
        published_hosts=sorted(published),
        wanted_replicas=row.num_replicas,
        array_state=row.array_state if row.replicated else "",
        unsettled=row.unsettled,
        storage_class=asked,
    )


def snapshot(row: models.Snapshot) -> wire_snapshot.Snapshot:
    """``reservedSpace`` is in GiB."""
    return wire_snapshot.Snapshot(
        snapshot_id=row.uuid,
        alias=row.alias,
        volume_id=row.volume_id,
        capacity=row.capacity,
        reserved_space=row.capacity * row.reserved_space_percentage // 100,
        timestamp=row.created,
        coherent=row.coherent,
        tenant_id=row.tenant_id,
    )


def host(row: models.Host) -> wire_host.Host:
    silent = now_ms() - row.last_probe > HOST_MISSED_PROBES * 1000 * row.duration
    down = row.duration > 0 and silent
    return wire_host.Host(
        uuid=row.uuid,
        nqn=row.nqn,
        name=row.name,
        client_type=row.client_type,
        version=row.version,
        state=wire_backend.UNAVAILABLE if down else wire_backend.AVAILABLE,
        last_probe_time=row.last_probe,
        duration=row.duration,
        multipath=row.multipath,
    )


def subsystem_nqn(replica: models.Replica, replicas: int, host_nqn: str) -> str:
    return naming.subsystem_nqn(replica.backend_id, host_nqn, naming.io_class(replicas))


def published_replica(
    row: models.Replica, replicas: int, host_nqn: str
) -> wire_host.PublishedReplica:
    return wire_host.PublishedReplica(
        uuid=row.uuid,
        target_nqn=subsystem_nqn(row, replicas, host_nqn),
        portals=[Portal.model_validate(portal) for portal in row.backend.portals],
        replica_state=row.state,
        backend_id=row.backend_id,
        freshness=row.freshness,
        events=row.events,
        backend_state=backend_ref(row.backend).state,
        node_name=row.backend.name,
    )
