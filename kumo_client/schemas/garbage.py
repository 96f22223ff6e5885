# SPDX-License-Identifier: Apache-2.0
"""Objects on nodes that no record knows."""

from __future__ import annotations

from pydantic import Field

from kumo_client.schemas.common import WireModel


class Garbage(WireModel):
    """GET /garbage. ``kind``: ``replica`` or ``snapshot``; times in ms since the epoch.

    ``removal``: when it will be removed, 0 for never. ``POST /garbage/{persistentID}/{uuid}/keep``
    keeps it for good, ``DELETE /garbage/{persistentID}/{uuid}`` removes it now.
    """

    backend_id: str = Field(alias="backendId")
    uuid: str
    kind: str
    bytes: int = 0
    first_seen: int = Field(0, alias="firstSeen")
    last_seen: int = Field(0, alias="lastSeen")
    removal: int = 0
    kept: bool = False
