# SPDX-License-Identifier: Apache-2.0
"""What the scheduler is told: one pool, because the provisioner places volumes itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kumo_client.schemas.backend import AVAILABLE, Backend
from kumo_client.schemas.tenant import DEFAULT_TENANT, Tenant


def capacity(backends: Iterable[Backend], tenants: Iterable[Tenant]) -> tuple[int, int]:
    """Total and free GiB, summed over the nodes that are available.

    A budget of the default tenant lowers both.
    """
    usable = [backend for backend in backends if backend.state == AVAILABLE]
    total = sum(backend.total_capacity for backend in usable)
    free = sum(backend.available_capacity for backend in usable)
    for tenant in tenants:
        if tenant.tenant_id == DEFAULT_TENANT and tenant.capacity:
            total = min(total, tenant.capacity)
            free = min(free, max(0, tenant.capacity - tenant.consumed_capacity))
    return total, free


def pool(name: str, total: int, free: int, configuration: Any) -> dict[str, Any]:
    """The pool's part of the statistics. Capacities in GiB of volumes with the default number of
    replicas.
    """
    copies = configuration.kioxia_num_replicas
    thick = configuration.kioxia_provisioning_type == "THICK"
    return {
        "pool_name": name,
        "total_capacity_gb": total // copies,
        "free_capacity_gb": free // copies,
        "provisioned_capacity_gb": (total - free) // copies,
        "reserved_percentage": configuration.reserved_percentage,
        # Volumes are of both kinds. Where they are thick by default the scheduler, which takes
        # a volume for thin unless its type says otherwise, must not count space twice.
        "max_over_subscription_ratio": (
            1.0 if thick else configuration.max_over_subscription_ratio
        ),
        "thin_provisioning_support": True,
        "thick_provisioning_support": True,
        "multiattach": True,
        "online_extend_support": True,
        "QoS_support": False,
        "consistencygroup_support": False,
        "consistent_group_snapshot_enabled": False,
    }
