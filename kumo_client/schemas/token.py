# SPDX-License-Identifier: Apache-2.0
"""Bearer tokens (JSON Web Tokens, RFC 7519)."""

from __future__ import annotations

from pydantic import Field

from kumo_client.schemas.common import StatusAnswer, Text, WireModel
from kumo_client.schemas.tenant import TenantId

HOUR = 3600
MAX_LIFE = 30 * 24 * HOUR


class TokenCreate(WireModel):
    """POST /tokens. Absent: the caller's own name, role and tenant; nobody gives more than he has.

    ``life`` in seconds, one hour to 30 days.
    """

    name: Text | None = Field(None, max_length=64)
    role: Text | None = Field(None, pattern="^(admin|storage|monitor|node)$")
    tenant_id: TenantId | None = Field(None, alias="tenantId")
    life: int = Field(HOUR, ge=HOUR, le=MAX_LIFE)


class TokenAnswer(StatusAnswer):
    """``token`` is shown this once. ``expires`` in seconds since the epoch; ``token_id`` revokes
    it: DELETE /tokens/{tokenId}."""

    token: str = ""
    token_id: str = Field("", alias="tokenId")
    expires: int = 0
