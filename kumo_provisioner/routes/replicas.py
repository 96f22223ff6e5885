# SPDX-License-Identifier: Apache-2.0
"""Replicas, what hosts report of them, and migrations."""

from typing import Any

from kumo_client.schemas import host as host_wire
from kumo_client.schemas import volume as wire
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.task import TaskAnswer
from kumo_provisioner.edge import success
from kumo_provisioner.routes.common import CoreArg, IdPath, TenantArg, both, router
from kumo_provisioner.services import migration, replicas

routes = router("replicas")


@both(routes, "POST", "/replica/{vol_id}", response_model=None)
def add(core: CoreArg, tenant: TenantArg, vol_id: IdPath, body: wire.ReplicaAdd) -> Any:
    """Give a volume one more replica, which the host that has it is to synchronise."""
    return success(uuid=replicas.add(core, tenant, vol_id, body))


@both(routes, "PATCH", "/replica/{vol_id}/{rep_id}", response_model=StatusAnswer)
def terminate(core: CoreArg, tenant: TenantArg, vol_id: IdPath, rep_id: IdPath) -> Any:
    """Ask for a replica to go: the host takes it out of its array and confirms.

    While no host has the volume it goes at once.
    """
    replicas.terminate(core, tenant, vol_id, rep_id)
    return success()


@both(routes, "DELETE", "/replica/{vol_id}/{rep_id}", response_model=StatusAnswer)
def confirm(core: CoreArg, tenant: TenantArg, vol_id: IdPath, rep_id: IdPath) -> Any:
    """Confirm that a Terminating replica is out of the array."""
    replicas.confirm(core, tenant, vol_id, rep_id)
    return success()


@both(routes, "PATCH", "/replica/{vol_id}/{rep_id}/{state}", response_model=StatusAnswer)
def report(
    core: CoreArg,
    tenant: TenantArg,
    vol_id: IdPath,
    rep_id: IdPath,
    state: IdPath,
) -> Any:
    """Report that a replica is Available, Synchronizing or Missing."""
    replicas.report(core, tenant, vol_id, rep_id, state)
    return success()


@both(routes, "POST", "/array_report", response_model=StatusAnswer)
def report_array(core: CoreArg, tenant: TenantArg, body: host_wire.ArrayReport) -> Any:
    """Report what a host sees of a whole array."""
    unknown = replicas.report_array(core, tenant, body)
    answer = success()
    if unknown:
        answer["description"] = f"not replicas of this volume: {', '.join(unknown)}"
    return answer


@both(routes, "POST", "/migrate_volume", response_model=TaskAnswer)
def migrate(core: CoreArg, tenant: TenantArg, body: wire.MigrateVolume) -> Any:
    """Move a replica to another node. The answer names the task."""
    return success(taskId=migration.migrate(core, tenant, body))
