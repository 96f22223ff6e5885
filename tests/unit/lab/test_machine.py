# SPDX-License-Identifier: Apache-2.0
import subprocess
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab import machine as machine_module
from lab.errors import LabError
from lab.guest_agent import CommandFailedError, GuestAgentError
from lab.image import Image
from lab.machine import Layers, Machine, MachineSpec
from lab.qmp import QmpError
from tests.fakes.lab_guest import FakeGuest, FakeMonitor

LAYERS = Layers(
    Image(Path("/c/vmlinuz"), Path("/c/initrd"), Path("/c/root.ext4"), "6.12.1"),
    Path("/c/python.squashfs"),
    Path("/l/source"),
)


class Bench:
    """A machine with its fakes: QEMU is a process of the fake kernel, its sockets are pairs."""

    def __init__(self, directory, kernel, clock, spec):
        self.kernel, self.clock = kernel, clock
        self.guest, self.monitor = FakeGuest(), FakeMonitor()
        self.links = []
        network = SimpleNamespace(
            cut=lambda tap: self.links.append(("cut", tap)),
            heal=lambda tap: self.links.append(("heal", tap)),
        )
        self.processes = kernel.processes(directory, "kumo-x")
        self.directory = directory / spec.name
        self.directory.mkdir(parents=True)
        self.machine = Machine(spec, self.directory, LAYERS, network, self.processes)
        self.boot = "boot-1\n"
        self.guest.program = self.program
        self.sleeps = []

    def program(self, argv, stdin):
        if argv == ["cat", "/proc/sys/kernel/random/boot_id"]:
            return (0, self.boot, "")
        return (0, "", "")

    def connect(self, path):
        return {"agent.sock": self.guest, "qmp.sock": self.monitor}[path.name].connect()

    def sleep(self, seconds):
        self.clock.sleep(seconds)
        if self.sleeps:
            self.sleeps.pop(0)()

    def power_on(self):
        self.machine.start()
        (self.directory / "agent.sock").touch()
        (self.directory / "qmp.sock").touch()


def spec(role="storage", number=1, **changes):
    ssds = 2 if role == "storage" else 0
    values = {"memory": 640, "ssds": ssds, "ssd_gib": 16, **changes}
    return MachineSpec(f"{role}{number}", role, number, **values)


@pytest.fixture
def bench(tmp_path, kernel, clock, monkeypatch):
    made = []

    def make(*args, **kwargs):
        bench = Bench(tmp_path / "lab", kernel, clock, spec(*args, **kwargs))
        made.append(bench)
        monkeypatch.setattr(machine_module, "connect_unix", bench.connect)
        clock_module = SimpleNamespace(monotonic=clock, sleep=bench.sleep, time=clock)
        monkeypatch.setattr(machine_module, "time", clock_module)
        return bench

    yield make
    for bench in made:
        bench.guest.join()
        bench.monitor.join()


def options(argv, name):
    return [argv[i + 1] for i, word in enumerate(argv) if word == name]


def test_command_line_of_a_storage_machine(bench):
    machine = bench().machine
    argv = machine.command_line()
    drives, devices = options(argv, "-drive"), options(argv, "-device")
    assert options(argv, "-accel") == ["tcg,thread=multi"]
    assert options(argv, "-icount") == []
    assert options(argv, "-cpu") == ["max"]
    assert options(argv, "-m") == ["640"]
    # The kernel is told root=/dev/vda, which is the first virtio disk.
    assert drives[0].startswith(f"file={machine.overlay},")
    disks = [each for each in devices if each.startswith("virtio-blk-pci")]
    assert disks[0] == "virtio-blk-pci,drive=root,serial=root"
    assert "root=/dev/vda " in options(argv, "-append")[0]
    ssds = [each for each in disks if "drive=ssd" in each]
    assert ssds == [f"virtio-blk-pci,drive=ssd{n},serial=storage1-ssd{n}" for n in (1, 2)]
    for n in (1, 2):
        (drive,) = [each for each in drives if f"id=ssd{n}," in each]
        assert f"file={machine.directory / f'ssd{n}.raw'}," in drive
    assert "ifname=tap-s1," in options(argv, "-netdev")[0]


def test_a_machine_whose_clock_counts_instructions(bench):
    argv = bench("compute", icount=True).machine.command_line()
    # QEMU counts instructions in one thread only.
    assert options(argv, "-accel") == ["tcg,thread=single"]
    assert options(argv, "-icount") == ["shift=1,sleep=off"]


