# SPDX-License-Identifier: Apache-2.0
"""The provisioner itself, and what its storage nodes tell it."""

from __future__ import annotations

from kumo_client.api.parse import model
from kumo_client.api.provisioner.base import Base
from kumo_client.schemas import info as info_schema
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.node import Heartbeat


class Server(Base):
    """Calls about the server."""

    def reconcile(self) -> dict[str, int]:
        """Compare record and nodes now (capability ``reconcile``); what was done, as counts."""
        self.need(info_schema.CAPABILITY_RECONCILE)
        answer = self.session.request("POST", "/reconcile", idempotent=True)
        return {key: value for key, value in answer.items() if type(value) is int}

    def metrics(self) -> str:
        """The metrics of the server in the text format of Prometheus."""
        return self.session.text("/metrics")

    def heartbeat(self, beat: Heartbeat, *, budget: float | None = None) -> StatusAnswer:
        """A storage node tells how it is; needs a token of role ``node``.

        :param budget: seconds that may be spent; the next heartbeat says the same anyway.
        :raises NotExistsError: the node is not registered.
        """
        answer = self.session.request(
            "POST", "/heartbeat", json=beat.wire(), idempotent=True, budget=budget
        )
        return model(StatusAnswer, answer)
