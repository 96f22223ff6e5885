# SPDX-License-Identifier: Apache-2.0
"""Clients that call one provisioner as fast as it answers, and what they measured."""

from __future__ import annotations

import dataclasses
import http.client
import json
import math
import ssl
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from bench import fleet

# A call: method, path, body, and what is expected in ``status``.
Request = tuple[str, str, Any]


@dataclasses.dataclass(frozen=True)
class Figures:
    """Times of one operation, in ms."""

    operation: str
    clients: int
    calls: int
    p50: float
    p99: float
    per_second: float

    @classmethod
    def of(cls, operation: str, clients: int, times: list[float], elapsed: float) -> Figures:
        """:param times: seconds of each call."""
        ordered = sorted(times)
        return cls(
            operation,
            clients,
            len(ordered),
            1000 * quantile(ordered, 0.5),
            1000 * quantile(ordered, 0.99),
            len(ordered) / elapsed,
        )


def quantile(ordered: list[float], part: float) -> float:
    """The value below which that part of the (sorted) values lies."""
    return ordered[min(len(ordered) - 1, max(0, math.ceil(part * len(ordered)) - 1))]


class Client:
    """One connection that is kept open."""

    def __init__(self, port: int, token: str, ca_file: str) -> None:
        context = ssl.create_default_context(cafile=ca_file)
        self._connection = http.client.HTTPSConnection("127.0.0.1", port, context=context)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer of one call.

        :raises RuntimeError: when it is an error.
        """
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: HTTP {answer.status}: {content[:500]!r}")
        return content

    def close(self) -> None:
        self._connection.close()


def create(uid: str, number: int) -> Request:
    replicas = 2 if number % 5 == 0 else 1
    asked = {"numReplicas": replicas, "zones": ["nova"]}
    body = {"uuid": uid, "alias": f"new-{uid[:18]}", "capacity": 1, "storageClass": asked}
    return "POST", "/volumes", body


def publish(uid: str, number: int) -> Request:
    host = {
        "hostNqn": fleet.host_nqn(number),
        "hostId": fleet.host_id(number),
        "name": "compute",
        "clientType": "Agent",
        "duration": 30,
    }
    return "POST", "/publish", {"hostId": fleet.host_id(number), "volId": uid, "host": host}


def unpublish(uid: str, number: int) -> Request:
    return "POST", "/unpublish", {"hostId": fleet.host_id(number), "volId": uid}


def show(uid: str, _number: int) -> Request:
    return "GET", f"/volumes/{uid}", None


def page(uid: str, _number: int) -> Request:
    return "GET", f"/volumes?limit=100&after={uid}", None


def info(_uid: str, _number: int) -> Request:
    return "GET", "/info", None


def tenants(_uid: str, _number: int) -> Request:
    return "GET", "/tenants", None


def empty(_uid: str, _number: int) -> Request:
    return "GET", "/healthz", None


def delete(uid: str, _number: int) -> Request:
    return "DELETE", f"/volumes/{uid}", None


# In the order of a volume's life; what one makes the next ones use.
OPERATIONS: dict[str, Callable[[str, int], Request]] = {
    "create": create,
    "publish": publish,
    "show": show,
    "list a page of 100": page,
    "stats (GET /info)": info,
    "stats (GET /tenants)": tenants,
    "unpublish": unpublish,
    "delete": delete,
}


def measure(
    connect: Callable[[], Client],
    operation: str,
    make: Callable[[str, int], Request],
    uuids: list[str],
    clients: int,
) -> Figures:
    """Call one operation for each uuid, the uuids shared out among the clients."""
    barrier = threading.Barrier(clients + 1)
    times: list[list[float]] = [[] for _ in range(clients)]
    failures: list[BaseException] = []

    def run(number: int) -> None:
        client = connect()
        # The handshake is no part of what is measured.
        client.call(*empty("", 0))
        barrier.wait()
        try:
            for position in range(number, len(uuids), clients):
                request = make(uuids[position], position)
                begin = time.perf_counter()
                client.call(*request)
                times[number].append(time.perf_counter() - begin)
        except (RuntimeError, OSError) as exc:
            failures.append(exc)
        finally:
            client.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    barrier.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - begin
    if failures:
        raise failures[0]
    return Figures.of(operation, clients, [one for some in times for one in some], elapsed)


def life(connect: Callable[[], Client], count: int, clients: int) -> list[Figures]:
    """All operations on ``count`` new volumes."""
    uuids = [str(uuid.uuid4()) for _ in range(count)]
    return [measure(connect, name, make, uuids, clients) for name, make in OPERATIONS.items()]
