# SPDX-License-Identifier: Apache-2.0
"""What a fake storage node remembers of the provisioner's database."""

from __future__ import annotations

from kumo_client import errors, stamp
from kumo_client.schemas.node import Stamp, StampSpec

# Methods of the client, or ends of paths, that take something away.
TAKING = ("delete_", "revert_replica", "release_replica", "put_copy")


class Remembering:
    """A part of NodeModel.

    :ivar memory: the latest state that it was told of.
    :ivar refused: how often it refused to give something up.
    """

    name: str
    memory: Stamp | None = None
    refused: int = 0

    def hear(self, header: str, *, taking: bool) -> None:
        """A request with this header begins.

        :raises OutdatedRecordError: it takes something away and comes from an older state.
        """
        line = stamp.parse(header)
        if line is None:
            return
        old = None if self.memory is None else self.memory.plain
        if old is None or line.covers(old):
            self.memory = Stamp.of(line.now)
        elif taking:
            self.refused += 1
            error = errors.OutdatedRecordError(f"{self.name} was told of {old}, not {line.now}")
            error.transient = False
            raise error

    def put_stamp(self, spec: StampSpec) -> Stamp:
        if self.memory not in (None, spec.replaces, spec.stamp):
            raise errors.ConflictError(f"{self.name} remembers something else")
        self.memory = spec.stamp
        return spec.stamp
