# SPDX-License-Identifier: Apache-2.0
"""The Cinder volume driver."""

from __future__ import annotations

from typing import Any

from cinder import coordination, exception, interface
from cinder.common import constants
from cinder.volume import driver
from oslo_log import log as logging

from cinder_kumo import attach, conf, errors, sharing, specs, stats
from kumo_client import errors as client_errors
from kumo_client import naming
from kumo_client.api.provisioner import Provisioner
from kumo_client.schemas.backend import AVAILABLE
from kumo_client.schemas.info import CAPABILITY_SNAPSHOT_VOLUME_CAPACITY
from kumo_client.schemas.snapshot import SnapshotCreate, SnapshotVolumeCreate
from kumo_client.schemas.volume import CloneCreate, VolumeCreate
from kumo_client.session import Session

LOG = logging.getLogger(__name__)


@interface.volumedriver
class KumoVolumeDriver(driver.BaseVD):
    """Volumes of a Kumo, or KumoScale, provisioner over NVMe-oF.

    The driver keeps no state. A volume is known to the provisioner by ``volume.name_id``, which
    is not its Cinder id once it was migrated.

    .. code-block:: none

        Version history:
            1.0.0 - Initial version: volumes, snapshots, clones, online extend, multiattach,
                    one or several replicas by volume type, KumoScale option names.
    """

    VERSION = "1.0.0"
    CI_WIKI_NAME = "Kumo_CI"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        conf.register(self.configuration)
        self._backend_name = self.configuration.volume_backend_name or type(self).__name__
        self._client: Provisioner | None = None

    @staticmethod
    def get_driver_options() -> list[Any]:
        """All options of the driver, for Cinder's documentation tools."""
        return conf.OPTS

    @property
    def client(self) -> Provisioner:
        """The provisioner; made in :meth:`do_setup`."""
        if self._client is None:
            raise exception.DriverNotInitialized()
        return self._client

    def _make_session(self, endpoint: conf.Endpoint, **carrier: Any) -> Session:
        return Session(
            endpoint.urls,
            token=endpoint.token,
            ca_file=endpoint.ca_file,
            client_cert=endpoint.client_cert,
            budget=endpoint.budget,
            user_agent=f"cinder-kumo/{self.VERSION}",
            **carrier,
        )

    def do_setup(self, context: Any) -> None:
        """Read the settings and make the client; nothing is sent yet.

        :raises cinder.exception.Invalid: naming the option that is wrong.
        """
        with errors.translated(f"set up backend {self._backend_name}"):
            self._client = Provisioner(self._make_session(conf.endpoint(self.configuration)))
            specs.wish(self.configuration, {}).storage_class(None)

    def check_for_setup_error(self) -> None:
        """Ask the provisioner who it is, and whether we may use it.

        A provisioner without an available storage node is no error: nodes come and go, and
        deletes and detaches must work meanwhile. It is a warning and a capacity of 0.

        :raises cinder.exception.VolumeBackendAPIException: if it cannot be reached, its
            certificate cannot be verified or the token is refused.
        """
        with errors.translated(f"check provisioner of backend {self._backend_name}"):
            info = self.client.info()
            self.client.tenants()
            nodes = [node for node in self.client.backends() if node.state == AVAILABLE]
        LOG.info(
            "Provisioner version %s, capabilities %s, %d storage nodes available",
            info.version,
            ", ".join(info.capabilities) or "none (KumoScale)",
            len(nodes),
        )
        if not nodes:
            LOG.warning(
                "Backend %s has no available storage node, so no volume can be made; "
                "add one with 'kumo backend add'",
                self._backend_name,
            )

    # Volumes

    def create_volume(self, volume: Any) -> None:
        """Create a volume as its type and the options say."""
        wish = self._wish(volume)
        with errors.translated(f"create volume {volume.name_id}"):
            self.client.create_volume(
                VolumeCreate(
                    uuid=volume.name_id,
                    alias=self._alias(volume, wish),
                    capacity=volume.size,
                    provisioning_type=wish.provisioning_type,
                    reserved_space_percentage=wish.reserved_space_percentage,
                    storage_class=wish.storage_class(volume.availability_zone),
                )
            )

    def delete_volume(self, volume: Any) -> None:
        """Delete a volume. Gone already, by the provisioner's word, is done.

        If Cinder knows of no attachment, a publication is what an interrupted detach left behind,
        and is taken back first.
        """
        with errors.translated(f"delete volume {volume.name_id}"):
            try:
                self._delete(volume.name_id)
            except client_errors.InUseError as error:
                if volume.volume_attachment:
                    raise
                LOG.warning(
                    "Unpublishing volume %s, which Cinder has detached: %s", volume.name_id, error
                )
                attach.unpublish(self.client, volume.name_id, None)
                self._delete(volume.name_id)

    def extend_volume(self, volume: Any, new_size: int) -> None:
        """Grow a volume to ``new_size`` GiB, attached or not."""
        with errors.translated(f"extend volume {volume.name_id} to {new_size} GiB"):
            self.client.extend_volume(volume.name_id, new_size)

    def create_volume_from_snapshot(self, volume: Any, snapshot: Any) -> None:
        """Create a volume, possibly larger, with the data of a snapshot.

        It has as many replicas as the snapshot's volume.
        """
        wish = self._wish(volume)
        source = snapshot.volume.name_id
        with errors.translated(f"create volume {volume.name_id} from snapshot {snapshot.id}"):
            self._check_replicas(volume, snapshot.volume_type_id, source, wish)
            sized = self.client.supports(CAPABILITY_SNAPSHOT_VOLUME_CAPACITY)
            writable = sized or self.configuration.kioxia_writable
            reserved = self.configuration.kioxia_snap_vol_reserved_space_percentage
            self.client.create_snapshot_volume(
                SnapshotVolumeCreate(
                    alias=self._alias(volume, wish),
                    snapshot_id=snapshot.id,
                    volume_id=volume.name_id,
                    writable=writable,
                    reserved_space_percentage=reserved if writable else 0,
                    max_iops_per_gb=wish.max_iops_per_gb,
                    max_bw_per_gb=wish.max_bw_per_gb,
                    allow_span=self.configuration.kioxia_snap_vol_span_allowed,
                    capacity=volume.size if sized else None,
                )
            )
            if not sized and volume.size > snapshot.volume_size:
                self._grow_new(volume.name_id, volume.size)

    def create_cloned_volume(self, volume: Any, src_vref: Any) -> None:
        """Create a volume, possibly larger, with the data of another one.

        It has as many replicas as its source.
        """
        wish = self._wish(volume)
        with errors.translated(f"clone volume {src_vref.name_id} as {volume.name_id}"):
            self._check_replicas(volume, src_vref.volume_type_id, src_vref.name_id, wish)
            self.client.clone_volume(
                CloneCreate(
                    source_volume_id=src_vref.name_id,
                    alias=self._alias(volume, wish),
                    volume_id=volume.name_id,
                    capacity=volume.size,
                    reserved_space_percentage=wish.reserved_space_percentage,
                )
            )

    def update_migrated_volume(
        self, context: Any, volume: Any, new_volume: Any, original_volume_status: str
    ) -> dict[str, Any]:
        """Keep the name that the new volume has at the provisioner; names there are for good."""
        return {
            "_name_id": new_volume.name_id,
            "provider_location": new_volume.provider_location,
        }

    # Snapshots

    def create_snapshot(self, snapshot: Any) -> None:
        """Snapshot a volume, attached or not."""
        source = snapshot.volume.name_id
        with errors.translated(f"create snapshot {snapshot.id} of volume {source}"):
            self.client.create_snapshot(
                SnapshotCreate(
                    alias=snapshot.name,
                    volume_id=source,
                    snapshot_id=snapshot.id,
                    reserved_space_percentage=(
                        self.configuration.kioxia_snap_reserved_space_percentage
                    ),
                )
            )

    def delete_snapshot(self, snapshot: Any) -> None:
        """Delete a snapshot. Gone already, by the provisioner's word, is done."""
        with errors.translated(f"delete snapshot {snapshot.id}", busy=exception.SnapshotIsBusy):
            try:
                self.client.delete_snapshot(snapshot.id)
            except client_errors.NotExistsError:
                LOG.info("Snapshot %s is gone already", snapshot.id)

    # Attachments

    def validate_connector(self, connector: dict[str, Any]) -> None:
        """Refuse a connector without host NQN or host id."""
        attach.check_connector(connector)

    @coordination.synchronized("kumo-{volume.id}")
    def initialize_connection(
        self, volume: Any, connector: dict[str, Any], initiator_data: Any = None
    ) -> dict[str, Any]:
        """Publish a volume to a host; repeatable.

        :returns: connection information of os-brick's ``nvmeof`` connector.
        """
        attach.check_connector(connector)
        with errors.translated(f"attach volume {volume.name_id} to {_host(connector)}"):
            asker = self._asker(volume, connector)
            try:
                publication = attach.publish(self.client, asker, volume.name_id)
                return attach.connection_info(publication, volume.name_id, asker)
            except client_errors.CommunicationError:
                # It cannot be undone either; the next attach or the delete finds it.
                raise
            except client_errors.KumoError:
                self._take_back(volume, connector)
                raise

    @coordination.synchronized("kumo-{volume.id}")
    def terminate_connection(
        self, volume: Any, connector: dict[str, Any] | None, **kwargs: Any
    ) -> bool:
        """Unpublish a volume from a host when its last attachment there ends.

        :param connector: of the host; None means every host.
        :returns: whether the host still needs the volume.
        """
        if not connector:
            LOG.info("Unpublishing volume %s from every host", volume.name_id)
            with errors.translated(f"detach volume {volume.name_id} from every host"):
                attach.unpublish(self.client, volume.name_id, None)
            return False
        attach.check_connector(connector, keys=("uuid",))
        if sharing.still_needed(volume, connector):
            LOG.info(
                "Volume %s stays published: %s has another attachment",
                volume.name_id,
                _host(connector),
            )
            return True
        with errors.translated(f"detach volume {volume.name_id} from {_host(connector)}"):
            attach.unpublish(self.client, volume.name_id, connector["uuid"])
        return False

    def create_export(self, context: Any, volume: Any, connector: dict[str, Any]) -> None:
        """Nothing to do: publishing is part of :meth:`initialize_connection`."""

    def ensure_export(self, context: Any, volume: Any) -> None:
        """Nothing to do: the storage nodes restore their exports by themselves."""

    def remove_export(self, context: Any, volume: Any) -> None:
        """Nothing to do: unpublishing is part of :meth:`terminate_connection`."""

    @classmethod
    def clean_volume_file_locks(cls, volume_id: str) -> None:
        """Remove the files of a gone volume's lock, if locks are files."""
        coordination.synchronized_remove(f"kumo-{volume_id}")

    # Capacity and capabilities

    def get_pool(self, volume: Any) -> str:
        """The only pool; its name is that which Cinder gives a backend without pools."""
        return self._backend_name

    def _update_volume_stats(self) -> None:
        total = free = 0
        state = "up"
        try:
            total, free = stats.capacity(self.client.backends(), self.client.tenants())
        except client_errors.KumoError as error:
            state = "down"
            LOG.error("%s", errors.text(f"read capacity of backend {self._backend_name}", error))
        pool = stats.pool(self._backend_name, total, free, self.configuration)
        pool["filter_function"] = self.get_filter_function()
        pool["goodness_function"] = self.get_goodness_function()
        pool["backend_state"] = state
        self._stats = {
            "volume_backend_name": self._backend_name,
            "vendor_name": "Kumo",
            "driver_version": self.VERSION,
            "storage_protocol": constants.NVMEOF,
            "backend_state": state,
            "pools": [pool],
        }

    def _init_vendor_properties(self) -> tuple[dict[str, Any], str]:
        properties: dict[str, Any] = {}
        for spec in specs.SPECS:
            self._set_property(
                properties,
                f"{specs.PREFIX}:{spec.key}",
                spec.title,
                f"{spec.title}. Overrides {spec.option}.",
                spec.kind,
                default=getattr(self.configuration, spec.option),
            )
        return properties, specs.PREFIX

    # Helpers

    def _wish(self, volume: Any) -> specs.Wish:
        return specs.wish(self.configuration, specs.extra_specs_of(volume))

    @staticmethod
    def _alias(volume: Any, wish: specs.Wish) -> str:
        # Existing clients know a replicated volume by the name of its array.
        return naming.array_name(volume.name) if wish.num_replicas > 1 else volume.name

    def _check_replicas(
        self, volume: Any, source_type_id: str | None, source_id: str, wish: specs.Wish
    ) -> None:
        """A copy has the replicas of its source, so another type must not ask for another number.

        :raises cinder.exception.InvalidVolumeType: if it does.
        """
        if volume.volume_type_id == source_type_id:
            return
        replicas = self.client.volume(source_id).num_replicas
        if replicas != wish.num_replicas:
            raise exception.InvalidVolumeType(
                reason=f"volume {volume.name_id} would have {replicas} replicas like its source "
                f"{source_id}, but its type asks for {wish.num_replicas}; choose a type with "
                f"kumo:num_replicas={replicas} and retype the copy"
            )

    def _asker(self, volume: Any, connector: dict[str, Any]) -> attach.Asker:
        allowed = {volume.id, volume.name_id} & set(self.configuration.kumo_accept_stale)
        if allowed:
            LOG.warning(
                "Volume %s is named in kumo_accept_stale: %s may get data that misses the last "
                "writes",
                volume.id,
                _host(connector),
            )
        return attach.asker(connector, self.VERSION, accept_stale=bool(allowed))

    def _delete(self, volume_id: str) -> None:
        try:
            self.client.delete_volume(volume_id)
        except client_errors.NotExistsError:
            LOG.info("Volume %s is gone already", volume_id)

    def _grow_new(self, volume_id: str, size: int) -> None:
        """Grow a volume just made; it goes again if that fails."""
        try:
            if self.client.volume(volume_id).capacity < size:
                self.client.extend_volume(volume_id, size)
        except client_errors.KumoError:
            self._delete(volume_id)
            raise

    def _take_back(self, volume: Any, connector: dict[str, Any]) -> None:
        """Undo a publication that led to no attachment, unless the host had it before."""
        if sharing.on_host(volume, connector):
            return
        try:
            attach.unpublish(self.client, volume.name_id, connector["uuid"])
        except client_errors.KumoError as error:
            LOG.warning("%s", errors.text(f"take back publication of {volume.name_id}", error))


def _host(connector: dict[str, Any]) -> str:
    return f"host {connector.get('host') or connector['uuid']}"
