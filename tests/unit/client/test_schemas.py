# SPDX-License-Identifier: Apache-2.0
"""Edge cases of what clients of all ages send."""

import uuid

import pydantic
import pytest

from kumo_client.errors import RESERVED_TEXTS
from kumo_client.schemas.backend import BackendCreate
from kumo_client.schemas.common import MAX_CAPACITY_GIB, Portal, StatusAnswer
from kumo_client.schemas.host import HostProbe, PublishRequest, UnpublishRequest
from kumo_client.schemas.info import Info
from kumo_client.schemas.node import ExportSpec, ReplicaSpec
from kumo_client.schemas.snapshot import SnapshotVolumeCreate
from kumo_client.schemas.volume import Location, StorageClass, Volume, VolumeCreate, VolumeUpdate

UUID = "6F5C2F0E-3C52-5B0C-9D5C-2F6A3F1F9A4E"
NQN = "nqn.2014-08.org.nvmexpress:uuid:1"


def test_null_is_absent():
    asked = VolumeCreate.model_validate(
        {
            "uuid": None,
            "alias": "v",
            "capacity": 1,
            "protocol": None,
            "storageClass": {"zones": [None, "nova", None], "racks": None, "numReplicas": None},
            "tomorrow": {"unknown": 1},
        }
    )
    assert asked.uuid is None
    assert asked.protocol == "NVMeoF"
    assert asked.storage_class.zones == ["nova"]
    assert asked.storage_class.racks == []
    assert asked.storage_class.num_replicas == 1
    assert "tomorrow" not in asked.wire()


def test_the_whole_backend_object_of_the_old_client():
    body = dict.fromkeys(("persistentID", "rack", "state", "portals", "totalCapacity", "hostId"))
    asked = BackendCreate.model_validate(body | {"mgmtIPs": ["10.0.0.1"], "mgmtPort": None})
    assert asked.wire() == {
        "mgmtIPs": ["10.0.0.1"],
        "mgmtPort": 443,
        "rack": "",
        "zone": "",
        "region": "",
        "hostId": "",
    }


def test_management_address_as_text():
    assert BackendCreate.model_validate({"mgmtIPs": " 10.0.0.1 "}).mgmt_ips == ["10.0.0.1"]


@pytest.mark.parametrize("addresses", [[], [""], "", 5, {"a": 1}, [["x"]], ["x"] * 17])
def test_wrong_management_addresses(addresses):
    with pytest.raises(pydantic.ValidationError):
        BackendCreate.model_validate({"mgmtIPs": addresses})


@pytest.mark.parametrize("value", ["12", 12, 12.0])
def test_new_capacity_as_text_or_number(value):
    assert VolumeUpdate.model_validate({"newCapacity": value}).new_capacity == 12


@pytest.mark.parametrize("value", ["", "x", "1.5", 0, -1, MAX_CAPACITY_GIB + 1, 10**400, None, []])
def test_wrong_capacity(value):
    with pytest.raises(pydantic.ValidationError):
        VolumeUpdate.model_validate({"newCapacity": value})
    with pytest.raises(pydantic.ValidationError):
        VolumeCreate.model_validate({"alias": "v", "capacity": value})


@pytest.mark.parametrize("text", RESERVED_TEXTS)
def test_reserved_texts_are_refused(text):
    for model, body in (
        (VolumeCreate, {"alias": f"x {text}", "capacity": 1}),
        (StorageClass, {"zones": [text]}),
        (BackendCreate, {"mgmtIPs": ["a"], "rack": text}),
        (HostProbe, {"hostNqn": NQN, "hostId": "h", "name": text}),
    ):
        with pytest.raises(pydantic.ValidationError, match="must not contain"):
            model.model_validate(body)


@pytest.mark.parametrize("text", ["a\nb", "a\x00b", "a\x1b[31m", "a\x7fb"])
def test_control_characters_are_refused(text):
    with pytest.raises(pydantic.ValidationError, match="control"):
        VolumeCreate.model_validate({"alias": text, "capacity": 1})


