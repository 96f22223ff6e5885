# SPDX-License-Identifier: Apache-2.0
"""What changes on volumes that exist, besides their size."""

from typing import Annotated, Any

from fastapi import Query

from kumo_client.schemas import volume as wire
from kumo_client.schemas.common import StatusAnswer
from kumo_provisioner.edge import success
from kumo_provisioner.routes.common import CoreArg, IdPath, TenantArg, both, dump, router
from kumo_provisioner.services import adoption, classes, revert

routes = router("volumes")
BackendQuery = Annotated[str | None, Query(alias="backendId", max_length=255)]


@both(routes, "PUT", "/volumes/{uuid}", response_model=StatusAnswer)
def modify(core: CoreArg, tenant: TenantArg, uuid: IdPath, body: wire.VolumeModify) -> Any:
    """Change the storage class or the alias of a volume, attached or not.

    ``description`` tells what a node gets later.
    """
    told = classes.modify(core, tenant, uuid, body)
    return success() | {"description": told}


@both(routes, "POST", "/revert_volume", response_model=StatusAnswer)
def revert_volume(core: CoreArg, tenant: TenantArg, body: wire.Revert) -> Any:
    """Make a volume that is not published what its snapshot is."""
    revert.revert(core, tenant, body)
    return success()


@both(routes, "GET", "/adoptable_volumes", response_model=list[wire.AdoptableVolume])
def list_adoptable(core: CoreArg, tenant: TenantArg, backend_id: BackendQuery = None) -> Any:
    """Logical volumes on nodes that could become volumes."""
    return dump(adoption.list_adoptable(core, backend_id))


@both(routes, "POST", "/adopt_volume", response_model=None)
def adopt(core: CoreArg, tenant: TenantArg, body: wire.AdoptVolume) -> Any:
    """Make a volume of a logical volume of a node. Its data stays where it is."""
    return success(uuid=adoption.adopt(core, tenant, body))


@both(routes, "POST", "/unmanage_volume", response_model=None)
def unmanage(core: CoreArg, tenant: TenantArg, body: wire.UnmanageVolume) -> Any:
    """Forget a volume; ``names`` tells what its data is called on each node."""
    return success(names=adoption.unmanage(core, tenant, body.volume_id))
