# SPDX-License-Identifier: Apache-2.0
"""What a create consists of: the time of each part, by the clock and of the processor.

The services of the provisioner run in this process, one call after the other, against simulated
nodes. The edge is the application without the server's sockets and TLS,
given creates that do nothing. Before that, creates of a real server are compared with the floor of
:mod:`bench.control_plane`. Processor time says more than the clock on a machine that others
use, too; the numbers of function calls, by the library that they are calls of, do not depend on it
at all.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pathlib
import pstats
import re
import statistics
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from bench import control_plane, load
from kumo_client.schemas.volume import VolumeCreate
from kumo_provisioner import app, auth, conf
from kumo_provisioner.core import Core
from kumo_provisioner.services import capacity, volumes

WARM = 20
AT_ONCE = 20


class Times:
    """Times of parts, in ms: by the clock, and of the processor."""

    def __init__(self) -> None:
        self.of: dict[str, list[tuple[float, float]]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        clock, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            taken = time.perf_counter() - clock, time.process_time() - cpu
            self.of[name].append((1000 * taken[0], 1000 * taken[1]))

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*args, **options)

        return call

    def tell(self) -> None:
        print(f"{'part':<34}{'clock ms':>10}{'processor ms':>14}   (medians)")
        for name, values in self.of.items():
            clock, cpu = (statistics.median(column[WARM:]) for column in zip(*values, strict=True))
            print(f"{name:<34}{clock:>10.2f}{cpu:>14.2f}")


def compare(bench: control_plane.Bench, rounds: int) -> None:
    """Creates over HTTPS and the floor in turns, so that both see the same machine."""
    load.life(bench.connect, WARM, 1)
    found = []
    for _ in range(rounds):
        floor = sum(bench.floor())
        uuids = [str(uuid.uuid4()) for _ in range(AT_ONCE)]
        made = load.measure(bench.connect, "create", _one_replica, uuids, 1)
        load.measure(bench.connect, "delete", load.delete, uuids, 1)
        found.append((floor, made.p50, made.p50 / floor))
    for name, one in (("median", statistics.median), ("least", min)):
        floor, p50, ratio = (one(column) for column in zip(*found, strict=True))
        print(f"{name:<8} floor {floor:.2f} ms, create {p50:.2f} ms, {ratio:.1f} times the floor")


def _one_replica(uid: str, _number: int) -> load.Request:
    return load.create(uid, 1)


def _body() -> dict[str, Any]:
    _, _, body = load.create(str(uuid.uuid4()), 1)
    return dict(body)


def services(core: Core, times: Times, count: int) -> None:
    """Creates of volumes with one replica."""
    with (
        mock.patch.object(capacity, "retried", times.timed("  place and record", capacity.retried)),
        mock.patch.object(
            core.nodes, "call_all", times.timed("  call to the node", core.nodes.call_all)
        ),
        mock.patch.object(volumes, "_commit", times.timed("  record as made", volumes._commit)),
    ):
        for _ in range(count):
            request = VolumeCreate.model_validate(_body())
            with times.part("create, without the edge"):
                volumes.create(core, "0", request)


def calls(core: Core, count: int) -> None:
    """Count the function calls of creates."""
    requests = [VolumeCreate.model_validate(_body()) for _ in range(count)]
    profile = cProfile.Profile()
    with profile:
        for request in requests:
            volumes.create(core, "0", request)
    # Calls of what is written in C count where they come from.
    found: Counter[str] = Counter()
    for (file, _, _), (_, number, _, _, callers) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if file != "~":
            found[_layer(file)] += number
            continue
        for (caller, _, _), times in callers.items():
            found[_layer(caller)] += times[0]
    print(f"{'function calls of a create':<34}{sum(found.values()) / count:>10.0f}")
    for name, number in found.most_common(12):
        print(f"  {name:<32}{number / count:>10.0f}")


def _layer(file: str) -> str:
    """The package that a file of Python is a part of, or the module of the standard library."""
    library = re.search(r"site-packages/(\w+)", file)
    known = library or re.search(r"/(kumo_\w+)/|python[\d.]+/(\w+)", file)
    return next(filter(None, known.groups())) if known else "others"


async def edge(made: app.FastAPI, token: str, times: Times, count: int) -> None:
    """Requests for creates that do nothing."""
    with mock.patch.object(volumes, "create", lambda _core, _tenant, request: request.uuid):
        for _ in range(count):
            body = json.dumps(_body()).encode()
            with times.part("edge"):
                await _post(made, token, body)


async def _post(made: app.FastAPI, token: str, body: bytes) -> None:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": "/volumes",
        "raw_path": b"/volumes",
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"authorization", f"Bearer {token}".encode()),
            (b"content-type", b"application/json"),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    told: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        told.append(message)

    await made(scope, receive, send)
    if told[0]["status"] != 200:
        raise RuntimeError(f"a create was answered HTTP {told[0]['status']}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--volumes", type=int, default=1000)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    arguments = parser.parse_args()
    name = arguments.database
    with (
        tempfile.TemporaryDirectory(prefix="kumo-bench-") as path,
        control_plane.database(name, pathlib.Path(path)) as url,
    ):
        bench = control_plane.Bench(name, pathlib.Path(path), url, arguments.nodes)
        try:
            bench.server.start()
            bench.register()
            bench.grow(arguments.volumes)
            compare(bench, arguments.rounds)
            bench.server.stop()
            _measure(bench, arguments.calls + WARM)
        finally:
            bench.close()


def _measure(bench: control_plane.Bench, count: int) -> None:
    options = conf.load([str(bench.server.directory / "provisioner.conf")])
    core = Core.make(options)
    core.start()
    try:
        times = Times()
        services(core, times, count)
        calls(core, min(count, 60))
        made = app.make(core, auth.Tokens.load(options.server.token_file), background=False)
        asyncio.run(edge(made, bench.server.token, times, count))
        times.tell()
    finally:
        core.close()


if __name__ == "__main__":
    main()
