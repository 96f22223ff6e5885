# SPDX-License-Identifier: Apache-2.0
"""Tasks: long work of a host's agent or of the provisioner."""

from __future__ import annotations

from kumo_client.api.parse import model, models, one
from kumo_client.api.provisioner.base import Base, given
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.task import ConnectRequest, Task, TaskAnswer, TaskUpdate


class Tasks(Base):
    """Calls about tasks."""

    def tasks(self, host_id: str | None = None) -> list[Task]:
        """All tasks, or those of a host."""
        params = given(hostId=host_id)
        return models(Task, self.session.request("GET", "/tasks", params=params))

    def task(self, task_id: str) -> Task:
        """:raises NotExistsError: there is no such task."""
        answer = self.session.request("GET", "/tasks", params={"taskId": task_id})
        return one(Task, answer, f"task {task_id}")

    def update_task(self, update: TaskUpdate) -> StatusAnswer:
        """Report how far a task is.

        :raises NotExistsError: there is no such task.
        """
        return self._status("PUT", "/tasks", update)

    def delete_task(self, task_id: str, host_id: str | None = None) -> None:
        """Forget a task that has ended.

        :raises InUseError: it is still running. :raises NotExistsError: there is no such task.
        """
        self._delete("/tasks", given(taskId=task_id, hostId=host_id))

    def connect(self, request: ConnectRequest) -> TaskAnswer:
        """Ask the agent of a host to connect a volume; the answer names the task.

        :raises NotExistsError: there is no such host or volume.
        """
        return self._ask_agent("/connect", request)

    def disconnect(self, request: ConnectRequest) -> TaskAnswer:
        """Ask the agent of a host to disconnect a volume; the answer names the task.

        :raises NotExistsError: there is no such host or volume.
        """
        return self._ask_agent("/disconnect", request)

    def _ask_agent(self, path: str, request: ConnectRequest) -> TaskAnswer:
        answer = self.session.request(
            "POST", self._of_tenant(path), json=request.wire(), idempotent=True
        )
        return model(TaskAnswer, answer)
