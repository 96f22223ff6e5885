# SPDX-License-Identifier: Apache-2.0
"""A driver as cinder-volume makes it: options from a file, real objects, real locks.

Only the transport is replaced: the client's session talks to a provisioner in memory.
"""

import uuid

import pytest
from cinder import context as cinder_context
from cinder import coordination, objects
from cinder.objects import fields
from cinder.volume import configuration
from cinder.volume import driver as cinder_driver
from oslo_config import cfg

from cinder_kumo.driver import KumoVolumeDriver
from tests.unit.driver import kumoscale

GROUP = "kumo-1"
URL = "https://provisioner.example:8090"


@pytest.fixture(scope="session", autouse=True)
def cinder_objects():
    objects.register_all()


@pytest.fixture
def cinder_conf(tmp_path):
    """Read a cinder.conf whose section [kumo-1] holds these lines; the backend's configuration."""

    def read(*lines):
        path = tmp_path / "cinder.conf"
        path.write_text(
            "\n".join(
                [
                    "[coordination]",
                    f"backend_url = file://{tmp_path}/locks",
                    f"[{GROUP}]",
                    *lines,
                ]
            )
        )
        cfg.CONF([], project="cinder", default_config_files=[str(path)], default_config_dirs=[])
        return configuration.Configuration(cinder_driver.volume_opts, config_group=GROUP)

    yield read
    cfg.CONF.reset()


@pytest.fixture
def server():
    return kumoscale.KumoScale()


@pytest.fixture
def make_driver(cinder_conf, server):
    """Make and set up a driver; ``lines`` are added to its section of cinder.conf."""
    coordinator = coordination.COORDINATOR

    def make(*lines, state=server, setup=True):
        config = cinder_conf(
            f"kioxia_url = {URL}", "kioxia_token = s3cret", "volume_backend_name = fast", *lines
        )
        if not coordinator.started:
            coordinator.start()
        driver = InMemoryDriver(configuration=config, host="controller@kumo-1")
        driver.server = state
        if setup:
            driver.do_setup(cinder_context.RequestContext())
            driver.check_for_setup_error()
            state.calls.clear()
        return driver

    yield make
    if coordinator.started:
        coordinator.stop()


class InMemoryDriver(KumoVolumeDriver):
    """The driver, its session on an adapter that leads to ``server``."""

    def _make_session(self, endpoint):
        self.adapter = kumoscale.Adapter(self.server)
        return super()._make_session(
            endpoint,
            transport=self.adapter,
            clock=lambda: self.adapter.time,
            sleep=self.adapter.sleep,
        )


@pytest.fixture
def driver(make_driver):
    return make_driver()


@pytest.fixture
def volume_type():
    def make(**extra_specs):
        return objects.VolumeType(
            id=str(uuid.uuid4()),
            name="type",
            extra_specs={key.replace("__", ":"): value for key, value in extra_specs.items()},
        )

    return make


@pytest.fixture
def make_volume():
    """A volume object as the manager hands it over; ``type`` is a VolumeType."""

    def make(size=1, type=None, name_id=None, hosts=(), **more):
        volume_id = str(uuid.uuid4())
        values = {
            "id": volume_id,
            "_name_id": name_id,
            "size": size,
            "status": "available",
            "availability_zone": "nova",
            "multiattach": False,
            "provider_location": None,
            "volume_type_id": type.id if type else None,
            "volume_type": type,
        }
        volume = objects.Volume(cinder_context.RequestContext(), **(values | more))
        volume.volume_attachment = objects.VolumeAttachmentList(
            objects=[make_attachment(volume_id, connector) for connector in hosts]
        )
        return volume

    return make


def make_attachment(volume_id, connector):
    return objects.VolumeAttachment(
        id=str(uuid.uuid4()),
        volume_id=volume_id,
        connector=connector,
        attach_status=fields.VolumeAttachStatus.ATTACHED,
    )


@pytest.fixture
def make_snapshot():
    def make(volume):
        return objects.Snapshot(
            cinder_context.RequestContext(),
            id=str(uuid.uuid4()),
            volume_id=volume.id,
            volume=volume,
            volume_size=volume.size,
            volume_type_id=volume.volume_type_id,
        )

    return make


@pytest.fixture
def connector():
    return make_connector("compute-1")


def make_connector(host):
    """What os-brick's ``get_connector_properties`` gives on a host with nvme-cli."""
    return {
        "host": host,
        "ip": "192.0.2.7",
        "nqn": f"nqn.2014-08.org.nvmexpress:uuid:{uuid.uuid5(uuid.NAMESPACE_DNS, host)}",
        "uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, host)),
        "nvme_native_multipath": True,
        "multipath": False,
        "platform": "x86_64",
        "os_type": "linux",
        "initiator": "iqn.1993-08.org.debian:01:1",
        "do_local_attach": False,
    }
