# SPDX-License-Identifier: Apache-2.0
"""Short names for what the stories of the services do all the time."""

from sqlalchemy import select

from kumo_client.schemas.host import PublishRequest, UnpublishRequest
from kumo_client.schemas.snapshot import SnapshotCreate
from kumo_client.schemas.task import TaskUpdate
from kumo_provisioner.services import migration, probing, publish, snapshots, tasks, volumes
from tests.unit.provisioner.conftest import HOST

T = "0"


def ports(core, model):
    return next(port for port, one in core.nodes.models.items() if one is model)


def shown(core, uid):
    return volumes.get(core, T, uid)[0]


def node_of(core, place):
    wanted = place.backend.persistent_id
    return next(one for one in core.nodes.models.values() if one.persistent_id == wanted)


def published(core, uid, host=HOST):
    request = PublishRequest(host_id=host.host_id, vol_id=uid, host=host)
    return publish.publish(core, T, request)


def rows(core, table):
    with core.db.read() as session:
        return session.scalars(select(table)).all()


def made_snapshot(core, uid, alias="snapshot"):
    return snapshots.create(core, T, SnapshotCreate(alias=alias, volume_id=uid))


def places(core, uid):
    return {one.uuid: one for one in shown(core, uid).location}


def legs_of(core, uid):
    return list(places(core, uid))


def home(core, uid, leg=None):
    """The model of the node that has a leg, by default the only one."""
    found = places(core, uid)
    return node_of(core, found[leg or next(iter(found))])


def task(core, uid):
    return tasks.list_all(core, None, task_id=uid)[0]


def told(core, uid, state, **more):
    migration.update_task(core, TaskUpdate(task_id=uid, state=state, **more))


def detach(core, uid):
    publish.unpublish(core, T, UnpublishRequest(vol_id=uid))


def down(core, model):
    """The node dies, and that is noticed."""
    core.nodes.down.add(ports(core, model))
    for _ in range(2):
        probing.probe(core)
