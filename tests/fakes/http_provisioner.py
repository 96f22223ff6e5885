# SPDX-License-Identifier: Apache-2.0
"""A provisioner with state for :mod:`tests.fakes.http`: enough of it to tell a client's stories.

It checks nothing about storage; what it answers has the form of the wire.
"""

import re
import uuid

from kumo_client import errors
from kumo_client.schemas import backend, host, snapshot, volume
from tests.fakes.http import Answer, ReadTimeout

NODE = "node-1"


class FakeProvisioner:
    """Callable server. ``lose``: that many next answers are lost after the work is done."""

    def __init__(self, token="s3cret-token"):
        self.token = token
        self.lose = 0
        self.capabilities = ["publish-attach", "typed-errors"]
        self.backends = {}
        self.volumes = {}
        self.snapshots = {}
        self.hosts = {}
        self.published = {}

    def __call__(self, request):
        answer = self._answer(request)
        if self.lose:
            self.lose -= 1
            raise ReadTimeout
        return answer

    def _answer(self, request):
        try:
            if request.headers.get("Authorization") != f"Bearer {self.token}":
                raise errors.UnauthorizedError("bad token")
            for method, pattern, handler in self.routes():
                found = re.fullmatch(pattern, request.path)
                if method == request.method and found:
                    content = handler(self, request, *found.groups())
                    return content if isinstance(content, Answer) else Answer(content)
            raise errors.NotExistsError(f"no such path {request.path}")
        except errors.KumoError as exc:
            return Answer(exc.to_wire(), exc.http_status)

    def routes(self):
        return ROUTES

    def info(self, request):
        return {"totalFreeSpace": 90, "version": "1", "capabilities": self.capabilities}

    def tenants(self, request):
        return [{"tenantId": "0", "capacity": 100, "consumedCapacity": 10}]

    def add_backend(self, request):
        asked = backend.BackendCreate.model_validate(request.json)
        for known in self.backends.values():
            if set(known.mgmt_ips) & set(asked.mgmt_ips):
                raise errors.AlreadyExistsError("a backend has this address")
        name = f"node-{len(self.backends) + 1}"
        self.backends[name] = backend.Backend(
            persistent_id=name,
            name=name,
            state="Available",
            total_capacity=100,
            available_capacity=90,
            last_probe_time=1_760_000_000_000,
            portals=[{"ip": "10.0.0.1", "port": 4420, "transport": "TCP"}],
            **asked.model_dump(),
        )
        return success()

    def create_volume(self, request):
        asked = volume.VolumeCreate.model_validate(request.json)
        return self._new_volume(
            asked.uuid, asked.alias, asked.capacity, replicas=asked.storage_class.num_replicas
        )

    def _new_volume(self, vol_uuid, alias, capacity, replicas=1, **fields):
        if vol_uuid in self.volumes or alias in {item.alias for item in self.volumes.values()}:
            raise errors.AlreadyExistsError("a volume with this uuid or alias exists")
        location = [
            {
                "uuid": str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{vol_uuid}{index}")),
                "backend": {"persistentID": f"node-{index + 1}", "mgmtIPs": ["10.0.0.1"]},
                "replicaState": "Available",
            }
            for index in range(replicas)
        ]
        self.volumes[vol_uuid] = volume.Volume(
            uuid=vol_uuid,
            alias=alias,
            capacity=capacity,
            num_replicas=replicas,
            location=location,
            **fields,
        )
        return success()

    def volume_by_alias(self, request, alias):
        return [item.wire() for item in self.volumes.values() if item.alias == alias]

    def extend(self, request, vol_uuid):
        self.get("volumes", vol_uuid).capacity = int(request.json["newCapacity"])
        return success()

    def clone(self, request):
        asked = volume.CloneCreate.model_validate(request.json)
        source = self.get("volumes", asked.source_volume_id)
        return self._new_volume(
            asked.volume_id,
            asked.alias,
            asked.capacity or source.capacity,
            source_volume_id=source.uuid,
        )

    def create_snapshot(self, request):
        asked = snapshot.SnapshotCreate.model_validate(request.json)
        if asked.snapshot_id in self.snapshots:
            raise errors.AlreadyExistsError("a snapshot with this id exists")
        self.snapshots[asked.snapshot_id] = snapshot.Snapshot(
            snapshot_id=asked.snapshot_id,
            alias=asked.alias,
            volume_id=asked.volume_id,
            capacity=self.get("volumes", asked.volume_id).capacity,
            timestamp=1_760_000_000_000,
        )
        return success()

    def snapshots_of(self, request, vol_uuid):
        return [item.wire() for item in self.snapshots.values() if item.volume_id == vol_uuid]

    def snapshot_by_alias(self, request, alias):
        return [item.wire() for item in self.snapshots.values() if item.alias == alias]

    def snapshot_volume(self, request):
        asked = snapshot.SnapshotVolumeCreate.model_validate(request.json)
        source = self.get("snapshots", asked.snapshot_id)
        return self._new_volume(
            asked.volume_id,
            asked.alias,
            asked.capacity or source.capacity,
            snapshot_id=source.snapshot_id,
        )

    def probe(self, request):
        asked = host.HostProbe.model_validate(request.json)
        known = self.hosts.get(asked.host_id)
        if known and known.nqn != asked.host_nqn:
            raise errors.ConflictError("another NQN has this host id")
        self.hosts[asked.host_id] = host.Host(
            uuid=asked.host_id, nqn=asked.host_nqn, name=asked.name, client_type=asked.client_type
        )
        return success()

    def list_hosts(self, request):
        name = request.params.get("hostName")
        return [item.wire() for item in self.hosts.values() if name in (None, item.name)]

    def publish(self, request):
        asked = host.PublishRequest.model_validate(request.json)
        found = self.get("volumes", asked.vol_id)
        hosts = self.published.setdefault(asked.vol_id, set())
        status = "AlreadyPublished" if asked.host_id in hosts else "Success"
        hosts.add(asked.host_id)
        return {"status": status, "description": "", "volume": found.wire()}

    def unpublish(self, request):
        asked = host.UnpublishRequest.model_validate(request.json)
        self.get("volumes", asked.vol_id)
        hosts = self.published.setdefault(asked.vol_id, set())
        if not hosts or asked.host_id not in {None, *hosts}:
            raise errors.VolumeNotPublishedError("it is not published")
        hosts -= {asked.host_id} if asked.host_id else set(hosts)
        return success()

    def targets(self, request):
        return [
            {
                "targetName": f"nqn.{item}",
                "name": f"nqn.{item}",
                "backend": {"persistentID": NODE},
                "numNamespaces": 1,
            }
            for item, hosts in self.published.items()
            if request.params.get("volId", item) == item
            and request.params.get("hostId", None) in {None, *hosts}
        ]

    def get(self, kind, key):
        found = getattr(self, kind).get(key)
        if found is None:
            raise errors.NotExistsError(f"{key} does not exist")
        return found


