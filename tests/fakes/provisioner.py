# SPDX-License-Identifier: Apache-2.0
"""The real provisioner as a process of its own, for functional tests."""

from __future__ import annotations

import configparser
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kumo_client import errors
from kumo_client.api.provisioner import Provisioner
from kumo_client.schemas.backend import Backend, BackendCreate
from kumo_client.session import Session
from kumo_provisioner import init
from tests.fakes.fleet import ADDRESS, FakeNode, Fleet

START_SECONDS = 120.0
# Short times, so that tests see probes and time-outs without waiting for them.
TEST_OPTIONS = {
    "nodes": {"connect_timeout": "1", "budget": "8", "probe_budget": "1"},
    "reconcile": {"interval": "3600", "probe_interval": "0.5", "probe_failures": "2"},
    "server": {"lock_timeout": "5", "listen_address": ADDRESS},
    "DEFAULT": {"debug": "true"},
}


class ProvisionerProcess:
    """``kumo-provisioner`` over HTTPS on loopback, with what ``init`` makes.

    ``.client`` is a kumo_client Provisioner, ``.url``, ``.token`` and ``.ca_file`` serve others.

    :param options: by section of the configuration; ``database`` has the URL of a database that
        several instances share.
    :param beside: another instance, whose certificates and tokens this one has, too.
    """

    def __init__(
        self,
        directory: Path,
        options: dict[str, dict[str, Any]] | None = None,
        beside: ProvisionerProcess | None = None,
    ) -> None:
        self.directory = directory
        with socket.socket() as probe:
            probe.bind((ADDRESS, 0))
            self.port: int = probe.getsockname()[1]
        if beside is None:
            init.make(directory, [ADDRESS], [ADDRESS], self.port)
        else:
            shutil.copytree(beside.directory, directory, ignore=shutil.ignore_patterns("*.log"))
        self.url = f"https://{ADDRESS}:{self.port}"
        self.ca_file = str(directory / "ca.pem")
        self.token = (directory / "admin.token").read_text().strip()
        self.node_token = (directory / "node.token").read_text().strip()
        self.node_certificate = directory / "nodes" / f"{ADDRESS}.pem"
        self.log_path = directory / "provisioner.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.fleet: Fleet | None = None
        self.configure(TEST_OPTIONS)
        self.configure(options or {})
        self.configure({"server": {"listen_port": self.port}})
        self.client = self.new_client()

    def configure(self, options: dict[str, dict[str, Any]]) -> None:
        """Change the configuration; it counts from the next start."""
        path = self.directory / "provisioner.conf"
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(path)
        for section, values in options.items():
            if section != "DEFAULT" and not parser.has_section(section):
                parser.add_section(section)
            for key, value in values.items():
                parser.set(section, key, str(value))
        with path.open("w") as stream:
            parser.write(stream)

    def new_client(self, *, budget: float = 20.0, **options: Any) -> Provisioner:
        """Another client with connections of its own."""
        return Provisioner(self.session(budget=budget, **options))

    def session(self, *, token: str | None = None, budget: float = 20.0, **options: Any) -> Session:
        return Session(
            [self.url],
            token=self.token if token is None else token,
            ca_file=self.ca_file,
            budget=budget,
            **options,
        )

    def start(self) -> None:
        """Start the process and wait until it answers."""
        # The second as in etc/systemd.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "MALLOC_ARENA_MAX": "2"}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "kumo_provisioner.main",
                    "--config-file",
                    str(self.directory / "provisioner.conf"),
                ],
                stdout=log,
                stderr=log,
                env=environment,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self.process.poll() is None, f"it ended at start:\n{self.log_text()[-4000:]}"
            try:
                self.new_client(budget=1.0).info()
                return
            except errors.CommunicationError:
                assert time.monotonic() < deadline, self.log_text()[-4000:]
                time.sleep(0.05)

    def stop(self) -> int:
        """End it in order (SIGTERM); gives its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        status = self.process.wait(timeout=60)
        self.process = None
        return status

    def restart(self) -> None:
        """Stop it if it runs, and start it again over the same database."""
        self.stop()
        self.start()

    def log_text(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def register(self, node: FakeNode, **location: str) -> Backend:
        """Make a fake node a backend."""
        create = BackendCreate(mgmt_ips=[ADDRESS], mgmt_port=node.port, **location)
        return self.client.add_backend(create)

    def reconcile(self) -> dict[str, Any]:
        """Run one reconcile and give its counts."""
        result = self.client.session.request("POST", "/reconcile", json={})
        assert isinstance(result, dict)
        return result
