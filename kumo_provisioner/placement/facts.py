# SPDX-License-Identifier: Apache-2.0
"""What placement is told, and what it answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.node import STATE_OK


class Candidate(NamedTuple):
    """A pool of a node as placement sees it, in the order of the columns of the query.

    A tuple, because a large fleet has thousands of them and each placement reads all. Sizes in
    bytes, bandwidth in KB/s. ``node_max_*`` of 0 means no limit besides those of the pools,
    ``max_iops`` and ``max_bw`` of 0 that nobody knows what the pool delivers. ``iops`` and ``bw``
    are the use of the last minutes, told at ``used_at`` (ms since the epoch). ``mgmt_*`` is where
    the node answers.
    """

    backend_id: str
    pool: str = "pool"
    name: str = ""
    state: str = AVAILABLE
    mode: str = ""
    cordoned: bool = False
    rack: str = ""
    zone: str = ""
    region: str = ""
    node_max_iops: int = 0
    node_max_bw: int = 0
    node_sold_iops: int = 0
    node_sold_bw: int = 0
    pool_state: str = STATE_OK
    spans: bool = False
    total: int = 0
    used: int = 0
    charged: int = 0
    max_iops: int = 0
    max_bw: int = 0
    sold_iops: int = 0
    sold_bw: int = 0
    iops: int = 0
    bw: int = 0
    used_at: int = 0
    mgmt_ips: str = "[]"
    mgmt_port: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Ask:
    """What is to be placed.

    :ivar charge: bytes that each replica is charged with.
    :ivar iops: operations per second that each replica is guaranteed; ``bw`` in KB/s.
    :ivar allow_span: a pool of several disks will do.
    :ivar backend_id: only this node will do.
    :ivar taken: nodes that hold a replica of the volume already.
    :ivar taken_racks: racks of these nodes.
    """

    replicas: int
    charge: int
    iops: int = 0
    bw: int = 0
    zones: Sequence[str] = ()
    racks: Sequence[str] = ()
    regions: Sequence[str] = ()
    same_rack_allowed: bool = False
    allow_span: bool = True
    backend_id: str = ""
    taken: frozenset[str] = frozenset()
    taken_racks: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """What an operator chose.

    :ivar max_fill: part of a pool that may be occupied before it gets nothing new.
    :ivar hot: part of what a pool or node delivers that may be in use before it gets nothing new.
    :ivar fresh_since: use that was told before this time (ms) is not known any more.
    :ivar capacity: how much sold or occupied capacity counts; ``guarantees`` and ``use`` likewise.
    :ivar assumed_iops: operations per second that a pool counts as delivering for its weight when
        nobody knows; 0 when nothing is to be assumed. ``assumed_bw`` in KB/s.
    """

    max_fill: float = 1.0
    hot: float = 1.0
    fresh_since: int = 0
    capacity: float = 1.0
    guarantees: float = 1.0
    use: float = 1.0
    assumed_iops: int = 0
    assumed_bw: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What placement says of a pool, or (``pool`` empty) of a whole node.

    ``refused_by`` is the name of a filter; empty when a replica could go there.
    """

    backend_id: str
    name: str
    pool: str = ""
    refused_by: str = ""
    reason: str = ""
    weight: float = 0.0
    chosen: bool = False

    def told(self) -> dict[str, str]:
        """A refusal in the details of an error, in the names of the wire."""
        return {
            "backendId": self.backend_id,
            "backendName": self.name,
            "pool": self.pool,
            "refusedBy": self.refused_by,
            "reason": self.reason,
        }


def charge(size: int, provisioning_type: str, thin_ratio: float) -> int:
    """Bytes that a replica of ``size`` bytes is charged with on its pool."""
    return size if provisioning_type != "THIN" else math.ceil(size / thin_ratio)
