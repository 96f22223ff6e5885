# SPDX-License-Identifier: Apache-2.0
"""The provisioner API, ours and that of KumoScale.

Units: sizes in GiB. Every method raises the errors of :meth:`kumo_client.session.Session.request`
besides those that it names. Creates carry the id of what they make, so they are sent again when
their answer was lost; "already exists" is then a success if what exists is what was asked for.
"""

from __future__ import annotations

import time
import uuid as uuidlib
from collections.abc import Callable
from typing import Any, TypeVar

from kumo_client import errors
from kumo_client.api import same
from kumo_client.api.parse import model, models, one, quoted
from kumo_client.schemas.backend import Backend, BackendCreate, BackendUpdate
from kumo_client.schemas.common import StatusAnswer, WireModel
from kumo_client.schemas.host import (
    Host,
    HostProbe,
    PublishAnswer,
    PublishRequest,
    Target,
    UnpublishRequest,
)
from kumo_client.schemas.info import Info
from kumo_client.schemas.snapshot import Snapshot, SnapshotCreate, SnapshotVolumeCreate
from kumo_client.schemas.tenant import Tenant
from kumo_client.schemas.volume import CloneCreate, Volume, VolumeCreate
from kumo_client.session import Session

# A server may be upgraded under a client that runs for months.
CAPABILITIES_KEPT_SECONDS = 300.0

W = TypeVar("W", bound=WireModel)


