# SPDX-License-Identifier: Apache-2.0
"""Snapshots and the volumes made from them."""

from typing import Any

from kumo_client.schemas import snapshot as wire
from kumo_client.schemas.common import StatusAnswer
from kumo_provisioner.edge import success
from kumo_provisioner.routes.common import (
    AfterArg,
    CoreArg,
    IdPath,
    LimitArg,
    TenantArg,
    both,
    dump,
    router,
    streamed,
)
from kumo_provisioner.services import snapshots

routes = router("snapshots")
MANY = list[wire.Snapshot]


@both(routes, "POST", "/snapshots", response_model=None)
def create(core: CoreArg, tenant: TenantArg, body: wire.SnapshotCreate) -> Any:
    """Take a snapshot, of an attached volume too; ``coherent`` tells what is captured."""
    return success(snapshotID=snapshots.create(core, tenant, body))


@both(routes, "GET", "/snapshots", response_model=MANY)
def list_all(core: CoreArg, tenant: TenantArg, limit: LimitArg = None, after: AfterArg = "") -> Any:
    """All snapshots, oldest first; with ``limit`` that many in the order of their uuids, those
    after the uuid ``after``."""
    return streamed(wire.Snapshot, snapshots.listed(core, tenant, limit, after))


@both(routes, "GET", "/snapshots/{id}", response_model=MANY)
def show(core: CoreArg, tenant: TenantArg, id: IdPath) -> Any:
    """One snapshot, as a list of length 1."""
    return dump(snapshots.get(core, tenant, id))


@both(routes, "GET", "/snapshots_by_vol/{volId}", response_model=MANY)
def of_volume(
    core: CoreArg,
    tenant: TenantArg,
    volId: IdPath,  # noqa: N803 - the name on the wire
) -> Any:
    """The snapshots of a volume."""
    return dump(snapshots.of_volume(core, tenant, volId))


@both(routes, "GET", "/snapshots_by_alias/{alias:path}", response_model=MANY)
def show_by_alias(core: CoreArg, tenant: TenantArg, alias: IdPath) -> Any:
    """The snapshot of an alias, as a list of length 1."""
    return dump(snapshots.by_alias(core, tenant, alias))


@both(routes, "DELETE", "/snapshots/{id}", response_model=StatusAnswer)
def delete(core: CoreArg, tenant: TenantArg, id: IdPath) -> Any:
    """Delete a snapshot; volumes made from it stay."""
    snapshots.delete(core, tenant, id)
    return success()


@both(routes, "POST", "/snapshot_volumes", response_model=None)
def create_volume(core: CoreArg, tenant: TenantArg, body: wire.SnapshotVolumeCreate) -> Any:
    """Make a volume from a snapshot, of the same size or larger."""
    return success(uuid=snapshots.create_volume(core, tenant, body))