def test_the_host_id_of_old_hosts_ends_with_a_newline():
    assert HostProbe.model_validate({"hostNqn": NQN, "hostId": "h1\n"}).host_id == "h1"
    assert PublishRequest.model_validate({"hostId": " h1\n", "volId": "v\n"}).vol_id == "v"
    with pytest.raises(pydantic.ValidationError):
        PublishRequest.model_validate({"hostId": " \n", "volId": "v"})


def test_unpublish_from_every_host():
    assert UnpublishRequest.model_validate({"volId": "v", "hostId": None}).wire() == {"volId": "v"}


def test_uuids_are_normalised():
    asked = VolumeCreate.model_validate({"uuid": f" {UUID}", "alias": "v", "capacity": 1})
    assert asked.uuid == UUID.lower()
    with pytest.raises(pydantic.ValidationError, match="must be a UUID"):
        VolumeCreate.model_validate({"uuid": "12", "alias": "v", "capacity": 1})


def test_provisioning_type_without_case():
    body = {"alias": "v", "capacity": 1, "provisioningType": "thin"}
    assert VolumeCreate.model_validate(body).provisioning_type == "THIN"
    with pytest.raises(pydantic.ValidationError):
        VolumeCreate.model_validate(body | {"provisioningType": "thick as a brick"})


@pytest.mark.parametrize("replicas", [0, 4, "many"])
def test_number_of_replicas(replicas):
    with pytest.raises(pydantic.ValidationError):
        StorageClass.model_validate({"numReplicas": replicas})


def test_block_size():
    assert StorageClass.model_validate({"blockSize": 512}).block_size == 512
    with pytest.raises(pydantic.ValidationError, match="512 or 4096"):
        StorageClass.model_validate({"blockSize": 1024})


@pytest.mark.parametrize("nqn", ["", "nqn.", "iqn.2014-08.org:x", "nqn." + "x" * 220, None])
def test_wrong_host_nqns(nqn):
    with pytest.raises(pydantic.ValidationError):
        ExportSpec.model_validate({"hostNqn": nqn})


@pytest.mark.parametrize("data", [None, [], "x", 5])
def test_a_body_that_is_no_object(data):
    with pytest.raises(pydantic.ValidationError):
        VolumeCreate.model_validate(data)


def test_answers_carry_every_field():
    volume = Volume(uuid="1", alias="v", capacity=1, location=[Location(uuid="2")]).wire()
    assert volume["snapshotID"] == ""
    assert volume["writable"] is True
    backend = volume["location"][0]["backend"]
    assert backend["persistentID"] == ""
    assert backend["mgmtIPs"] == []
    assert backend["portals"] == []
    assert None not in volume.values()
    assert StatusAnswer().wire() == {
        "status": "Success",
        "description": "",
        "transient": False,
        "requestId": "",
    }


def test_what_is_not_asked_is_not_sent():
    asked = SnapshotVolumeCreate(alias="v", snapshot_id=UUID).wire()
    assert "capacity" not in asked
    assert "maxIOPSPerGB" not in asked
    spec = ReplicaSpec(volume_id=str(uuid.uuid4()), bytes=1 << 30).wire()
    assert set(spec) == {"volumeId", "bytes"}


@pytest.mark.parametrize("port", [0, 65536, "x"])
def test_portal(port):
    assert Portal.model_validate({"ip": "::1"}).wire() == {
        "ip": "::1",
        "port": 4420,
        "transport": "TCP",
    }
    with pytest.raises(pydantic.ValidationError):
        Portal.model_validate({"ip": "::1", "port": port})


def test_info_without_extensions():
    info = Info.model_validate({"totalFreeSpace": 5, "version": "3.22"})
    assert not info.supports("publish-attach")
    assert Info(capabilities=["publish-attach"]).supports("publish-attach")
