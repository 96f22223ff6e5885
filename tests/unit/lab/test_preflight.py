# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from lab import preflight
from lab.errors import PreflightError
from lab.preflight import GIB, Plan, Preflight


@pytest.fixture
def root(tmp_path):
    (tmp_path / "dev/net").mkdir(parents=True)
    (tmp_path / "dev/net/tun").touch()
    (tmp_path / "proc").mkdir()
    meminfo = "MemTotal:  9000000 kB\nMemAvailable:  8192000 kB\nHugePages_Total:   0\n"
    (tmp_path / "proc/meminfo").write_text(meminfo)
    return tmp_path


def look(root, user=0, missing=(), free=100 * GIB):
    def which(program):
        return None if program in missing else f"/usr/bin/{program}"

    return Preflight(root, lambda: user, which, lambda path: free)


def a_lab(root, mib=3456, openstack=True):
    return Plan.lab(mib, openstack, root / "state/kumo", root / "cache/deep")


def test_a_good_machine_passes(root):
    seen = []
    preflight = look(root)
    preflight._free_bytes = lambda path: seen.append(path) or 6 * GIB
    preflight.check(a_lab(root))
    assert seen == [root, root]


def test_only_root_may(root):
    with pytest.raises(PreflightError, match="needs root"):
        look(root, user=1000).check(Plan())


def test_all_that_is_missing_is_in_one_message(root):
    (root / "dev/net/tun").unlink()
    missing = ("qemu-system-x86_64", "mmdebstrap", "rabbitmq-server")
    with pytest.raises(PreflightError) as caught:
        look(root, missing=missing, free=GIB).check(a_lab(root, mib=8000))
    message, way_out = caught.value.message, caught.value.way_out
    assert "programs are missing: mmdebstrap, qemu-system-x86_64, rabbitmq-server" in message
    assert "/dev/net/tun is missing" in message
    assert "9536 MiB of memory are needed and 8000 MiB are available" in message
    assert f"4 GiB of free space are needed at {root}/state/kumo, 1.0 GiB are there" in message
    apt = "apt-get install --no-install-recommends mmdebstrap qemu-system-x86 rabbitmq-server"
    assert way_out.splitlines() == [apt, "modprobe tun"]


def test_a_build_needs_neither_machines_nor_openstack(root):
    (root / "dev/net/tun").unlink()
    (root / "proc/meminfo").write_text("MemAvailable: 1 kB\n")
    look(root, missing=("qemu-system-x86_64", "epmd")).check(Plan.build(root / "cache"))
    with pytest.raises(PreflightError, match="mksquashfs"):
        look(root, missing=("mksquashfs",)).check(Plan.build(root / "cache"))


def test_a_lab_without_openstack_needs_no_broker(root):
    look(root, missing=("rabbitmq-server", "epmd")).check(a_lab(root, openstack=False))


def test_the_real_ways_of_looking_give_an_answer(root, monkeypatch):
    tool = root / "mksquashfs"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(root))
    assert preflight._which("mksquashfs") == str(tool)
    assert preflight._which("no-such-program-here") is None
    assert preflight._free_bytes(root) > 0


def test_every_package_asked_for_is_in_bindep():
    text = (Path(__file__).parents[3] / "bindep.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(" # " in line for line in lines)
    named = {line.split()[0] for line in lines}
    asked = preflight.BUILD_PROGRAMS | preflight.MACHINE_PROGRAMS | preflight.OPENSTACK_PROGRAMS
    assert set(asked.values()) <= named
