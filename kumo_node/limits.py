# SPDX-License-Identifier: Apache-2.0
"""The verb on caps of a replica."""

from __future__ import annotations

from kumo_client.schemas.node import Limits, Replica
from kumo_node.context import Context, replica_lock
from kumo_node.replicas import Replicas


class Caps:
    """The verb of ``/v1/replicas/{uuid}/limits``."""

    def __init__(self, ctx: Context, replicas: Replicas) -> None:
        self.ctx = ctx
        self.replicas = replicas

    def put(self, uuid: str, wish: Limits) -> Replica:
        """Cap a replica; zeros take the caps away.

        :raises NotExistsError: there is no such replica.
        """
        with self.ctx.locks.hold(replica_lock(uuid)):
            record = self.ctx.replica(uuid)
            if (record.max_iops, record.max_bw) != (wish.max_iops, wish.max_bw):
                new = {"max_iops": wish.max_iops, "max_bw": wish.max_bw}
                record = record.model_copy(update=new)
                with self.ctx.spec.edit() as data:
                    data.replicas[uuid] = record
            return self.replicas.view(uuid, record)
