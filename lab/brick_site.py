# SPDX-License-Identifier: Apache-2.0
"""os-brick in two editions for the guests: as it comes, and with our connector in it.

The second is what an installed wheel makes of it: os-brick's package with our shipped modules
beside its own. Each is a directory to be put on Python's path in front of the other packages.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from lab.errors import LabError

STOCK = "stock"
OURS = "ours"
EDITIONS = (STOCK, OURS)
DIRECTORY = "brick"
_TOP = Path(__file__).resolve().parents[1]
# Laid out as below the directory of the package os_brick.
_SHIPPED = _TOP / "os_brick_nvmeof" / "plugin"
_LEFT_OUT = shutil.ignore_patterns("tests", "__pycache__")


def guest_path(edition: str) -> str:
    """Where an edition is in a guest.

    :raises LabError: there is no such edition.
    """
    if edition not in EDITIONS:
        raise LabError(f"there is no edition {edition!r} of os-brick", ", ".join(EDITIONS))
    return f"/opt/kumo/src/{DIRECTORY}/{edition}"


def make(source: Path, package: Path | None = None, shipped: Path = _SHIPPED) -> None:
    """Write both editions below ``source``.

    :param package: directory of the installed package os_brick; by default the running one's.
    :param shipped: our modules, in the directories that they have in that package.
    """
    package = package or _installed()
    ours = {path.relative_to(shipped) for path in shipped.rglob("*.py")}
    for edition in EDITIONS:
        target = source / DIRECTORY / edition / "os_brick"
        shutil.copytree(package, target, ignore=_LEFT_OUT)
        for path in ours:
            # Those of an installed wheel are not part of os-brick as it comes.
            (target / path).unlink(missing_ok=True)
            if edition == OURS:
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(shipped / path, target / path)


def _installed() -> Path:
    found = importlib.util.find_spec("os_brick")
    if found is None or not found.submodule_search_locations:
        raise LabError("os-brick is not installed here", "Run tools/prepare.")
    return Path(found.submodule_search_locations[0])
