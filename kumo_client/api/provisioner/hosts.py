# SPDX-License-Identifier: Apache-2.0
"""Hosts, and what is published to them."""

from __future__ import annotations

from kumo_client import errors
from kumo_client.api.parse import model, models, quoted
from kumo_client.api.provisioner.base import Base, given
from kumo_client.schemas import info as info_schema
from kumo_client.schemas.common import StatusAnswer
from kumo_client.schemas.host import (
    ArrayReport,
    Host,
    HostProbe,
    PublishAnswer,
    PublishRequest,
    Target,
    UnpublishRequest,
)
from kumo_client.schemas.volume import Volume


class Hosts(Base):
    """Calls about hosts."""

    def probe_host(self, probe: HostProbe) -> StatusAnswer:
        """Register a host or say that it is alive.

        :raises ConflictError: another NQN is known for this host id.
        """
        return self._status("POST", "/host_probe", probe)

    def hosts(self, name: str | None = None) -> list[Host]:
        """All hosts, or those of this name."""
        params = {"hostName": name} if name is not None else None
        return models(Host, self.session.request("GET", "/hosts", params=params))

    def host_volumes(self, uuid: str) -> list[Volume]:
        """The volumes, of all tenants, that are published to a host (capability
        ``host-volumes``); none of a host that is not known."""
        self.need(info_schema.CAPABILITY_HOST_VOLUMES)
        return models(Volume, self.session.request("GET", f"/hosts/{quoted(uuid)}/volumes"))

    def delete_host(self, uuid: str) -> None:
        """:raises InUseError: a volume is published to it. :raises NotExistsError: no such host."""
        self._delete(f"/hosts/{quoted(uuid)}")

    def publish(self, request: PublishRequest) -> PublishAnswer:
        """Let a host connect to a volume; ``status`` is AlreadyPublished if it could before.

        ``volume`` and ``replicas`` are filled in by servers with capability ``publish-attach``.
        """
        answer = self.session.request(
            "POST",
            self._of_tenant("/publish"),
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
            self._of_tenant("/unpublish"),
            json=request.wire(),
            idempotent=True,
            accept={errors.VolumeNotPublishedError.code},
        )
        return model(StatusAnswer, answer)

    def report_array(self, report: ArrayReport) -> StatusAnswer:
        """Tell what a host sees of an array (capability ``array-report``).

        :raises NotExistsError: there is no such volume or host.
        :raises VolumeNotPublishedError: the volume is not published to this host.
        :raises BusyError: it still is, and the report is the last word of a host that has left.
        :raises ConflictError: that word is not the last one, or older than what is known.
        """
        self.need(info_schema.CAPABILITY_ARRAY_REPORT)
        return self._status("POST", self._of_tenant("/array_report"), report)

    def targets(self, host_id: str | None = None, volume_id: str | None = None) -> list[Target]:
        """Subsystems that are for this host, hold this volume, or both.

        :raises InvalidInputError: neither is given.
        """
        params = given(hostId=host_id, volId=volume_id)
        if not params:
            raise errors.InvalidInputError("targets are asked by host, by volume or by both")
        return models(Target, self.session.request("GET", "/targets", params=params))
