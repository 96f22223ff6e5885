# SPDX-License-Identifier: Apache-2.0
"""A database that is an old copy."""

from __future__ import annotations

from kumo_client.api.parse import model
from kumo_client.api.provisioner.base import Base
from kumo_client.schemas import info as info_schema
from kumo_client.schemas import restored as schema


class Restored(Base):
    """Calls about a database that is an old copy (capability ``restored``)."""

    def restored(self) -> schema.Restored:
        """Whether it is one, and how nodes and record differ; all nodes are asked."""
        self.need(info_schema.CAPABILITY_RESTORED)
        return model(schema.Restored, self.session.request("GET", "/restored"))

    def accept_restored(self, exports: str) -> schema.Accepted:
        """Let the record count again.

        :param exports: ``keep`` or ``drop`` those that only nodes know.
        :raises ConflictError: there is no doubt, or an export to keep is to a host that is unknown.
        """
        self.need(info_schema.CAPABILITY_RESTORED)
        body = schema.Accept(exports=exports).wire()
        return model(schema.Accepted, self.session.request("POST", "/restored/accept", json=body))
