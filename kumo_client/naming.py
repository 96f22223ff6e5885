# SPDX-License-Identifier: Apache-2.0
"""Names that several parts must compute alike."""

from __future__ import annotations

import hashlib
import uuid

GIB = 1 << 30
MIB = 1 << 20
# LVM's default extent; a thin volume is a whole number of extents.
EXTENT = 4 * MIB
ALIAS_MAX_REPLICATED = 27
ARRAY_NAME_MAX_BYTES = 32
_NAMESPACE = uuid.UUID("6f5c2f0e-3c52-5b0c-9d5c-2f6a3f1f9a4e")


def subsystem_nqn(persistent_id: str, host_nqn: str, io_class: str) -> str:
    """NQN of the one subsystem that a node offers to a host for a class of volumes.

    UUID form of NVMe Base Specification 2.0, section 4.5: no domain name is needed, and both the
    node and the provisioner can compute it, also while the node is down.
    """
    digest = uuid.uuid5(_NAMESPACE, f"{persistent_id}\n{host_nqn}\n{io_class}")
    return f"nqn.2014-08.org.nvmexpress:uuid:{digest}"


def node_host_nqn(persistent_id: str) -> str:
    """NQN under which a node connects to another one, to copy a replica."""
    return f"nqn.2014-08.org.nvmexpress:uuid:{uuid.uuid5(_NAMESPACE, persistent_id)}"


def io_class(replicas: int) -> str:
    """Class of a volume with that many replicas: ``plain`` or ``replicated``."""
    return "replicated" if replicas > 1 else "plain"


def array_name(alias: str) -> str:
    """Name of the md array of a replicated volume: the alias cut as existing clients cut it.

    They cut after 27 characters. Where these need more than the 32 bytes that md has for a name
    (``set_name``, include/uapi/linux/raid/md_p.h), as many whole characters as fit are kept: such
    a volume cannot be attached by existing clients, whose mdadm refuses the longer name.
    """
    cut = alias[:ALIAS_MAX_REPLICATED].encode("utf-8", "replace")
    return cut[:ARRAY_NAME_MAX_BYTES].decode("utf-8", "ignore")


def md_overhead(capacity_gib: int) -> int:
    """Bytes that md metadata 1.2 with an internal bitmap may take from a leg.

    mdadm (super1.c, validate_geometry1) keeps at most 128 MiB of head room, halved until it is no
    more than 1/1024 of the device, plus the superblock and bitmap space, rounded to 1 MiB.
    """
    head_room = min(128 * MIB, capacity_gib * GIB // 1024 + MIB)
    return _round_up(head_room + 4 * MIB, EXTENT)


def replica_bytes(capacity_gib: int, replicas: int) -> int:
    """Exact size in bytes of each replica of a volume of ``capacity_gib`` GiB.

    The leg of a replicated volume is larger by the md overhead, so that the array is never smaller
    than what was asked for.
    """
    size = capacity_gib * GIB
    return size if replicas == 1 else size + md_overhead(capacity_gib)


def host_name(hostname: str) -> str:
    """Host name as existing clients send it: dots become dashes, over 32 characters an MD5."""
    if len(hostname) > 32:
        return hashlib.md5(hostname.encode(), usedforsecurity=False).hexdigest()
    return hostname.replace(".", "-").lower()


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
