# SPDX-License-Identifier: Apache-2.0
"""One virtual machine: its QEMU process, its guest agent, its link and its disks."""

from __future__ import annotations

import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import qmp
from lab.errors import LabError
from lab.guest_agent import (
    CommandFailedError,
    GuestAgent,
    GuestAgentError,
    Result,
    connect_unix,
)
from lab.image import Image
from lab.network import Network, address, mac
from lab.processes import Processes

STORAGE = "storage"
COMPUTE = "compute"
MEMORY_MIB = {STORAGE: 640, COMPUTE: 1536}
BOOT_SECONDS = 300.0
# What the installation guide tells an operator to have loaded; os-brick loads no module itself.
_MODULES: dict[str, tuple[str, ...]] = {STORAGE: (), COMPUTE: ("nvme-tcp", "raid1")}
# Loaded for the emulated processor and board, and of no use here; each costs boot time.
_NEEDLESS_MODULES = (
    "aesni_intel",
    "ghash_clmulni_intel",
    "iTCO_wdt",
    "lpc_ich",
    "psmouse",
    "kvm_amd",
)
_NAMESPACE = uuid.UUID("0c1f6c0e-6f0e-5f7a-8a53-6a6c3d0f2b11")


@dataclass(frozen=True)
class MachineSpec:
    """What a machine is made of. ``memory`` in MiB, ``ssd_gib`` the size of each SSD in GiB.

    ``icount``: its clock counts instructions and not time, so that what is measured in it can be
    repeated (QEMU's documentation, "TCG Instruction Counting").
    """

    name: str
    role: str
    number: int
    memory: int
    ssds: int
    ssd_gib: int
    icount: bool = False

    @property
    def address(self) -> str:
        """Address on the bridge of the lab."""
        return address(self.role, self.number)

    @property
    def tap(self) -> str:
        """Name of the machine's network device on our side."""
        # A device name has at most 15 bytes (IFNAMSIZ, linux/if.h).
        return f"tap-{self.role[0]}{self.number}"


@dataclass(frozen=True)
class Layers:
    """The read-only parts that all machines share."""

    image: Image
    python_site: Path
    source: Path


