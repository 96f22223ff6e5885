# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
from pathlib import Path

import pytest

from lab import image
from lab.errors import LabError

SOURCES = """\
Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main
"""


class Tools:
    """The programs that make an image, each with its effect on files."""

    def __init__(self):
        self.runs = []
        self.inputs = {}
        self.environments = {}
        self.failing = {}
        self.interrupted = None
        self.killed = []
        self.proxy = 'Acquire::http::Proxy "http://proxy:3142";\nAcquire::https::Proxy "";\n'
        self.apt_code = 0

    @property
    def names(self):
        return [argv[0] for argv in self.runs]

    def popen(self, argv, *, env=None, start_new_session, **_):
        # Otherwise killpg would hit us.
        assert start_new_session
        self.runs.append(argv)
        self.environments[argv[0]] = env
        return Process(self, argv)

    def run(self, argv, **_):
        assert argv == ["apt-config", "dump"]
        return subprocess.CompletedProcess(argv, self.apt_code, self.proxy, "E: broken\n")

    def work(self, argv):
        match argv:
            case ["mmdebstrap", *_]:
                tree = Path(argv[-2])
                for name in ("boot", "etc/systemd/system", "var/log"):
                    (tree / name).mkdir(parents=True)
                (tree / "boot/vmlinuz-6.12.9-amd64").write_text("kernel")
                (tree / "etc/systemd/system/mdmonitor.service").write_text("[Unit]\n")
            case ["chroot", tree, *_]:
                modules = (Path(tree) / "etc/initramfs-tools/modules").read_text()
                (Path(tree) / "boot/initrd.img-6.12.9-amd64").write_text(modules)
            case ["mke2fs", *_]:
                tree = Path(argv[argv.index("-d") + 1])
                listing = sorted(str(p.relative_to(tree)) for p in tree.rglob("*"))
                Path(argv[-2]).write_text("\n".join(listing))


class Process:
    pid = 4711

    def __init__(self, tools, argv):
        self.tools, self.argv, self.returncode = tools, argv, None

    def communicate(self, text):
        name = self.argv[0]
        self.tools.inputs[name] = text
        self.tools.work(self.argv)
        if name == self.tools.interrupted:
            raise KeyboardInterrupt
        self.returncode = self.tools.failing.get(name, 0)
        return "".join(f"{name} says {n}\n" for n in range(30)), None

    def wait(self):
        assert self.tools.killed


