# SPDX-License-Identifier: Apache-2.0
"""What a pool can deliver: given by the operator, or measured by ``kumo-node calibrate``.

The provisioner guarantees no more than that. A given value wins over a measured one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kumo_client import errors
from kumo_node.pool import Pool
from kumo_node.spec import Data

ALL = "*"


def parse(option: str, texts: Sequence[str]) -> dict[str, int]:
    """Parse ``path=value`` or a value for all disks.

    :param option: its name, for the error.
    :raises ConfigError: when one is neither, or its path is given twice.
    """
    found: dict[str, int] = {}
    for text in texts:
        path, _, value = text.rpartition("=")
        path = path.strip() or ALL
        if not value.strip().isdigit() or path in found:
            raise errors.ConfigError(
                f"Option {option}: {text!r} cannot be used",
                way_out="Write a number for all disks, or PATH=NUMBER with a path of option disks",
            )
        found[path] = int(value)
    return found


class Rates:
    """What the pools of this node deliver.

    :param iops: operations per second by path of a disk, ``*`` for the others. :param bw: KB/s.
    """

    def __init__(self, iops: Mapping[str, int], bw: Mapping[str, int]) -> None:
        self.iops = dict(iops)
        self.bw = dict(bw)

    def of(self, pool: Pool, data: Data) -> tuple[int, int]:
        """Operations and KB per second of a pool; 0 is not known."""
        measured = data.measured.get(pool.name)
        iops, bw = self._given(self.iops, pool), self._given(self.bw, pool)
        return (
            iops or (measured.iops if measured else 0),
            bw or (measured.bw if measured else 0),
        )

    def _given(self, values: Mapping[str, int], pool: Pool) -> int:
        # LVM puts disks one after the other: a volume can lie on one of them alone.
        return min((values.get(path, values.get(ALL, 0)) for path in pool.paths()), default=0)
