# SPDX-License-Identifier: Apache-2.0
"""GET /info."""

from __future__ import annotations

from pydantic import Field

from kumo_client.schemas.common import WireModel

# One-call attach: the answer of publish carries volume, targets and portals.
CAPABILITY_PUBLISH_ATTACH = "publish-attach"
# Errors carry ``transient`` and ``requestId``.
CAPABILITY_TYPED_ERRORS = "typed-errors"
# A snapshot volume or clone may be created with ``capacity``.
CAPABILITY_SNAPSHOT_VOLUME_CAPACITY = "snapshot-volume-capacity"
# ``POST /reconcile`` compares record and nodes now and answers what it did.
CAPABILITY_RECONCILE = "reconcile"


class Info(WireModel):
    """``total_free_space`` in GiB. ``capabilities`` lists the extensions this server offers."""

    total_free_space: int = Field(0, alias="totalFreeSpace")
    version: str = ""
    syslogs_backend: str = Field("", alias="syslogsBackend")
    capabilities: list[str] = []

    def supports(self, capability: str) -> bool:
        """Whether the server offers this extension."""
        return capability in self.capabilities
