# SPDX-License-Identifier: Apache-2.0
"""Replicas of volumes, and moving them."""

from __future__ import annotations

from kumo_client import errors
from kumo_client.api.parse import model, quoted
from kumo_client.api.provisioner.volumes import Volumes
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.task import TaskAnswer
from kumo_client.schemas.volume import Location, MigrateVolume, ReplicaAdd


class Replicas(Volumes):
    """Calls about replicas."""

    def add_replica(self, volume: str, add: ReplicaAdd | None = None) -> Location:
        """Give a volume one more replica, to be synchronised by its host.

        :param volume: uuid.
        :raises TooManyReplicasError: it has four, or one that was not used yet.
        :raises ConflictError: it has one replica only, and so no array that could grow.
        :raises StaleError: no replica is in sync.
        :raises NoSpaceError: it cannot be placed.
        """
        before = {location.uuid for location in self.volume(volume).location}
        failure: errors.TooManyReplicasError | None = None
        try:
            body = (add or ReplicaAdd()).wire()
            self.session.request("POST", self._replica(volume), json=body, idempotent=True)
        except errors.TooManyReplicasError as exc:
            # A lost answer: the spare in the way may be the one that was asked for.
            if not exc.repeated:
                raise
            failure = exc
        added = [item for item in self.volume(volume).location if item.uuid not in before]
        if added:
            return added[0]
        raise failure or errors.ProtocolError(
            "the server answered Success, but there is no new replica", volume=volume
        )

    def delete_replica(self, volume: str, replica: str) -> None:
        """Ask for the deletion of a replica: it is Terminating until a host confirms.

        While no host has the volume it goes at once.

        :raises LastReplicaError: it is the only one that has all writes.
        :raises ConflictError: another one is Terminating, or its replacement is not in sync.
        :raises NotExistsError: there is no such replica.
        """
        try:
            self._status("PATCH", self._replica(volume, replica))
        except errors.NotExistsError as exc:
            if not exc.repeated:
                raise

    def confirm_replica(self, volume: str, replica: str) -> None:
        """Say that no host uses a Terminating replica any more, so that it can go.

        :raises ConflictError: nobody has asked for its deletion.
        :raises NotExistsError: there is no such replica.
        """
        self._delete(self._replica(volume, replica))

    def report_replica(self, volume: str, replica: str, state: str) -> StatusAnswer:
        """Report a state: ``Available``, ``Synchronizing`` or ``Missing``.

        :raises NotExistsError: there is no such replica.
        :raises VolumeNotPublishedError: no host has the volume, so none can know.
        :raises ConflictError: the replica is Terminating.
        """
        return self._status("PATCH", f"{self._replica(volume, replica)}/{quoted(state)}")

    def migrate_volume(self, migrate: MigrateVolume) -> TaskAnswer:
        """Move a replica to another node; the answer names the task.

        :raises NotExistsError: there is no such volume, replica or node.
        :raises InvalidInputError: it has several replicas and none was named.
        :raises ConflictError: a host has the volume and it has one replica only.
        :raises NoSpaceError: no node can take it.
        :raises BusyError: a replica of the volume is moving already.
        """
        path = self._of_tenant("/migrate_volume")
        answer = self.session.request("POST", path, json=migrate.wire(), idempotent=True)
        return model(TaskAnswer, answer)

    def _replica(self, *parts: str) -> str:
        return self._of_tenant("/replica/" + "/".join(quoted(part) for part in parts))
