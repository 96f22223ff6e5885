# SPDX-License-Identifier: Apache-2.0
"""What the agent costs while nothing happens: processor time of its process, as a part of a core.

The whole agent runs in this process with its options at their defaults: its threads, its watch, its
probes (TCP connections to this machine) and its calls to a provisioner. The host is the faked
kernel of the tests: sysfs as files, superblocks from memory. The provisioner is another process,
which answers the same all the time, without TLS; what that uses is not counted.

With ``--apart`` superblocks are read by the agent's privileged daemon, as when it runs as an
ordinary user. What the daemon uses is counted as well.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import json
import logging
import multiprocessing
import os
import pathlib
import platform
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any
from unittest import mock

from os_brick.privileged import kumo

from kumo_client import naming
from kumo_client.api.provisioner import Provisioner
from kumo_client.schemas import info
from kumo_client.session import Session
from os_brick_nvmeof import props, replicated
from os_brick_nvmeof.agent import conf, main, rooted, watch
from os_brick_nvmeof.agent.loop import Agent
from os_brick_nvmeof.agent.vendor import Identity
from os_brick_nvmeof.agent.vendors.kumo import KumoVendor
from os_brick_nvmeof.context import Context
from os_brick_nvmeof.locks import Locks
from os_brick_nvmeof.privileged import LocalHost
from tests.fakes.agent_host import AgentMd
from tests.fakes.host_kernel import HOST, HOST_ID, Kernel

NODES = 8
# Seconds before the measurement begins.
WARM = 15.0
GIB = 1 << 30
TOKEN = "token"  # noqa: S105


class Quiet:
    """The host of a faked kernel on which nothing happens: its files, and reads of devices.

    :ivar reads: how many there were. :ivar daemon: id of the daemon's process; 0: there is none.
    """

    def __init__(self, kernel: Any) -> None:
        self.root: pathlib.Path = kernel.root
        self.reads = self.daemon = 0
        self._kernel = kernel
        self._lock = threading.Lock()

    def read(self, device: str, offset: int, length: int) -> bytes:
        """From memory."""
        with self._lock:
            self.reads += 1
            return bytes(self._kernel.read(device, offset, length))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"an agent that has nothing to do asked for {name}")


class Apart(Quiet):
    """Has the agent's daemon read, which is forked with the faked kernel."""

    def __init__(self, kernel: Any) -> None:
        super().__init__(kernel)
        near = super().read
        kumo.VERBS["read"] = lambda *arguments: ("done", near(*arguments))
        rooted.begin()
        # The first child of this process.
        self.daemon = int(pathlib.Path("/proc/thread-self/children").read_text())
        self._far = LocalHost(far=rooted)

    def read(self, device: str, offset: int, length: int) -> bytes:
        """From the memory of the daemon."""
        with self._lock:
            self.reads += 1
        return self._far.read(device, offset, length)


class Site:
    """Volumes with two legs each, attached; nodes with two portals each, at this machine.

    :ivar answers: what a provisioner says of it, by path.
    """

    def __init__(self, path: pathlib.Path, number: int, port: int) -> None:
        self.kernel = Kernel(path)
        self.md = AgentMd(self.kernel)
        self.port = str(port)
        self.targets = [
            self.kernel.target(
                self.nqn(node), *(("tcp", address, self.port) for address in addresses(node))
            )
            for node in range(NODES)
        ]
        self.volumes = [self._attached(each) for each in range(number)]
        self.answers = self._answers()

    @staticmethod
    def nqn(node: int) -> str:
        return naming.subsystem_nqn(f"n{node}", HOST, props.REPLICATED)

    def _attached(self, number: int) -> props.Volume:
        legs = []
        for node in (number % NODES, (number + 1) % NODES):
            leg = str(uuid.uuid5(uuid.NAMESPACE_OID, f"leg {number} {node}"))
            self.targets[node].publish(leg, GIB + naming.md_overhead(1))
            portals = tuple(props.Portal(one, self.port, "tcp") for one in addresses(node))
            legs.append(props.Leg(leg, self.nqn(node), portals, f"n{node}", "Available", "fresh"))
        volume = props.Volume(
            uuid=str(uuid.uuid5(uuid.NAMESPACE_OID, f"volume {number}")),
            alias=f"volume-{number}",
            io_class=props.REPLICATED,
            size=GIB,
            legs=tuple(legs),
            replicated=True,
            array_state=props.NEW,
            told=True,
        )
        replicated.attach(self.kernel.context(), volume)
        return volume

    def _answers(self) -> dict[str, Any]:
        events = {one.uuid: one.events for one in self.md.arrays.values()}
        capabilities = [
            info.CAPABILITY_HOST_VOLUMES,
            info.CAPABILITY_ARRAY_REPORT,
            info.CAPABILITY_EVENTS,
        ]
        return {
            "/info": {"version": "bench", "capabilities": capabilities},
            "/host_probe": {"status": "Success", "description": ""},
            "/events": {"events": [], "last": 1, "lost": False},
            "/tasks": [],
            "/backends": [
                {"persistentID": f"n{node}", "name": f"n{node}", "state": "Available"}
                for node in range(NODES)
            ],
            f"/hosts/{HOST_ID}/volumes": [
                {
                    "uuid": one.uuid,
                    "alias": one.alias,
                    "capacity": 1,
                    "numReplicas": 2,
                    "wantedReplicas": 2,
                    "maxReplicaDownTime": 10,
                    "arrayState": "open",
                    "publishedHosts": [HOST_ID],
                    "location": [_location(leg, events[one.uuid]) for leg in one.legs],
                }
                for one in self.volumes
            ],
        }


