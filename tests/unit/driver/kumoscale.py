# SPDX-License-Identifier: Apache-2.0
"""A small provisioner in memory, behind a transport adapter of ``requests``.

It keeps state and answers as the wire facts say: lists for GET, ``status`` and ``description``
for mutations. Without capabilities it behaves like a KumoScale, with them like a Kumo.
"""

import io
import json
import re
import urllib.parse

import requests
from requests.adapters import BaseAdapter

from kumo_client import naming
from kumo_client.schemas import info

ALL = (
    info.CAPABILITY_PUBLISH_ATTACH,
    info.CAPABILITY_TYPED_ERRORS,
    info.CAPABILITY_SNAPSHOT_VOLUME_CAPACITY,
)
COMPLETE = (*ALL, info.CAPABILITY_PUBLISH_COMPLETE)
ROUTES = []


class Refused(Exception):  # noqa: N818
    def __init__(self, status, description, http=409, **more):
        super().__init__(status)
        self.http = http
        self.body = {"status": status, "description": description, **more}


def route(method, pattern):
    def keep(function):
        ROUTES.append((method, re.compile(pattern + "$"), function))
        return function

    return keep


class KumoScale:
    """The state. ``calls`` lists what was asked: (method, path, body)."""

    def __init__(self, capabilities=ALL, nodes=3, node_gib=100):
        self.capabilities = list(capabilities)
        self.calls = []
        self.failures = {}
        self.volumes = {}
        self.snapshots = {}
        self.hosts = {}
        self.published = set()
        self.misplaced_targets = False
        self.without_target = set()
        self.tenants = [{"tenantId": "0", "capacity": 0, "consumedCapacity": 0}]
        self.nodes = {f"node-{i}": self._node(i, node_gib) for i in range(1, nodes + 1)}

    @staticmethod
    def _node(number, gib):
        return {
            "persistentID": f"node-{number}",
            "mgmtIPs": [f"10.0.0.{number}"],
            "state": "Available",
            "totalCapacity": gib,
            "availableCapacity": gib,
            "portals": [{"ip": f"10.1.0.{number}", "port": 4420, "transport": "TCP"}],
        }

    def fail(self, call, *answers):
        """Answer the next calls ("POST /publish") with these exceptions."""
        self.failures.setdefault(call, []).extend(answers)

    def names(self):
        return [f"{method} {path}" for method, path, _ in self.calls]

    def handle(self, method, path, query, body):
        self.calls.append((method, path, body))
        waiting = self.failures.get(f"{method} {path}") or self.failures.get(
            f"{method} /{path.split('/')[1]}/*"
        )
        if waiting:
            raise waiting.pop(0)
        for verb, pattern, function in ROUTES:
            match = pattern.match(path)
            if verb == method and match:
                return function(self, *match.groups(), **({"query": query, "body": body}))
        raise Refused("NotExists", f"there is no {path}", 404)

    def volume(self, volume_id):
        if volume_id not in self.volumes:
            raise Refused("NotExists", f"volume {volume_id} does not exist", 404)
        return self.volumes[volume_id]

    def place(self, volume_id, alias, capacity, replicas, **more):
        if volume_id in self.volumes:
            raise Refused("AlreadyExists", f"volume {volume_id} exists")
        free = [n for n in self.nodes.values() if n["availableCapacity"] >= capacity]
        if len(free) < replicas:
            raise Refused("NoSpace", f"{len(free)} nodes have {capacity} GiB", volume=volume_id)
        for node in free[:replicas]:
            node["availableCapacity"] -= capacity
        self.volumes[volume_id] = {
            "uuid": volume_id,
            "alias": alias,
            "capacity": capacity,
            "numReplicas": replicas,
            "writable": True,
            "location": [
                {
                    "uuid": f"{number:08d}{volume_id[8:]}",
                    "backend": {"persistentID": node["persistentID"]},
                    "replicaState": "Available",
                }
                for number, node in enumerate(free[:replicas])
            ],
            **more,
        }

    def targets(self, host_id, volume_id):
        volume, host = self.volume(volume_id), self.hosts[host_id]
        for place in volume["location"]:
            node = self.nodes[place["backend"]["persistentID"]]
            nqn = naming.subsystem_nqn(
                node["persistentID"], host["hostNqn"], naming.io_class(len(volume["location"]))
            )
            yield place, node, nqn


@route("GET", "/info")
def get_info(state, query, body):
    shown = {"totalFreeSpace": 1, "version": "3.22"}
    return shown | ({"capabilities": state.capabilities} if state.capabilities else {})


@route("GET", "/tenants")
def get_tenants(state, query, body):
    return state.tenants


@route("GET", "/backends")
def get_backends(state, query, body):
    return list(state.nodes.values())


@route("GET", "/backends/(.+)")
def get_backend(state, node, query, body):
    return [state.nodes[node]] if node in state.nodes else []


@route("POST", "/volumes")
def create_volume(state, query, body):
    wanted = body["storageClass"]
    state.place(
        body["uuid"],
        body["alias"],
        body["capacity"],
        wanted["numReplicas"],
        provisioningType=body["provisioningType"],
        blockSize=wanted["blockSize"],
    )


@route("GET", "/volumes/(.+)")
def get_volume(state, volume_id, query, body):
    return [state.volume(volume_id)]


