# SPDX-License-Identifier: Apache-2.0
"""Drivers on the real provisioner: Cinder's in-tree KumoScale driver as installed, and ours."""

import pytest
from cinder import context as cinder_context
from cinder import coordination
from cinder.volume.drivers.kioxia import kumoscale as in_tree
from oslo_config import cfg

from cinder_kumo.driver import KumoVolumeDriver
from tests.fakes.fleet import Fleet
from tests.unit.driver import builders

NODES = 3


@pytest.fixture(scope="module")
def nodes(shared_provisioner):
    """Three registered fake nodes of 100 GiB that all tests of a module share."""
    fleet = Fleet(shared_provisioner.node_certificate, shared_provisioner.node_token)
    for node in fleet.add(NODES, max_iops=100_000, max_bw=1_000_000):
        shared_provisioner.register(node)
    yield fleet
    fleet.close()


class Cluster:
    """The provisioner, its nodes, and drivers that use them."""

    def __init__(self, provisioner, nodes, directory):
        self.provisioner = provisioner
        self.nodes = nodes
        self.directory = directory

    def ours(self, *lines, replicas=1):
        """Our driver, set up; ``lines`` are added to its section."""
        driver = KumoVolumeDriver(
            configuration=self.read_conf(
                "kumo",
                f"kumo_urls = {self.provisioner.url}",
                f"kumo_ca_file = {self.provisioner.ca_file}",
                f"kumo_token_file = {self.provisioner.directory}/admin.token",
                "kumo_request_budget = 20",
                f"kioxia_num_replicas = {replicas}",
                "volume_backend_name = fast",
                *lines,
            )
        )
        return self._started(driver)

    def in_tree(self, *lines, replicas=1, cls=in_tree.KumoScaleBaseVolumeDriver):
        """Cinder's driver, or another one on the same section of cinder.conf.

        Any pem with a key does as its client certificate.
        """
        driver = cls(
            configuration=self.read_conf(
                "kioxia",
                f"kioxia_url = {self.provisioner.url}",
                f"kioxia_token = {self.provisioner.token}",
                f"kioxia_cafile = {self.provisioner.directory}/provisioner.pem",
                f"kioxia_num_replicas = {replicas}",
                "volume_backend_name = fast",
                *lines,
            )
        )
        return self._started(driver)

    def read_conf(self, group, *lines):
        head = f"[coordination]\nbackend_url = file://{self.directory}/locks\n[{group}]\n"
        return builders.read_conf(
            self.directory / "cinder.conf", head + "\n".join(lines) + "\n", group
        )

    @staticmethod
    def _started(driver):
        if not coordination.COORDINATOR.started:
            coordination.COORDINATOR.start()
        driver.do_setup(cinder_context.RequestContext())
        driver.check_for_setup_error()
        return driver

    def replicas_of(self, volume):
        """{replica uuid: what its node holds} of a volume."""
        held = {}
        for node in self.nodes.nodes:
            for uuid, replica in node.state.replicas.items():
                if replica.spec.volume_id == volume.name_id:
                    held[uuid] = replica
        return held


@pytest.fixture
def cluster(shared_provisioner, nodes, tmp_path):
    yield Cluster(shared_provisioner, nodes, tmp_path)
    nodes.clear_faults()
    if coordination.COORDINATOR.started:
        coordination.COORDINATOR.stop()
    cfg.CONF.reset()


@pytest.fixture(params=["in_tree", "ours"])
def make_driver(request, cluster):
    """Makes one of the two drivers; the same story holds for both."""
    return getattr(cluster, request.param)


@pytest.fixture
def empty(cluster):
    """Nothing is left on any node after the test, nor was there before."""
    assert cluster.nodes.objects() == set()
    yield
    assert cluster.nodes.objects() == set()
    assert cluster.provisioner.client.volumes() == []
    assert cluster.provisioner.client.snapshots() == []
