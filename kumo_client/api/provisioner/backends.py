# SPDX-License-Identifier: Apache-2.0
"""Storage nodes."""

from __future__ import annotations

from kumo_client import errors
from kumo_client.api import same
from kumo_client.api.parse import model, models, one, quoted
from kumo_client.api.provisioner.base import Base
from kumo_client.schemas import info as info_schema
from kumo_client.schemas.backend import Backend, BackendCreate, BackendUpdate
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.task import TaskAnswer

# What of an update only our own servers understand.
_OURS = ("cordoned", "maintenance", "max_iops", "max_bw")


class Backends(Base):
    """Calls about storage nodes."""

    def add_backend(self, create: BackendCreate) -> Backend:
        """Register a storage node and give what the provisioner then knows of it.

        :raises AlreadyExistsError: a node with one of these addresses is registered.
        :raises NotAvailableError: it is incompatible or gave no persistent id.
        :raises NoGroupsError: it has no pool.
        """

        answer = self._create(
            "/backends", create, lambda: same.backend(create, self._registered(create))
        )
        if isinstance(answer, dict) and "persistentID" in answer:
            return model(Backend, answer)
        # KumoScale answers with the status alone.
        try:
            return self._registered(create)
        except errors.NotExistsError as exc:
            raise errors.ProtocolError(f"registered, but {exc.message}") from exc

    def backends(self) -> list[Backend]:
        """All storage nodes."""
        return models(Backend, self.session.request("GET", "/backends"))

    def backend(self, persistent_id: str) -> Backend:
        """:raises NotExistsError: no such storage node."""
        answer = self.session.request("GET", f"/backends/{quoted(persistent_id)}")
        return one(Backend, answer, f"backend {persistent_id}")

    def update_backend(self, persistent_id: str, update: BackendUpdate) -> StatusAnswer:
        """Change rack, zone, region, limits or the mode of a node; what is ``None`` stays.

        :raises NotExistsError: no such storage node.
        :raises NotAvailableError: more than the place, and the server only knows that.
        """
        if update.pools or any(getattr(update, name) is not None for name in _OURS):
            self.need(info_schema.CAPABILITY_DRAIN)
        return self._status("PUT", f"/backends/{quoted(persistent_id)}", update)

    def delete_backend(self, persistent_id: str) -> None:
        """:raises InUseError: it holds replicas. :raises NotExistsError: no such node."""
        self._delete(f"/backends/{quoted(persistent_id)}")

    def drain_backend(self, persistent_id: str) -> TaskAnswer:
        """Move all replicas away from a node (capability ``drain``); the answer names the task.

        :raises NotExistsError: no such storage node.
        """
        self.need(info_schema.CAPABILITY_DRAIN)
        path = f"/backends/{quoted(persistent_id)}/drain"
        return model(TaskAnswer, self.session.request("POST", path, idempotent=True))

    def stop_drain(self, persistent_id: str) -> None:
        """Begin no further moves and let the node take replicas again.

        :raises NotExistsError: no such storage node.
        :raises ConflictError: it is not being drained.
        """
        self.need(info_schema.CAPABILITY_DRAIN)
        try:
            self._status("DELETE", f"/backends/{quoted(persistent_id)}/drain")
        except errors.ConflictError as exc:
            if not exc.repeated:
                raise

    def _registered(self, create: BackendCreate) -> Backend:
        for backend in self.backends():
            if backend.mgmt_port == create.mgmt_port and set(backend.mgmt_ips) & set(
                create.mgmt_ips
            ):
                return backend
        raise errors.NotExistsError(f"no backend has the address {' or '.join(create.mgmt_ips)}")
