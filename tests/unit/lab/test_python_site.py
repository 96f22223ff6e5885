# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab import python_site
from lab.errors import LabError


class Squash:
    """mksquashfs: the image is the name of the tree."""

    def __init__(self):
        self.runs = []
        self.code = 0
        self.interrupt = False

    def __call__(self, argv, **_):
        assert argv[0] == "mksquashfs"
        self.runs.append(argv)
        Path(argv[2]).write_text(argv[1])
        if self.interrupt:
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(argv, self.code, "FATAL ERROR: no space\n", None)


@pytest.fixture
def squash(monkeypatch, tmp_path):
    squash = Squash()
    monkeypatch.setenv("KUMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", squash)
    monkeypatch.setattr(sys, "version_info", (3, 11, 2, "final", 0))
    return squash


@pytest.fixture
def site(monkeypatch, tmp_path):
    """An environment with two distributions, ours among them."""
    site = tmp_path / "site-packages"
    for name, version in (("requests", "2.32.0"), ("cinder-kumo", "0.1.dev7")):
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.setattr(python_site.sysconfig, "get_paths", lambda: {"purelib": str(site)})
    return site


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_our_own_distribution_does_not_count(site):
    assert python_site.distributions() == ["requests==2.32.0"]


def test_the_key_follows_the_packages_and_the_interpreter(monkeypatch):
    before = python_site.key(["a==1", "b==2"])
    assert python_site.key(["a==1", "b==2"]) == before
    assert python_site.key(["a==1", "b==3"]) != before
    monkeypatch.setattr(python_site, "sys", SimpleNamespace(version="3.11.9 (main)"))
    assert python_site.key(["a==1", "b==2"]) != before


def test_packed_once_for_the_same_packages(squash, site, screen, tmp_path):
    path = python_site.build(screen)
    assert path.read_text() == str(site)
    assert left(tmp_path) == [path.name]
    assert python_site.build(screen) == path
    assert len(squash.runs) == 1
    (site / "requests-2.32.0.dist-info/METADATA").write_text("Name: requests\nVersion: 2.33.0\n")
    assert python_site.build(screen) != path
    assert len(squash.runs) == 2


def test_a_failed_tool_leaves_nothing(squash, site, screen, tmp_path):
    squash.code = 1
    with pytest.raises(LabError, match="mksquashfs failed with code 1: FATAL ERROR: no space"):
        python_site.build(screen)
    assert left(tmp_path) == []


def test_an_interrupt_leaves_nothing(squash, site, screen, tmp_path):
    squash.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        python_site.build(screen)
    assert left(tmp_path) == []


def test_another_python_than_that_of_the_guests(squash, screen, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    with pytest.raises(LabError, match=r"guests run Python 3\.11") as caught:
        python_site.build(screen)
    assert "tools/prepare" in caught.value.way_out
    assert not (tmp_path / "cache").exists()
