# SPDX-License-Identifier: Apache-2.0
"""Is what exists what was asked for? Each function names the differing fields, or gives None.

Only what a server of any age reports back is compared.
"""

from __future__ import annotations

from typing import Any

from kumo_client.schemas.backend import Backend, BackendCreate
from kumo_client.schemas.snapshot import Snapshot, SnapshotCreate, SnapshotVolumeCreate
from kumo_client.schemas.tenant import Tenant, TenantWrite
from kumo_client.schemas.volume import AdoptVolume, CloneCreate, Volume, VolumeCreate


def _difference(**pairs: tuple[Any, Any]) -> str | None:
    wrong = [name for name, (asked, found) in pairs.items() if asked != found]
    return ", ".join(wrong) or None


def _lower(value: str | None) -> str:
    return (value or "").lower()


def backend(asked: BackendCreate, found: Backend) -> str | None:
    """Compare a registration with a storage node."""
    return _difference(
        mgmtIPs=(set(asked.mgmt_ips), set(found.mgmt_ips)),
        mgmtPort=(asked.mgmt_port, found.mgmt_port),
        rack=(asked.rack, found.rack),
        zone=(asked.zone, found.zone),
        region=(asked.region, found.region),
    )


def volume(asked: VolumeCreate, found: Volume) -> str | None:
    """Compare a request for a new volume with a volume."""
    return _difference(
        uuid=(_lower(asked.uuid), _lower(found.uuid)),
        alias=(asked.alias, found.alias),
        capacity=(asked.capacity, found.capacity),
        numReplicas=(asked.storage_class.num_replicas, found.num_replicas),
    )


def clone(asked: CloneCreate, found: Volume) -> str | None:
    """Compare a request for a clone with a volume.

    KumoScale does not report the source; ours does.
    """
    return _difference(
        uuid=(_lower(asked.volume_id), _lower(found.uuid)),
        alias=(asked.alias, found.alias),
        capacity=(asked.capacity or found.capacity, found.capacity),
        sourceVolumeId=(
            _lower(asked.source_volume_id),
            _lower(found.source_volume_id or asked.source_volume_id),
        ),
    )


def snapshot(asked: SnapshotCreate, found: Snapshot) -> str | None:
    """Compare a request for a snapshot with a snapshot."""
    return _difference(
        snapshotID=(_lower(asked.snapshot_id), _lower(found.snapshot_id)),
        alias=(asked.alias, found.alias),
        volumeID=(_lower(asked.volume_id), _lower(found.volume_id)),
    )


def snapshot_volume(asked: SnapshotVolumeCreate, found: Volume) -> str | None:
    """Compare a request for a volume from a snapshot with a volume."""
    return _difference(
        uuid=(_lower(asked.volume_id), _lower(found.uuid)),
        alias=(asked.alias, found.alias),
        capacity=(asked.capacity or found.capacity, found.capacity),
        snapshotID=(_lower(asked.snapshot_id), _lower(found.snapshot_id)),
    )


def adopted(asked: AdoptVolume, found: Volume) -> str | None:
    """Compare a request to adopt with a volume."""
    nodes = {location.backend.persistent_id for location in found.location}
    return _difference(
        uuid=(_lower(asked.uuid), _lower(found.uuid)),
        alias=(asked.alias, found.alias),
        backendId=({asked.backend_id} | nodes, nodes),
    )


def tenant(asked: TenantWrite, found: Tenant) -> str | None:
    """Compare a request for a tenant with a tenant."""
    return _difference(
        name=(asked.name, found.name),
        capacity=(asked.capacity, found.capacity),
        totalIOPS=(asked.total_iops, found.total_iops),
        totalBW=(asked.total_bw, found.total_bw),
    )
