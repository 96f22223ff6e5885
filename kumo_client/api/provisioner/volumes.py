# SPDX-License-Identifier: Apache-2.0
"""Volumes."""

from __future__ import annotations

from collections.abc import Iterator

from kumo_client import errors
from kumo_client.api import same
from kumo_client.api.parse import model, models, one, quoted
from kumo_client.api.provisioner.base import Base, given, with_id
from kumo_client.schemas import info as info_schema
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.volume import (
    AdoptableVolume,
    AdoptVolume,
    CloneCreate,
    PlacementAnswer,
    Revert,
    UnmanageVolume,
    Volume,
    VolumeCreate,
    VolumeModify,
)


class Volumes(Base):
    """Calls about volumes."""

    def create_volume(self, create: VolumeCreate) -> None:
        """Make a volume; it can be attached when this returns.

        :raises AlreadyExistsError: a volume with this uuid or alias exists.
        :raises NoSpaceError: it cannot be placed.
        :raises OverBudgetError: its tenant would use more than its budget.
        """
        create = with_id(create, "uuid")
        path = self._of_tenant("/volumes")
        self._create(path, create, lambda: same.volume(create, self.volume(create.uuid or "")))

    def plan_volume(self, create: VolumeCreate) -> PlacementAnswer:
        """Where a volume would go, and why; nothing is made (capability ``dry-run``).

        ``status`` is NoSpace when it could not be placed; that is no error here.
        """
        self.need(info_schema.CAPABILITY_DRY_RUN)
        answer = self.session.request(
            "POST",
            self._of_tenant("/volumes"),
            json=create.wire(),
            params={"dryRun": "true"},
            idempotent=True,
            accept={errors.NoSpaceError.code},
        )
        return model(PlacementAnswer, answer)

    def volumes(self) -> list[Volume]:
        """All volumes; see :meth:`each_volume` for a loop over many."""
        return list(self.each_volume())

    def each_volume(self) -> Iterator[Volume]:
        """All volumes, asked page by page where the server offers pages."""
        return self._pages(Volume, self._of_tenant("/volumes"), lambda item: item.uuid)

    def volume(self, uuid: str) -> Volume:
        """:raises NotExistsError: the provisioner says that there is none."""
        answer = self.session.request("GET", self._volume(uuid))
        return one(Volume, answer, f"volume {uuid}", volume=uuid)

    def volume_by_alias(self, alias: str) -> Volume:
        """:raises NotExistsError: the provisioner says that there is none."""
        path = self._of_tenant(f"/volumes_by_alias/{quoted(alias)}")
        return one(Volume, self.session.request("GET", path), f"volume {alias}", volume=alias)

    def extend_volume(self, uuid: str, gib: int) -> None:
        """Grow a volume to ``gib``; the size that it has already is a success."""
        # KumoScale takes the number as text; both forms are good for us.
        body = {"newCapacity": str(gib)}
        self.session.request("PATCH", self._volume(uuid), json=body, idempotent=True)

    def modify_volume(self, uuid: str, modify: VolumeModify) -> StatusAnswer:
        """Change the storage class or alias of a volume, attached or not.

        Needs the capability ``modify-volume``.

        :raises NotExistsError: there is no such volume.
        :raises NoSpaceError: what is asked cannot be guaranteed.
        :raises OverBudgetError: its tenant would use more than its budget.
        """
        self.need(info_schema.CAPABILITY_MODIFY)
        return self._status("PUT", self._volume(uuid), modify)

    def revert_volume(self, volume: str, snapshot: str) -> StatusAnswer:
        """Make a volume what its snapshot is (capability ``revert-volume``).

        :raises InUseError: the volume is published.
        :raises ConflictError: the snapshot is of another volume.
        :raises NotExistsError: there is no such volume or snapshot.
        """
        self.need(info_schema.CAPABILITY_REVERT)
        body = Revert(volume_id=volume, snapshot_id=snapshot)
        return self._status("POST", self._of_tenant("/revert_volume"), body)

    def adoptable_volumes(self, backend: str | None = None) -> list[AdoptableVolume]:
        """Logical volumes on nodes that could become volumes (capability ``adopt-volume``).

        :param backend: persistent id; ``None`` asks every node.
        """
        self.need(info_schema.CAPABILITY_ADOPT)
        path = self._of_tenant("/adoptable_volumes")
        return models(
            AdoptableVolume, self.session.request("GET", path, params=given(backendId=backend))
        )

    def adopt_volume(self, adopt: AdoptVolume) -> Volume:
        """Make a volume of a logical volume of a node (capability ``adopt-volume``).

        :raises AlreadyExistsError: a volume with this uuid or alias exists.
        :raises NotExistsError: there is no such node, pool or logical volume.
        :raises InUseError: the logical volume is open.
        """
        self.need(info_schema.CAPABILITY_ADOPT)
        adopt = with_id(adopt, "uuid")
        path = self._of_tenant("/adopt_volume")
        self._create(path, adopt, lambda: same.adopted(adopt, self.volume(adopt.uuid or "")))
        return self.volume(adopt.uuid or "")

    def unmanage_volume(self, uuid: str) -> None:
        """Forget a volume and leave its data where it is (capability ``adopt-volume``).

        :raises InUseError: it is published or has snapshots.
        :raises NotExistsError: there is no such volume.
        """
        self.need(info_schema.CAPABILITY_ADOPT)
        body = UnmanageVolume(volume_id=uuid)
        try:
            self._status("POST", self._of_tenant("/unmanage_volume"), body)
        except errors.NotExistsError as exc:
            if not exc.repeated:
                raise

    def delete_volume(self, uuid: str) -> None:
        """Delete a volume with its data.

        :raises NotExistsError: there is none.
        :raises InUseError: it is published or has snapshots.
        """
        self._delete(self._volume(uuid))

    def clone_volume(self, create: CloneCreate) -> None:
        """Make a volume with the contents of another.

        :raises StaleError: no replica of the source is in sync.
        """
        create = with_id(create, "volume_id")
        path = self._of_tenant("/clone_volume")
        self._create(path, create, lambda: same.clone(create, self.volume(create.volume_id or "")))

    def _volume(self, uuid: str) -> str:
        return self._of_tenant(f"/volumes/{quoted(uuid)}")
