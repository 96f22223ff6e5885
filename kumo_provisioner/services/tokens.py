# SPDX-License-Identifier: Apache-2.0
"""Tokens that callers make, and take back."""

from __future__ import annotations

import time

from oslo_log import log
from sqlalchemy import delete, select

from kumo_client import errors
from kumo_client.schemas import token as wire
from kumo_provisioner import auth, keys, permissions
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.duties import Duty
from kumo_provisioner.services import tenants

LOG = log.getLogger(__name__)
FORGET_SECONDS = 3600.0


def create(
    core: Core, tokens: auth.Tokens, caller: auth.Identity, request: wire.TokenCreate
) -> wire.TokenAnswer:
    """Make a token with the rights of the caller, or fewer.

    :raises ForbiddenError: when it would have more.
    :raises NotExistsError: when there is no such tenant.
    :raises NotAvailableError: when this provisioner has no signing keys.
    """
    role = request.role or caller.role
    tenant = request.tenant_id or caller.tenant
    name = request.name or caller.name
    if not permissions.lower(caller.role, role):
        raise errors.ForbiddenError(f"the role {caller.role} cannot give the role {role}")
    if caller.tenant and tenant != caller.tenant:
        raise errors.ForbiddenError(f"a caller of tenant {caller.tenant} can only give that tenant")
    if caller.role != auth.ADMIN and name != caller.name:
        raise errors.ForbiddenError("only an administrator makes tokens for others")
    if tenant:
        tenants.check(core, tenant)
    if not tokens.signing:
        raise errors.NotAvailableError(
            "this provisioner has no signing keys",
            way_out="set [server] jwt_key_file; 'kumo-provisioner init' makes the file",
        )
    text, token_id, expires = keys.sign(
        tokens.signing, name=name, role=role, tenant=tenant, life=request.life
    )
    LOG.info("%s made token %s for %s, role %s", caller.name, token_id, name, role)
    return wire.TokenAnswer(token=text, token_id=token_id, expires=expires)


def revoke(core: Core, tokens: auth.Tokens, caller: auth.Identity, token_id: str) -> None:
    """Let a token count no more; other provisioners learn it within seconds.

    :raises ForbiddenError: when it is not the caller's own one, and he is no administrator.
    """
    if caller.token_id != token_id and (caller.role != auth.ADMIN or caller.tenant):
        raise errors.ForbiddenError("only an administrator revokes the tokens of others")
    # Longer than any token lives; which one it is, nobody has written down.
    expires = int(time.time()) + wire.MAX_LIFE
    with core.db.write() as session:
        if session.get(models.RevokedToken, token_id) is None:
            session.add(models.RevokedToken(jti=token_id, expires=expires))
    tokens.revoked |= {token_id}
    LOG.info("%s revoked token %s", caller.name, token_id)


def refresh(core: Core, tokens: auth.Tokens) -> None:
    """Learn what was revoked, also by other provisioners."""
    with core.db.read() as session:
        tokens.revoked = frozenset(session.scalars(select(models.RevokedToken.jti)))


def _forget(core: Core) -> None:
    with core.db.write() as session:
        session.execute(
            delete(models.RevokedToken).where(models.RevokedToken.expires < int(time.time()))
        )


DUTIES = (Duty("revoked-tokens", _forget, lambda _core: FORGET_SECONDS),)
