# SPDX-License-Identifier: Apache-2.0
"""Tenants. There is the default one; its budget is what the connected nodes have."""

from __future__ import annotations

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_client.schemas import tenant as wire
from kumo_provisioner.core import Core
from kumo_provisioner.services import capacity


def list_all(core: Core) -> list[wire.Tenant]:
    """All tenants. Consumed space is rounded up, so that the difference is really free."""
    with core.db.read() as session:
        total, used = capacity.totals(session)
    return [
        wire.Tenant(
            tenant_id=wire.DEFAULT_TENANT,
            name="default",
            capacity=total // GIB,
            consumed_capacity=-(-used // GIB),
        )
    ]


def check(tenant: str) -> str:
    """The tenant of a path.

    :raises NotExistsError: when there is no such tenant.
    """
    if tenant != wire.DEFAULT_TENANT:
        raise errors.NotExistsError(f"there is no tenant {tenant}")
    return tenant
