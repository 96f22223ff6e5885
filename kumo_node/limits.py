# SPDX-License-Identifier: Apache-2.0
"""Caps of replicas: the verb, and keeping the kernel's caps as the record says.

Only what is exported needs its caps; an export sets them before the host can see the namespace.
"""

from __future__ import annotations

from oslo_log import log

from kumo_client import errors
from kumo_client.schemas.node import Limits, Replica
from kumo_node.context import Context, replica_lock
from kumo_node.lvm import replica_name
from kumo_node.replicas import Replicas
from kumo_node.spec import READY, ReplicaRecord
from kumo_node.throttle import Cap

LOG = log.getLogger(__name__)


class Caps:
    """The verb of ``/v1/replicas/{uuid}/limits``."""

    def __init__(self, ctx: Context, replicas: Replicas) -> None:
        self.ctx = ctx
        self.replicas = replicas

    def put(self, uuid: str, wish: Limits) -> Replica:
        """Cap a replica; zeros take the caps away.

        :raises NotExistsError: there is no such replica.
        :raises InternalError: the kernel refuses; the cap is recorded, and tried again.
        """
        with self.ctx.locks.hold(replica_lock(uuid)):
            record = self.ctx.replica(uuid)
            if (record.max_iops, record.max_bw) != (wish.max_iops, wish.max_bw):
                new = {"max_iops": wish.max_iops, "max_bw": wish.max_bw}
                record = record.model_copy(update=new)
                with self.ctx.spec.edit() as data:
                    data.replicas[uuid] = record
                if self.ctx.spec.data.exports_of(uuid):
                    self._apply(uuid, record)
            return self.replicas.view(uuid, record)

    def _apply(self, uuid: str, record: ReplicaRecord) -> None:
        number = self.ctx.lvm_of(record).number(replica_name(uuid))
        if number is not None:
            self.ctx.throttle.apply(number, self.ctx.throttle.wanted(record))

    # Restoring.

    def pending(self) -> list[str]:
        """Exported replicas whose caps are not those of the record."""
        if not self.ctx.throttle.works:
            return []
        data = self.ctx.spec.data
        try:
            seen = self.ctx.throttle.seen()
        except (OSError, ValueError) as error:
            raise errors.InternalError(f"The kernel's caps cannot be read: {error}") from error
        found = []
        for uuid in {export.replica for export in data.exports.values()}:
            record = data.replicas.get(uuid)
            if record is None or record.state != READY:
                continue
            number = self.ctx.lvm_of(record).number(replica_name(uuid))
            if number and seen.get(number, Cap()) != self.ctx.throttle.wanted(record):
                found.append(uuid)
        return found

    def finish(self, what: str) -> None:
        """Give a replica the caps of its record."""
        with self.ctx.locks.hold(replica_lock(what), wait=False):
            record = self.ctx.spec.data.replicas.get(what)
            if record is not None and record.state == READY:
                LOG.info("Capping replica %s as recorded", what)
                self._apply(what, record)
