# SPDX-License-Identifier: Apache-2.0
"""Volumes and clones."""

from typing import Any

from kumo_client import request_id
from kumo_client.schemas import volume as wire
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
from kumo_provisioner.services import snapshots, volumes

routes = router("volumes")


@both(routes, "POST", "/volumes", response_model=None)
def create(
    core: CoreArg,
    tenant: TenantArg,
    body: wire.VolumeCreate,
    dryRun: bool = False,  # noqa: N803 - the name on the wire
) -> Any:
    """Create a volume. When this answers Success, it can be published.

    With ``dryRun`` nothing is made; the answer tells where it would go, and why.
    """
    if dryRun:
        return dump([volumes.plan(core, tenant, body)])[0] | {
            "requestId": request_id.current() or ""
        }
    return success(uuid=volumes.create(core, tenant, body))


@both(routes, "GET", "/volumes", response_model=list[wire.Volume])
def list_all(core: CoreArg, tenant: TenantArg, limit: LimitArg = None, after: AfterArg = "") -> Any:
    """All volumes, oldest first; with ``limit`` that many in the order of their uuids, those after
    the uuid ``after``."""
    return streamed(wire.Volume, volumes.listed(core, tenant, limit, after))


@both(routes, "GET", "/volumes/{uuid}", response_model=list[wire.Volume])
def show(core: CoreArg, tenant: TenantArg, uuid: IdPath) -> Any:
    """One volume, as a list of length 1."""
    return dump(volumes.get(core, tenant, uuid))


@both(routes, "GET", "/volumes_by_alias/{alias:path}", response_model=list[wire.Volume])
def show_by_alias(core: CoreArg, tenant: TenantArg, alias: IdPath) -> Any:
    """The volume of an alias, as a list of length 1."""
    return dump(volumes.by_alias(core, tenant, alias))


@both(routes, "PATCH", "/volumes/{uuid}", response_model=StatusAnswer)
def extend(core: CoreArg, tenant: TenantArg, uuid: IdPath, body: wire.VolumeUpdate) -> Any:
    """Extend a volume, attached or not. The same size again is a success."""
    volumes.extend(core, tenant, uuid, body.new_capacity)
    return success()


@both(routes, "DELETE", "/volumes/{uuid}", response_model=StatusAnswer)
def delete(core: CoreArg, tenant: TenantArg, uuid: IdPath) -> Any:
    """Delete a volume that is not published and has no snapshots."""
    volumes.delete(core, tenant, uuid)
    return success()


@both(routes, "POST", "/clone_volume", response_model=None)
def clone(core: CoreArg, tenant: TenantArg, body: wire.CloneCreate) -> Any:
    """Make a volume from another one, as a copy-on-write image on the same nodes."""
    return success(uuid=snapshots.clone(core, tenant, body))
