# SPDX-License-Identifier: Apache-2.0
"""The Python packages of the running environment as a squashfs image for the guests.

Guests run Debian's python3 with the very packages of the machine they run on, so nothing is
installed twice. The cache key is the list of installed distributions.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from lab.errors import LabError
from lab.image import cache_directory
from lab.progress import Progress

GUEST_PYTHON = (3, 11)
OWN_DISTRIBUTION = "cinder-kumo"
_LEFT_OUT = ("pip", "setuptools", "wheel", "mypy", "mypyc", "ruff", "sphinx", "babel", "hypothesis")
# To be raised when something else changes what is packed.
_REVISION = "1"


def distributions() -> list[str]:
    """``name==version`` of each installed distribution but our own, sorted."""
    found = {
        f"{item.metadata['Name']}=={item.version}"
        for item in importlib.metadata.distributions(path=[sysconfig.get_paths()["purelib"]])
    }
    return sorted(name for name in found if not name.startswith(OWN_DISTRIBUTION + "=="))


def key(names: list[str]) -> str:
    """Digest of what the image would hold."""
    text = "\n".join([*names, *_LEFT_OUT, sys.version.split()[0], _REVISION])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build(progress: Progress) -> Path:
    """Return the squashfs file, making it if the cache has none.

    :raises LabError: this interpreter is not the guests' version, or mksquashfs failed.
    """
    if sys.version_info[:2] != GUEST_PYTHON:
        raise LabError(
            f"the lab's guests run Python 3.11 and share this environment's packages; "
            f"this is Python {sys.version.split()[0]}",
            way_out="run tools/prepare, which makes .venv with Debian 12's own python3",
        )
    path = cache_directory() / f"python-{key(distributions())}.squashfs"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        progress.task("Python packages for the guests") as task,
        tempfile.TemporaryDirectory(prefix="python-", suffix=".tmp", dir=path.parent) as directory,
    ):
        task.update("packing")
        made = Path(directory) / "image"
        _pack(Path(sysconfig.get_paths()["purelib"]), made)
        made.rename(path)
    return path


def _pack(tree: Path, target: Path) -> None:
    argv = ["mksquashfs", str(tree), str(target), "-noappend", "-quiet", "-no-progress"]
    argv += ["-comp", "lz4", "-all-root", "-wildcards", "-e", *_LEFT_OUT]
    argv += ["cinder/locale", "keystone/tests", "glance/tests", "*/__editable__*"]
    done = subprocess.run(argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise LabError(f"mksquashfs failed with code {done.returncode}: {done.stdout[-800:]}")
