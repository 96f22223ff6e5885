# SPDX-License-Identifier: Apache-2.0
"""kumo-agent on a compute machine, as its documentation has it installed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab import brick_site, guest_brick
from lab.controlplane import ControlPlane
from lab.errors import LabError
from lab.machine import Machine
from os_brick_nvmeof.conf import GROUP

UNIT = "kumo-agent"
CONFIG = "/etc/kumo/agent.conf"
TOKEN_FILE = "/etc/kumo/agent.token"  # noqa: S105 - a path
CA = "/etc/kumo/ca.pem"
# Who it runs as, beside the daemon that is root.
USER = "kumo-agent"
METRICS_PORT = 9720
_STATUS = "/run/kumo-agent/status.json"
_STATE = "/var/lib/kumo-agent"
_TOP = Path(__file__).resolve().parents[1]
_PYTHON = "/usr/bin/python3"
_MODULE = "os_brick_nvmeof.agent.main"
# An emulated processor takes half a minute to import os-brick.
_START_SECONDS = 300.0
_STOP_SECONDS = 60.0


def python_path() -> str:
    """Where the guests have our os-brick and everything else."""
    return f"{brick_site.guest_path(brick_site.OURS)}:/opt/kumo/src:/opt/kumo/site"


def drop_in() -> str:
    """What differs from an installed agent: where Python finds it, and time to start."""
    return (
        "[Service]\n"
        f"Environment=PYTHONPATH={python_path()}\n"
        "ExecStart=\n"
        f"ExecStart={_PYTHON} -m {_MODULE} --config-file {CONFIG} run\n"
        f"TimeoutStartSec={_START_SECONDS:.0f}\n"
        # As Nova's own directory belongs to Nova's user; this one is gone after each boot.
        f"ExecStartPre=/usr/bin/install -d -o {USER} -g {USER} {guest_brick.LOCKS}\n"
    )


def section(name: str, settings: Mapping[str, Any]) -> str:
    """A section of a configuration file."""
    lines = [f"{option} = {value}" for option, value in settings.items()]
    return "\n".join([f"[{name}]", *lines]) + "\n"


def config(url: str, options: Mapping[str, Any], connector: Mapping[str, Any]) -> str:
    """Text of agent.conf. ``options``: of its section, besides those that it must have."""
    settings = {
        "provisioner_urls": url,
        "provisioner_token_file": TOKEN_FILE,
        "provisioner_ca_file": CA,
        "lock_path": guest_brick.LOCKS,
        "user": USER,
        "metrics_port": METRICS_PORT,
        **options,
    }
    return section("kumo_agent", settings) + section(GROUP, connector)


class Agent:
    """kumo-agent of a compute machine. Every verb can be repeated."""

    def __init__(self, machine: Machine, plane: ControlPlane) -> None:
        self.machine = machine
        self._plane = plane

    def install(self, connector: Mapping[str, Any] | None = None, **options: Any) -> None:
        """Write configuration, token, authority and unit; make the user.

        :param connector: options of the connector. :param options: of the section
            ``[kumo_agent]``.
        """
        token = self._plane.kumo(
            *("token", "create", "--role", "storage", "--name", UNIT, "--hours", "24")
        ).stdout.strip()
        unit = (_TOP / "etc/systemd/kumo-agent.service").read_bytes()
        files: dict[str, tuple[bytes, int]] = {
            CONFIG: (config(self._plane.url, options, connector or {}).encode(), 0o644),
            TOKEN_FILE: (token.encode(), 0o640),
            CA: (self._plane.ca_file.read_bytes(), 0o644),
            f"/etc/systemd/system/{UNIT}.service": (unit, 0o644),
            f"/etc/systemd/system/{UNIT}.service.d/lab.conf": (drop_in().encode(), 0o644),
        }
        self.machine.run(f"mkdir -p /etc/kumo /etc/systemd/system/{UNIT}.service.d")
        for path, (data, mode) in files.items():
            self.machine.put(path, data, mode)
        made = f"useradd --system --user-group --no-create-home {USER}"
        self.machine.run(
            f"id -u {USER} >/dev/null 2>&1 || {made};"
            f" chgrp {USER} {TOKEN_FILE} && systemctl daemon-reload"
        )

    def start(self) -> float:
        """Start it and wait until it says that it heals; gives the seconds that took.

        :raises LabError: it did not come up; the end of its journal is in the message.
        """
        begin = time.monotonic()
        done = self.machine.run(
            ["systemctl", "start", UNIT], check=False, timeout=_START_SECONDS + 10
        )
        if done.returncode:
            raise LabError(f"{self.machine.name}: kumo-agent did not start:\n{self.journal()}")
        return time.monotonic() - begin

    def stop(self) -> None:
        """Stop it in order."""
        self.machine.run(["systemctl", "stop", UNIT], timeout=_STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL it; systemd starts it again."""
        self.machine.run(["systemctl", "kill", "-s", "KILL", UNIT])

    def forget(self) -> None:
        """Stop it, and remove what it remembers."""
        self.machine.run(f"systemctl stop {UNIT} 2>/dev/null; true", timeout=_STOP_SECONDS)
        self.machine.run(f"systemctl reset-failed {UNIT} 2>/dev/null; rm -rf {_STATE}/* {_STATUS}")

    def journal(self, lines: int = 30) -> str:
        """The end of its log."""
        shown = f"journalctl -b -u {UNIT} -n {lines} --no-pager -o cat"
        return self.machine.run(shown).stdout

    def command(self, *words: str) -> str:
        """Output of ``kumo-agent``, run as a person does; it takes its time to start."""
        argv = ["env", f"PYTHONPATH={python_path()}", _PYTHON, "-W", "ignore", "-m", _MODULE]
        done = self.machine.run([*argv, "--config-file", CONFIG, *words])
        return done.stdout

    def plan(self) -> dict[str, Any]:
        """What ``kumo-agent plan`` says."""
        return dict(json.loads(self.command("plan", "-f", "json")))

    def status(self) -> dict[str, Any]:
        """What ``kumo-agent status -f json`` shows, read from the file that it shows; nothing is
        there before the agent's first look."""
        text = self.machine.run(f"[ ! -e {_STATUS} ] || cat {_STATUS}").stdout
        return dict(json.loads(text or "{}"))

    def volume(self, uuid: str) -> dict[str, Any]:
        """A volume in the status; nothing if the agent does not know it (yet)."""
        found = [one for one in self.status().get("volumes", []) if one["uuid"] == uuid]
        return dict(found[0]) if found else {}

    def wait(self, uuid: str, state: str, timeout: float) -> float:
        """Wait until the agent shows a volume in a state; gives the seconds that took.

        :raises LabError: it does not, with what it shows.
        """
        begin = time.monotonic()
        while True:
            shown = self.volume(uuid)
            seconds = time.monotonic() - begin
            if shown.get("state") == state:
                return seconds
            if seconds > timeout:
                raise LabError(
                    f"volume {uuid} is not {state} after {seconds:.0f} s: {summary(shown)}"
                )
            time.sleep(0.5)

    def history(self, volume: str = "") -> list[dict[str, Any]]:
        """What was healed, oldest first; of one volume or of all."""
        path = f"{_STATE}/history.json"
        text = self.machine.run(f"[ ! -e {path} ] || cat {path}").stdout
        found = list(json.loads(text or "[]"))
        return [one for one in found if volume in ("", one["volume"])]

    def metrics(self) -> dict[str, float]:
        """Its Prometheus metrics."""
        url = f"http://127.0.0.1:{METRICS_PORT}/metrics"
        code = f"import urllib.request as u; print(u.urlopen('{url}').read().decode())"
        return samples(self.machine.run([_PYTHON, "-c", code]).stdout)


def samples(text: str) -> dict[str, float]:
    """Values of Prometheus' text format by name with labels, as they are written there."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def summary(volume: Mapping[str, Any]) -> str:
    """A volume of the status in one line."""
    if not volume:
        return "not known to the agent"
    legs = ", ".join(
        f"{leg['uuid'][:8]} {leg['place']}, {leg['path']}, {leg['recorded']}"
        for leg in volume["legs"]
    )
    notes = "; ".join(note["text"] for note in volume["notes"])
    return f"{volume['state']} ({legs}) {notes}".strip()
