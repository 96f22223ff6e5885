# SPDX-License-Identifier: Apache-2.0
"""Many storage nodes in one process: the node API over HTTPS, without storage behind it.

``python -m bench.simulated_nodes --count N --certificate PEM`` prints one JSON line with the ports
and ids of the nodes and then serves. Each node has a port of its own on the loopback. The answers
are those of a node on which everything succeeds; what it is asked to hold it shows in its
inventory. Two paths that no real node has, on any port:

* ``POST /control/load``: ``{"path": FILE}``; take over replicas from a file of
  :func:`bench.seed.write_inventory`.
* ``GET /control/counts``: how many calls came, by method and kind of object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import ssl
import sys
from collections import Counter
from typing import Any

from bench.fleet import NODE_BYTES, POOLS, node_id
from kumo_client import naming

PORTALS = [{"ip": "127.0.0.1", "port": 4420, "transport": "TCP"}]


class Node:
    """What one simulated node holds."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.persistent_id = node_id(number)
        self.replicas: dict[str, dict[str, Any]] = {}
        self.snapshots: dict[str, dict[str, Any]] = {}
        self.generation = 1

    def info(self) -> dict[str, Any]:
        used = Counter[str]()
        for one in self.replicas.values():
            used[one["pool"]] += one["bytes"]
        return {
            "persistentID": self.persistent_id,
            "name": f"node-{self.number}",
            "version": "0",
            "bootId": "boot",
            "kernel": "simulated",
            "portals": PORTALS,
            "generation": self.generation,
            "abilities": ["limits", "copy", "revert", "adopt"],
            "problems": [],
            "pools": [
                {
                    "name": name,
                    "totalBytes": NODE_BYTES // len(POOLS),
                    "usedBytes": used[name] // 4,
                    "provisionedBytes": used[name],
                    "maxIOPS": 500_000,
                    "maxBW": 3_000_000,
                    "ssds": [{"path": f"/dev/{name}", "bytes": NODE_BYTES // len(POOLS)}],
                }
                for name in POOLS
            ],
        }

    def inventory(self) -> dict[str, Any]:
        return {
            "persistentID": self.persistent_id,
            "bootId": "boot",
            "generation": self.generation,
            "replicas": list(self.replicas.values()),
            "snapshots": list(self.snapshots.values()),
        }

    def hold(self, uid: str, volume: str, size: int, pool: str) -> dict[str, Any]:
        """Have a replica."""
        found = self.replicas.get(uid)
        if found is None:
            found = self.replicas[uid] = {
                "uuid": uid,
                "volumeId": volume,
                "bytes": size,
                "blockSize": 512,
                "pool": pool,
                "exports": [],
                "state": "ok",
                "limits": {"maxIOPS": 0, "maxBW": 0},
            }
            self.generation += 1
        return found

    def export(self, uid: str, host_nqn: str, io_class: str) -> dict[str, Any]:
        """Have an export of a replica."""
        exports = self.replicas[uid]["exports"]
        for one in exports:
            if one["hostNqn"] == host_nqn:
                return one
        made = {
            "replica": uid,
            "hostNqn": host_nqn,
            "class": io_class,
            "subsystemNqn": naming.subsystem_nqn(self.persistent_id, host_nqn, io_class),
            "nsid": len(exports) + 1,
            "portals": PORTALS,
        }
        exports.append(made)
        self.generation += 1
        return made

    def call(self, method: str, path: str, query: str, body: dict[str, Any]) -> Any:
        """The answer of a call; None for an object that is not there."""
        kind, uid, rest = [*path.split("/"), "", ""][2:5]
        if kind == "info":
            return self.info()
        if kind == "inventory":
            return self.inventory()
        if kind == "replicas":
            return self._replica(method, uid, rest, query, body)
        if kind == "snapshots":
            return self._snapshot(method, uid, body)
        return None

    def _replica(self, method: str, uid: str, rest: str, query: str, body: dict[str, Any]) -> Any:
        if method == "PUT" and not rest:
            pool = body.get("pool") or POOLS[0]
            made = self.hold(uid, body["volumeId"], body["bytes"], pool)
            made["limits"] = body.get("limits") or made["limits"]
            return made
        found = self.replicas.get(uid)
        if method == "DELETE" and rest == "exports":
            if found is not None:
                keep = [one for one in found["exports"] if query and one["hostNqn"] not in query]
                found["exports"] = keep
                self.generation += 1
            return {"status": "Success", "description": ""}
        if method == "DELETE":
            self.replicas.pop(uid, None)
            self.generation += 1
            return {"status": "Success", "description": ""}
        if found is None:
            return None
        if rest == "exports":
            return self.export(uid, body["hostNqn"], body["class"])
        if rest == "limits":
            found["limits"] = body
        elif method == "PATCH":
            found["bytes"] = body["bytes"]
        return found

    def _snapshot(self, method: str, uid: str, body: dict[str, Any]) -> Any:
        if method == "DELETE":
            self.snapshots.pop(uid, None)
            return {"status": "Success", "description": ""}
        source = self.replicas.get(body.get("replica", ""))
        if source is None:
            return None
        self.generation += 1
        return self.snapshots.setdefault(
            uid, body | {"uuid": uid, "bytes": source["bytes"], "pool": source["pool"]}
        )


class Fleet:
    """All nodes of the process, and what was asked of them."""

    def __init__(self, count: int) -> None:
        self.nodes = [Node(number) for number in range(count)]
        self.counts: Counter[str] = Counter()

    def handle(self, node: Node, method: str, target: str, body: bytes) -> tuple[int, Any]:
        path, _, query = target.partition("?")
        value = json.loads(body) if body else {}
        if path == "/control/load":
            return 200, {"replicas": self._load(value["path"])}
        if path == "/control/counts":
            return 200, dict(self.counts)
        kind = path.split("/")[2] + ("/exports" if path.endswith("/exports") else "")
        self.counts[f"{method} {kind}"] += 1
        answer = node.call(method, path, query.replace("%3A", ":"), value)
        if answer is None:
            return 404, {"status": "NotExists", "description": f"there is no {path}"}
        return 200, answer

    def _load(self, path: str) -> int:
        count = 0
        with open(path) as stream:
            for line in stream:
                number, uid, volume, size, pool, host_nqn, io_class = json.loads(line)
                node = self.nodes[number]
                node.hold(uid, volume, size, pool)
                if host_nqn:
                    node.export(uid, host_nqn, io_class)
                count += 1
        return count


class Connection(asyncio.Protocol):
    """Just enough HTTP/1.1 for one client that keeps its connection and sends lengths."""

    def __init__(self, fleet: Fleet, node: Node) -> None:
        self.fleet, self.node = fleet, node
        self.buffer = b""
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            length = 0
            first, *headers = head.split(b"\r\n")
            for header in headers:
                if header[:15].lower() == b"content-length:":
                    length = int(header[15:])
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            method, target, _ = first.decode().split(" ")
            status, answer = self.fleet.handle(self.node, method, target, rest[:length])
            content = json.dumps(answer).encode()
            self.transport.write(
                b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (status, len(content), content)
            )


async def serve(count: int, certificate: str) -> None:
    """Serve until the process is ended."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    loop = asyncio.get_running_loop()
    fleet = Fleet(count)
    servers = []
    ports = []
    for node in fleet.nodes:
        listener = socket.create_server(("127.0.0.1", 0))
        ports.append(listener.getsockname()[1])

        def connection(node: Node = node) -> Connection:
            return Connection(fleet, node)

        servers.append(await loop.create_server(connection, sock=listener, ssl=context))
    print(json.dumps({"ports": ports, "ids": [node.persistent_id for node in fleet.nodes]}))
    sys.stdout.flush()
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--certificate", required=True, help="PEM file with certificate and key")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.count, arguments.certificate))


if __name__ == "__main__":
    main()
