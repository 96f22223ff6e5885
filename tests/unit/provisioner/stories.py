# SPDX-License-Identifier: Apache-2.0
"""Short names for what the stories of the services do all the time."""

from sqlalchemy import select

from kumo_client.schemas.host import PublishRequest
from kumo_client.schemas.snapshot import SnapshotCreate
from kumo_provisioner.services import publish, snapshots, volumes
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
