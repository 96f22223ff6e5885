# SPDX-License-Identifier: Apache-2.0
"""Images: Cinder's base class attaches the volume to the controller with our connection info."""

import pytest
from cinder import context as cinder_context
from cinder import exception
from cinder.image import image_utils
from cinder.volume import volume_utils
from os_brick.initiator.connectors import nvmeof

from tests.unit.driver import builders

CONTROLLER = builders.connector("controller")


class Connector:
    """Reads connection information as os-brick's connector does, and keeps what it was given."""

    def __init__(self):
        self.attached = {}
        self.error = None

    def connect_volume(self, data):
        if self.error:
            raise self.error
        props = nvmeof.NVMeOFConnProps(dict(data))
        self.attached[props.cinder_volume_id] = props
        return {"type": "block", "path": f"/dev/md/{props.alias}"}

    def check_valid_device(self, path, run_as_root=True):
        return path.startswith("/dev/md/volume-")

    def disconnect_volume(self, data, device, force=False, ignore_errors=False):
        del self.attached[data["vol_uuid"]]


@pytest.fixture
def brick(monkeypatch):
    connector = Connector()
    monkeypatch.setattr(
        volume_utils, "brick_get_connector_properties", lambda *args, **kwargs: CONTROLLER
    )

    def get_connector(protocol, **kwargs):
        assert protocol == "nvmeof"
        return connector

    monkeypatch.setattr(volume_utils, "brick_get_connector", get_connector)
    return connector


@pytest.fixture
def volume(driver):
    made = builders.volume(status="downloading", type=builders.volume_type(kumo__num_replicas="2"))
    driver.create_volume(made)
    return made


@pytest.fixture
def seen(monkeypatch, brick, server):
    """(path, published) at the moment when the data is copied."""
    found = []

    def fetch(context, service, image, path, *args, **kwargs):
        found.append((path, len(server.published), list(brick.attached)))

    def upload(context, service, meta, path, volume, **kwargs):
        found.append((path, len(server.published), list(brick.attached)))

    monkeypatch.setattr(image_utils, "fetch_to_raw", fetch)
    monkeypatch.setattr(volume_utils, "upload_volume", upload)
    return found


@pytest.mark.parametrize("to_image", [True, False])
def test_copy(driver, server, brick, volume, seen, to_image):
    context = cinder_context.RequestContext()
    if to_image:
        driver.copy_volume_to_image(context, volume, None, {"id": "image"})
    else:
        driver.copy_image_to_volume(context, volume, None, "image")
    assert seen == [(f"/dev/md/{volume.name[:27]}", 1, [volume.id])]
    assert (brick.attached, server.published) == ({}, set())


def test_failed_connect_is_undone(driver, server, brick, volume):
    brick.error = exception.CinderException("no path")
    with pytest.raises(exception.CinderException, match="no path"):
        driver.copy_image_to_volume(cinder_context.RequestContext(), volume, None, "image")
    assert server.published == set()


def test_refused_attach_is_an_error(driver, server, brick, volume):
    del server.volumes[volume.id]
    with pytest.raises(exception.VolumeBackendAPIException, match="NotExists"):
        driver.copy_image_to_volume(cinder_context.RequestContext(), volume, None, "image")
    assert server.published == set()


def test_lock_file_goes_with_the_volume(driver, volume, tmp_path):
    driver.initialize_connection(volume, CONTROLLER)
    driver.terminate_connection(volume, CONTROLLER)
    assert [path.name for path in tmp_path.rglob(f"*kumo-{volume.id}*")]
    driver.clean_volume_file_locks(volume.id)
    assert [path.name for path in tmp_path.rglob(f"*kumo-{volume.id}*")] == []
