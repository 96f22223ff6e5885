# SPDX-License-Identifier: Apache-2.0
"""The fleet and the volumes that the benchmark of the control plane works on."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator

from kumo_client import naming

GIB = naming.GIB
NODE_BYTES = 16 << 40
POOLS = ("ssd-0", "ssd-1")
RACKS = 40
HOSTS = 200
VOLUME_GIB = 10
_NAMESPACE = uuid.UUID("0d5b1c53-7e83-4b0e-9c62-6b1f4f3a1c11")


def node_id(number: int) -> str:
    return str(uuid.uuid5(_NAMESPACE, f"node {number}"))


def host_id(number: int) -> str:
    return f"host-{number % HOSTS}"


def host_nqn(number: int) -> str:
    return f"nqn.2014-08.org.nvmexpress:uuid:{uuid.uuid5(_NAMESPACE, host_id(number))}"


@dataclasses.dataclass(frozen=True)
class Leg:
    """A replica that exists already; ``node`` is a number."""

    uuid: str
    node: int
    pool: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class Existing:
    """A volume that exists already; ``host`` is a number, None when nobody has it."""

    number: int
    uuid: str
    legs: tuple[Leg, ...]
    host: int | None


def volumes(first: int, last: int, nodes: int) -> Iterator[Existing]:
    """Volumes ``first`` to ``last - 1``: every fifth has two replicas, every tenth a host."""
    for number in range(first, last):
        replicas = 2 if number % 5 == 0 else 1
        size = naming.replica_bytes(VOLUME_GIB, replicas)
        legs = tuple(
            Leg(
                uuid=str(uuid.uuid5(_NAMESPACE, f"replica {number} {position}")),
                node=(number + position * (nodes // 2 + 1)) % nodes,
                pool=POOLS[number // nodes % len(POOLS)],
                bytes=size,
            )
            for position in range(replicas)
        )
        host = number if number % 10 == 0 else None
        yield Existing(number, str(uuid.uuid5(_NAMESPACE, f"volume {number}")), legs, host)
