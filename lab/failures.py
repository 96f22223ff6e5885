# SPDX-License-Identifier: Apache-2.0
"""Keep what a failed scenario leaves to look at: consoles, journals and service logs."""

from __future__ import annotations

import re
import shutil
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lab.errors import LabError

if TYPE_CHECKING:
    from lab.cluster import Lab
    from lab.machine import Machine

DIRECTORY = Path("lab-failures")
_JOURNAL_SECONDS = 20.0
# The guest agent keeps 16 MiB of a command's output.
_JOURNAL = "journalctl -b --no-pager --lines=50000"
# Lines of a log that say that something went wrong, and how many of them are shown.
_TELLING = re.compile(
    r"\b(WARNING|ERROR|CRITICAL)\b|^[\w.]+(Error|Exception|Invalid\w*)\b|I/O error|timeout, abort"
)
_SHOWN = 6
_WIDTH = 300


def collect(
    lab: Lab | None,
    scenario: str,
    error: BaseException,
    directory: Path = DIRECTORY,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Path:
    """Copy everything there is to ``<directory>/<UTC time>-<scenario>/`` and return that path.

    What cannot be had (a machine that does not answer) is said in ``error.txt`` there.

    :param lab: None when it could not be made.
    """
    target = directory / f"{now():%Y%m%dT%H%M%SZ}-{scenario}"
    target.mkdir(parents=True, exist_ok=True)
    problems = _collect_lab(lab, target) if lab is not None else ["there was no lab"]
    text = "".join(traceback.format_exception(error))
    (target / "error.txt").write_text("\n".join([text, *problems]) + "\n")
    return target


def telling(directory: Path) -> list[str]:
    """The last lines of each collected log that say that something went wrong, for whoever sees
    only what was printed.
    """
    found = []
    for path in sorted(directory.rglob("*.log")):
        journal = path.with_name(path.name.replace("-console", "-journal"))
        if journal != path and journal.exists():
            continue
        lines = path.read_text(errors="replace").splitlines()
        last = [line for line in lines if _TELLING.search(line) and "eprecated" not in line]
        found += [f"{path.name}: {line[:_WIDTH]}" for line in last[-_SHOWN:]]
    return found


def _collect_lab(lab: Lab, target: Path) -> list[str]:
    problems = []
    logs = lab.state_dir / "logs"
    files = [(path, target / "logs" / path.name) for path in sorted(logs.glob("*"))]
    machines = list(lab.machines.values())
    files += [(m.console_path, target / f"{m.name}-console.log") for m in machines]
    for source, copy in files:
        try:
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, copy)
        except OSError as error:
            problems.append(f"{source}: {error}")
    with ThreadPoolExecutor(max(1, len(machines))) as pool:
        answers = pool.map(lambda machine: _journal(machine, target), machines)
        problems += [answer for answer in answers if answer]
    return problems


def _journal(machine: Machine, target: Path) -> str:
    """Copy the journal of a machine; return what was in the way, if anything."""
    try:
        done = machine.run(_JOURNAL, check=False, timeout=_JOURNAL_SECONDS)
    except (LabError, OSError) as error:
        return f"{machine.name}: no journal: {error}"
    (target / f"{machine.name}-journal.log").write_text(done.stdout + done.stderr)
    return ""
