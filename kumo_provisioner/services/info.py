# SPDX-License-Identifier: Apache-2.0
"""What this server is and can do."""

from __future__ import annotations

import importlib.metadata

from kumo_client.naming import GIB
from kumo_client.schemas import info as wire
from kumo_provisioner.core import Core
from kumo_provisioner.services import capacity

CAPABILITIES = [
    wire.CAPABILITY_PUBLISH_ATTACH,
    wire.CAPABILITY_PUBLISH_COMPLETE,
    wire.CAPABILITY_TYPED_ERRORS,
    wire.CAPABILITY_SNAPSHOT_VOLUME_CAPACITY,
    wire.CAPABILITY_RECONCILE,
    wire.CAPABILITY_MODIFY,
    wire.CAPABILITY_REVERT,
    wire.CAPABILITY_ADOPT,
    wire.CAPABILITY_EVENTS,
    wire.CAPABILITY_ARRAY_REPORT,
    wire.CAPABILITY_LAST_WORD,
    wire.CAPABILITY_DRAIN,
    wire.CAPABILITY_DRY_RUN,
    wire.CAPABILITY_PAGING,
    wire.CAPABILITY_HEARTBEAT,
    wire.CAPABILITY_TOKENS,
    wire.CAPABILITY_GARBAGE,
    wire.CAPABILITY_HOST_VOLUMES,
    wire.CAPABILITY_RESTORED,
]


def version() -> str:
    """Version of the installed distribution."""
    try:
        return importlib.metadata.version("cinder-kumo")
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0"


def get(core: Core) -> wire.Info:
    with core.db.read() as session:
        total, used = capacity.totals(session)
    return wire.Info(
        total_free_space=max(0, total - used) // GIB,
        version=version(),
        capabilities=list(CAPABILITIES),
    )
