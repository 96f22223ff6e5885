# SPDX-License-Identifier: Apache-2.0
"""Tenants and bearer tokens."""

from __future__ import annotations

from kumo_client import errors
from kumo_client.api import same
from kumo_client.api.parse import model, models, quoted
from kumo_client.api.provisioner.base import Base, with_id
from kumo_client.schemas import info as info_schema
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.tenant import Tenant, TenantWrite
from kumo_client.schemas.token import TokenAnswer, TokenCreate


class Tenants(Base):
    """Calls about tenants and tokens."""

    def tenants(self) -> list[Tenant]:
        """Tenants with their budgets; the default one has the id ``0``."""
        return models(Tenant, self.session.request("GET", "/tenants"))

    def find_tenant(self, tenant_id: str) -> Tenant:
        """:raises NotExistsError: there is no such tenant."""
        for tenant in self.tenants():
            if tenant.tenant_id == tenant_id:
                return tenant
        raise errors.NotExistsError(f"tenant {tenant_id} does not exist")

    def add_tenant(self, write: TenantWrite) -> Tenant:
        """Make a tenant with its budgets; an id is made up if none is given.

        :raises AlreadyExistsError: there is a tenant of this id or name.
        """
        write = with_id(write, "tenant_id")
        tenant_id = write.tenant_id or ""
        self._create("/tenants", write, lambda: same.tenant(write, self.find_tenant(tenant_id)))
        return self.find_tenant(tenant_id)

    def update_tenant(self, tenant_id: str, write: TenantWrite) -> StatusAnswer:
        """Change name and budgets.

        :raises NotExistsError: there is no such tenant.
        :raises OverBudgetError: it uses more than that already.
        """
        return self._status("PUT", f"/tenants/{quoted(tenant_id)}", write)

    def delete_tenant(self, tenant_id: str) -> None:
        """:raises InUseError: it has volumes. :raises NotExistsError: there is no such tenant."""
        self._delete(f"/tenants/{quoted(tenant_id)}")

    def create_token(self, create: TokenCreate | None = None) -> TokenAnswer:
        """A bearer token, for the caller or for another (capability ``tokens``).

        :raises ForbiddenError: it would allow more than the caller may.
        """
        self.need(info_schema.CAPABILITY_TOKENS)
        # One whose answer was lost is known to nobody and expires by itself.
        body = (create or TokenCreate()).wire()
        answer = self.session.request("POST", "/tokens", json=body, idempotent=True)
        return model(TokenAnswer, answer)

    def revoke_token(self, token_id: str) -> None:
        """End the life of a token (capability ``tokens``)."""
        self.need(info_schema.CAPABILITY_TOKENS)
        self._delete(f"/tokens/{quoted(token_id)}")
