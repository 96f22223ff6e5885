# SPDX-License-Identifier: Apache-2.0
"""Tokens."""

from typing import Any

from fastapi import Request

from kumo_client.schemas import token as wire
from kumo_client.schemas.common import StatusAnswer, UuidText
from kumo_provisioner.edge import success
from kumo_provisioner.routes.common import CoreArg, IdentityArg, router
from kumo_provisioner.services import tokens

routes = router("tokens")


@routes.post("/tokens", response_model=wire.TokenAnswer)
def create(request: Request, core: CoreArg, identity: IdentityArg, body: wire.TokenCreate) -> Any:
    """Make a token with the caller's rights, or fewer; it is shown this once."""
    made = tokens.create(core, request.app.state.tokens, identity, body)
    return made.wire() | success()


@routes.delete("/tokens/{tokenId}", response_model=StatusAnswer)
def revoke(request: Request, core: CoreArg, identity: IdentityArg, tokenId: UuidText) -> Any:  # noqa: N803
    """Let a token count no more. Anybody may revoke the one he uses."""
    tokens.revoke(core, request.app.state.tokens, identity, tokenId)
    return success()