class Machine:
    """A machine of a lab.

    :param directory: the machine's own directory: overlay, disks, sockets, seed, console.
    """

    def __init__(
        self,
        spec: MachineSpec,
        directory: Path,
        layers: Layers,
        network: Network,
        processes: Processes,
    ) -> None:
        self.spec = spec
        self.directory = directory
        self._layers = layers
        self._network = network
        self._processes = processes
        self._agent = GuestAgent(spec.name, lambda: connect_unix(directory / "agent.sock"))

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def role(self) -> str:
        return self.spec.role

    @property
    def address(self) -> str:
        return self.spec.address

    @property
    def console_path(self) -> Path:
        """File with everything the machine has written to its serial console."""
        return self.directory / "console.log"

    @property
    def host_id(self) -> str:
        """UUID of this host: that of its root file system and of its host NQN."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.directory}/{self.name}"))

    @property
    def host_nqn(self) -> str:
        """Host NQN in the UUID form of NVMe Base Specification 2.0, section 4.5."""
        return f"nqn.2014-08.org.nvmexpress:uuid:{self.host_id}"

    def ssd_serial(self, number: int) -> str:
        """Serial number of the machine's ``number``-th SSD (from 1)."""
        return f"{self.name}-ssd{number}"

    def ssd_path(self, number: int) -> str:
        """Stable path of an SSD inside the guest."""
        return f"/dev/disk/by-id/virtio-{self.ssd_serial(number)}"

    def _disk(self, number: int) -> Path:
        return self.directory / f"ssd{number}.raw"

    def write_seed(self, files: dict[str, str]) -> None:
        """Write what the machine takes over at each boot.

        :param files: content by absolute path in the guest.
        """
        seed = self.directory / "seed"
        (seed / "files").mkdir(parents=True, exist_ok=True)
        (seed / "seed.env").write_text(
            f"ADDRESS={self.address}\nHOST_ID={self.host_id}\nHOST_NQN={self.host_nqn}\n"
            f"MODULES='{' '.join(_MODULES[self.role])}'\n"
        )
        for name, text in files.items():
            path = seed / "files" / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def create_disks(self) -> None:
        """Make the sparse data disks; existing ones are kept."""
        for number in range(1, self.spec.ssds + 1):
            path = self._disk(number)
            if not path.exists():
                with path.open("wb") as disk:
                    disk.truncate(self.spec.ssd_gib << 30)

    @property
    def overlay(self) -> Path:
        """The root disk: what the machine has changed of the image."""
        return self.directory / "root.qcow2"

    def create_overlay(self) -> None:
        """Make the copy-on-write root disk.

        :raises LabError: qemu-img failed.
        """
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw"]
        argv += ["-b", str(self._layers.image.root), str(self.overlay)]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"{self.name}: qemu-img: {done.stderr.strip()}")

    def command_line(self) -> list[str]:
        """The QEMU command."""
        here = self.directory
        argv = ["qemu-system-x86_64", "-name", self.name, "-machine", "q35,sata=off,smbus=off"]
        threads = "single" if self.spec.icount else "multi"
        argv += ["-accel", f"tcg,thread={threads}", "-cpu", "max", "-smp", "1"]
        argv += ["-icount", "shift=1,sleep=off"] if self.spec.icount else []
        argv += ["-m", str(self.spec.memory), "-nodefaults", "-no-user-config"]
        argv += ["-display", "none", "-kernel", str(self._layers.image.kernel)]
        argv += ["-initrd", str(self._layers.image.initrd), "-append", self._kernel_arguments()]
        argv += ["-serial", f"file:{self.console_path}"]
        argv += ["-qmp", f"unix:{here / 'qmp.sock'},server=on,wait=off"]
        argv += self._root_arguments() + self._agent_arguments() + self._link_arguments()
        for number in range(1, self.spec.ssds + 1):
            argv += self._ssd_arguments(number)
        return argv

    def _kernel_arguments(self) -> str:
        machine_id = uuid.UUID(self.host_id).hex
        # On a machine that is busy the kernel's test of its timer fails now and then, and it stops:
        # "IO-APIC + timer doesn't work!" (arch/x86/kernel/apic/io_apic.c).
        return (
            "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet loglevel=4"
            f" systemd.hostname={self.name} systemd.machine_id={machine_id}"
            " systemd.show_status=0 random.trust_cpu=on apparmor=0 audit=0 no_timer_check"
            f" modprobe.blacklist={','.join(_NEEDLESS_MODULES)}"
        )

    def _root_arguments(self) -> list[str]:
        site, source = self._layers.python_site, self._layers.source
        share = "local,security_model=none,readonly=on,multidevs=remap"
        return [
            *("-drive", f"file={self.overlay},if=none,id=root,format=qcow2,discard=unmap"),
            *("-device", "virtio-blk-pci,drive=root,serial=root"),
            *("-drive", f"file={site},if=none,id=site,format=raw,readonly=on"),
            *("-device", "virtio-blk-pci,drive=site,serial=site"),
            *("-virtfs", f"{share},path={self.directory / 'seed'},mount_tag=seed"),
            *("-virtfs", f"{share},path={source},mount_tag=src"),
        ]

    def _agent_arguments(self) -> list[str]:
        socket_path = self.directory / "agent.sock"
        return [
            *("-chardev", f"socket,path={socket_path},server=on,wait=off,id=agent"),
            *("-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
            *("-device", "virtio-rng-pci"),
        ]

    def _link_arguments(self) -> list[str]:
        hardware = mac(self.role, self.spec.number)
        return [
            *("-netdev", f"tap,id=net0,ifname={self.spec.tap},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net0,mac={hardware},romfile="),
        ]

    def _ssd_arguments(self, number: int) -> list[str]:
        # A raw file keeps what the guest wrote when QEMU is killed, so flushes to the disk of this
        # machine (cache=writeback) would only cost time. The page cache of the guest is lost, as
        # that of a server that loses power.
        drive = f"file={self._disk(number)},if=none,id=ssd{number},format=raw,discard=unmap"
        # Not QEMU's NVMe controller: that of 7.2 under TCG loses a completion now and then, and the
        # guest's writes hang until its driver resets the controller, a minute later.
        device = f"virtio-blk-pci,drive=ssd{number},serial={self.ssd_serial(number)}"
        return ["-drive", f"{drive},cache=unsafe,detect-zeroes=unmap", "-device", device]

    def start(self) -> None:
        """Power on unless it is on; returns at once, see :meth:`wait_ready`."""
        if self.alive():
            return
        for name in ("agent.sock", "qmp.sock"):
            (self.directory / name).unlink(missing_ok=True)
        self._processes.start(self.process_name, self.command_line())

    @property
    def process_name(self) -> str:
        """Name of QEMU among the processes of the lab."""
        return f"vm-{self.name}"

    def alive(self) -> bool:
        """Is the QEMU process there?"""
        return self._processes.alive(self.process_name)

    def kill(self) -> None:
        """Lose power."""
        self._processes.kill(self.process_name)

    def state(self) -> str:
        """``off``, ``paused``, ``booting`` or ``running``."""
        if not self.alive():
            return "off"
        try:
            status = self._qmp("query-status")["status"]
        except qmp.QmpError:
            return "booting"
        if status == "paused":
            return "paused"
        return "running" if self._agent.ping() else "booting"

    def wait_ready(self, timeout: float = BOOT_SECONDS) -> None:
        """Wait until the guest agent answers and the seed is applied.

        :param timeout: seconds.
        :raises LabError: QEMU ended or the time is over; the end of the console is in the message.
        """
        deadline = time.monotonic() + timeout
        while not (self._has_socket() and self._agent.ping()):
            if not self.alive():
                log = "\n".join(self._processes.tail(self.process_name))
                raise LabError(f"{self.name}: QEMU ended:\n{log}")
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: not up after {timeout:.0f} s:\n{self._console_end()}")
            time.sleep(0.3)
        self.run("systemctl start kumo-seed.service", timeout=60)

    def _has_socket(self) -> bool:
        return (self.directory / "agent.sock").exists()

    def _console_end(self) -> str:
        if not self.console_path.exists():
            return "(no console output)"
        return "\n".join(self.console_path.read_text(errors="replace").splitlines()[-15:])

    def run(
        self,
        command: str | list[str],
        *,
        input: bytes | str | None = None,
        check: bool = True,
        timeout: float = 300.0,
        env: dict[str, str] | None = None,
    ) -> Result:
        """Run a command in the guest; a text goes through a shell.

        :param timeout: seconds.
        :raises CommandFailedError: it ended with another code than 0 and ``check`` is true.
        :raises GuestAgentError: the guest does not answer.
        """
        data = input.encode() if isinstance(input, str) else input
        result = self._agent.run(command, input=data, timeout=timeout, env=env)
        if check and result.returncode:
            shown = command if isinstance(command, str) else " ".join(command)
            raise CommandFailedError(
                f"{self.name}: code {result.returncode} from: {shown[:300]}\n"
                f"{result.stdout[-1500:]}{result.stderr[-1500:]}"
            )
        return result

    def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file in the guest."""
        self._agent.put(path, data)
        self.run(["chmod", f"{mode:o}", path])

    def get(self, path: str) -> bytes:
        """Read a file of the guest."""
        return self._agent.get(path)

    def clock(self) -> tuple[float, float]:
        """Seconds by which the clock of the guest is ahead of ours, and how exact that is.

        :raises GuestAgentError: the guest does not answer.
        """
        found = []
        for _ in range(3):
            before = time.time()
            told = self._agent.call("guest-get-time") / 1e9
            half = (time.time() - before) / 2
            found.append((half, told - before - half))
        half, ahead = min(found)
        return ahead, half

    def reboot(self, timeout: float = BOOT_SECONDS) -> None:
        """Reboot in order and wait until it is up again.

        :param timeout: seconds.
        :raises LabError: it is not, or QEMU ended.
        """
        before = self._boot_id()
        self.run("systemd-run --on-active=0.2 systemctl reboot", timeout=30)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            time.sleep(0.5)
            try:
                if self._boot_id() != before:
                    self.wait_ready(deadline - time.monotonic())
                    return
            except GuestAgentError as error:
                if not self.alive():
                    raise LabError(f"{self.name}: QEMU ended during a reboot") from error
        raise LabError(
            f"{self.name}: not back {timeout:.0f} s after a reboot:\n{self._console_end()}"
        )

    def _boot_id(self) -> str:
        done = self._agent.run(["cat", "/proc/sys/kernel/random/boot_id"], timeout=10)
        if done.returncode:
            # No answer, as from a machine on its way down; never to be taken for another boot.
            raise GuestAgentError(f"{self.name}: no boot id: {done.stderr.strip()}")
        return done.stdout

    def cut(self) -> None:
        """Cut the machine off the network."""
        self._network.cut(self.spec.tap)

    def heal(self) -> None:
        """Plug it in again."""
        self._network.heal(self.spec.tap)

    def pause(self) -> None:
        """Freeze the machine's processor."""
        self._qmp("stop")

    def resume(self) -> None:
        """Let it go on."""
        self._qmp("cont")

    def _qmp(self, command: str) -> Any:
        return qmp.execute(lambda: connect_unix(self.directory / "qmp.sock"), command)
