# SPDX-License-Identifier: Apache-2.0
"""A lab: its namespace, its machines and the processes of its control plane.

All state is in one directory, so that any later command finds the lab again:

* ``state.json``: what the machines are made of, written before anything is made;
* ``processes.json`` and ``logs/``: see :mod:`lab.processes`;
* ``source/``: a copy of the code as it was when the lab came up;
* ``machines/<name>/``: overlay, disks, sockets, seed and console.
"""

from __future__ import annotations

import compileall
import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import py_compile
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from lab import brick_site, image, python_site
from lab.errors import LabError, ProcessError, UsageError
from lab.machine import COMPUTE, MEMORY_MIB, STORAGE, Layers, Machine, MachineSpec
from lab.network import Network, address
from lab.processes import Processes
from lab.progress import Progress

DEFAULT_NAME = "kumo"
SSDS = 2
SSD_GIB = 16
DISKS = {"ssds": SSDS, "ssd_gib": SSD_GIB}
_SHIPPED = (
    "bench",
    "cinder_kumo",
    "kumo_client",
    "kumo_node",
    "kumo_provisioner",
    "lab",
    "os_brick_nvmeof",
)
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
# Length of the path of a unix socket, its final NUL included (sun_path in unix(7)).
_SOCKET_PATH = 108


def base_directory() -> Path:
    """Where labs keep their state: ``$KUMO_LAB_DIR`` or ``/var/lib/kumo-lab``."""
    return Path(os.environ.get("KUMO_LAB_DIR") or "/var/lib/kumo-lab")


def names() -> list[str]:
    """Names of the labs that exist."""
    return sorted(path.parent.name for path in base_directory().glob("*/state.json"))