class Provisioner:
    """Calls to the provisioner."""

    def __init__(self, session: Session, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.session = session
        self._clock = clock
        self._info: Info | None = None
        self._info_time = 0.0

    # -- the server ---------------------------------------------------------------------------

    def info(self) -> Info:
        """Version, free space and capabilities, as they are now."""
        self._info = model(Info, self.session.request("GET", "/info"))
        self._info_time = self._clock()
        return self._info

    def supports(self, capability: str) -> bool:
        """Whether the server offers an extension; asked at most once in five minutes."""
        info = self._info
        if info is None or self._clock() - self._info_time > CAPABILITIES_KEPT_SECONDS:
            info = self.info()
        return info.supports(capability)

    def tenants(self) -> list[Tenant]:
        """Tenants with their budgets; the default one has the id ``0``."""
        return models(Tenant, self.session.request("GET", "/tenants"))

    def reconcile(self) -> dict[str, int]:
        """Compare record and nodes now (capability ``reconcile``); what was done, as counts."""
        answer = self.session.request("POST", "/reconcile", idempotent=True)
        return {key: value for key, value in answer.items() if type(value) is int}

    # -- backends -----------------------------------------------------------------------------

    def add_backend(self, create: BackendCreate) -> Backend:
        """Register a storage node and give what the provisioner then knows of it.

        :raises AlreadyExistsError: a node with one of these addresses is registered.
        :raises NotAvailableError: it is incompatible or gave no persistent id.
        :raises NoGroupsError: it has no pool.
        """

        answer = self._create(
            "/backends", create, lambda: same.backend(create, self._registered(create))
        )
        if isinstance(answer, dict) and "persistentID" in answer:
            return model(Backend, answer)
        # KumoScale answers with the status alone.
        try:
            return self._registered(create)
        except errors.NotExistsError as exc:
            raise errors.ProtocolError(f"registered, but {exc.message}") from exc

    def backends(self) -> list[Backend]:
        """All storage nodes."""
        return models(Backend, self.session.request("GET", "/backends"))

    def backend(self, persistent_id: str) -> Backend:
        """:raises NotExistsError: no such storage node."""
        answer = self.session.request("GET", f"/backends/{quoted(persistent_id)}")
        return one(Backend, answer, f"backend {persistent_id}")

    def update_backend(self, persistent_id: str, update: BackendUpdate) -> StatusAnswer:
        """Change rack, zone or region."""
        path = f"/backends/{quoted(persistent_id)}"
        return model(StatusAnswer, self.session.request("PUT", path, json=update.wire()))

    def delete_backend(self, persistent_id: str) -> None:
        """:raises InUseError: it holds replicas. :raises NotExistsError: no such node."""
        self._delete(f"/backends/{quoted(persistent_id)}")

    def _registered(self, create: BackendCreate) -> Backend:
        for backend in self.backends():
            if backend.mgmt_port == create.mgmt_port and set(backend.mgmt_ips) & set(
                create.mgmt_ips
            ):
                return backend
        raise errors.NotExistsError(f"no backend has the address {' or '.join(create.mgmt_ips)}")

    # -- volumes ------------------------------------------------------------------------------

    def create_volume(self, create: VolumeCreate) -> None:
        """Make a volume; it can be attached when this returns.

        :raises AlreadyExistsError: a volume with this uuid or alias exists.
        :raises NoSpaceError: it cannot be placed.
        """
        create = _with_id(create, "uuid")

        self._create(
            "/volumes", create, lambda: same.volume(create, self.volume(create.uuid or ""))
        )

    def volumes(self) -> list[Volume]:
        """All volumes."""
        return models(Volume, self.session.request("GET", "/volumes"))

    def volume(self, uuid: str) -> Volume:
        """:raises NotExistsError: the provisioner says that there is none."""
        answer = self.session.request("GET", f"/volumes/{quoted(uuid)}")
        return one(Volume, answer, f"volume {uuid}", volume=uuid)

    def volume_by_alias(self, alias: str) -> Volume:
        """:raises NotExistsError: the provisioner says that there is none."""
        answer = self.session.request("GET", f"/volumes_by_alias/{quoted(alias)}")
        return one(Volume, answer, f"volume {alias}", volume=alias)

    def extend_volume(self, uuid: str, gib: int) -> None:
        """Grow a volume to ``gib``; the size that it has already is a success."""
        # KumoScale takes the number as text; both forms are good for us.
        body = {"newCapacity": str(gib)}
        path = f"/volumes/{quoted(uuid)}"
        self.session.request("PATCH", path, json=body, idempotent=True)

    def delete_volume(self, uuid: str) -> None:
        """Delete a volume with its data.

        :raises NotExistsError: there is none.
        :raises InUseError: it is published or has snapshots.
        """
        self._delete(f"/volumes/{quoted(uuid)}")

    def clone_volume(self, create: CloneCreate) -> None:
        """Make a volume with the contents of another.

        :raises NotCoherentError: the source is replicated and attached.
        """
        create = _with_id(create, "volume_id")

        self._create(
            "/clone_volume", create, lambda: same.clone(create, self.volume(create.volume_id or ""))
        )

    # -- snapshots ----------------------------------------------------------------------------

    def create_snapshot(self, create: SnapshotCreate) -> None:
        """:raises NotCoherentError: the volume is replicated and attached."""
        create = _with_id(create, "snapshot_id")

        self._create(
            "/snapshots",
            create,
            lambda: same.snapshot(create, self.snapshot(create.snapshot_id or "")),
        )

    def snapshots(self) -> list[Snapshot]:
        """All snapshots."""
        return models(Snapshot, self.session.request("GET", "/snapshots"))

    def snapshots_of(self, volume: str) -> list[Snapshot]:
        """The snapshots of the volume with this uuid."""
        return models(Snapshot, self.session.request("GET", f"/snapshots_by_vol/{quoted(volume)}"))

    def snapshot(self, snapshot_id: str) -> Snapshot:
        """:raises NotExistsError: the provisioner says that there is none."""
        answer = self.session.request("GET", f"/snapshots/{quoted(snapshot_id)}")
        return one(Snapshot, answer, f"snapshot {snapshot_id}")

    def snapshot_by_alias(self, alias: str) -> Snapshot:
        """:raises NotExistsError: the provisioner says that there is none."""
        answer = self.session.request("GET", f"/snapshots_by_alias/{quoted(alias)}")
        return one(Snapshot, answer, f"snapshot {alias}")

    def delete_snapshot(self, snapshot_id: str) -> None:
        """:raises NotExistsError: there is none."""
        self._delete(f"/snapshots/{quoted(snapshot_id)}")

    def create_snapshot_volume(self, create: SnapshotVolumeCreate) -> None:
        """Make a volume from a snapshot."""
        create = _with_id(create, "volume_id")

        self._create(
            "/snapshot_volumes",
            create,
            lambda: same.snapshot_volume(create, self.volume(create.volume_id or "")),
        )

    # -- hosts --------------------------------------------------------------------------------

    def probe_host(self, probe: HostProbe) -> StatusAnswer:
        """Register a host or say that it is alive.

        :raises ConflictError: another NQN is known for this host id.
        """
        answer = self.session.request("POST", "/host_probe", json=probe.wire(), idempotent=True)
        return model(StatusAnswer, answer)

    def hosts(self, name: str | None = None) -> list[Host]:
        """All hosts, or those of this name."""
        params = {"hostName": name} if name is not None else None
        return models(Host, self.session.request("GET", "/hosts", params=params))

    def delete_host(self, uuid: str) -> None:
        """:raises InUseError: a volume is published to it. :raises NotExistsError: no such host."""
        self._delete(f"/hosts/{quoted(uuid)}")

    def publish(self, request: PublishRequest) -> PublishAnswer:
        """Let a host connect to a volume; ``status`` is AlreadyPublished if it could before.

        ``volume`` and ``replicas`` are filled in by servers with capability ``publish-attach``.
        """
        answer = self.session.request(
            "POST",
            "/publish",
            json=request.wire(),
            idempotent=True,
            accept={errors.AlreadyPublishedError.code},
        )
        return model(PublishAnswer, answer)

    def unpublish(self, request: UnpublishRequest) -> StatusAnswer:
        """End the access of a host, or of every host; VolumeNotPublished is no error but a status.

        :raises NotExistsError: there is no such volume.
        """
        answer = self.session.request(
            "POST",
            "/unpublish",
            json=request.wire(),
            idempotent=True,
            accept={errors.VolumeNotPublishedError.code},
        )
        return model(StatusAnswer, answer)

    def targets(self, host_id: str | None = None, volume_id: str | None = None) -> list[Target]:
        """Subsystems that are for this host, hold this volume, or both.

        :raises InvalidInputError: neither is given.
        """
        params = {"hostId": host_id, "volId": volume_id}
        given = {key: value for key, value in params.items() if value is not None}
        if not given:
            raise errors.InvalidInputError("targets are asked by host, by volume or by both")
        return models(Target, self.session.request("GET", "/targets", params=given))

    # -- common -------------------------------------------------------------------------------

    def _create(
        self,
        path: str,
        create: WireModel,
        difference: Callable[[], str | None],
    ) -> Any:
        """The answer, or ``None`` when an earlier try of this call made what is asked."""
        try:
            return self.session.request("POST", path, json=create.wire(), idempotent=True)
        except errors.AlreadyExistsError as exc:
            if not exc.repeated:
                raise
            try:
                found = difference()
            except errors.NotExistsError:
                # Another object has the alias or the address.
                raise exc from None
            if found:
                raise errors.AlreadyExistsError(
                    f"{exc.message.rstrip('.')}; what exists differs in {found}",
                    volume=exc.volume,
                    node=exc.node,
                    details=exc.details,
                    request_id=exc.request_id,
                ) from exc
            return None

    def _delete(self, path: str) -> None:
        try:
            self.session.request("DELETE", path)
        except errors.NotExistsError as exc:
            if not exc.repeated:
                raise


def _with_id(create: W, field: str) -> W:
    """The same request with an id, without which it could not be repeated safely."""
    if getattr(create, field) is not None:
        return create
    return create.model_copy(update={field: str(uuidlib.uuid4())})
