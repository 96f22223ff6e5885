# SPDX-License-Identifier: Apache-2.0
"""What a role may call, by the first segment of a path.

A path that is named nowhere is for administrators, so that a new one is closed until it is opened
here.
"""

from __future__ import annotations

ADMIN = "admin"
STORAGE = "storage"
MONITOR = "monitor"
NODE = "node"
ROLES = (ADMIN, STORAGE, MONITOR, NODE)

# No token is needed: for balancers, and because existing clients ask before they have one.
OPEN = frozenset({"healthz", "readyz", "info"})
# Anybody may make a token with no more rights than his own, and give up the one he uses.
OWN = frozenset({"tokens"})
# What users of storage change.
STORAGE_WRITES = frozenset(
    {
        "adopt_volume",
        "array_report",
        "clone_volume",
        "connect",
        "disconnect",
        "forward_log",
        "host_probe",
        "hosts",
        "migrate_volume",
        "publish",
        "replica",
        "revert_volume",
        "snapshot_volumes",
        "snapshots",
        "tasks",
        "unmanage_volume",
        "unpublish",
        "volumes",
    }
)
# What belongs to tenants. All else is the fleet's, and hidden from whoever is bound to a tenant.
TENANTS_OWN = frozenset(
    {
        "array_report",
        "clone_volume",
        "events",
        "forward_log",
        "host_probe",
        "info",
        "healthz",
        "migrate_volume",
        "publish",
        "readyz",
        "replica",
        "revert_volume",
        "snapshot_volumes",
        "snapshots",
        "snapshots_by_alias",
        "snapshots_by_vol",
        "targets",
        "tokens",
        "unpublish",
        "volumes",
        "volumes_by_alias",
    }
)
READS = ("GET", "HEAD")


def allowed(role: str, tenant: str, method: str, segment: str) -> bool:
    """Whether a call passes.

    :param tenant: to which the caller is bound; empty for none.
    :param segment: first segment of the path, the tenant left out.
    """
    if role == NODE:
        return (method, segment) == ("POST", "heartbeat") or segment in OPEN
    if tenant and segment not in TENANTS_OWN:
        return False
    if role == ADMIN or segment in OWN or segment in OPEN:
        return True
    if method in READS:
        return role in (STORAGE, MONITOR)
    return role == STORAGE and segment in STORAGE_WRITES


def lower(role: str, other: str) -> bool:
    """Whether ``other`` has no more rights than ``role``."""
    order = {ADMIN: (ADMIN, STORAGE, MONITOR, NODE), STORAGE: (STORAGE, MONITOR)}
    return other in order.get(role, (role,))
