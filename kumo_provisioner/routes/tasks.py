# SPDX-License-Identifier: Apache-2.0
"""Tasks, and what makes them besides migrations."""

from typing import Annotated, Any

from fastapi import Query

from kumo_client.schemas import task as wire
from kumo_client.schemas.common import StatusAnswer
from kumo_provisioner.edge import success
from kumo_provisioner.routes.common import CoreArg, IdPath, ReaderArg, TenantArg, both, dump, router
from kumo_provisioner.services import drain, migration, tasks

routes = router("tasks")


@routes.get("/tasks", response_model=list[wire.Task])
def list_all(
    core: CoreArg,
    reader: ReaderArg,
    task_id: Annotated[str | None, Query(alias="taskId", max_length=255)] = None,
    host_id: Annotated[str | None, Query(alias="hostId", max_length=255)] = None,
) -> Any:
    """All tasks, one, or those of a host; oldest first."""
    return dump(tasks.list_all(core, reader, task_id=task_id, host_id=host_id))


@routes.put("/tasks", response_model=StatusAnswer)
def update(core: CoreArg, reader: ReaderArg, body: wire.TaskUpdate) -> Any:
    """The agent of a host tells how its task goes. A task that has ended stays as it is."""
    migration.update_task(core, body, reader)
    return success()


@routes.delete("/tasks", response_model=StatusAnswer)
def delete(
    core: CoreArg,
    reader: ReaderArg,
    task_id: Annotated[str, Query(alias="taskId", max_length=255)],
    host_id: Annotated[str | None, Query(alias="hostId", max_length=255)] = None,
) -> Any:
    """Forget a task that has ended."""
    tasks.delete(core, task_id, host_id, reader)
    return success()


@both(routes, "POST", "/connect", response_model=wire.TaskAnswer)
def connect(core: CoreArg, tenant: TenantArg, body: wire.ConnectRequest) -> Any:
    """Ask the agent of a host to connect a volume."""
    return success(taskId=tasks.ask_host(core, tenant, wire.CONNECT_VOLUME, body))


@both(routes, "POST", "/disconnect", response_model=wire.TaskAnswer)
def disconnect(core: CoreArg, tenant: TenantArg, body: wire.ConnectRequest) -> Any:
    """Ask the agent of a host to disconnect a volume."""
    return success(taskId=tasks.ask_host(core, tenant, wire.DISCONNECT_VOLUME, body))


@routes.post("/backends/{persistent_id}/drain", response_model=wire.TaskAnswer)
def begin_drain(core: CoreArg, persistent_id: IdPath) -> Any:
    """Move all replicas away from a node. The answer names the task."""
    return success(taskId=drain.start(core, persistent_id))


@routes.delete("/backends/{persistent_id}/drain", response_model=StatusAnswer)
def end_drain(core: CoreArg, persistent_id: IdPath) -> Any:
    """Stop a drain, or let a drained node take replicas again."""
    drain.stop(core, persistent_id)
    return success()
