# SPDX-License-Identifier: Apache-2.0
"""A machine's process table, and labs, in memory and files."""

import io
from collections import Counter
from types import SimpleNamespace

from rich.console import Console

from lab.errors import LabError
from lab.processes import Processes
from lab.progress import Progress

BOOT = "7c5b1b0e-0000-4000-8000-000000000001"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Kernel:
    """Processes as /proc shows them, below ``proc``."""

    def __init__(self, root, clock):
        self.proc = root / "proc"
        self.clock = clock
        self.next_pid = 100
        self.signals = []
        self.released = []
        self.immortal = set()
        self.deaf = set()
        self.on_term = {}
        self.spawned = []
        self.boot(BOOT)

    def boot(self, boot_id):
        path = self.proc / "sys/kernel/random/boot_id"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(boot_id + "\n")

    def add(self, session=None, pid=None, state="S", start=None):
        if pid is None:
            self.next_pid += 1
            pid = self.next_pid
        start = int(self.clock.now * 100) if start is None else start
        session = session or pid
        words = [state, 1, pid, session, *[0] * 15, start, 0]
        directory = self.proc / str(pid)
        directory.mkdir(exist_ok=True)
        text = f"{pid} (odd) S 1 (name) {' '.join(map(str, words))}\n"
        (directory / "stat").write_text(text)
        return pid

    def remove(self, pid):
        (self.proc / str(pid) / "stat").unlink()
        (self.proc / str(pid)).rmdir()

    def kill(self, pid, number):
        if not (self.proc / str(pid)).exists():
            raise ProcessLookupError
        self.signals.append((pid, number))
        if pid in self.immortal or (number != 9 and pid in self.deaf):
            return
        for other in self.on_term.get(pid, []) if number != 9 else []:
            self.remove(other)
        self.remove(pid)

    def spawn(self, argv, env, cwd, log):
        if cwd is not None and not cwd.exists():
            raise FileNotFoundError(2, "No such file or directory", str(cwd))
        log.open("a").close()
        pid = self.add()
        self.spawned.append(SimpleNamespace(pid=pid, argv=argv, env=env, cwd=cwd, log=log))
        return SimpleNamespace(
            pid=pid, release=lambda: self.released.append(pid), reap=lambda: self.reap(pid)
        )

    def reap(self, pid):
        path = self.proc / str(pid) / "stat"
        if path.exists() and path.read_text().rpartition(")")[2].split()[0] == "Z":
            self.remove(pid)

    def processes(self, state_dir, netns=None):
        return Processes(
            state_dir,
            netns,
            spawn=self.spawn,
            proc=self.proc,
            kill=self.kill,
            clock=self.clock,
            sleep=self.clock.sleep,
        )


class Screen(Progress):
    """Progress into a text."""

    def __init__(self, clock, terminal=False, kind="xterm"):
        self.buffer = io.StringIO()
        console = Console(
            file=self.buffer,
            force_terminal=terminal,
            width=200,
            highlight=False,
            _environ={"TERM": kind},
        )
        super().__init__(console, clock)

    @property
    def text(self):
        return self.buffer.getvalue()


class FakeMachine:
    def __init__(self, role, number, directory):
        self.role, self.name = role, f"{role}{number}"
        self.address = f"192.0.2.{number}"
        self.console_path = directory / f"{self.name}.console"
        self.console_path.write_text(f"console of {self.name}\n")
        self.status = "running"
        self.done = []

    def state(self):
        return self.status

    def run(self, command, *, check=True, timeout=120.0):
        if self.status != "running":
            raise LabError(f"{self.name}: no answer to {command} after {timeout:.0f} s")
        self.done.append((command, check, timeout))
        return SimpleNamespace(stdout=f"{self.name}: {command}\n", stderr="", returncode=3)

    def kill(self):
        self.status = "off"

    def start(self):
        self.status = "booting"

    def wait_ready(self):
        self.status = "running"


class FakeLab:
    def __init__(self, labs, name, storage, compute, kernel):
        self.labs, self.name, self.netns = labs, name, f"kumo-{name}"
        self.kernel = f"{kernel}.9-amd64"
        self.state_dir = labs.directory / name
        logs = self.state_dir / "logs"
        logs.mkdir(parents=True)
        (logs / "provisioner.log").write_text("a line of the provisioner\nthe last\n")
        numbers = [("storage", i + 1) for i in range(storage)]
        numbers += [("compute", i + 1) for i in range(compute)]
        machines = [FakeMachine(role, n, self.state_dir) for role, n in numbers]
        self.machines = {machine.name: machine for machine in machines}
        self.storage = [machine for machine in machines if machine.role == "storage"]
        self.processes = SimpleNamespace(names=lambda: ["provisioner"], pid=lambda name: 42)

    def down(self):
        self.labs.events.append(f"down {self.name}")
        if self.labs.stuck:
            raise LabError("process 7 survived SIGKILL")
        del self.labs.found[self.name]
        for path in sorted(self.state_dir.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.state_dir.rmdir()


class Labs:
    """Stands for the class ``lab.cluster.Lab``."""

    def __init__(self, directory):
        self.directory = directory
        self.found = {}
        self.events = []
        self.loaded = []
        self.broken = None
        self.stuck = False

    def exists(self, name):
        return name in self.found

    def find(self, name):
        return self.load(name) if self.exists(name) else None

    def load(self, name):
        if name not in self.found:
            raise LabError(f"there is no lab {name!r}", "kumo-lab up")
        self.loaded.append(name)
        return self.found[name]

    def up(self, name, *, storage, compute, progress, kernel, **disks):
        self.events.append(" ".join([f"up {name} {storage}+{compute}", *map(str, disks.items())]))
        if self.broken:
            raise self.broken
        if name in self.found:
            raise LabError("already up")
        self.found[name] = FakeLab(self, name, storage, compute, kernel)
        for machine in self.found[name].machines.values():
            machine.spec = SimpleNamespace(**{"ssds": 2, "ssd_gib": 16, "icount": False, **disks})
        return self.found[name]

    def count(self):
        return Counter(event.split()[0] for event in self.events)
