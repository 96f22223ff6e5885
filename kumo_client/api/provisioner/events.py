# SPDX-License-Identifier: Apache-2.0
"""Events and forwarded log records."""

from __future__ import annotations

from kumo_client.api.parse import model
from kumo_client.api.provisioner.base import Base, given
from kumo_client.schemas import info as info_schema
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.event import EventPage, ForwardLog

# The longest wait that a server accepts, in seconds.
LONGEST_WAIT = 50
# A number that no event will have.
_BEHIND = 1 << 62


class Events(Base):
    """Calls about events."""

    def events(
        self,
        since: int | None = None,
        *,
        wait: int = 0,
        limit: int | None = None,
        host_id: str | None = None,
        volume_id: str | None = None,
        level: str | None = None,
    ) -> EventPage:
        """What happened after event ``since`` (capability ``events``), oldest first.

        A token of a tenant sees the events of that tenant.
        ``last`` of the answer is ``since`` of the next call; ``lost`` says that events in between
        have been forgotten, so that the caller must look at everything.

        :param since: number of the last event known; ``None``: from the oldest one kept.
        :param wait: seconds to wait for a first event, at most :data:`LONGEST_WAIT`.
        :param level: this level and those above it.
        """
        self.need(info_schema.CAPABILITY_EVENTS)
        wait = min(max(wait, 0), LONGEST_WAIT)
        params = given(
            since=since,
            wait=wait or None,
            limit=limit,
            hostId=host_id,
            volumeId=volume_id,
            level=level,
        )
        budget = self.session.budget + wait
        answer = self.session.request("GET", "/events", params=params, budget=budget, patience=wait)
        return model(EventPage, answer)

    def last_event(self) -> int:
        """The number of the newest event, 0 when there was none (capability ``events``)."""
        # From behind the end, the answer says where the end is.
        return self.events(_BEHIND, limit=1).last

    def forward_log(self, record: ForwardLog) -> StatusAnswer:
        """Hand a log record of a host on; one that is sent twice is logged twice."""
        return self._status("POST", "/forward_log", record)
