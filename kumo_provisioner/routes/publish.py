# SPDX-License-Identifier: Apache-2.0
"""Publish and unpublish."""

from typing import Any

from kumo_client import request_id
from kumo_client.schemas import host as wire
from kumo_client.schemas.common import StatusAnswer
from kumo_provisioner.edge import success
from kumo_provisioner.routes.common import CoreArg, TenantArg, both, dump, router
from kumo_provisioner.services import publish as service

routes = router("publish")


@both(routes, "POST", "/publish", response_model=wire.PublishAnswer)
def publish(core: CoreArg, tenant: TenantArg, body: wire.PublishRequest) -> Any:
    """Give a host access to a volume. AlreadyPublished is the answer when it had it."""
    answer = service.publish(core, tenant, body)
    answer.request_id = request_id.current() or ""
    return dump([answer])[0]


@both(routes, "POST", "/unpublish", response_model=StatusAnswer)
def unpublish(core: CoreArg, tenant: TenantArg, body: wire.UnpublishRequest) -> Any:
    """Take the access of a host away; without ``hostId``, that of every host."""
    service.unpublish(core, tenant, body)
    return success()
