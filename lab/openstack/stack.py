# SPDX-License-Identifier: Apache-2.0
"""A whole small OpenStack: broker, identity, image and block storage services."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from lab.openstack import cinder, config, glance, keystone, mariadb, memory, pristine, rabbitmq
from lab.openstack.netns import Inside
from lab.openstack.readiness import Waiter
from lab.openstack.service import Service

Progress = Callable[[str], None]

# In the order in which they are started; the first only for a shared database.
NAMES = (
    mariadb.NAME,
    *("epmd", "rabbitmq", "cinder-scheduler", "cinder-api", "glance-api", "keystone"),
    "cinder-volume",
)

_START_SECONDS = 120.0


class Processes(Protocol):
    """What is needed of ``lab.processes.Processes``."""

    netns: str | None

    def start(
        self,
        name: str,
        argv: list[str],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> int: ...

    def alive(self, name: str) -> bool: ...

    def pid(self, name: str) -> int | None: ...

    def stop(self, name: str) -> None: ...

    def log_path(self, name: str) -> Path: ...


class Stack:
    """OpenStack services as child processes in the namespace of ``processes``.

    :param processes: starts, watches and stops them, and keeps their logs.
    :param state_dir: everything the services write goes below it.
    :param address: an address of the namespace; all services listen there.
    :param shared_database: keep Cinder's database in MariaDB, so that a cinder-volume on another
        machine can use it. The default, SQLite, is smaller and needs no server. A stack that
        exists keeps what it was made with.

    A stack that runs already, started by another process from the same directory, can be used
    and stopped through a new object; :meth:`start` starts what does not run.

    :raises ValueError: the directory is of a stack with another address or database.
    """

    def __init__(
        self, processes: Processes, state_dir: Path, address: str, shared_database: bool = False
    ) -> None:
        self._processes = processes
        self.settings = config.Settings.open(address, state_dir, shared_database)
        self._inside = Inside(processes.netns)
        self._waiter = Waiter(self._inside.call, processes.alive, processes.log_path)
        self.start_seconds: dict[str, float] = {}

    def start(self, progress: Progress) -> None:
        """Start broker, keystone, glance-api, cinder-api and cinder-scheduler.

        :raises readiness.ServiceFailedError: a service could not be used in time.
        :raises pristine.PristineError: the databases could not be made.
        :raises mariadb.DatabaseServerError: the shared database could not be made.
        """
        pristine.copy(pristine.provide(progress), self.settings)
        cinder.write_config(self.settings)
        services = [
            rabbitmq.service(self.settings),
            cinder.scheduler(self.settings),
            cinder.api(self.settings),
            glance.service(self.settings),
            keystone.service(self.settings),
        ]
        if self.settings.shared_database:
            progress("starting MariaDB")
            self._start([mariadb.service(self.settings)], progress)
            mariadb.migrate(self.settings)
        progress("starting " + ", ".join(service.name for service in services))
        self._start([rabbitmq.epmd(self.settings)], progress)
        self._start(services, progress)

    def start_volume(self, backends: cinder.Backends, progress: Progress = print) -> None:
        """Start cinder-volume with ``backends``: section name to options, ``volume_driver`` among
        them. Returns when the scheduler knows the capacity of each.

        :raises readiness.ServiceFailedError: a driver failed its setup check, or took too long.
        """
        self._start([cinder.volume(self.settings, backends)], progress)

    def stop_volume(self) -> None:
        """Stop cinder-volume alone, for a start with other backends."""
        self._processes.stop("cinder-volume")

    def volume_config(
        self, backends: cinder.Backends, overrides: config.Sections | None = None
    ) -> str:
        """Text of a complete cinder.conf for a cinder-volume that runs elsewhere.

        It holds this stack's passwords. ``overrides`` (section to options) must replace what
        differs there: host, address and paths.

        :raises ValueError: the stack has no shared database.
        """
        if not self.settings.shared_database:
            raise ValueError("Cinder's database is a file that only this machine has")
        return cinder.volume_config(self.settings, backends, overrides)

    def reporting_backends(self) -> set[str]:
        """The ``host@backend`` names, wherever they run, whose capacity the scheduler knows.

        :raises OSError: cinder or keystone could not be asked.
        """
        return self._inside.call(lambda: cinder.reporting_backends(self.settings))

    def exports(self) -> dict[str, str]:
        """The environment (OS_*) that makes the ``openstack`` command the admin here."""
        return self.settings.exports()

    def service_token(self, user: str = "nova") -> str:
        """A token with role service: as X-Service-Token beside the admin's own, it makes a request
        one of Nova, which alone may delete the attachment of an instance (cinder, bug 2004555).

        :raises OSError: keystone could not be asked.
        """
        return self._inside.call(lambda: keystone.token(self.settings, user, "service"))

    def service_exports(self, user: str) -> dict[str, str]:
        """Like :meth:`exports`, for a service user (cinder, glance or nova) of role service."""
        own = {"OS_USERNAME": user, "OS_PASSWORD": self.settings.passwords[user]}
        return {**self.settings.exports(), **own, "OS_PROJECT_NAME": "service"}

    def memory_kib(self) -> dict[str, int]:
        """Proportional set size of every running service, in KiB."""
        pids = {name: self._processes.pid(name) for name in NAMES}
        return {name: memory.pss_kib(pid) for name, pid in pids.items() if pid is not None}

    def stop(self) -> None:
        """Stop everything, the broker last; nothing happens to what does not run."""
        for name in reversed(NAMES):
            self._processes.stop(name)
        self.close()

    def close(self) -> None:
        """Let go of the namespace, whose last thread keeps it there; what runs stays running."""
        self._inside.close()

    def _start(self, services: list[Service], progress: Progress) -> None:
        for service in services:
            if self._processes.alive(service.name):
                continue
            self._waiter.expect(service)
            self._processes.start(service.name, service.argv, service.env, self.settings.state_dir)

        def ready(name: str, seconds: float) -> None:
            self.start_seconds[name] = seconds
            progress(f"{name} ready after {seconds:.1f} s")

        self._waiter.wait(services, _START_SECONDS, ready)
