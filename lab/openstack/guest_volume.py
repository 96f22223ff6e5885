# SPDX-License-Identifier: Apache-2.0
"""cinder-volume in a machine of the lab, with the stack's database and message bus.

Copying images is the one thing in which cinder-volume attaches volumes itself, through os-brick;
the machine that runs the lab may have no kernel for that, a virtual machine has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Protocol

from lab.errors import LabError
from lab.openstack import cinder, config
from lab.openstack.stack import Stack

STATE = "/var/lib/cinder"
ETC = "/etc/cinder"
CONFIG = f"{ETC}/cinder.conf"
PYTHONPATH = "/opt/kumo/src:/opt/kumo/site"
# The console scripts that pip makes, for which the guests have packages but no files.
_PROGRAMS = {
    "/usr/local/bin/cinder-volume": "from cinder.cmd.volume import main",
    "/usr/local/bin/privsep-helper": "from oslo_privsep.daemon import helper_main as main",
}
# Imports take most of it, without KVM.
READY_SECONDS = 240.0
_POLL_SECONDS = 2.0


class Result(Protocol):
    """What is needed of ``lab.guest_agent.Result``."""

    @property
    def stdout(self) -> str: ...

    @property
    def returncode(self) -> int: ...


class Machine(Protocol):
    """What is needed of ``lab.machine.Machine``."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> str: ...

    def run(self, command: str | list[str], *, check: bool = True) -> Result: ...

    def put(self, path: str, data: bytes, mode: int = 0o644) -> None: ...


def overrides(machine: Machine) -> config.Sections:
    """What differs from the config of the services beside the stack."""
    # systemd starts it as root, so commands need no rootwrap; privsep's helper no sudo.
    privsep: dict[str, config.Value] = {"helper_command": "/usr/local/bin/privsep-helper"}
    return {
        "DEFAULT": {
            "host": machine.name,
            "my_ip": machine.address,
            "state_path": STATE,
            "image_conversion_dir": f"{STATE}/conversion",
        },
        "coordination": {"backend_url": f"file://{STATE}/coordination"},
        "oslo_concurrency": {"lock_path": f"{STATE}/locks"},
        "cinder_sys_admin": dict(privsep),
        "privsep_osbrick": dict(privsep),
    }


class GuestVolume:
    """cinder-volume on ``machine``; its backends are ``<machine>@<section>``.

    :param stack: one with a shared database.
    """

    UNIT = "kumo-cinder-volume"

    def __init__(
        self,
        stack: Stack,
        machine: Machine,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._stack, self._machine = stack, machine
        self._clock, self._sleep = clock, sleep

    def start(self, backends: cinder.Backends, files: Mapping[str, bytes]) -> None:
        """Start it unless it runs, and wait until the scheduler knows each backend's capacity.

        :param backends: section name to options, ``volume_driver`` among them.
        :param files: what the options name, by path in the guest; readable by root only.
        :raises LabError: it ended, a driver failed its setup check, or it took too long.
        """
        if not self._active():
            self._put_files(backends, files)
            # A transient unit: gone when it ends, and nothing of it is in the image.
            self._machine.run(
                f"systemd-run --collect --unit {self.UNIT} -E PYTHONPATH={PYTHONPATH}"
                f" -E PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin -E HOME=/root"
                f" cinder-volume --config-file {CONFIG} --config-dir {ETC}/conf.d"
            )
        wanted = {f"{self._machine.name}@{name}" for name in backends}
        begin = self._clock()
        while not wanted <= self._reporting():
            self._check(self._clock() - begin)
            self._sleep(_POLL_SECONDS)

    def _put_files(self, backends: cinder.Backends, files: Mapping[str, bytes]) -> None:
        content = {path: data for path, data in files.items()}
        content[CONFIG] = self._stack.volume_config(backends, overrides(self._machine)).encode()
        folders = {str(PurePosixPath(path).parent) for path in content}
        folders |= {f"{STATE}/{name}" for name in ("conversion", "coordination", "locks")}
        self._machine.run(["mkdir", "-p", "-m", "700", f"{ETC}/conf.d", *sorted(folders)])
        for path, data in content.items():
            self._machine.put(path, data, 0o600)
        for path, line in _PROGRAMS.items():
            program = f"#!/usr/bin/python3\nimport sys\n\n{line}\n\nsys.exit(main())\n"
            self._machine.put(path, program.encode(), 0o755)

    def _active(self) -> bool:
        done = self._machine.run(["systemctl", "is-active", "-q", self.UNIT], check=False)
        return done.returncode == 0

    def _reporting(self) -> set[str]:
        try:
            return self._stack.reporting_backends()
        except OSError:
            return set()

    def _check(self, seconds: float) -> None:
        """Raise LabError if waiting has no use."""
        log = self.log()
        for mark in cinder.DRIVER_FAILED:
            if mark in log:
                raise self._failed(f"log says {mark!r}", log)
        if not self._active():
            raise self._failed("ended", log)
        if seconds > READY_SECONDS:
            raise self._failed(f"no backend after {seconds:.0f} s", log)

    def _failed(self, reason: str, log: str) -> LabError:
        tail = "\n".join(log.splitlines()[-25:])
        return LabError(f"cinder-volume on {self._machine.name}: {reason}; end of its log:\n{tail}")

    def log(self) -> str:
        """What it said since it was started."""
        show = ["journalctl", "-u", self.UNIT, "-b", "--no-pager", "-o", "cat"]
        return self._machine.run(show).stdout

    def stop(self) -> None:
        """Stop it; nothing happens when it does not run."""
        self._machine.run(["systemctl", "stop", self.UNIT], check=False)