def test_command_line_of_a_compute_machine_has_no_ssds(bench):
    machine = bench("compute", 2, memory=1536).machine
    argv = machine.command_line()
    assert not [each for each in options(argv, "-device") if "drive=ssd" in each]
    assert len(options(argv, "-drive")) == 2
    assert "ifname=tap-c2," in options(argv, "-netdev")[0]
    assert "systemd.hostname=compute2" in options(argv, "-append")[0]


def test_only_the_overlay_and_the_ssds_can_be_written(bench):
    argv = bench().machine.command_line()
    for drive in options(argv, "-drive"):
        assert ("readonly=on" in drive) == ("/c/" in drive)
    assert all("readonly=on" in share for share in options(argv, "-virtfs"))
    assert "/c/root.ext4" not in " ".join(argv)


def test_two_machines_share_no_identity(bench):
    one, other = bench().machine, bench(number=2).machine
    for machine in (one, other):
        assert machine.host_nqn == f"nqn.2014-08.org.nvmexpress:uuid:{machine.host_id}"
        machine_id = uuid.UUID(machine.host_id).hex
        assert f"systemd.machine_id={machine_id}" in " ".join(machine.command_line())
    assert one.host_id != other.host_id
    assert options(one.command_line(), "-device")[-3:] != options(other.command_line(), "-device")


@pytest.mark.parametrize(("role", "modules"), [("storage", ""), ("compute", "nvme-tcp raid1")])
def test_seed(bench, role, modules):
    machine = bench(role, 3).machine
    machine.write_seed({})
    machine.write_seed({"/etc/kumo/node.conf": "[DEFAULT]\n"})
    seed = machine.directory / "seed"
    assert (seed / "seed.env").read_text().splitlines() == [
        f"ADDRESS={'10.77.0.13' if role == 'storage' else '10.77.0.103'}",
        f"HOST_ID={machine.host_id}",
        f"HOST_NQN={machine.host_nqn}",
        f"MODULES='{modules}'",
    ]
    assert (seed / "files/etc/kumo/node.conf").read_text() == "[DEFAULT]\n"


def test_disks_are_sparse_and_kept(bench):
    machine = bench(ssd_gib=3).machine
    machine.create_disks()
    disk = machine.directory / "ssd2.raw"
    assert disk.stat().st_size == 3 << 30
    assert disk.stat().st_blocks == 0
    disk.write_text("data")
    machine.create_disks()
    assert disk.read_text() == "data"
    assert machine.ssd_path(2) == "/dev/disk/by-id/virtio-storage1-ssd2"


def test_overlay(bench, monkeypatch):
    seen = []

    def run(argv, **_):
        seen.append(argv)
        return subprocess.CompletedProcess(argv, len(seen) - 1, "", "No space left\n")

    monkeypatch.setattr(subprocess, "run", run)
    machine = bench().machine
    machine.create_overlay()
    assert seen[0][-3:] == ["-b", "/c/root.ext4", str(machine.overlay)]
    with pytest.raises(LabError, match="storage1: qemu-img: No space left"):
        machine.create_overlay()


def test_start_runs_qemu_in_the_namespace_without_old_sockets(bench):
    bench = bench()
    for name in ("agent.sock", "qmp.sock"):
        (bench.directory / name).touch()
    bench.machine.start()
    argv = bench.kernel.spawned[0].argv
    assert argv[:4] == ["ip", "netns", "exec", "kumo-x"]
    assert argv[-len(bench.machine.command_line()) :] == bench.machine.command_line()
    assert not list(bench.directory.glob("*.sock"))


def test_start_of_a_running_machine_leaves_its_sockets(bench):
    bench = bench()
    bench.power_on()
    bench.machine.start()
    assert bench.machine.state() == "running"
    assert len(bench.kernel.spawned) == 1
    assert (bench.directory / "agent.sock").exists()


def test_states(bench):
    bench = bench()
    machine = bench.machine
    assert machine.state() == "off"
    bench.monitor.refuse = FileNotFoundError(2, "No such file or directory")
    machine.start()
    assert machine.state() == "booting"
    bench.monitor.refuse = None
    bench.guest.refuse = ConnectionRefusedError("Connection refused")
    assert machine.state() == "booting"
    bench.guest.refuse = None
    assert machine.state() == "running"
    machine.pause()
    assert machine.state() == "paused"
    machine.resume()
    assert machine.state() == "running"
    machine.kill()
    assert machine.state() == "off"
    machine.kill()


def test_pause_of_a_machine_that_is_off(bench):
    bench = bench()
    bench.monitor.refuse = FileNotFoundError(2, "No such file or directory")
    with pytest.raises(QmpError, match="does not answer stop"):
        bench.machine.pause()


