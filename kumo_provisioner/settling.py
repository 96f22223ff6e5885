# SPDX-License-Identifier: Apache-2.0
"""What is still to be done on a volume after its wish was recorded.

A service adds a kind to ``Volume.unsettled`` in the transaction that records the wish, tries to do
it at once, and drops the kind when it is done. What is left is done by a reconcile: it takes the
lock of the volume and calls what is registered for the kind.
"""

from __future__ import annotations

from collections.abc import Callable

from kumo_client import errors
from kumo_provisioner.core import Core
from kumo_provisioner.db import models

EXTEND = "extend"
LIMITS = "limits"
REVERT = "revert"
REPLICAS = "replicas"
ADOPT = "adopt"
RELEASE = "release"

KINDS = (EXTEND, LIMITS, REVERT, REPLICAS, ADOPT, RELEASE)

_MEANING = {
    EXTEND: "an extension",
    LIMITS: "a change of the caps",
    REVERT: "a revert to a snapshot",
    REPLICAS: "a change of the replicas",
}

# By kind: does the work for the volume of that uuid, whose lock the caller holds; raises KumoError
# when it has to be tried again later.
Settler = Callable[[Core, str], None]


def kinds(row: models.Volume) -> list[str]:
    """What is unsettled on a volume."""
    return [kind for kind in row.unsettled.split(",") if kind]


def add(row: models.Volume, kind: str) -> None:
    """Record that something is to be done."""
    row.unsettled = ",".join(sorted({*kinds(row), kind}))


def drop(row: models.Volume, kind: str) -> None:
    """Record that it is done."""
    row.unsettled = ",".join(one for one in kinds(row) if one != kind)


def refuse(row: models.Volume, *some: str) -> None:
    """Refuse what must not happen before something of these kinds is done.

    :raises BusyError: when one of them is unsettled.
    """
    for kind in kinds(row):
        if kind in some:
            raise errors.BusyError(
                f"{_MEANING.get(kind, kind)} of volume {row.uuid} is under way",
                volume=row.uuid,
                way_out="repeat the call later; see the states of its replicas and nodes",
            )
