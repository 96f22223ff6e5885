# SPDX-License-Identifier: Apache-2.0
import errno
import fcntl
import json
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from lab import cluster
from lab import machine as machine_module
from lab.cluster import Lab
from lab.errors import LabError, ProcessError, UsageError
from lab.image import Image
from lab.network import Network
from tests.fakes.lab_guest import FakeGuest, FakeMonitor


class World:
    """This machine: its processes, its namespaces, and the guests behind their sockets."""

    def __init__(self, root, kernel, clock):
        self.kernel, self.clock = kernel, clock
        self.base = root / "labs"
        self.netns = root / "netns"
        self.netns.mkdir()
        self.image = Image(root / "vmlinuz", root / "initrd", root / "root.ext4", "6.12.9-amd64")
        self.guests = {}
        self.inside = {}  # network namespace by pid
        self.events = []
        self.failing = {}
        self.builds = 0
        self.lock = threading.Lock()

    def happen(self, event):
        self.events.append(event)
        for text, error in self.failing.items():
            if text in event:
                raise error

    def build(self, kernel, progress):
        self.builds += 1
        self.happen(f"build {kernel}")
        return self.image

    def ip(self, argv):
        self.happen(f"ip {' '.join(argv)}")
        match list(argv):
            case ["netns", "add", name]:
                (self.netns / name).touch(exist_ok=False)
            case ["netns", "delete", name]:
                inside = {str(pid) for pid, netns in self.inside.items() if netns == name}
                assert not inside & set(self.running), "processes are left in the namespace"
                (self.netns / name).unlink()

    def qemu_img(self, argv, **_):
        self.happen(" ".join(argv))
        Path(argv[-1]).write_text("overlay")
        return subprocess.CompletedProcess(argv, 0, "", "")

    def spawn(self, argv, env, cwd, log):
        words = argv[argv.index("qemu-system-x86_64") :]
        self.happen(f"qemu {words[words.index('-name') + 1]}")
        child = self.kernel.spawn(argv, env, cwd, log)
        self.inside[child.pid] = argv[3]
        for word in words:
            for prefix in ("socket,path=", "unix:"):
                if word.startswith(prefix):
                    Path(word.removeprefix(prefix).partition(",")[0]).touch()
        return child

    def processes(self, state_dir, netns):
        made = self.kernel.processes(state_dir, netns)
        made._spawn = self.spawn
        return made

    def connect(self, path):
        with self.lock:
            pair = self.guests.setdefault(path.parent.name, (FakeGuest(), FakeMonitor()))
        guest, monitor = pair
        if not path.exists():
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return (guest if path.name == "agent.sock" else monitor).connect()

    @property
    def running(self):
        return [path.name for path in self.kernel.proc.iterdir() if path.name.isdigit()]

    def left(self):
        """Everything that a lab consists of."""
        files = sorted(self.base.rglob("*")) if self.base.exists() else []
        return [*self.running, *self.netns.iterdir(), *files]


