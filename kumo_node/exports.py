# SPDX-License-Identifier: Apache-2.0
"""Verbs on exports: a replica as a namespace that one host may see."""

from __future__ import annotations

import os
import re

from oslo_log import log

from kumo_client import errors
from kumo_client.schemas.node import Export, ExportSpec
from kumo_node.context import Context, host_lock, replica_lock
from kumo_node.lvm import replica_name
from kumo_node.spec import CREATING, DELETING, READY, Data, ExportRecord, export_key
from kumo_node.throttle import Cap

LOG = log.getLogger(__name__)
# A name in configfs: no slash, and nothing that a shell or log would trip over.
_NQN = re.compile(r"^nqn\.[A-Za-z0-9.:_+@%-]{7,219}$")


def check_nqn(host_nqn: str) -> None:
    """:raises InvalidInputError: the NQN cannot be the name of a directory in configfs."""
    if not _NQN.match(host_nqn):
        raise errors.InvalidInputError("hostNqn has a character that an NQN here cannot have")


class Exports:
    """Verbs of ``/v1/replicas/{uuid}/exports``."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx

    def of(self, replica: str) -> list[Export]:
        """All exports of a replica that were answered as done."""
        records = self.ctx.spec.data.exports_of(replica)
        return [self.view(record) for record in records if record.state == READY]

    def view(self, record: ExportRecord) -> Export:
        """An export as the API shows it, with the portals on which it can be reached now."""
        subsystem = self.ctx.subsystem(record)
        return Export(
            replica=record.replica,
            host_nqn=record.host_nqn,
            io_class=record.io_class,
            subsystem_nqn=subsystem,
            nsid=record.nsid,
            portals=[portal.wire() for portal in self.ctx.nvmet.linked(subsystem)],
        )

    def put(self, replica: str, wish: ExportSpec) -> Export:
        """Export a replica to a host.

        :raises NotExistsError: there is no such replica.
        :raises ConflictError: it is exported to that host in the other class.
        :raises BackendUnavailableError: no portal is up, the volume is not active yet, or its pool
            has failed.
        """
        check_nqn(wish.host_nqn)
        with self.ctx.locks.hold(replica_lock(replica), host_lock(wish.host_nqn)):
            self.ctx.settled(replica)
            key = export_key(replica, wish.host_nqn)
            record = self.ctx.spec.data.exports.get(key) or self._begin(replica, wish)
            if record.state == DELETING:
                raise errors.BusyError(f"The export of replica {replica} is being removed")
            if record.io_class != wish.io_class:
                raise errors.ConflictError(
                    f"Replica {replica} is exported to this host as {record.io_class}",
                    way_out="Detach the volume first",
                )
            try:
                self.apply(record)
            except errors.KumoError:
                if record.state == CREATING:
                    self.undo(record)
                raise
            return self.view(self._commit(record))

    def _begin(self, replica: str, wish: ExportSpec) -> ExportRecord:
        with self.ctx.spec.edit() as data:
            record = ExportRecord(
                replica=replica, host_nqn=wish.host_nqn, io_class=wish.io_class, nsid=1
            )
            record = record.model_copy(update={"nsid": self._free_nsid(data, record)})
            data.exports[export_key(replica, wish.host_nqn)] = record
            if wish.host_nqn not in data.hosts and not self.ctx.nvmet.has_host(wish.host_nqn):
                data.hosts.append(wish.host_nqn)
        return record

    def _free_nsid(self, data: Data, record: ExportRecord) -> int:
        subsystem = self.ctx.subsystem(record)
        used = self.ctx.nvmet.used_nsids(subsystem)
        used |= {e.nsid for e in data.exports.values() if self.ctx.subsystem(e) == subsystem}
        return next(nsid for nsid in range(1, len(used) + 2) if nsid not in used)

    def apply(self, record: ExportRecord) -> None:
        """Make the kernel's side of an export complete; the caller holds the locks."""
        pool = self.ctx.pool_of(self.ctx.replica(record.replica))
        if pool.failed:
            raise errors.BackendUnavailableError(
                f"Replica {record.replica} cannot be reached, pool {pool.name} has failed: "
                f"{pool.condition.reason}",
                node=self.ctx.persistent_id,
            )
        namespace = self.ctx.namespace(record)
        if not os.path.exists(namespace.device):
            raise errors.BackendUnavailableError(
                f"Replica {record.replica} is not active yet", node=self.ctx.persistent_id
            )
        self._cap(record.replica)
        try:
            self.ctx.nvmet.apply(namespace)
        except OSError as error:
            raise errors.InternalError(
                f"The NVMe target refused the export of replica {record.replica}: {error}",
                node=self.ctx.persistent_id,
            ) from error

    def _cap(self, replica: str) -> None:
        record = self.ctx.spec.data.replicas[replica]
        cap = self.ctx.throttle.wanted(record)
        number = self.ctx.lvm_of(record).number(replica_name(replica))
        # A volume that was just activated has none.
        if cap != Cap() and number is not None:
            self.ctx.throttle.apply(number, cap)

    def _commit(self, record: ExportRecord) -> ExportRecord:
        if record.state == READY:
            return record
        record = record.model_copy(update={"state": READY})
        with self.ctx.spec.edit() as data:
            data.exports[export_key(record.replica, record.host_nqn)] = record
        return record

    def undo(self, record: ExportRecord) -> None:
        """Remove the kernel's side of an export and its record; the caller holds the locks."""
        data = self.ctx.spec.data
        others = [e for e in data.exports.values() if e.host_nqn == record.host_nqn]
        drop_host = record.host_nqn in data.hosts and len(others) <= 1
        try:
            self.ctx.nvmet.remove(self.ctx.namespace(record), drop_host=drop_host)
        except OSError as error:
            raise errors.InternalError(
                f"The NVMe target did not give up replica {record.replica}: {error}",
                node=self.ctx.persistent_id,
            ) from error
        with self.ctx.spec.edit() as data:
            data.exports.pop(export_key(record.replica, record.host_nqn), None)
            if drop_host:
                data.hosts.remove(record.host_nqn)

    def delete(self, replica: str, host_nqn: str | None) -> None:
        """Take a replica away from a host, or from every host; absent is success."""
        if host_nqn is not None:
            check_nqn(host_nqn)
        for record in self.ctx.spec.data.exports_of(replica):
            if host_nqn in (None, record.host_nqn):
                self._delete(record.replica, record.host_nqn)

    def _delete(self, replica: str, host_nqn: str) -> None:
        with self.ctx.locks.hold(replica_lock(replica), host_lock(host_nqn)):
            key = export_key(replica, host_nqn)
            record = self.ctx.spec.data.exports.get(key)
            if record is None:
                return
            if record.state == READY:
                record = record.model_copy(update={"state": DELETING})
                with self.ctx.spec.edit() as data:
                    data.exports[key] = record
            self.undo(record)

    def disable(self, pool: str) -> None:
        """Let go of the devices of a pool's replicas; restoring makes the exports complete again.

        :raises BusyError: another call works on one of them.
        """
        data = self.ctx.spec.data
        for record in list(data.exports.values()):
            replica = data.replicas.get(record.replica)
            if replica is not None and replica.pool == pool:
                with self.ctx.locks.hold(replica_lock(record.replica), wait=False):
                    self.ctx.nvmet.disable(self.ctx.namespace(record))

    def revalidate(self, replica: str) -> None:
        """Tell the hosts of a replica that its size changed."""
        for record in self.ctx.spec.data.exports_of(replica):
            try:
                self.ctx.nvmet.revalidate(self.ctx.namespace(record))
            except OSError as error:
                raise errors.InternalError(
                    f"The NVMe target did not take the new size of {replica}: {error}"
                ) from error
