# SPDX-License-Identifier: Apache-2.0
"""GET /info."""

from __future__ import annotations

from pydantic import Field

from kumo_client.schemas.common import WireModel

# One-call attach: the answer of publish carries volume, targets and portals.
CAPABILITY_PUBLISH_ATTACH = "publish-attach"
# ``complete`` in ``POST /publish``: refuse a host that would not get every replica in sync.
CAPABILITY_PUBLISH_COMPLETE = "publish-complete"
# Errors carry ``transient`` and ``requestId``.
CAPABILITY_TYPED_ERRORS = "typed-errors"
# A snapshot volume or clone may be created with ``capacity``.
CAPABILITY_SNAPSHOT_VOLUME_CAPACITY = "snapshot-volume-capacity"
# ``POST /reconcile`` compares record and nodes now and answers what it did.
CAPABILITY_RECONCILE = "reconcile"

# ``POST /volumes?dryRun=true`` answers where a volume would go, and why.
CAPABILITY_DRY_RUN = "dry-run"
# ``GET /volumes`` and ``GET /snapshots`` take ``limit`` and ``after`` (the last uuid seen).
CAPABILITY_PAGING = "paging"
# ``GET /events``, resumable and waiting.
CAPABILITY_EVENTS = "events"
# ``POST /array_report``; publish answers carry array state and freshness.
CAPABILITY_ARRAY_REPORT = "array-report"
# ``POST /array_report`` takes the last word of a host that has left a volume.
CAPABILITY_LAST_WORD = "last-word"
# ``PUT /volumes/{uuid}`` changes the storage class of a live volume.
CAPABILITY_MODIFY = "modify-volume"
# ``POST /revert_volume``.
CAPABILITY_REVERT = "revert-volume"
# ``POST /adopt_volume``, ``POST /unmanage_volume``, ``GET /adoptable_volumes``.
CAPABILITY_ADOPT = "adopt-volume"
# ``POST /tokens``.
CAPABILITY_TOKENS = "tokens"
# Backends can be cordoned, drained and put into maintenance.
CAPABILITY_DRAIN = "drain"
# ``GET /garbage``: objects on nodes that no record knows.
CAPABILITY_GARBAGE = "garbage"
# ``POST /heartbeat`` of nodes.
CAPABILITY_HEARTBEAT = "heartbeat"
# ``GET /hosts/{uuid}/volumes``: the volumes that are published to a host.
CAPABILITY_HOST_VOLUMES = "host-volumes"
# ``GET /restored``, ``POST /restored/accept``: a database that is an old copy is noticed.
CAPABILITY_RESTORED = "restored"


class Info(WireModel):
    """``total_free_space`` in GiB. ``capabilities`` lists the extensions this server offers."""

    total_free_space: int = Field(0, alias="totalFreeSpace")
    version: str = ""
    syslogs_backend: str = Field("", alias="syslogsBackend")
    capabilities: list[str] = []

    def supports(self, capability: str) -> bool:
        """Whether the server offers this extension."""
        return capability in self.capabilities