@pytest.fixture
def tools(monkeypatch, tmp_path):
    tools = Tools()
    apt, mounts = tmp_path / "apt", tmp_path / "mountinfo"
    (apt / "sources.list.d").mkdir(parents=True)
    (apt / "sources.list.d/debian.sources").write_text(SOURCES)
    mounts.write_text("29 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
    monkeypatch.setattr(image, "_APT", apt)
    monkeypatch.setattr(image, "_MOUNTS", mounts)
    monkeypatch.setenv("KUMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "Popen", tools.popen)
    monkeypatch.setattr(subprocess, "run", tools.run)
    monkeypatch.setattr(os, "killpg", lambda *args: tools.killed.append(args))
    return tools


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_an_image_is_built_once(tools, screen, tmp_path):
    built = image.build("6.12", screen)
    assert tools.names == ["mmdebstrap", "chroot", "mke2fs"]
    assert built.version == "6.12.9-amd64"
    assert built.kernel.read_text() == "kernel"
    assert built.initrd.read_text().split() == ["virtio_pci", "virtio_blk", "ext4"]
    assert built.root.exists()
    assert left(tmp_path) == [f"image-6.12-{image.key('6.12')}"]
    assert not (built.root.parent / "tree").exists()
    assert "installing packages" in screen.text
    assert image.build("6.12", screen) == built
    assert len(tools.runs) == 3


def test_each_kernel_has_an_image(tools, screen):
    assert image.build("6.1", screen).root != image.build("6.12", screen).root
    included = [word for argv in tools.runs for word in argv if word.startswith("--include=")]
    assert included[0].startswith("--include=linux-image-amd64,")
    assert included[1].startswith("--include=linux-image-6.12-amd64,")


@pytest.mark.parametrize("recipe", ["PACKAGES", "MASKED", "FILES", "ENABLED", "_REVISION"])
def test_the_key_follows_the_recipe(monkeypatch, recipe):
    before = image.key("6.12")
    assert image.key("6.12") == before
    assert image.key("6.1") != before
    changed = {
        "PACKAGES": [*image.PACKAGES, "vim"],
        "MASKED": image.MASKED[1:],
        "FILES": image.FILES | {"etc/fstab": ""},
        "ENABLED": {},
        "_REVISION": 3,
    }
    monkeypatch.setattr(image, recipe, changed[recipe])
    assert image.key("6.12") != before


def test_debian_comes_from_the_mirror_of_this_machine(tools, screen):
    image.build("6.12", screen)
    argv = tools.runs[0]
    assert tools.inputs["mmdebstrap"] == SOURCES
    assert '--aptopt=Acquire::http::Proxy "http://proxy:3142";' in argv
    assert not [word for word in argv if "Acquire::https" in word]
    assert tools.environments["mmdebstrap"]["INITRD"] == "No"


def test_files_and_units_of_the_tree(tools, tmp_path):
    tree = tmp_path / "tree"
    tools.work(["mmdebstrap", str(tree), "-"])
    image._configure(tree)
    for name, text in image.FILES.items():
        assert (tree / name).read_text() == text
        assert os.access(tree / name, os.X_OK) == (name in image.EXECUTABLE)
    units = tree / "etc/systemd/system"
    assert {os.readlink(units / unit) for unit in image.MASKED} == {"/dev/null"}
    for target, unit in image.ENABLED.items():
        assert (units / target / unit).resolve() == units / unit
    assert (tree / "etc/machine-id").read_text() == ""


@pytest.mark.parametrize("tool", ["mmdebstrap", "chroot", "mke2fs"])
def test_a_failed_tool_is_told_and_leaves_nothing(tools, screen, tmp_path, tool):
    tools.failing[tool] = 25
    with pytest.raises(LabError) as caught:
        image.build("6.12", screen)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tool} failed with code 25:"
    assert lines[1:] == [f"{tool} says {n}" for n in range(15, 30)]
    assert left(tmp_path) == []
    del tools.failing[tool]
    assert image.build("6.12", screen).root.exists()


@pytest.mark.parametrize("tool", ["mmdebstrap", "chroot", "mke2fs"])
def test_an_interrupt_ends_the_tool_and_leaves_nothing(tools, screen, tmp_path, tool):
    tools.interrupted = tool
    with pytest.raises(KeyboardInterrupt):
        image.build("6.12", screen)
    assert tools.killed == [(4711, signal.SIGKILL)]
    assert left(tmp_path) == []


def test_what_a_killed_tool_left_mounted_is_unmounted_first(tools, tmp_path):
    tree = tmp_path / "tree"
    (tree / "proc").mkdir(parents=True)
    mounts = "".join(
        f"{n} 1 0:2 / {path} rw - proc proc rw\n"
        for n, path in enumerate([f"{tree}/proc", f"{tree}/proc/sys", "/proc", f"{tree}er/x"])
    )
    image._MOUNTS.write_text(mounts)
    image._remove_tree(tree)
    assert tools.runs == [["umount", "--lazy", f"{tree}/proc{rest}"] for rest in ("/sys", "")]
    assert not tree.exists()


def test_a_tree_with_a_mount_that_stays_is_not_removed(tools, tmp_path):
    tree = tmp_path / "tree"
    (tree / "dev").mkdir(parents=True)
    image._MOUNTS.write_text(f"1 1 0:2 / {tree}/dev rw - devtmpfs udev rw\n")
    tools.failing["umount"] = 32
    with pytest.raises(LabError, match="umount failed with code 32"):
        image._remove_tree(tree)
    assert (tree / "dev").exists()


def test_of_two_builds_at_once_the_first_to_end_counts(tools, screen, tmp_path, monkeypatch):
    other = tmp_path / "cache" / f"image-6.12-{image.key('6.12')}"
    work = tools.work

    def overtaken(argv):
        work(argv)
        if argv[0] == "mke2fs":
            other.mkdir()
            (other / "version").write_text("6.12.10-amd64\n")

    monkeypatch.setattr(tools, "work", overtaken)
    assert image.build("6.12", screen).version == "6.12.10-amd64"
    assert left(tmp_path) == [other.name]


def test_apt_that_does_not_work(tools, screen, tmp_path):
    tools.apt_code = 100
    with pytest.raises(LabError, match="apt-config failed with code 100: E: broken"):
        image.build("6.12", screen)
    assert left(tmp_path) == []


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("KUMO_CACHE", "/var/cache/kumo")
    assert image.cache_directory() == Path("/var/cache/kumo")
    monkeypatch.delenv("KUMO_CACHE")
    monkeypatch.setenv("HOME", "/home/me")
    assert image.cache_directory() == Path("/home/me/.cache/kumo")