def test_wait_ready_waits_for_the_agent_and_the_seed(bench):
    bench = bench()
    bench.machine.start()
    bench.guest.refuse = ConnectionRefusedError("Connection refused")
    bench.sleeps = [
        lambda: (bench.directory / "agent.sock").touch(),
        lambda: setattr(bench.guest, "refuse", None),
    ]
    bench.machine.wait_ready()
    assert bench.guest.commands == ["systemctl start kumo-seed.service"]
    assert bench.clock.now == pytest.approx(1000.6)


def test_wait_ready_tells_the_end_of_the_console(bench):
    bench = bench()
    bench.machine.start()
    bench.machine.console_path.write_text("".join(f"line {n}\n" for n in range(40)))
    with pytest.raises(LabError) as caught:
        bench.machine.wait_ready(timeout=5)
    lines = str(caught.value).splitlines()
    assert lines[0] == "storage1: not up after 5 s:"
    assert (lines[1], lines[-1]) == ("line 25", "line 39")


def test_wait_ready_without_a_console(bench):
    bench = bench()
    bench.machine.start()
    with pytest.raises(LabError, match=r"\(no console output\)"):
        bench.machine.wait_ready(timeout=1)


def test_wait_ready_tells_why_qemu_ended(bench):
    bench = bench()
    bench.machine.start()
    log = bench.processes.log_path("vm-storage1")
    log.write_text("qemu-system-x86_64: could not configure /dev/net/tun\n")
    bench.kernel.remove(bench.kernel.spawned[0].pid)
    with pytest.raises(LabError, match=r"QEMU ended:\nqemu.*could not configure"):
        bench.machine.wait_ready()


def test_wait_ready_tells_that_the_seed_failed(bench):
    bench = bench()
    bench.power_on()
    bench.guest.program = lambda argv, stdin: (1, "", "Job for kumo-seed.service failed")
    with pytest.raises(CommandFailedError, match="Job for kumo-seed"):
        bench.machine.wait_ready()


def test_run_checks_the_code_unless_told_not_to(bench):
    bench = bench()
    bench.guest.program = lambda argv, stdin: (4, "out ", f"err {stdin}")
    with pytest.raises(CommandFailedError, match=r"storage1: code 4 from: ls /x\nout err b'in'"):
        bench.machine.run(["ls", "/x"], input="in")
    assert bench.machine.run("ls /x", check=False).returncode == 4


def test_put_sets_the_mode(bench):
    bench = bench()
    bench.machine.put("/etc/token", b"secret", 0o600)
    assert bench.guest.files == {"/etc/token": b"secret"}
    assert bench.guest.commands == [["chmod", "600", "/etc/token"]]
    assert bench.machine.get("/etc/token") == b"secret"


def test_the_clock_of_the_guest_is_compared_with_ours(bench, clock):
    bench = bench()
    bench.guest.now = lambda: clock.now + 2.5
    assert bench.machine.clock() == (2.5, 0.0)


def test_cut_and_heal_act_on_the_machines_own_tap(bench):
    bench = bench()
    bench.machine.cut()
    bench.machine.heal()
    assert bench.links == [("cut", "tap-s1"), ("heal", "tap-s1")]


def test_a_reboot_is_over_when_the_boot_id_is_another(bench):
    bench = bench()
    bench.power_on()
    failing = lambda argv, stdin: (127, "", "on its way down")  # noqa: E731
    bench.sleeps = [
        lambda: None,  # still the old boot
        lambda: setattr(bench.guest, "program", failing),
        lambda: setattr(bench.guest, "refuse", ConnectionResetError("gone")),
        lambda: setattr(bench, "boot", "boot-2\n"),
        lambda: (
            setattr(bench.guest, "refuse", None),
            setattr(bench.guest, "program", bench.program),
        ),
    ]
    bench.machine.reboot()
    assert bench.sleeps == []
    assert "systemctl reboot" in bench.guest.commands[1]
    assert bench.guest.commands[-1] == "systemctl start kumo-seed.service"


def test_a_reboot_that_never_ends(bench):
    bench = bench()
    bench.power_on()
    bench.machine.console_path.write_text("Reached target reboot\n")
    with pytest.raises(LabError, match=r"not back 20 s after a reboot:\nReached target"):
        bench.machine.reboot(timeout=20)


def test_qemu_ends_during_a_reboot(bench):
    bench = bench()
    bench.power_on()

    def lose_power():
        bench.machine.kill()
        bench.guest.refuse = ConnectionRefusedError("Connection refused")

    bench.sleeps = [lose_power]
    with pytest.raises(LabError, match="QEMU ended during a reboot"):
        bench.machine.reboot()


def test_a_reboot_of_a_machine_that_does_not_answer(bench):
    bench = bench()
    bench.guest.refuse = ConnectionRefusedError("Connection refused")
    with pytest.raises(GuestAgentError):
        bench.machine.reboot()