@route("PATCH", "/volumes/(.+)")
def extend_volume(state, volume_id, query, body):
    volume, size = state.volume(volume_id), int(body["newCapacity"])
    if size < volume["capacity"]:
        raise Refused("InvalidInput", "a volume cannot shrink", 400)
    if size > 100:
        raise Refused("NoSpace", f"{size} GiB do not fit", volume=volume_id)
    volume["capacity"] = size


@route("DELETE", "/volumes/(.+)")
def delete_volume(state, volume_id, query, body):
    state.volume(volume_id)
    if any(volume == volume_id for _, volume in state.published):
        raise Refused("InUse", f"volume {volume_id} is published", requestId="req-in-use")
    if any(shot["volumeID"] == volume_id for shot in state.snapshots.values()):
        raise Refused("InUse", f"volume {volume_id} has snapshots")
    del state.volumes[volume_id]


@route("POST", "/clone_volume")
def clone_volume(state, query, body):
    source = state.volume(body["sourceVolumeId"])
    state.place(body["volumeId"], body["alias"], body["capacity"], source["numReplicas"], copy=True)


@route("POST", "/snapshots")
def create_snapshot(state, query, body):
    volume = state.volume(body["volumeID"])
    if volume["numReplicas"] > 1 and any(v == body["volumeID"] for _, v in state.published):
        raise Refused(
            "NotCoherent",
            "the replicas of an attached volume cannot be captured. Detach the volume first.",
            volume=body["volumeID"],
            requestId="req-coherent",
        )
    state.snapshots[body["snapshotID"]] = body | {"capacity": volume["capacity"]}


@route("DELETE", "/snapshots/(.+)")
def delete_snapshot(state, snapshot_id, query, body):
    if state.snapshots.pop(snapshot_id, None) is None:
        raise Refused("DeviceNotFound", f"snapshot {snapshot_id} does not exist", 404)


@route("POST", "/snapshot_volumes")
def create_snapshot_volume(state, query, body):
    snapshot = state.snapshots[body["snapshotID"]]
    parent = state.volume(snapshot["volumeID"])
    capacity = body.get("capacity") if state.capabilities else None
    state.place(
        body["volumeID"],
        body["alias"],
        capacity or parent["capacity"],
        parent["numReplicas"],
        writable=body["writable"],
    )


@route("POST", "/host_probe")
def probe_host(state, query, body):
    state.hosts[body["hostId"]] = body


@route("POST", "/publish")
def publish(state, query, body):
    volume = state.volume(body["volId"])
    if body.get("host") and state.capabilities:
        state.hosts[body["hostId"]] = body["host"]
    if body["hostId"] not in state.hosts:
        raise Refused("NotExists", f"host {body['hostId']} is not known", 404)
    key = (body["hostId"], body["volId"])
    new = key not in state.published
    state.published.add(key)
    answer = {"status": "Success" if new else "AlreadyPublished", "description": ""}
    if state.capabilities:
        answer["volume"] = volume
        answer["replicas"] = [
            {
                "uuid": place["uuid"],
                "targetNqn": nqn,
                "portals": node["portals"],
                "replicaState": place["replicaState"],
                "persistentID": node["persistentID"],
                **{
                    name: place[name]
                    for name in ("freshness", "events", "nodeName")
                    if name in place
                },
            }
            for place, node, nqn in state.targets(*key)
        ]
        answer |= {name: volume[name] for name in ("arrayState", "shared") if name in volume}
    return answer


@route("POST", "/unpublish")
def unpublish(state, query, body):
    gone = {
        (host, volume)
        for host, volume in state.published
        if volume == body["volId"] and body.get("hostId", host) == host
    }
    if not gone:
        raise Refused("VolumeNotPublished", "the volume is not published", 404)
    state.published -= gone


@route("GET", "/targets")
def get_targets(state, query, body):
    if (query["hostId"], query["volId"]) not in state.published:
        return []
    return [
        {
            "targetName": nqn,
            "name": nqn,
            "numNamespaces": 1,
            "backend": {
                "persistentID": "node-3" if state.misplaced_targets else node["persistentID"]
            },
        }
        for _, node, nqn in state.targets(query["hostId"], query["volId"])
        if node["persistentID"] not in state.without_target
    ]


class Adapter(BaseAdapter):
    """Carries requests to a :class:`KumoScale`. ``requests`` keeps what was really sent.

    ``broken``: raised instead of an answer. ``time``: seconds, moved on by pauses only.
    """

    def __init__(self, state):
        super().__init__()
        self.state = state
        self.requests = []
        self.broken = None
        self.time = 0.0

    def sleep(self, seconds):
        self.time += seconds

    def send(self, request, **kwargs):
        self.requests.append(request)
        if self.broken:
            raise self.broken
        parts = urllib.parse.urlsplit(request.url)
        query = dict(urllib.parse.parse_qsl(parts.query))
        body = json.loads(request.body) if request.body else None
        try:
            answer = self.state.handle(request.method, parts.path, query, body)
            http = 200
        except Refused as refused:
            http, answer = refused.http, refused.body
        if answer is None:
            answer = {"status": "Success", "description": "done"}
        return self._response(request, http, json.dumps(answer).encode())

    @staticmethod
    def _response(request, http, content):
        response = requests.Response()
        response.status_code = http
        response.headers["Content-Type"] = "application/json"
        response.raw = io.BytesIO(content)
        response.request, response.url = request, request.url
        return response

    def close(self):
        """Nothing is open."""
