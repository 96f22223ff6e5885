# SPDX-License-Identifier: Apache-2.0
"""What some stories of healing in one machine set for themselves: speed of md, size of volumes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench.guest_site import Site

_MIB = 1 << 20
# Of the whole machine, for arrays that have none of their own (Documentation/admin-guide/md.rst).
_FILES = [Path(f"/proc/sys/dev/raid/speed_limit_{name}") for name in ("min", "max")]


@contextlib.contextmanager
def copying_at(speed: int) -> Iterator[None]:
    """Arrays are synchronised at so many KB/s each, whatever else there is to do."""
    before = [path.read_text() for path in _FILES]
    for path in _FILES:
        path.write_text(str(speed))
    try:
        yield
    finally:
        for path, text in zip(_FILES, before, strict=True):
            path.write_text(text)


@contextlib.contextmanager
def volumes_of(site: Site, size_mib: int) -> Iterator[None]:
    """Volumes that are attached meanwhile are of another size."""
    before = site.size
    site.size = size_mib * _MIB
    try:
        yield
    finally:
        site.size = before
