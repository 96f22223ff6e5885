# SPDX-License-Identifier: Apache-2.0
"""Is everything there that a lab needs? Asked before anything is made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.errors import PreflightError

GIB = 1 << 30
# The Debian package of each program that the lab starts; bindep.txt says why.
BUILD_PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "mksquashfs": "squashfs-tools",
    "mke2fs": "e2fsprogs",
    "umount": "mount",
}
MACHINE_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "ip": "iproute2",
}
OPENSTACK_PROGRAMS = {
    "rabbitmq-server": "rabbitmq-server",
    "epmd": "erlang-base",
    "mariadbd": "mariadb-server-core",
}
# Debian keeps administration commands out of the PATH of other users than root.
_EXTRA_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
_TUN = "dev/net/tun"
_CONTROL_PLANE_MIB = 512
_OPENSTACK_MIB = 1024
_CACHE_GIB = 6
_STATE_GIB = 4


@dataclass(frozen=True)
class Plan:
    """What is about to be made.

    :param machines_mib: memory of all virtual machines together, in MiB; 0 for none.
    :param openstack: whether OpenStack services will run.
    :param directories: free space needed by the directory it will be used in, in GiB.
    """

    machines_mib: int = 0
    openstack: bool = False
    directories: dict[Path, int] | None = None

    @classmethod
    def build(cls, cache: Path) -> Plan:
        """Only the image."""
        return cls(directories={cache: _CACHE_GIB})

    @classmethod
    def lab(
        cls, machines_mib: int, openstack: bool, state: Path, cache: Path | None = None
    ) -> Plan:
        """A running lab; ``cache`` only if the image is still to be made."""
        directories = {state: _STATE_GIB}
        if cache is not None:
            directories[cache] = _CACHE_GIB
        return cls(machines_mib, openstack, directories)

    @property
    def memory_mib(self) -> int:
        """Memory that must be available, in MiB."""
        if not self.machines_mib:
            return 0
        return self.machines_mib + _CONTROL_PLANE_MIB + self.openstack * _OPENSTACK_MIB

    @property
    def programs(self) -> dict[str, str]:
        """The Debian package by program."""
        found = dict(BUILD_PROGRAMS)
        if self.machines_mib:
            found |= MACHINE_PROGRAMS
        if self.openstack:
            found |= MACHINE_PROGRAMS | OPENSTACK_PROGRAMS
        return found


class Preflight:
    """Looks at this machine; every way of looking can be replaced.

    :param root: where the file system begins.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        user: Callable[[], int] = os.geteuid,
        which: Callable[[str], str | None] | None = None,
        free_bytes: Callable[[Path], int] | None = None,
    ) -> None:
        self._root, self._user = root, user
        self._which = which or _which
        self._free_bytes = free_bytes or _free_bytes

    def root_only(self) -> None:
        """For commands that use a lab that is there.

        :raises PreflightError: we are not root.
        """
        if self._user() != 0:
            raise PreflightError(
                "the lab needs root, for its network namespace and its taps", "Run it with sudo."
            )

    def check(self, plan: Plan) -> None:
        """See whether ``plan`` can be carried out.

        :raises PreflightError: it cannot; all that is missing is in the one message.
        """
        self.root_only()
        problems = []
        ways_out = []
        missing = {p: package for p, package in plan.programs.items() if not self._which(p)}
        if missing:
            problems.append(f"these programs are missing: {', '.join(sorted(missing))}")
            packages = " ".join(sorted(set(missing.values())))
            ways_out.append(f"apt-get install --no-install-recommends {packages}")
        if plan.machines_mib and not (self._root / _TUN).exists():
            problems.append("/dev/net/tun is missing, so machines cannot have a network")
            ways_out.append("modprobe tun")
        problems += self._memory(plan) + self._space(plan)
        if problems:
            raise PreflightError("; ".join(problems), "\n".join(ways_out))

    def _memory(self, plan: Plan) -> list[str]:
        lines = (self._root / "proc/meminfo").read_text().splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)}
        available = kib["MemAvailable"] // 1024
        if available >= plan.memory_mib:
            return []
        return [f"{plan.memory_mib} MiB of memory are needed and {available} MiB are available"]

    def _space(self, plan: Plan) -> list[str]:
        problems = []
        for directory, gib in (plan.directories or {}).items():
            free = self._free_bytes(_existing(directory))
            if free < gib * GIB:
                text = (
                    f"{gib} GiB of free space are needed at {directory}, {free / GIB:.1f} GiB are"
                )
                problems.append(f"{text} there")
        return problems


def _existing(path: Path) -> Path:
    """The nearest directory above that exists already."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def _which(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_EXTRA_PATH}")


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free