@pytest.fixture
def tmp_path():
    """A short one: the path of a socket has at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="kumo-") as path:
        yield Path(path)


@pytest.fixture
def world(tmp_path, kernel, clock, monkeypatch):
    world = World(tmp_path, kernel, clock)
    monkeypatch.setenv("KUMO_LAB_DIR", str(world.base))
    monkeypatch.setattr(cluster.image, "build", world.build)
    monkeypatch.setattr(cluster.python_site, "build", lambda progress: tmp_path / "site.squashfs")
    monkeypatch.setattr(cluster, "Network", lambda name: Network(name, world.ip, world.netns))
    monkeypatch.setattr(cluster, "Processes", world.processes)
    monkeypatch.setattr(cluster, "_SHIPPED", ("lab",))
    monkeypatch.setattr(machine_module, "connect_unix", world.connect)
    monkeypatch.setattr(subprocess, "run", world.qemu_img)
    return world


def up(screen, name="x", **numbers):
    return Lab.up(name, **{"storage": 2, "compute": 1, "ssd_gib": 1, "progress": screen} | numbers)


def test_up_and_down(world, screen):
    lab = up(screen)
    assert [machine.name for machine in lab.storage] == ["storage1", "storage2"]
    assert [machine.name for machine in lab.compute] == ["compute1"]
    assert {machine.state() for machine in lab.machines.values()} == {"running"}
    assert lab.kernel == "6.12.9-amd64"
    assert len(world.running) == 3
    assert (world.netns / "kumo-x").exists()
    for name in lab.machines:
        assert f"booting {name}" in screen.text
    lab.down()
    assert world.left() == []
    assert not world.base.exists()
    lab.down()


def test_each_machine_has_what_it_needs_before_it_is_started(world, screen):
    lab = up(screen)
    for machine in lab.machines.values():
        assert (machine.directory / "seed/seed.env").exists()
        assert machine.overlay.exists()
        disks = sorted(path.name for path in machine.directory.glob("*.raw"))
        assert disks == (["ssd1.raw", "ssd2.raw"] if machine.role == "storage" else [])
        started = world.events.index(f"qemu {machine.name}")
        tap = f"tap-{machine.role[0]}{machine.name[-1]}"
        assert world.events.index(f"ip -n kumo-x tuntap add dev {tap} mode tap") < started
    assert (lab.state_dir / "source/lab/guest_brick.py").exists()
    assert list((lab.state_dir / "source/lab").rglob("*.pyc"))
    for edition in ("stock", "ours"):
        assert list((lab.state_dir / f"source/brick/{edition}/os_brick").glob("__pycache__/*.pyc"))


def test_a_lab_is_found_again(world, screen):
    made = up(screen)
    assert Lab.exists("x")
    assert cluster.names() == ["x"]
    found = Lab.load("x")
    assert found.kernel == made.kernel
    for name, machine in made.machines.items():
        again = found.machines[name]
        assert again.spec == machine.spec
        assert again.command_line() == machine.command_line()
        assert again.alive()
    assert found.log_files() == made.log_files()
    assert {path.name for path in found.log_files()} == {
        "vm-storage1.log",
        "vm-storage2.log",
        "vm-compute1.log",
        "console.log",
    }
    found.down()
    assert world.left() == []


def test_up_twice(world, screen):
    lab = up(screen)
    with pytest.raises(LabError, match="lab 'x' is already up") as caught:
        up(screen)
    assert caught.value.way_out == "kumo-lab down --name x"
    assert world.builds == 1
    assert {machine.state() for machine in lab.machines.values()} == {"running"}


def test_of_two_at_once_the_second_leaves_the_first_alone(world, screen, monkeypatch):
    build = world.build

    def overtaken(kernel, progress):
        monkeypatch.setattr(cluster.image, "build", build)
        up(screen)
        return build(kernel, progress)

    monkeypatch.setattr(cluster.image, "build", overtaken)
    with pytest.raises(LabError, match="already up"):
        up(screen)
    assert len(world.running) == 3
    Lab.load("x").down()
    assert world.left() == []


def test_two_labs_beside_each_other(world, screen):
    one, other = up(screen, "one"), up(screen, "other")
    assert cluster.names() == ["one", "other"]
    one.down()
    assert cluster.names() == ["other"]
    assert {machine.state() for machine in other.machines.values()} == {"running"}


def test_of_two_that_take_it_down_at_once_the_second_waits(world, screen, monkeypatch):
    lab, other = up(screen), Lab.load("x")
    ended, waiting, real = [], threading.Event(), fcntl.flock

    def take_down():
        other.down()
        ended.append(list(world.left()))

    def flock(handle, how):
        if threading.current_thread() is thread:
            waiting.set()
        real(handle, how)

    def happen(event):
        if event.startswith("ip netns delete") and not thread.ident:
            thread.start()
            assert waiting.wait(5)
        world.events.append(event)

    thread = threading.Thread(target=take_down)
    monkeypatch.setattr(cluster.fcntl, "flock", flock)
    monkeypatch.setattr(world, "happen", happen)
    lab.down()
    thread.join(5)
    assert ended == [[]]
    assert world.events.count("ip netns delete kumo-x") == 1
    assert Lab.find("x") is None


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTEMPTY])
def test_a_command_that_still_writes_does_not_keep_the_lab(world, screen, monkeypatch, number):
    lab, real = up(screen), shutil.rmtree

    def overtaken(path):
        monkeypatch.setattr(shutil, "rmtree", real)
        raise OSError(number, "overtaken", str(path))

    monkeypatch.setattr(shutil, "rmtree", overtaken)
    lab.down()
    assert world.left() == []


def test_files_that_cannot_be_removed_are_told(world, screen, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "no", str(path))

    lab = up(screen)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(PermissionError):
            lab.down()
    lab.down()
    assert world.left() == []


def test_a_lab_without_machines(world, screen):
    lab = up(screen, storage=0, compute=0)
    assert lab.machines == {}
    lab.down()
    assert world.left() == []


@pytest.mark.parametrize(
    "event",
    [
        "ip netns add",
        "ip -n kumo-x link set br0",
        "ip -n kumo-x tuntap add dev tap-s2",
        "qemu-img create",
        "qemu storage1",
        "qemu compute1",
    ],
)
@pytest.mark.parametrize("error", [LabError("no"), KeyboardInterrupt()])
def test_whatever_fails_or_is_interrupted_nothing_is_left(world, screen, event, error):
    world.failing[event] = error
    with pytest.raises(type(error)):
        up(screen)
    assert world.left() == []
    world.failing.clear()
    up(screen)
    assert len(world.running) == 3


def test_a_failure_or_interrupt_before_the_lab_leaves_nothing(world, screen):
    for error in (LabError("mmdebstrap failed"), KeyboardInterrupt()):
        world.failing["build"] = error
        with pytest.raises(type(error)):
            up(screen)
        assert world.left() == []


def test_an_interrupt_while_the_machines_boot_leaves_nothing(world, screen, monkeypatch):
    released = threading.Event()
    ended = []

    def wait_ready(machine):
        released.wait(10)
        ended.append(machine.name)

    def interrupted(futures):
        raise KeyboardInterrupt

    monkeypatch.setattr(machine_module.Machine, "wait_ready", wait_ready)
    monkeypatch.setattr(cluster, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        up(screen)
    # Nobody waits for the machines: they are gone already.
    assert ended == []
    assert world.left() == []
    released.set()


def test_a_machine_that_does_not_boot_takes_the_others_with_it(world, screen, monkeypatch):
    def wait_ready(machine):
        if machine.name == "storage2":
            raise LabError("storage2: not up after 300 s")

    monkeypatch.setattr(machine_module.Machine, "wait_ready", wait_ready)
    with pytest.raises(LabError, match="storage2: not up"):
        up(screen)
    assert world.left() == []


def test_a_process_that_survives_keeps_the_rest_for_another_down(world, screen):
    lab = up(screen)
    immortal = int(world.running[0])
    world.kernel.immortal.add(immortal)
    with pytest.raises(ProcessError, match=f"{immortal} survived SIGKILL"):
        lab.down()
    assert world.running == [str(immortal)]
    assert Lab.exists("x")
    assert (world.netns / "kumo-x").exists()
    world.kernel.immortal.clear()
    Lab.load("x").down()
    assert world.left() == []


def test_down_after_this_machine_was_rebooted(world, screen):
    up(screen)
    for pid in world.running:
        world.kernel.remove(int(pid))
    world.kernel.boot("another")
    (world.netns / "kumo-x").unlink()
    Lab.load("x").down()
    assert world.left() == []


def test_the_directory_of_labs_stays_while_something_else_is_in_it(world, screen):
    lab = up(screen)
    (world.base / "note").write_text("mine")
    lab.down()
    assert world.left() == [world.base / "note"]


def test_no_such_lab(world):
    assert not Lab.exists("x")
    assert cluster.names() == []
    with pytest.raises(LabError, match="there is no lab 'x'") as caught:
        Lab.load("x")
    assert caught.value.way_out == "kumo-lab up"


@pytest.mark.parametrize("change", ["key", "field", "json"])
def test_a_lab_of_another_version(world, screen, change):
    lab = up(screen)
    path = lab.state_dir / "state.json"
    state = json.loads(path.read_text())
    if change == "key":
        del state["python_site"]
    elif change == "field":
        state["machines"][0]["colour"] = "red"
    path.write_text(json.dumps(state) if change != "json" else "{")
    with pytest.raises(LabError, match="made by another version of kumo-lab"):
        Lab.load("x")


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", "Upper", "-x", "a b", "x\n"])
def test_names_that_no_lab_can_have(world, screen, name):
    with pytest.raises(UsageError, match="cannot be the name of a lab"):
        up(screen, name)
    assert world.events == []


def test_a_path_too_long_for_a_socket(world, screen, monkeypatch):
    base = world.base / ("long" * 30)
    monkeypatch.setenv("KUMO_LAB_DIR", str(base))
    with pytest.raises(LabError, match="too long a path") as caught:
        up(screen)
    assert "KUMO_LAB_DIR" in caught.value.way_out
    assert not base.exists()


def test_too_many_machines(world, screen):
    with pytest.raises(LabError, match="not number 71"):
        up(screen, storage=0, compute=71)
    assert world.events == []


def test_where_labs_are(monkeypatch):
    monkeypatch.delenv("KUMO_LAB_DIR", raising=False)
    assert cluster.base_directory() == Path("/var/lib/kumo-lab")
