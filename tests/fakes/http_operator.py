# SPDX-License-Identifier: Apache-2.0
"""The fake provisioner with everything that an operator of ours can do.

Long work goes on a step with each look at it.
"""

import uuid

from kumo_client import errors
from kumo_client.schemas import (
    backend,
    event,
    garbage,
    host,
    info,
    node,
    restored,
    task,
    tenant,
    token,
    volume,
)
from tests.fakes.http import Answer
from tests.fakes.http_provisioner import ROUTES, FakeProvisioner, success

ALL = [value for name, value in vars(info).items() if name.startswith("CAPABILITY_")]
NOW = 1_760_000_000_000


class FakeOperatorProvisioner(FakeProvisioner):
    """``steps``: looks at a task until it is finished. ``fails``: what a task ends with instead."""

    def __init__(self, token="s3cret-token"):
        super().__init__(token)
        self.capabilities = list(ALL)
        self.tenants_ = {"0": tenant.Tenant(tenant_id="0", capacity=100, consumed_capacity=10)}
        self.tasks_ = {}
        self.events_ = []
        self.garbage_ = {}
        self.restored_ = restored.Restored()
        self.accepted = ""
        self.adoptable_ = []
        self.beats = []
        self.logs = []
        self.reports = []
        self.tokens = {}
        self.steps = 2
        self.fails = None
        self.forgotten = 0
        self.full = False

    def routes(self):
        return OPERATOR + ROUTES

    def say(self, kind, **fields):
        number = len(self.events_) + 1
        self.events_.append(event.Event(seq=number, time=NOW + number, type=kind, **fields))

    # -- lists ------------------------------------------------------------------------------------

    def paged(self, kind, request):
        keys = [key for key in sorted(getattr(self, kind)) if key > request.params.get("after", "")]
        keys = keys[: int(request.params.get("limit", len(keys)))]
        return [getattr(self, kind)[key].wire() for key in keys]

    def list_tenants(self, request):
        return [item.wire() for item in self.tenants_.values()]

    # -- backends ---------------------------------------------------------------------------------

    def update_backend(self, request, key):
        asked = backend.BackendUpdate.model_validate(request.json)
        found = self.get("backends", key)
        for name in ("rack", "zone", "region", "cordoned"):
            if getattr(asked, name) is not None:
                setattr(found, name, getattr(asked, name))
        if asked.maintenance is not None:
            found.state = backend.MAINTENANCE if asked.maintenance else backend.AVAILABLE
        if asked.max_iops is not None:
            found.total_iops = asked.max_iops
        for declared in asked.pools:
            (pool,) = [item for item in found.pools if item.name == declared.name]
            pool.max_iops, pool.max_bw = declared.max_iops, declared.max_bw
        return success()

    def drain(self, request, key):
        found = self.get("backends", key)
        found.state = backend.DRAINING
        return self.begin(task.DRAIN, backend_id=key)

    def stop_drain(self, request, key):
        found = self.get("backends", key)
        if found.state != backend.DRAINING:
            raise errors.ConflictError("it is not being drained")
        found.state = backend.AVAILABLE
        return success()

    def heartbeat(self, request):
        beat = node.Heartbeat.model_validate(request.json)
        self.get("backends", beat.persistent_id)
        self.beats.append(beat)
        return success()

    # -- volumes ----------------------------------------------------------------------------------

    def create_volume(self, request):
        if request.params.get("dryRun") != "true":
            return super().create_volume(request)
        answer = volume.PlacementAnswer(status="NoSpace" if self.full else "Success")
        for number, key in enumerate(self.backends):
            verdict = volume.NodeVerdict(
                backend_id=key, backend_name=key, pool="ssd-1", weight=0.5, chosen=not self.full
            )
            if self.full or number:
                verdict.chosen = False
                verdict.refused_by, verdict.reason = "capacity", "3 GiB free, 12 GiB needed"
            answer.nodes.append(verdict)
        return answer.wire()

    def modify(self, request, key):
        asked = volume.VolumeModify.model_validate(request.json)
        found = self.get("volumes", key)
        if asked.alias:
            found.alias = asked.alias
        changes = asked.storage_class.model_dump(exclude_none=True)
        found.storage_class = found.storage_class.model_copy(update=changes)
        return success()

    def revert(self, request):
        asked = volume.Revert.model_validate(request.json)
        self.get("volumes", asked.volume_id)
        self.get("snapshots", asked.snapshot_id)
        self.say("volume.reverted", volume_id=asked.volume_id)
        return success()

    def adoptable(self, request):
        wanted = request.params.get("backendId")
        return [i.wire() for i in self.adoptable_ if wanted in (None, i.backend_id)]

    def adopt(self, request):
        asked = volume.AdoptVolume.model_validate(request.json)
        self.get("backends", asked.backend_id)
        return self._new_volume(asked.uuid, asked.alias, 4, storage_class=asked.storage_class)

    def unmanage(self, request):
        asked = volume.UnmanageVolume.model_validate(request.json)
        self.get("volumes", asked.volume_id)
        del self.volumes[asked.volume_id]
        return success()

    # -- replicas ---------------------------------------------------------------------------------

    def add_replica(self, request, key):
        asked = volume.ReplicaAdd.model_validate(request.json)
        found = self.get("volumes", key)
        if any(item.freshness == "blank" for item in found.location) or len(found.location) > 3:
            raise errors.TooManyReplicasError("there is one that was not used yet", volume=key)
        name = asked.backend_id or f"node-{len(found.location) + 1}"
        found.location.append(
            volume.Location(
                uuid=str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{key}{len(found.location)}")),
                backend={"persistentID": name},
                replica_state="Missing",
                freshness="blank",
            )
        )
        found.num_replicas += 1
        return success()

    def replica(self, key, replica):
        for item in self.get("volumes", key).location:
            if item.uuid == replica:
                return item
        raise errors.NotExistsError(f"replica {replica} does not exist")

    def report(self, request, key, replica, state):
        self.replica(key, replica).replica_state = state
        return success()

    def remove_replica(self, request, key, replica):
        assert request.body == b""
        self.replica(key, replica).replica_state = "Terminating"
        return success()

    def confirm(self, request, key, replica):
        self.volumes[key].location.remove(self.replica(key, replica))
        return success()

    def migrate(self, request):
        asked = volume.MigrateVolume.model_validate(request.json)
        self.get("volumes", asked.vol_id)
        return self.begin(task.OFFLINE_MIGRATION, volume_id=asked.vol_id)

    # -- tasks ------------------------------------------------------------------------------------

    def begin(self, kind, **fields):
        key = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"task {len(self.tasks_)}"))
        self.tasks_[key] = task.Task(task_id=key, type=kind, state="IDLE", created=NOW, **fields)
        return success() | {"taskId": key}

    def tasks(self, request):
        key, wanted = request.params.get("taskId"), request.params.get("hostId")
        if key is not None:
            found = self.tasks_.get(key)
            return [self.step(found).wire()] if found else []
        listed = [item for item in self.tasks_.values() if wanted in (None, item.host_id)]
        # Who waits for a drain looks at its parts in the list.
        return [
            self.step(i).wire() if i.type == task.DRAIN or i.parent else i.wire() for i in listed
        ]

    def step(self, found):
        """A look at a task; parts are twice as fast."""
        if found.state in ("IDLE", "RUNNING"):
            found.progress += 100.0 / self.steps * (2 if found.parent else 1)
            found.progress, found.state = min(100.0, found.progress), "RUNNING"
            if found.progress == 100:
                found.state = "FAILED" if self.fails else "FINISHED"
                found.status_description = self.fails or ""
        return found

    def update_task(self, request):
        asked = task.TaskUpdate.model_validate(request.json)
        found = self.get("tasks_", asked.task_id)
        found.state, found.progress = asked.state, asked.progress
        return success()

    def delete_task(self, request):
        found = self.get("tasks_", request.params["taskId"])
        if found.state in ("IDLE", "RUNNING"):
            raise errors.InUseError("the task is still running")
        del self.tasks_[found.task_id]
        return success()

    def connect(self, request):
        asked = host.UnpublishRequest.model_validate(request.json)
        return self.begin(task.CONNECT_VOLUME, host_id=asked.host_id, volume_id=asked.vol_id)

    # -- events -----------------------------------------------------------------------------------

    def events(self, request):
        since = int(request.params.get("since", 0))
        found = [
            item
            for item in self.events_
            if item.seq > since
            and request.params.get("volumeId") in (None, item.volume_id)
            and request.params.get("hostId") in (None, item.host_id)
        ]
        limit = int(request.params.get("limit", 100))
        full, found = len(found) >= limit, found[:limit]
        last = found[-1].seq if full else len(self.events_)
        lost = since < self.forgotten or since > len(self.events_)
        return event.EventPage(events=found, last=last, lost=lost).wire()

    def forward_log(self, request):
        self.logs.append(event.ForwardLog.model_validate(request.json))
        return success()

    def array_report(self, request):
        self.reports.append(host.ArrayReport.model_validate(request.json))
        return success()

    # -- tenants, tokens, garbage -----------------------------------------------------------------

    def add_tenant(self, request):
        asked = tenant.TenantWrite.model_validate(request.json)
        if asked.tenant_id in self.tenants_:
            raise errors.AlreadyExistsError("there is a tenant of this id")
        self.tenants_[asked.tenant_id] = tenant.Tenant(**asked.model_dump())
        return success()

    def set_tenant(self, request, key):
        asked = tenant.TenantWrite.model_validate(request.json)
        self.get("tenants_", key)
        self.tenants_[key] = tenant.Tenant(**asked.model_dump() | {"tenant_id": key})
        return success()

    def delete_tenant(self, request, key):
        self.get("tenants_", key)
        del self.tenants_[key]
        return success()

    def create_token(self, request):
        asked = token.TokenCreate.model_validate(request.json)
        self.tokens[f"t{len(self.tokens) + 1}"] = asked
        return token.TokenAnswer(
            token="new-token", token_id=f"t{len(self.tokens)}", expires=NOW // 1000 + asked.life
        ).wire()

    def revoke_token(self, request, key):
        self.get("tokens", key)
        del self.tokens[key]
        return success()

    def list_garbage(self, request):
        return [item.wire() for item in self.garbage_.values()]

    def found(self, name, key):
        """Something that no record knows lies on a node."""
        self.garbage_[name, key] = garbage.Garbage(
            backend_id=name, uuid=key, kind="replica", bytes=1 << 30, first_seen=NOW, removal=NOW
        )

    def keep(self, request, name, key):
        found = self.get("garbage_", (name, key))
        found.kept, found.removal = True, 0
        return success()

    def remove_garbage(self, request, name, key):
        self.get("garbage_", (name, key))
        del self.garbage_[name, key]
        return success()

    def restored(self, request):
        return self.restored_.wire()

    def accept(self, request):
        self.accepted = restored.Accept.model_validate(request.json).exports
        kept = len(self.restored_.differences) if self.accepted == "keep" else 0
        self.restored_ = restored.Restored()
        return restored.Accepted(exports_kept=kept, arrays=2, left=["node-3"]).wire()

    def metrics(self, request):
        return Answer(b"kumo_volumes 3\n", headers={"Content-Type": "text/plain; version=0.0.4"})

    def reconcile(self, request):
        return success() | {"made": 1}


