# SPDX-License-Identifier: Apache-2.0
"""Python environments with a real os-brick, and our wheel in some of them.

oslo and the rest come from the environment of the tests, behind the environment's own packages.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

TOP = Path(__file__).resolve().parents[3]
RELEASES = ("6.10.0", "6.13.0", "7.1.1")
# What a release needs older than the environment of the tests has it (oslo_utils.secretutils.md5).
OLDER = {"6.10.0": ("oslo.utils-8.2.0-py3-none-any.whl",)}
# See tools/prepare.
DOWNLOADS = Path(sys.prefix) / "os-brick"


def run(*argv, cwd=None, **variables):
    """Run a program to its end; its standard output."""
    done = subprocess.run(
        [str(part) for part in argv],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "1"} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, f"{argv}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(directory):
    """Our wheel, of this very tree."""
    tree = directory / "tree"
    left_out = shutil.ignore_patterns(
        ".venv", ".git", "__pycache__", "build", "*.egg-info", "lab-failures", ".*_cache", "doc"
    )
    shutil.copytree(TOP, tree, ignore=left_out)
    arguments = ("--no-deps", "--no-build-isolation", "--no-index", "-w", directory)
    run(sys.executable, "-m", "pip", "wheel", "-q", *arguments, tree, PBR_VERSION="1.0.0")
    (wheel,) = directory.glob("cinder_kumo-*.whl")
    return wheel


class Environment:
    """One virtual environment with one os-brick."""

    def __init__(self, path, release):
        self.path = path
        run(sys.executable, "-m", "venv", "--without-pip", path)
        self.python = path / "bin" / "python"
        self.site = next(path.glob("lib/python*/site-packages"))
        behind = sysconfig.get_paths()["purelib"]
        (self.site / "behind.pth").write_text(f"{behind}\n")
        self.install(self.wheel(release), *(DOWNLOADS / name for name in OLDER.get(release, ())))

    @staticmethod
    def wheel(release):
        """That of a release of os-brick; tools/prepare downloads it."""
        return DOWNLOADS / f"os_brick-{release}-py3-none-any.whl"

    def install(self, *wheels):
        """Install wheels without what they need."""
        self._pip("install", "-q", "--no-deps", "--no-index", "--force-reinstall", *wheels)

    def files(self):
        """Every file in it but byte code."""
        return sorted(
            str(path.relative_to(self.path))
            for path in self.path.rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        )

    def uninstall(self, name):
        """Uninstall a distribution."""
        self._pip("uninstall", "-q", "-y", name)

    def _pip(self, *arguments):
        run(sys.executable, "-m", "pip", "--python", self.python, *arguments)

    def ask(self, script, *arguments):
        """The last line that a Python script prints, read as JSON."""
        printed = run(self.python, "-c", script, *arguments, cwd=self.path)
        return json.loads(printed.splitlines()[-1])
