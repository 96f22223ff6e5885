# SPDX-License-Identifier: Apache-2.0
import pytest

from kumo_client.schemas.backend import BackendRef
from kumo_client.schemas.host import PublishAnswer, PublishedReplica
from kumo_client.schemas.volume import Location, Volume
from lab.connection import Leg, connection_info
from lab.errors import LabError
from lab.volumes import Volumes
from os_brick_nvmeof import props

CONNECTOR = {"nqn": "nqn.2014-08.org.nvmexpress:uuid:1", "uuid": "h1", "host": "compute1"}


class FakeProvisioner:
    """Volumes with their publications."""

    def __init__(self):
        self.volumes, self.published = {}, set()

    def supports(self, capability):
        return capability == "publish-attach"

    def create_volume(self, create):
        legs = range(create.storage_class.num_replicas)
        self.volumes[create.uuid] = Volume(
            uuid=create.uuid,
            alias=create.alias,
            capacity=create.capacity,
            location=[
                Location(
                    uuid=f"00000000-0000-4000-8000-00000000000{n}",
                    backend=BackendRef(persistent_id=f"b{n}", mgmt_ips=[f"10.77.0.1{n}"]),
                )
                for n in legs
            ],
        )

    def volume(self, uuid):
        return self.volumes[uuid]

    def extend_volume(self, uuid, gib):
        self.volumes[uuid].capacity = gib

    def delete_volume(self, uuid):
        assert not any(volume == uuid for volume, _ in self.published)
        del self.volumes[uuid]

    def publish(self, request):
        self.published.add((request.vol_id, request.host_id))
        volume = self.volumes[request.vol_id]
        legs = [
            PublishedReplica(
                uuid=leg.uuid,
                target_nqn=f"nqn.2014-08.org.nvmexpress:uuid:{leg.uuid}",
                portals=[{"ip": leg.backend.mgmt_ips[0], "port": 4420, "transport": "TCP"}],
                replica_state="Available",
                backend_id=leg.backend.persistent_id,
            )
            for leg in volume.location
        ]
        return PublishAnswer(status="Success", volume=volume, replicas=legs)

    def report_array(self, report):
        self.reported = report

    def unpublish(self, request):
        self.published.remove((request.vol_id, request.host_id))


@pytest.fixture
def provisioner():
    return FakeProvisioner()


@pytest.fixture
def volumes(provisioner):
    return Volumes(provisioner)


def attach(volumes, volume):
    body = {"attachment": {"volume_uuid": volume, "connector": CONNECTOR, "mode": "rw"}}
    return volumes.request("POST", "/attachments", body)["attachment"]


def test_an_attachment_is_what_the_connector_reads(volumes, provisioner):
    volume = volumes.create(2)
    made = attach(volumes, volume)
    read = props.parse(made["connection_info"])
    assert read.uuid == volume
    assert read.size == 1 << 30
    assert len(read.legs) == 2
    assert made["connection_info"]["driver_volume_type"] == "nvmeof"
    assert volumes.request("POST", f"/attachments/{made['id']}/action", {"os-complete": {}}) is None
    assert provisioner.published == {(volume, "h1")}


def test_a_host_keeps_a_volume_until_its_last_attachment_ends(volumes, provisioner):
    volume = volumes.create(1)
    first, second = attach(volumes, volume), attach(volumes, volume)
    volumes.request("DELETE", f"/attachments/{first['id']}")
    assert provisioner.published == {(volume, "h1")}
    volumes.request("DELETE", f"/attachments/{second['id']}")
    assert provisioner.published == set()
    volumes.delete(volume)
    assert provisioner.volumes == {}


def test_an_array_that_was_stopped_in_order_is_told(volumes, provisioner):
    volume = volumes.create(2)
    made = attach(volumes, volume)
    leg = "00000000-0000-4000-8000-000000000000"
    volumes.report_clean(made["id"], {leg: 7})
    told = provisioner.reported
    assert (told.host_id, told.vol_id, told.state) == ("h1", volume, "clean")
    assert [(one.replica, one.state, one.events) for one in told.legs] == [(leg, "Available", 7)]


def test_extend_and_where_legs_are(volumes, provisioner):
    volume = volumes.create(2)
    volumes.extend(volume, 3)
    assert provisioner.volumes[volume].capacity == 3
    assert sorted(volumes.nodes(volume).values()) == ["10.77.0.10", "10.77.0.11"]


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "/attachments/a"), ("GET", "/volumes"), ("PUT", "/attachments")]
)
def test_other_calls_are_refused(volumes, method, path):
    with pytest.raises(LabError, match=f"no attachment takes {method} {path}"):
        volumes.request(method, path)


def test_connection_info_without_a_provisioner():
    legs = [
        Leg(
            f"00000000-0000-4000-8000-00000000000{n}", f"nqn.x:{n}", [f"127.0.1.{n}"], 4420, f"n{n}"
        )
        for n in (1, 2)
    ]
    volume = "10000000-0000-4000-8000-000000000000"
    info = connection_info(volume, "v-1", 1, legs)
    read = props.parse(info["data"])
    assert (read.uuid, read.alias, read.replicated) == (volume, "v-1", True)
    assert [str(leg.portals[0]) for leg in read.legs] == [
        "tcp://127.0.1.1:4420",
        "tcp://127.0.1.2:4420",
    ]


def test_what_was_cleared_is_gone_for_whoever_deletes_it_later(volumes, provisioner):
    made = attach(volumes, volumes.create(1))
    volumes.clear()
    assert not volumes.attachments
    assert not provisioner.published
    assert volumes.request("DELETE", f"/attachments/{made['id']}") is None
    with pytest.raises(LabError, match="no attachment takes"):
        volumes.request("DELETE", "/attachments/another")
