# SPDX-License-Identifier: Apache-2.0
"""The caps of volumes, set on the nodes of their replicas.

New replicas are made with their caps. These change with the storage class and with the size, also
while a host uses the volume. A node that cannot be asked gets them by a reconcile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oslo_log import log

from kumo_client import errors
from kumo_client.api.node import Node
from kumo_client.schemas.node import Limits
from kumo_client.schemas.volume import REPLICA_TERMINATING, StorageClass
from kumo_provisioner import settling
from kumo_provisioner.core import Core
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address, Call
from kumo_provisioner.services import building, capacity

LOG = log.getLogger(__name__)
# Of a storage class.
FIELDS = ("max_iops_per_gb", "max_bw_per_gb")


def capped(row: models.Volume) -> bool:
    """Whether a volume has caps at all."""
    asked = StorageClass.model_validate(row.storage_class)
    return any(getattr(asked, name) for name in FIELDS)


def apply(core: Core, uuid: str) -> None:
    """Set the caps of a volume on all its nodes. The caller holds the lock of the volume.

    A leg that is on its way out keeps its volume in step while its host has it, and may never have
    been made.

    :raises KumoError: a node could not be asked, or refused; it is to be tried again.
    """
    with core.db.read() as session:
        row = session.get_one(models.Volume, uuid)
        limits = capacity.limits(StorageClass.model_validate(row.storage_class), row.capacity)
        calls: dict[str, Call[Any]] = {
            leg.uuid: (Address.of(leg.backend), _call(leg.uuid, limits)) for leg in row.replicas
        }
        going = {leg.uuid for leg in row.replicas if leg.state == REPLICA_TERMINATING}
    outcomes = core.nodes.call_all(calls)
    gone = {uuid for uuid in going if isinstance(outcomes[uuid].error, errors.NotExistsError)}
    failed = building.first_error({uuid: outcomes[uuid] for uuid in outcomes.keys() - gone})
    if failed is not None:
        raise failed
    core.db.run(
        lambda session: settling.drop(session.get_one(models.Volume, uuid), settling.LIMITS)
    )


def apply_now_or_later(core: Core, uuid: str) -> None:
    """:func:`apply` what is unsettled; what fails is left for a reconcile."""
    with core.db.read() as session:
        if settling.LIMITS not in settling.kinds(session.get_one(models.Volume, uuid)):
            return
    try:
        apply(core, uuid)
    except errors.KumoError as exc:
        LOG.warning("The caps of volume %s are set later: %s", uuid, exc)
        core.wake.set()


def _call(uuid: str, limits: Limits) -> Callable[[Node], object]:
    def call(node: Node) -> object:
        return node.set_limits(uuid, limits)

    return call
