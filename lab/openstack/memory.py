# SPDX-License-Identifier: Apache-2.0
"""Memory of process trees, counting shared pages once."""

from __future__ import annotations

import re
from pathlib import Path

PROC = Path("/proc")


def pss_kib(pid: int, proc: Path = PROC) -> int:
    """Proportional set size of ``pid`` and its descendants, in KiB (proc(5), smaps_rollup)."""
    return sum(_own_kib(each, proc) for each in tree(pid, proc))


def tree(pid: int, proc: Path = PROC) -> list[int]:
    """``pid`` and its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit() and (parent := _parent(entry)) is not None:
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for each in found:
        found.extend(children.get(each, []))
    return found


def _parent(entry: Path) -> int | None:
    try:
        # The command name, in brackets, may hold anything; the parent is the second word after.
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _own_kib(pid: int, proc: Path) -> int:
    try:
        text = (proc / str(pid) / "smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) if match else 0
