# SPDX-License-Identifier: Apache-2.0
"""The calls that export a replica to a host and take the export away."""

from __future__ import annotations

from typing import Any

from kumo_client.api.node import Node
from kumo_client.schemas.node import ExportSpec


def export_call(replica_uuid: str, host_nqn: str, io_class: str) -> Any:
    """The call that exports a replica to a host."""
    spec = ExportSpec(host_nqn=host_nqn, io_class=io_class)

    def call(node: Node) -> Any:
        return node.put_export(replica_uuid, spec)

    return call


def unexport_call(replica_uuid: str, host_nqn: str) -> Any:
    """The call that takes the export of a replica away from a host."""

    def call(node: Node) -> Any:
        return node.delete_export(replica_uuid, host_nqn)

    return call