class Lab:
    """A lab that is up, or partly so."""

    def __init__(self, name: str, state: dict[str, Any]) -> None:
        self.name = name
        self.netns = f"kumo-{name}"
        self.state_dir = base_directory() / name
        self.network = Network(self.netns)
        self.processes = Processes(self.state_dir, self.netns)
        self.kernel = state["kernel"]
        layers = Layers(
            image=image.Image(**{k: _path(k, v) for k, v in state["image"].items()}),
            python_site=Path(state["python_site"]),
            source=self.state_dir / "source",
        )
        self.machines = {
            spec["name"]: Machine(
                MachineSpec(**spec),
                self.state_dir / "machines" / spec["name"],
                layers,
                self.network,
                self.processes,
            )
            for spec in state["machines"]
        }

    @property
    def storage(self) -> list[Machine]:
        """The storage machines, in order."""
        return [item for item in self.machines.values() if item.role == STORAGE]

    @property
    def compute(self) -> list[Machine]:
        """The compute machines, in order."""
        return [item for item in self.machines.values() if item.role == COMPUTE]

    def log_files(self) -> list[Path]:
        """Logs of all processes and consoles of all machines."""
        services = sorted((self.state_dir / "logs").glob("*.log"))
        return [*services, *(m.console_path for m in self.machines.values())]

    @classmethod
    def exists(cls, name: str = DEFAULT_NAME) -> bool:
        """Is there a lab of that name, complete or not?"""
        return (base_directory() / name / "state.json").exists()

    @classmethod
    def load(cls, name: str = DEFAULT_NAME) -> Lab:
        """Find a lab again.

        :raises LabError: there is none of that name, or another version of this program made it.
        """
        lab = cls.find(name)
        if lab is None:
            raise LabError(f"there is no lab {name!r}", way_out="kumo-lab up")
        return lab

    @classmethod
    def find(cls, name: str = DEFAULT_NAME) -> Lab | None:
        """The lab of that name; None when there is none.

        :raises LabError: another version of this program made it.
        """
        path = base_directory() / name / "state.json"
        try:
            return cls(name, json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (KeyError, TypeError, ValueError) as error:
            raise LabError(
                f"lab {name!r} was made by another version of kumo-lab: {path}: {error!r}",
                way_out="Take it down with the version that made it.",
            ) from error

    @classmethod
    def up(
        cls,
        name: str = DEFAULT_NAME,
        *,
        storage: int = 3,
        compute: int = 1,
        progress: Progress,
        kernel: str = image.DEFAULT_KERNEL,
        ssds: int = SSDS,
        ssd_gib: int = SSD_GIB,
        icount: bool = False,
    ) -> Lab:
        """Make a lab and boot its machines, all at once.

        :param ssds: number of SSDs of a storage machine.
        :param ssd_gib: size of each SSD of a storage machine, in GiB (sparse).
        :param icount: let the machines' clocks count instructions, for benchmarks in one machine.
        :raises UsageError: no lab can have that name.
        :raises LabError: a lab of that name exists, or something failed; nothing is left then.
        """
        _check_name(name)
        if cls.exists(name):
            raise _already_up(name)
        specs = _machine_specs(storage, compute, ssds, ssd_gib, icount)
        built = image.build(kernel, progress)
        state = {
            "kernel": built.version,
            "image": {key: str(value) for key, value in dataclasses.asdict(built).items()},
            "python_site": str(python_site.build(progress)),
            "machines": [dataclasses.asdict(spec) for spec in specs],
        }
        lab = cls(name, state)
        lab._check_paths()
        lab.state_dir.mkdir(parents=True, exist_ok=True)
        try:
            # Exclusive: of two commands at once, the second must not take the first one's lab down.
            file = (lab.state_dir / "state.json").open("x")
        except FileExistsError as error:
            raise _already_up(name) from error
        try:
            with file:
                json.dump(state, file, indent=1)
            lab._make(progress)
        except BaseException:
            lab.down()
            raise
        return lab

    def _check_paths(self) -> None:
        """See whether the sockets of the machines can have their paths.

        :raises LabError: they cannot.
        """
        for machine in self.machines.values():
            length = len(os.fsencode(machine.directory / "agent.sock"))
            if length >= _SOCKET_PATH:
                raise LabError(
                    f"{machine.directory} is too long a path for unix sockets",
                    way_out="Set KUMO_LAB_DIR to a shorter one.",
                )

    def _make(self, progress: Progress) -> None:
        self._copy_source()
        self.network.create()
        for machine in self.machines.values():
            machine.directory.mkdir(parents=True)
            machine.write_seed({})
            machine.create_disks()
            machine.create_overlay()
            self.network.add_tap(machine.spec.tap)
            machine.start()
        pool = ThreadPoolExecutor(max(1, len(self.machines)))
        try:
            futures = [pool.submit(_boot, item, progress) for item in self.machines.values()]
            for future in as_completed(futures):
                future.result()
        finally:
            # After a failure the others end as soon as their virtual machines are gone.
            pool.shutdown(wait=False, cancel_futures=True)

    def _copy_source(self) -> None:
        """Copy the code for the guests, compiled: compiling there would cost seconds per start."""
        top = Path(__file__).resolve().parents[1]
        target = self.state_dir / "source"
        present = [name for name in _SHIPPED if (top / name).is_dir()]
        for name in present:
            shutil.copytree(top / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        for info in top.glob("*.egg-info"):
            shutil.copytree(info, target / info.name)
        brick_site.make(target)
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(target, quiet=2, invalidation_mode=mode)

    def down(self) -> None:
        """Remove the lab: processes, namespace, files. Safe to repeat.

        Of two commands that do it at once, the second waits, and finds nothing left.

        :raises LabError: something could not be stopped; namespace and files stay.
        """
        with _held(self.state_dir) as there:
            if there:
                self._stop()
                _remove(self.state_dir)
            else:
                self.network.remove()
        with contextlib.suppress(FileNotFoundError):
            base = base_directory()
            if not any(base.iterdir()):
                base.rmdir()

    def _stop(self) -> None:
        for machine in self.machines.values():
            # What could not be killed is tried again, and reported, below.
            with contextlib.suppress(ProcessError):
                machine.kill()
        self.processes.stop_all()
        self.network.remove()


def _remove(directory: Path) -> None:
    """Remove a directory in which a command whose lab this is may still write.

    :raises OSError: it stays.
    """
    for last in (False, False, True):
        try:
            shutil.rmtree(directory)
        except OSError as error:
            if last or error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise
        if not directory.exists():
            return


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[bool]:
    """Have a directory alone, among all who ask so; False when it is not there (any more)."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield _is_at(handle, directory)
    finally:
        os.close(handle)


def _is_at(handle: int, directory: Path) -> bool:
    """Whoever had the lock before may have removed the directory."""
    try:
        return os.path.samestat(os.fstat(handle), directory.stat())
    except FileNotFoundError:
        return False


def _check_name(name: str) -> None:
    """The name becomes part of paths and of a namespace's name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a lab", "Use small letters, digits and dashes."
        )


def _already_up(name: str) -> LabError:
    return LabError(f"lab {name!r} is already up", way_out=f"kumo-lab down --name {name}")


def _path(key: str, value: str) -> Any:
    """A field of :class:`lab.image.Image` from its text in ``state.json``."""
    return value if key == "version" else Path(value)


def _machine_specs(
    storage: int, compute: int, ssds: int, ssd_gib: int, icount: bool
) -> list[MachineSpec]:
    """What the machines of a lab are made of.

    :raises LabError: more than there are addresses for.
    """
    specs = [
        MachineSpec(
            name=f"{role}{number}",
            role=role,
            number=number,
            memory=MEMORY_MIB[role],
            ssds=ssds if role == STORAGE else 0,
            ssd_gib=ssd_gib,
            icount=icount,
        )
        for role, count in ((STORAGE, storage), (COMPUTE, compute))
        for number in range(1, count + 1)
    ]
    for spec in specs:
        address(spec.role, spec.number)
    return specs


def _boot(machine: Machine, progress: Progress) -> None:
    with progress.task(f"booting {machine.name}"):
        machine.wait_ready()