def addresses(node: int) -> tuple[str, str]:
    """All of 127/8 is this machine."""
    return f"127.0.1.{node + 1}", f"127.0.2.{node + 1}"


def _location(leg: props.Leg, events: int) -> dict[str, Any]:
    return {
        "uuid": leg.uuid,
        "backend": {
            "persistentID": leg.node,
            "portals": [
                {"ip": one.address, "port": int(one.port), "transport": "TCP"}
                for one in leg.portals
            ],
        },
        "replicaState": leg.state,
        "freshness": leg.freshness,
        "events": events,
    }


# -- the others: processes of their own -----------------------------------------------------------


class _Answers(http.server.BaseHTTPRequestHandler):
    """One connection to the provisioner."""

    protocol_version = "HTTP/1.1"
    answers: Mapping[str, bytes] = {}

    def do_GET(self) -> None:
        if "wait=" in self.path:
            time.sleep(50)
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def _answer(self) -> None:
        body = self.answers[self.path.partition("?")[0]]
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        return


def _provisioner(answers: Mapping[str, Any], ready: Any) -> None:
    _Answers.answers = {path: json.dumps(told).encode() for path, told in answers.items()}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        ready.send(server.server_port)
        server.serve_forever()


def _nodes(listener: socket.socket) -> None:
    """Take connections now and then: on a node it wakes nobody of this host either."""
    listener.setblocking(False)
    while True:
        time.sleep(0.2)
        with contextlib.suppress(BlockingIOError):
            while True:
                listener.accept()[0].close()


# -- the measurement ------------------------------------------------------------------------------


def make(host: Quiet, path: pathlib.Path, port: int) -> Agent:
    """The agent as ``kumo-agent run`` has it."""
    options = conf.load([os.devnull])
    for name in ("state_dir", "run_dir", "lock_path"):
        (path / name).mkdir()
        options.set_override(name, str(path / name), group=conf.GROUP)
    ctx = Context(
        host=host,
        conf=options,
        host_nqn=HOST,
        host_id=HOST_ID,
        multipath=True,
        locks=Locks(options.kumo_agent.lock_path),
    )
    url = f"http://127.0.0.1:{port}"
    session = Session([url], token=TOKEN, ca_file=None, allow_http=True)
    vendor = KumoVendor(Provisioner(session), Identity(HOST_ID, HOST, "bench", multipath=True))
    with mock.patch.object(main, "_vendor", return_value=vendor):
        return main.make(options, ctx)


def measure(agent: Agent, host: Quiet, seconds: float) -> dict[str, float]:
    """Processor seconds by thread while the agent runs for so long, and of all of it ("")."""
    watched = watch.Watch(
        agent.ctx.host.root,
        agent.observer.states,
        agent.wake.set,
        agent.ctx.conf.kumo_agent.busy_interval,
    )
    agent.start()
    watched.start()
    rounds = threading.Thread(target=agent.run, name="rounds", daemon=True)
    rounds.start()
    time.sleep(WARM)
    before, count, reads = _used(host), _rounds(agent), host.reads
    time.sleep(seconds)
    after = _used(host)
    done, reads = agent.known.last or "nothing", host.reads - reads
    print(f"{_rounds(agent) - count:.0f} rounds in {seconds:g} s, {reads} reads; done: {done}")
    agent.stop()
    watched.stop()
    # What is asked of the provisioner now ends with it.
    logging.disable()
    return {name: used - before.get(name, 0.0) for name, used in after.items()}


def _daemon(pid: int) -> float:
    """Processor seconds of a process (proc(5), utime and stime)."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _used(host: Quiet) -> dict[str, float]:
    daemon = _daemon(host.daemon) if host.daemon else 0.0
    found = {
        one.name: time.clock_gettime(time.pthread_getcpuclockid(one.ident))
        for one in threading.enumerate()
        if one.ident is not None
    }
    return {**found, "daemon": daemon, "": time.process_time() + daemon}


def _rounds(agent: Agent) -> float:
    return agent.metrics.registry.get_sample_value("kumo_agent_rounds_total") or 0.0


def run(path: pathlib.Path, volumes: int, seconds: float, *, apart: bool) -> None:
    """Measure and tell."""
    listener = socket.create_server(("0.0.0.0", 0), backlog=512)
    site = Site(path, volumes, listener.getsockname()[1])
    host = (Apart if apart else Quiet)(site.kernel)
    ours, theirs = multiprocessing.Pipe()
    others = [
        multiprocessing.Process(target=work, daemon=True)
        for work in (
            functools.partial(_nodes, listener),
            functools.partial(_provisioner, site.answers, theirs),
        )
    ]
    for one in others:
        one.start()
    listener.close()
    try:
        used = measure(make(host, path, ours.recv()), host, seconds)
    finally:
        for one in others:
            one.terminate()
            one.join()
    total = used.pop("")
    print(f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name, part in sorted(used.items(), key=lambda each: -each[1]):
        if part >= 0.001:
            print(f"{name:<24}{100 * part / seconds:>8.3f} %")
    print(f"{f'{volumes} volumes, in all':<24}{100 * total / seconds:>8.3f} % of a core")


def start() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long it is measured")
    parser.add_argument("--apart", action="store_true", help="a privileged daemon reads")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        run(pathlib.Path(path), arguments.volumes, arguments.seconds, apart=arguments.apart)


if __name__ == "__main__":
    start()
