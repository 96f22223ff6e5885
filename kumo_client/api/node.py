# SPDX-License-Identifier: Apache-2.0
"""The API of a storage node; see :mod:`kumo_client.schemas.node`."""

from __future__ import annotations

from kumo_client.api.parse import model, quoted
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.node import (
    Adoptables,
    AdoptSpec,
    Copy,
    CopySpec,
    Export,
    ExportSpec,
    Inventory,
    Limits,
    NodeInfo,
    NodeSnapshot,
    ReleaseSpec,
    Replica,
    ReplicaResize,
    ReplicaSpec,
    RevertSpec,
    SnapshotSpec,
    Stamp,
    StampSpec,
)
from kumo_client.session import Session


class Node:
    """One storage node. Every call may be repeated; each raises the errors of the session.

    A size is in bytes. ``PUT`` of something that exists with other values is ConflictError.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    def info(self) -> NodeInfo:
        """Identity, portals and pools."""
        return model(NodeInfo, self.session.request("GET", "/v1/info"))

    def inventory(self) -> Inventory:
        """All replicas, snapshots and exports."""
        return model(Inventory, self.session.request("GET", "/v1/inventory"))

    def put_stamp(self, spec: StampSpec) -> Stamp:
        """Let the node remember another state of the provisioner's database.

        :raises ConflictError: it remembers something else than ``replaces``.
        """
        return model(Stamp, self.session.request("PUT", "/v1/stamp", json=spec.wire()))

    def put_replica(self, uuid: str, spec: ReplicaSpec) -> Replica:
        """Make a replica, or find that it is there as asked."""
        return model(Replica, self.session.request("PUT", _replica(uuid), json=spec.wire()))

    def resize_replica(self, uuid: str, size: int, *, grow_array: bool = False) -> Replica:
        """Grow a replica to ``size`` bytes.

        :param grow_array: also the md array whose leg it is, while no host uses it.
        :raises ConflictError: it is larger already, or its array cannot be grown.
        :raises InUseError: the array is to grow and the replica is exported.
        """
        body = ReplicaResize(bytes=size, grow_array=grow_array).wire()
        answer = self.session.request("PATCH", _replica(uuid), json=body, idempotent=True)
        return model(Replica, answer)

    def replica(self, uuid: str) -> Replica:
        """:raises NotExistsError: the node has no such replica."""
        return model(Replica, self.session.request("GET", _replica(uuid)))

    def set_limits(self, uuid: str, limits: Limits) -> Replica:
        """Cap a replica; zeros take the caps away."""
        path = f"{_replica(uuid)}/limits"
        return model(Replica, self.session.request("PUT", path, json=limits.wire()))

    def revert_replica(self, uuid: str, spec: RevertSpec) -> Replica:
        """Make a replica what a snapshot of it is; the same ``operation`` again changes nothing.

        :raises InUseError: it is exported.
        """
        path = f"{_replica(uuid)}/revert"
        return model(Replica, self.session.request("PUT", path, json=spec.wire()))

    def adoptable(self) -> Adoptables:
        """Thin volumes of the pools that are nobody's record."""
        return model(Adoptables, self.session.request("GET", "/v1/adoptable"))

    def adopt_replica(self, uuid: str, spec: AdoptSpec) -> Replica:
        """Make an existing thin volume a replica."""
        path = f"{_replica(uuid)}/adopt"
        return model(Replica, self.session.request("PUT", path, json=spec.wire()))

    def release_replica(self, uuid: str, spec: ReleaseSpec) -> StatusAnswer:
        """Forget a replica and leave its data under another name.

        :raises InUseError: it is exported.
        """
        path = f"{_replica(uuid)}/release"
        return model(StatusAnswer, self.session.request("PUT", path, json=spec.wire()))

    def put_copy(self, uuid: str, spec: CopySpec) -> Copy:
        """Begin to fill a replica from one of another node, or see how far that is."""
        return model(Copy, self.session.request("PUT", _copy(uuid), json=spec.wire()))

    def copy(self, uuid: str) -> Copy:
        """:raises NotExistsError: no copy into that replica was begun."""
        return model(Copy, self.session.request("GET", _copy(uuid)))

    def delete_copy(self, uuid: str) -> StatusAnswer:
        """Stop a copy and forget it."""
        return model(StatusAnswer, self.session.request("DELETE", _copy(uuid)))

    def delete_replica(self, uuid: str) -> StatusAnswer:
        """:raises InUseError: the replica is exported."""
        return model(StatusAnswer, self.session.request("DELETE", _replica(uuid)))

    def put_snapshot(self, uuid: str, spec: SnapshotSpec) -> NodeSnapshot:
        """Make a snapshot of a replica, or find that it is there as asked."""
        return model(NodeSnapshot, self.session.request("PUT", _snapshot(uuid), json=spec.wire()))

    def delete_snapshot(self, uuid: str) -> StatusAnswer:
        """Delete a snapshot; one that is absent is a success."""
        return model(StatusAnswer, self.session.request("DELETE", _snapshot(uuid)))

    def put_export(self, replica_uuid: str, spec: ExportSpec) -> Export:
        """Export a replica to one host, or find that it is exported to it."""
        path = f"{_replica(replica_uuid)}/exports"
        return model(Export, self.session.request("PUT", path, json=spec.wire()))

    def delete_export(self, replica_uuid: str, host_nqn: str | None = None) -> StatusAnswer:
        """End the export to this host, or to every host with ``None``."""
        params = {"hostNqn": host_nqn} if host_nqn is not None else None
        path = f"{_replica(replica_uuid)}/exports"
        return model(StatusAnswer, self.session.request("DELETE", path, params=params))


def _copy(uuid: str) -> str:
    return f"/v1/copies/{quoted(uuid)}"


def _replica(uuid: str) -> str:
    return f"/v1/replicas/{quoted(uuid)}"


def _snapshot(uuid: str) -> str:
    return f"/v1/snapshots/{quoted(uuid)}"
