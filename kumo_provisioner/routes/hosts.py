# SPDX-License-Identifier: Apache-2.0
"""Hosts."""

from typing import Annotated, Any

from fastapi import Query

from kumo_client.schemas import host as wire
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.volume import Volume
from kumo_provisioner.edge import success
from kumo_provisioner.routes.common import CoreArg, IdPath, dump, router
from kumo_provisioner.services import hosts

routes = router("hosts")


@routes.post("/host_probe", response_model=StatusAnswer)
def probe(core: CoreArg, body: wire.HostProbe) -> Any:
    """Register a host, or tell that it is alive."""
    hosts.probe(core, body)
    return success()


@routes.get("/hosts", response_model=list[wire.Host])
def list_all(
    core: CoreArg, host_name: Annotated[str | None, Query(alias="hostName")] = None
) -> Any:
    """All hosts, or those of a name."""
    return dump(hosts.list_all(core, host_name))


@routes.get("/hosts/{uuid}/volumes", response_model=list[Volume])
def list_volumes(core: CoreArg, uuid: IdPath) -> Any:
    """The volumes that are published to a host, of all tenants."""
    return dump(hosts.volumes(core, uuid))


@routes.delete("/hosts/{uuid}", response_model=StatusAnswer)
def delete(core: CoreArg, uuid: IdPath) -> Any:
    """Forget a host to which nothing is published."""
    hosts.delete(core, uuid)
    return success()