def _paged(kind):
    return lambda server, request: server.paged(kind, request)


_S = FakeOperatorProvisioner
_PART = "([^/]+)"
OPERATOR = [
    ("GET", r"/volumes", _paged("volumes")),
    ("GET", r"/snapshots", _paged("snapshots")),
    ("GET", r"/tenants", _S.list_tenants),
    ("PUT", f"/backends/{_PART}", _S.update_backend),
    ("POST", f"/backends/{_PART}/drain", _S.drain),
    ("DELETE", f"/backends/{_PART}/drain", _S.stop_drain),
    ("POST", r"/heartbeat", _S.heartbeat),
    ("POST", r"/volumes", _S.create_volume),
    ("PUT", f"/volumes/{_PART}", _S.modify),
    ("POST", r"/revert_volume", _S.revert),
    ("GET", r"/adoptable_volumes", _S.adoptable),
    ("POST", r"/adopt_volume", _S.adopt),
    ("POST", r"/unmanage_volume", _S.unmanage),
    ("POST", f"/replica/{_PART}", _S.add_replica),
    ("PATCH", f"/replica/{_PART}/{_PART}", _S.remove_replica),
    ("PATCH", f"/replica/{_PART}/{_PART}/{_PART}", _S.report),
    ("DELETE", f"/replica/{_PART}/{_PART}", _S.confirm),
    ("POST", r"/migrate_volume", _S.migrate),
    ("GET", r"/tasks", _S.tasks),
    ("PUT", r"/tasks", _S.update_task),
    ("DELETE", r"/tasks", _S.delete_task),
    ("POST", r"/(?:dis)?connect", _S.connect),
    ("GET", r"/events", _S.events),
    ("POST", r"/forward_log", _S.forward_log),
    ("POST", r"/array_report", _S.array_report),
    ("POST", r"/tenants", _S.add_tenant),
    ("PUT", f"/tenants/{_PART}", _S.set_tenant),
    ("DELETE", f"/tenants/{_PART}", _S.delete_tenant),
    ("POST", r"/tokens", _S.create_token),
    ("DELETE", f"/tokens/{_PART}", _S.revoke_token),
    ("GET", r"/garbage", _S.list_garbage),
    ("POST", f"/garbage/{_PART}/{_PART}/keep", _S.keep),
    ("DELETE", f"/garbage/{_PART}/{_PART}", _S.remove_garbage),
    ("GET", r"/restored", _S.restored),
    ("POST", r"/restored/accept", _S.accept),
    ("GET", r"/metrics", _S.metrics),
    ("POST", r"/reconcile", _S.reconcile),
]
