# SPDX-License-Identifier: Apache-2.0
"""A driver as cinder-volume makes it: options from a file, real objects, real locks.

Only the transport is replaced: the client's session talks to a provisioner in memory.
"""

import pytest
from cinder import context as cinder_context
from cinder import coordination
from oslo_config import cfg

from cinder_kumo.driver import KumoVolumeDriver
from tests.unit.driver import builders, kumoscale

GROUP = "kumo-1"
URL = "https://provisioner.example:8090"


@pytest.fixture
def cinder_conf(tmp_path):
    """Read a cinder.conf whose section [kumo-1] holds these lines; the backend's configuration."""

    def read(*lines):
        head = f"[coordination]\nbackend_url = file://{tmp_path}/locks\n[{GROUP}]\n"
        return builders.read_conf(tmp_path / "cinder.conf", head + "\n".join(lines), GROUP)

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
    return builders.volume_type


@pytest.fixture
def make_volume():
    return builders.volume


@pytest.fixture
def make_snapshot():
    return builders.snapshot