def success():
    return {"status": "Success", "description": ""}


def _list(kind):
    return lambda server, request: [item.wire() for item in getattr(server, kind).values()]


def _show(kind):
    def show(server, request, key):
        found = getattr(server, kind).get(key)
        return [found.wire()] if found else []

    return show


def _delete(kind):
    def delete(server, request, key):
        server.get(kind, key)
        del getattr(server, kind)[key]
        return success()

    return delete


def _update_backend(server, request, key):
    found = server.get("backends", key)
    server.backends[key] = found.model_copy(update=request.json)
    return success()


ROUTES = [
    ("GET", r"/info", FakeProvisioner.info),
    ("GET", r"/tenants", FakeProvisioner.tenants),
    ("POST", r"/backends", FakeProvisioner.add_backend),
    ("PUT", r"/backends/([^/]+)", _update_backend),
    ("POST", r"/volumes", FakeProvisioner.create_volume),
    ("GET", r"/volumes_by_alias/(.+)", FakeProvisioner.volume_by_alias),
    ("PATCH", r"/volumes/([^/]+)", FakeProvisioner.extend),
    ("POST", r"/clone_volume", FakeProvisioner.clone),
    ("POST", r"/snapshots", FakeProvisioner.create_snapshot),
    ("GET", r"/snapshots_by_vol/([^/]+)", FakeProvisioner.snapshots_of),
    ("GET", r"/snapshots_by_alias/(.+)", FakeProvisioner.snapshot_by_alias),
    ("POST", r"/snapshot_volumes", FakeProvisioner.snapshot_volume),
    ("POST", r"/host_probe", FakeProvisioner.probe),
    ("GET", r"/hosts", FakeProvisioner.list_hosts),
    ("DELETE", r"/hosts/([^/]+)", _delete("hosts")),
    ("POST", r"/publish", FakeProvisioner.publish),
    ("POST", r"/unpublish", FakeProvisioner.unpublish),
    ("GET", r"/targets", FakeProvisioner.targets),
]
for _kind in ("backends", "volumes", "snapshots"):
    ROUTES += [
        ("GET", f"/{_kind}", _list(_kind)),
        ("GET", f"/{_kind}/([^/]+)", _show(_kind)),
        ("DELETE", f"/{_kind}/([^/]+)", _delete(_kind)),
    ]
