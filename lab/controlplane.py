# SPDX-License-Identifier: Apache-2.0
"""Kumo itself in a lab: nodes on the storage machines, the provisioner in the namespace."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kumo_client.api.provisioner import Provisioner
from kumo_client.schemas.backend import AVAILABLE
from kumo_client.session import Session
from lab.cluster import Lab
from lab.errors import LabError
from lab.machine import Machine
from lab.network import CONTROL_ADDRESS, second_address
from lab.openstack.netns import Inside
from lab.progress import Progress

PORT = 8090
_TOP = Path(__file__).resolve().parents[1]
_READY_SECONDS = 300.0
_DROP_IN = """\
[Service]
ExecStartPre=+/usr/sbin/ip address replace {second}/24 dev eth0
ExecStart=
ExecStart=/usr/local/bin/kumo-python -m kumo_node.main --config-file /etc/kumo/node.conf
"""


class ControlPlane:
    """Provisioner and nodes of a lab. Every verb can be repeated."""

    PROCESS = "kumo-provisioner"

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.directory = lab.state_dir / "kumo"
        self._bin = Path(sys.executable).parent

    @property
    def url(self) -> str:
        """Where the provisioner answers, inside the namespace."""
        return f"https://{CONTROL_ADDRESS}:{PORT}"

    @property
    def ca_file(self) -> Path:
        """Certificate of the private CA that provisioner and nodes are verified with."""
        return self.directory / "ca.pem"

    @property
    def token_file(self) -> Path:
        """The token of the provisioner's users."""
        return self.directory / "admin.token"

    def start(self, progress: Progress) -> None:
        """Start everything that does not run yet and register the nodes.

        :raises LabError: something did not come up; the end of its log is in the message.
        """
        nodes = [machine.address for machine in self.lab.storage]
        init = [str(self._bin / "kumo-provisioner"), "init", "--directory", str(self.directory)]
        done = subprocess.run(
            [*init, "--address", CONTROL_ADDRESS, "--node", *nodes], capture_output=True, text=True
        )
        if done.returncode:
            raise LabError(f"kumo-provisioner init: {done.stderr.strip()}")
        with ThreadPoolExecutor(len(nodes) + 1) as pool:
            futures = [pool.submit(self.start_node, item, progress) for item in self.lab.storage]
            futures.append(pool.submit(self.start_provisioner, progress))
            for future in futures:
                future.result()
        with progress.task("registering the storage nodes"):
            self._register()

    def start_provisioner(self, progress: Progress) -> None:
        """Start the provisioner and wait until it answers."""
        if self.lab.processes.alive(self.PROCESS):
            return
        with progress.task("kumo-provisioner"):
            config = str(self.directory / "provisioner.conf")
            argv = [str(self._bin / "kumo-provisioner"), "--config-file", config]
            self.lab.processes.start(self.PROCESS, argv)
            self._wait_answer()

    def _wait_answer(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            done = self.kumo("info", check=False)
            if done.returncode == 0:
                return
            if not self.lab.processes.alive(self.PROCESS) or time.monotonic() > deadline:
                log = "\n".join(self.lab.processes.tail(self.PROCESS))
                raise LabError(f"kumo-provisioner does not answer: {done.stderr.strip()}\n{log}")
            time.sleep(0.2)

    def start_node(self, machine: Machine, progress: Progress) -> None:
        """Configure and start the node daemon of a storage machine."""
        with progress.task(f"kumo-node on {machine.name}"):
            if machine.run("systemctl is-active -q kumo-node", check=False).returncode == 0:
                return
            for path, (data, mode) in self._node_files(machine).items():
                machine.run(["mkdir", "-p", str(Path(path).parent)])
                machine.put(path, data, mode)
            machine.run("systemctl daemon-reload && systemctl enable kumo-node")
            started = machine.run("systemctl start kumo-node", check=False, timeout=_READY_SECONDS)
            if started.returncode:
                journal = machine.run("journalctl -b -u kumo-node -n 30 --no-pager -o cat")
                raise LabError(f"{machine.name}: kumo-node did not start:\n{journal.stdout}")

    def _node_files(self, machine: Machine) -> dict[str, tuple[bytes, int]]:
        made = self.directory / "nodes"
        second = second_address(machine.spec.number)
        disks = ",".join(machine.ssd_path(n + 1) for n in range(machine.spec.ssds))
        lines = (made / f"{machine.address}.conf").read_text().splitlines()
        settings = {
            "hostname": machine.name,
            "disks": disks,
            "portals": f"tcp://{machine.address}:4420,tcp://{second}:4420",
        }
        kept = [line for line in lines if line.split("=")[0].strip() not in settings]
        text = "\n".join([*kept, *(f"{key} = {value}" for key, value in settings.items())]) + "\n"
        return {
            "/etc/kumo/node.conf": (text.encode(), 0o600),
            "/etc/kumo/node.pem": ((made / f"{machine.address}.pem").read_bytes(), 0o600),
            **{
                f"/etc/kumo/{name}": ((self.directory / name).read_bytes(), 0o600)
                for name in ("node.token", "heartbeat.token", "ca.pem")
            },
            "/etc/systemd/system/kumo-node.service": (
                (_TOP / "etc/systemd/kumo-node.service").read_bytes(),
                0o644,
            ),
            "/etc/systemd/system/kumo-node.service.d/lab.conf": (
                _DROP_IN.format(second=second).encode(),
                0o644,
            ),
        }

    def _register(self) -> None:
        known = {ip for backend in self.kumo_json("backend", "list") for ip in backend["mgmtIPs"]}
        for machine in self.lab.storage:
            if machine.address not in known:
                self.kumo("backend", "add", "--mgmt-ip", machine.address)
        self._wait_available()

    def _wait_available(self) -> None:
        """A node that an earlier scenario took away is back only when the provisioner says so."""
        deadline = time.monotonic() + _READY_SECONDS
        mine = {machine.address for machine in self.lab.storage}
        while True:
            away = [
                f"{backend['name']} is {backend['state']}"
                for backend in self.kumo_json("backend", "list")
                if mine.intersection(backend["mgmtIPs"]) and backend["state"] != AVAILABLE
            ]
            if not away:
                return
            if time.monotonic() > deadline:
                raise LabError(f"for the provisioner {', '.join(away)}")
            time.sleep(1)

    def environment(self) -> dict[str, str]:
        """What the ``kumo`` command needs to find the provisioner."""
        return {
            "KUMO_URL": self.url,
            "KUMO_TOKEN_FILE": str(self.token_file),
            "KUMO_CA_FILE": str(self.ca_file),
        }

    def kumo(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the ``kumo`` command inside the namespace.

        :raises LabError: it failed and ``check`` is true.
        """
        argv = ["ip", "netns", "exec", self.lab.netns, str(self._bin / "kumo"), *words]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **self.environment()}
        done = subprocess.run(argv, capture_output=True, text=True, env=env)
        if check and done.returncode:
            raise LabError(f"kumo {' '.join(words)}: {done.stderr.strip()}")
        return done

    def kumo_json(self, *words: str) -> Any:
        """Decoded JSON output of the ``kumo`` command."""
        return json.loads(self.kumo(*words, "-f", "json").stdout)

    def client(self, budget: float = 120.0) -> Client:
        """A client inside the namespace, for scenarios that need more than the command offers.

        :param budget: seconds for one call, repeats included.
        """
        return Client(self, budget)

    @contextlib.contextmanager
    def only(self, *names: str) -> Iterator[None]:
        """Let these storage nodes alone get new replicas meanwhile."""
        others = [
            backend["persistentID"]
            for backend in self.kumo_json("backend", "list")
            if backend["name"] not in names
        ]
        try:
            for other in others:
                self.kumo("backend", "cordon", other)
            yield
        finally:
            for other in others:
                self.kumo("backend", "uncordon", other)

    def kill(self) -> None:
        """SIGKILL the provisioner."""
        self.lab.processes.kill(self.PROCESS)

    def freeze(self) -> None:
        """Let the provisioner stand still: connections to it are made and never answered."""
        self.lab.processes.send(self.PROCESS, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.lab.processes.send(self.PROCESS, signal.SIGCONT)

    def stop(self) -> None:
        """Stop the provisioner in order."""
        self.lab.processes.stop(self.PROCESS)


class Client:
    """Calls of :class:`Provisioner`, each made inside the lab's namespace."""

    def __init__(self, plane: ControlPlane, budget: float) -> None:
        self._inside = Inside(plane.lab.netns)
        session = Session(
            [plane.url],
            token=plane.token_file.read_text().strip(),
            ca_file=str(plane.ca_file),
            budget=budget,
        )
        self._api = Provisioner(session)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._api, name)
        return lambda *args, **kwargs: self._inside.call(lambda: method(*args, **kwargs))

    def close(self) -> None:
        """End the thread that lives in the namespace."""
        self._inside.close()


def inventory(lab: Lab) -> dict[str, list[str]]:
    """What of ours is on each machine: LVs, namespaces, subsystems, arrays, controllers.

    :raises LabError: a machine could not be asked; an empty list is a definite answer.
    """
    commands = {
        "storage": (
            "found=$(lvs --noheadings -o lv_name --select 'lv_name=~\"^[rs]-\"') || exit 1;"
            "for v in $found; do echo lv $v; done;"
            "for s in /sys/kernel/config/nvmet/subsystems/*; do [ -e $s ] || continue;"
            ' echo "subsystem ${s##*/}"; for n in $s/namespaces/*; do'
            ' [ -e $n ] && echo "namespace $(cat $n/device_uuid)"; done; done; true'
        ),
        "compute": (
            "for a in /sys/block/md*; do [ -e $a ] && echo array ${a##*/}; done;"
            "for c in /sys/class/nvme-fabrics/ctl/nvme*; do"
            " [ -e $c ] && echo controller $(cat $c/subsysnqn); done; true"
        ),
    }
    return {
        machine.name: machine.run(commands[machine.role]).stdout.splitlines()
        for machine in lab.machines.values()
    }
