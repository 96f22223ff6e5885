# SPDX-License-Identifier: Apache-2.0
"""What a reconcile did."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Counts:
    """``waiting`` needs a node that is away, ``skipped`` was in use."""

    undone: int = 0
    removed: int = 0
    exports_restored: int = 0
    exports_removed: int = 0
    limits_set: int = 0
    settled: int = 0
    missing: int = 0
    unknown: int = 0
    waiting: int = 0
    skipped: int = 0

    def add(self, more: Counts) -> None:
        for field in dataclasses.fields(Counts):
            setattr(self, field.name, getattr(self, field.name) + getattr(more, field.name))

    def any(self) -> bool:
        return any(dataclasses.astuple(self))

    def wire(self) -> dict[str, int]:
        values = dataclasses.asdict(self)
        names = {
            "exports_restored": "exportsRestored",
            "exports_removed": "exportsRemoved",
            "limits_set": "limitsSet",
        }
        return {names.get(key, key): value for key, value in values.items()}
