# SPDX-License-Identifier: Apache-2.0
"""Snapshots and the volumes made from them."""

from __future__ import annotations

from kumo_client.api import same
from kumo_client.api.parse import models, one, quoted
from kumo_client.api.provisioner.base import with_id
from kumo_client.api.provisioner.volumes import Volumes
from kumo_client.schemas.snapshot import Snapshot, SnapshotCreate, SnapshotVolumeCreate


class Snapshots(Volumes):
    """Calls about snapshots."""

    def create_snapshot(self, create: SnapshotCreate) -> None:
        """Take a snapshot, of an attached volume too.

        ``coherent`` of the snapshot tells whether all replicas in sync were captured alike.

        :raises StaleError: no replica of the volume is in sync.
        """
        create = with_id(create, "snapshot_id")
        self._create(
            self._of_tenant("/snapshots"),
            create,
            lambda: same.snapshot(create, self.snapshot(create.snapshot_id or "")),
        )

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, asked page by page where the server offers pages."""
        path = self._of_tenant("/snapshots")
        return list(self._pages(Snapshot, path, lambda item: item.snapshot_id))

    def snapshots_of(self, volume: str) -> list[Snapshot]:
        """The snapshots of the volume with this uuid."""
        path = self._of_tenant(f"/snapshots_by_vol/{quoted(volume)}")
        return models(Snapshot, self.session.request("GET", path))

    def snapshot(self, snapshot_id: str) -> Snapshot:
        """:raises NotExistsError: the provisioner says that there is none."""
        path = self._of_tenant(f"/snapshots/{quoted(snapshot_id)}")
        return one(Snapshot, self.session.request("GET", path), f"snapshot {snapshot_id}")

    def snapshot_by_alias(self, alias: str) -> Snapshot:
        """:raises NotExistsError: the provisioner says that there is none."""
        path = self._of_tenant(f"/snapshots_by_alias/{quoted(alias)}")
        return one(Snapshot, self.session.request("GET", path), f"snapshot {alias}")

    def delete_snapshot(self, snapshot_id: str) -> None:
        """:raises NotExistsError: there is none."""
        self._delete(self._of_tenant(f"/snapshots/{quoted(snapshot_id)}"))

    def create_snapshot_volume(self, create: SnapshotVolumeCreate) -> None:
        """Make a volume from a snapshot."""
        create = with_id(create, "volume_id")
        self._create(
            self._of_tenant("/snapshot_volumes"),
            create,
            lambda: same.snapshot_volume(create, self.volume(create.volume_id or "")),
        )
