# SPDX-License-Identifier: Apache-2.0
"""Objects on nodes that no record knows."""

from __future__ import annotations

from kumo_client.api.parse import models, quoted
from kumo_client.api.provisioner.base import Base
from kumo_client.schemas import info as info_schema
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.garbage import Garbage as Found


class Garbage(Base):
    """Calls about garbage (capability ``garbage``)."""

    def garbage(self) -> list[Found]:
        """What was found, and when it will be removed."""
        self.need(info_schema.CAPABILITY_GARBAGE)
        return models(Found, self.session.request("GET", "/garbage"))

    def keep_garbage(self, persistent_id: str, uuid: str) -> StatusAnswer:
        """Never remove it.

        :raises NotExistsError: nothing of this uuid was found on this node.
        """
        self.need(info_schema.CAPABILITY_GARBAGE)
        return self._status("POST", f"{_garbage(persistent_id, uuid)}/keep")

    def remove_garbage(self, persistent_id: str, uuid: str) -> None:
        """Remove it now, with its data.

        :raises NotExistsError: nothing of this uuid was found on this node.
        :raises InUseError: it is exported.
        """
        self.need(info_schema.CAPABILITY_GARBAGE)
        self._delete(_garbage(persistent_id, uuid))


def _garbage(persistent_id: str, uuid: str) -> str:
    return f"/garbage/{quoted(persistent_id)}/{quoted(uuid)}"
