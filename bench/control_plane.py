# SPDX-License-Identifier: Apache-2.0
"""How fast the control plane answers, and how that grows with the number of volumes.

The real provisioner over HTTPS, with simulated storage nodes (:mod:`bench.simulated_nodes`). In the
same run and on the same machine the floor is measured: one commit of the same database, synced to
disk, and one empty HTTPS request to the same server. Times on a shared machine are noisy; the
ratios to the floor are what to look at.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import logging
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy

from bench import fleet, load, seed
from kumo_client.schemas.backend import BackendCreate
from kumo_provisioner.db.engine import Database
from tests.fakes.databases import PostgreSQL
from tests.fakes.provisioner import ProvisionerProcess

FLOOR_COMMITS = 200
FLOOR_REQUESTS = 200
QUIET_PERCENT = 25.0


@dataclasses.dataclass
class Level:
    """What was measured with a number of existing volumes. Times in ms, memory in MiB."""

    database: str
    volumes: int
    commit: float
    request: float
    figures: list[load.Figures] = dataclasses.field(default_factory=list)
    memory: int = 0
    memory_peak: int = 0
    node_calls: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def floor(self) -> float:
        return self.commit + self.request


class Nodes:
    """The process of the simulated nodes."""

    def __init__(self, count: int, certificate: pathlib.Path, ca_file: str) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bench.simulated_nodes",
                "--count",
                str(count),
                "--certificate",
                str(certificate),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        told = json.loads(self._process.stdout.readline())
        self.ports: list[int] = told["ports"]
        self._control = load.Client(self.ports[0], "", ca_file)

    def load(self, path: pathlib.Path) -> None:
        self._control.call("POST", "/control/load", {"path": str(path)})

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = json.loads(self._control.call("GET", "/control/counts"))
        return counts

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


class Bench:
    """One database with its provisioner and nodes."""

    def __init__(self, name: str, directory: pathlib.Path, url: str | None, nodes: int) -> None:
        self.name = name
        self.directory = directory
        self.server = ProvisionerProcess(directory / "kumo")
        self.url = url or f"sqlite:///{self.server.directory}/provisioner.db"
        # The product's own defaults, but for the address.
        options: dict[str, dict[str, Any]] = {
            "database": {"connection": self.url},
            "nodes": {"connect_timeout": 3, "budget": 20, "probe_budget": 5},
            "reconcile": {"interval": 30, "probe_interval": 10, "probe_failures": 3},
            "DEFAULT": {"debug": "false"},
        }
        self.server.configure(options)
        if url is not None:
            # Only SQLite's schema is brought up to date by itself.
            record = Database(url)
            record.upgrade()
            record.close()
        self.nodes = Nodes(nodes, self.server.node_certificate, self.server.ca_file)
        self.seeded = 0

    def connect(self) -> load.Client:
        return load.Client(self.server.port, self.server.token, self.server.ca_file)

    def register(self) -> float:
        """Make all nodes known; seconds for each."""
        begin = time.perf_counter()
        for number, port in enumerate(self.nodes.ports):
            self.server.client.add_backend(
                BackendCreate(
                    mgmt_ips=["127.0.0.1"], mgmt_port=port, rack=f"rack-{number % fleet.RACKS}"
                )
            )
        seed.hosts(self.url)
        return (time.perf_counter() - begin) / len(self.nodes.ports)

    def grow(self, volumes: int) -> None:
        """Have that many volumes; the provisioner is stopped meanwhile and runs afterwards."""
        self.server.stop()
        count = len(self.nodes.ports)
        path = self.directory / "inventory"
        seed.write_inventory(path, self.seeded, volumes, count)
        self.nodes.load(path)
        seed.volumes(self.url, self.seeded, volumes, count)
        self.seeded = volumes
        self.server.start()
        self.settle()

    def settle(self, seconds: float = 300.0) -> None:
        """Wait until the provisioner has looked at all nodes after its start."""
        deadline = time.monotonic() + seconds
        quiet = 0
        while quiet < 3:
            if time.monotonic() > deadline:
                raise RuntimeError("the provisioner does not come to rest")
            before, begin = self._cpu(), time.monotonic()
            time.sleep(1.0)
            used = 100 * (self._cpu() - before) / (time.monotonic() - begin)
            quiet = quiet + 1 if used < QUIET_PERCENT else 0

    def _cpu(self) -> float:
        assert self.server.process is not None  # noqa: S101 - it was started
        fields = pathlib.Path(f"/proc/{self.server.process.pid}/stat").read_text().split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> tuple[int, int]:
        """Resident memory of the provisioner in MiB, now and at its highest."""
        assert self.server.process is not None  # noqa: S101 - it was started
        text = pathlib.Path(f"/proc/{self.server.process.pid}/status").read_text()
        values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        return int(values["VmRSS"].split()[0]) // 1024, int(values["VmHWM"].split()[0]) // 1024

    def floor(self) -> tuple[float, float]:
        """Median ms of one commit, and of one empty request."""
        engine = sqlalchemy.create_engine(self.url)
        sqlite = engine.dialect.name == "sqlite"
        times = []
        with engine.connect() as connection:
            if sqlite:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
                connection.exec_driver_sql("PRAGMA synchronous = FULL")
            with contextlib.suppress(sqlalchemy.exc.DatabaseError):
                connection.exec_driver_sql("CREATE TABLE bench_floor (n INTEGER)")
                connection.exec_driver_sql("INSERT INTO bench_floor VALUES (0)")
            connection.commit()
            for _ in range(FLOOR_COMMITS):
                begin = time.perf_counter()
                connection.exec_driver_sql("UPDATE bench_floor SET n = n + 1")
                connection.commit()
                times.append(time.perf_counter() - begin)
        engine.dispose()
        uuids = [""] * FLOOR_REQUESTS
        request = load.measure(self.connect, "empty request", load.empty, uuids, 1)
        return 1000 * load.quantile(sorted(times), 0.5), request.p50

    def level(self, volumes: int, clients: list[int], count: int) -> Level:
        """Measure everything with that many existing volumes."""
        self.grow(volumes)
        commit, request = self.floor()
        level = Level(self.name, volumes, commit, request)
        load.life(self.connect, 20, 1)
        for number in clients:
            before = self.nodes.counts()
            level.figures += load.life(self.connect, max(count, number * 10), number)
            if number == 1:
                level.node_calls = _per_call(before, self.nodes.counts(), count)
        level.memory, level.memory_peak = self.memory()
        return level

    def close(self) -> None:
        self.server.stop()
        self.nodes.close()


def _per_call(before: dict[str, int], after: dict[str, int], count: int) -> dict[str, float]:
    """Calls to nodes for one volume of a life; probes left out."""
    return {
        name: round((number - before.get(name, 0)) / count, 2)
        for name, number in sorted(after.items())
        if number != before.get(name, 0) and not name.startswith("GET")
    }


@contextlib.contextmanager
def database(name: str, directory: pathlib.Path) -> Iterator[str | None]:
    """The URL of a private database; None for SQLite, which the provisioner makes itself."""
    if name == "sqlite":
        yield None
        return
    server = PostgreSQL(directory / "postgresql")
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


def tell(level: Level) -> None:
    """Print what was measured."""
    print(f"\n{level.database}, {level.volumes} volumes")
    print(f"  floor: commit {level.commit:.2f} ms + empty request {level.request:.2f} ms")
    print(
        f"  {'operation':<22}{'clients':>8}{'p50 ms':>9}{'p99 ms':>9}{'calls/s':>9}{'x floor':>9}"
    )
    for one in level.figures:
        ratio = f"{one.p50 / level.floor:.2f}"
        print(
            f"  {one.operation:<22}{one.clients:>8}{one.p50:>9.1f}{one.p99:>9.1f}"
            f"{one.per_second:>9.0f}{ratio:>9}"
        )
    print(f"  memory of the provisioner: {level.memory} MiB (highest {level.memory_peak} MiB)")
    print(f"  calls to nodes for one volume's life: {level.node_calls}")
    sys.stdout.flush()


def growth(levels: list[Level]) -> None:
    """Print how each operation at one client grows from the first level on."""
    first = {one.operation: one.p50 for one in levels[0].figures if one.clients == 1}
    print(f"\n{levels[0].database}: p50 at one client, relative to {levels[0].volumes} volumes")
    for level in levels:
        told = [
            f"{one.operation} {one.p50 / first[one.operation]:.2f}"
            for one in level.figures
            if one.clients == 1
        ]
        print(f"  {level.volumes:>7} volumes: {', '.join(told)}")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--volumes", type=_numbers, default=[1000, 10000, 100000])
    parser.add_argument("--clients", type=_numbers, default=[1, 8, 32])
    parser.add_argument("--calls", type=int, default=200, help="calls of each operation")
    parser.add_argument("--database", action="append", choices=["sqlite", "postgresql"])
    parser.add_argument("--output", help="file for the figures as JSON")
    arguments = parser.parse_args()
    # A server that is just starting is no news here.
    logging.getLogger("kumo_client").addHandler(logging.NullHandler())
    levels: list[Level] = []
    for name in arguments.database or ["sqlite", "postgresql"]:
        with (
            tempfile.TemporaryDirectory(prefix="kumo-bench-") as path,
            database(name, pathlib.Path(path)) as url,
        ):
            bench = Bench(name, pathlib.Path(path), url, arguments.nodes)
            try:
                bench.server.start()
                print(f"{name}: {arguments.nodes} nodes, {1000 * bench.register():.1f} ms each")
                mine = []
                for volumes in arguments.volumes:
                    mine.append(bench.level(volumes, arguments.clients, arguments.calls))
                    tell(mine[-1])
                growth(mine)
                levels += mine
            finally:
                bench.close()
    if arguments.output:
        told = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": f"{os.cpu_count()} cores, {platform.platform()}",
            "command": " ".join(sys.argv),
            "levels": [dataclasses.asdict(level) for level in levels],
        }
        pathlib.Path(arguments.output).write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
