# SPDX-License-Identifier: Apache-2.0
"""The provisioner's calls against a server with state, and against old and broken ones."""

import uuid

import pytest

from kumo_client import errors
from kumo_client.api.provisioner import Provisioner
from kumo_client.schemas.backend import BackendCreate, BackendUpdate
from kumo_client.schemas.host import HostProbe, PublishRequest, UnpublishRequest
from kumo_client.schemas.snapshot import SnapshotCreate, SnapshotVolumeCreate
from kumo_client.schemas.volume import CloneCreate, StorageClass, VolumeCreate
from tests.fakes.http import Answer, ReadTimeout, Script
from tests.unit.client.conftest import A

V1, V2, V3, S1 = (str(uuid.UUID(int=number)) for number in range(1, 5))
NQN = "nqn.2014-08.org.nvmexpress:uuid:h1"


@pytest.fixture
def volume(provisioner):
    provisioner.create_volume(
        VolumeCreate(uuid=V1, alias="v1", capacity=2, storage_class=StorageClass(num_replicas=2))
    )
    return V1


@pytest.fixture
def answers(network, connect):
    """A provisioner behind a server that gives these answers in turn."""

    def make(*steps):
        network.servers[A] = Script(*steps)
        return Provisioner(connect(A, budget=5, read_timeout=1))

    return make


def test_life_of_a_volume(provisioner, volume):
    found = provisioner.volume(volume)
    assert (found.alias, found.capacity, len(found.location)) == ("v1", 2, 2)
    provisioner.extend_volume(volume, 3)
    assert provisioner.volume_by_alias("v1").capacity == 3
    assert [item.uuid for item in provisioner.volumes()] == [volume]
    provisioner.delete_volume(volume)
    for ask in (lambda: provisioner.volume(volume), lambda: provisioner.volume_by_alias("v1")):
        with pytest.raises(errors.NotExistsError, match="does not exist"):
            ask()
    with pytest.raises(errors.NotExistsError):
        provisioner.delete_volume(volume)


def test_new_capacity_travels_as_text_for_old_servers(provisioner, volume, network):
    provisioner.extend_volume(volume, 3)
    assert network.requests[-1].json == {"newCapacity": "3"}


def test_snapshots_and_clones(provisioner, volume):
    provisioner.create_snapshot(SnapshotCreate(alias="s1", volume_id=volume, snapshot_id=S1))
    assert provisioner.snapshot(S1) == provisioner.snapshot_by_alias("s1")
    assert provisioner.snapshots() == provisioner.snapshots_of(volume)
    assert provisioner.snapshots_of(V3) == []
    provisioner.create_snapshot_volume(
        SnapshotVolumeCreate(alias="v2", snapshot_id=S1, volume_id=V2, capacity=5)
    )
    assert provisioner.volume(V2).snapshot_id == S1
    provisioner.clone_volume(CloneCreate(source_volume_id=V1, alias="v3", volume_id=V3))
    assert provisioner.volume(V3).capacity == 2
    provisioner.delete_snapshot(S1)
    with pytest.raises(errors.NotExistsError):
        provisioner.snapshot(S1)
    with pytest.raises(errors.NotExistsError):
        provisioner.delete_snapshot(S1)


def test_attach_and_detach(provisioner, volume):
    provisioner.probe_host(HostProbe(host_nqn=NQN, host_id="h1", name="compute"))
    with pytest.raises(errors.ConflictError):
        provisioner.probe_host(HostProbe(host_nqn=NQN + "2", host_id="h1"))
    assert [host.nqn for host in provisioner.hosts()] == [NQN]
    assert provisioner.hosts("other") == []
    request = PublishRequest(host_id="h1", vol_id=volume)
    first = provisioner.publish(request)
    again = provisioner.publish(request)
    assert (first.status, again.status) == ("Success", "AlreadyPublished")
    assert again.volume.uuid == volume
    assert len(provisioner.targets(host_id="h1", volume_id=volume)) == 1
    assert provisioner.targets(host_id="h2") == []
    assert provisioner.unpublish(UnpublishRequest(vol_id=volume)).status == "Success"
    gone = provisioner.unpublish(UnpublishRequest(vol_id=volume, host_id="h1"))
    assert gone.status == "VolumeNotPublished"
    with pytest.raises(errors.NotExistsError):
        provisioner.unpublish(UnpublishRequest(vol_id=V3))
    provisioner.delete_host("h1")
    with pytest.raises(errors.NotExistsError):
        provisioner.delete_host("h1")


def test_targets_of_nothing_are_not_asked(provisioner, network):
    with pytest.raises(errors.InvalidInputError):
        provisioner.targets()
    assert network.requests == []


def test_backends(provisioner):
    made = provisioner.add_backend(BackendCreate(mgmt_ips=["10.0.0.1"], rack="r1"))
    assert (made.persistent_id, made.rack) == ("node-1", "r1")
    provisioner.update_backend("node-1", BackendUpdate(rack="r2"))
    assert provisioner.backend("node-1").rack == "r2"
    assert [item.persistent_id for item in provisioner.backends()] == ["node-1"]
    with pytest.raises(errors.AlreadyExistsError):
        provisioner.add_backend(BackendCreate(mgmt_ips=["10.0.0.1"]))
    provisioner.delete_backend("node-1")
    with pytest.raises(errors.NotExistsError):
        provisioner.backend("node-1")
    assert provisioner.tenants()[0].consumed_capacity == 10


def test_a_backend_that_is_registered_but_not_listed(answers):
    other = {"persistentID": "n", "mgmtIPs": ["10.0.0.9"]}
    api = answers(Answer(), Answer([other]))
    with pytest.raises(errors.ProtocolError, match=r"no backend has the address 10\.0\.0\.1"):
        api.add_backend(BackendCreate(mgmt_ips=["10.0.0.1"]))


def test_a_backend_that_comes_with_the_answer(answers, network):
    made = {"status": "Success", "description": "", "persistentID": "n", "rack": "r"}
    backend = answers(Answer(made)).add_backend(BackendCreate(mgmt_ips=["name.example"]))
    assert (backend.persistent_id, backend.rack) == ("n", "r")
    assert len(network.requests) == 1


def test_capabilities_are_asked_now_and_then(provisioner, server, network, clock):
    assert provisioner.supports("publish-attach")
    assert not provisioner.supports("time-travel")
    assert len(network.requests) == 1
    server.capabilities.append("time-travel")
    clock.now += 301
    assert provisioner.supports("time-travel")
    assert provisioner.info().total_free_space == 90


def _volume(**changes):
    fields = {"uuid": V1, "alias": "v1", "capacity": 2}
    return VolumeCreate(**fields | changes)


CREATES = {
    "volume": lambda api: api.create_volume(_volume(uuid=V3, alias="v3")),
    "volume without id": lambda api: api.create_volume(_volume(uuid=None, alias="v3")),
    "snapshot": lambda api: api.create_snapshot(SnapshotCreate(alias="s1", volume_id=V1)),
    "clone": lambda api: api.clone_volume(CloneCreate(source_volume_id=V1, alias="v3")),
    "backend": lambda api: api.add_backend(BackendCreate(mgmt_ips=["10.0.0.1"], zone="z")),
}


@pytest.mark.parametrize("kind", CREATES)
@pytest.mark.parametrize("lost", [0, 1])
def test_a_create_whose_answer_was_lost_succeeds(provisioner, server, volume, kind, lost, network):
    server.lose = lost
    before = len(network.requests)
    CREATES[kind](provisioner)
    posts = [sent for sent in network.requests[before:] if sent.method == "POST"]
    assert len(posts) == 1 + lost
    assert all(sent.body == posts[0].body for sent in posts)


def test_a_snapshot_volume_whose_answer_was_lost_succeeds(provisioner, server, volume):
    provisioner.create_snapshot(SnapshotCreate(alias="s1", volume_id=V1, snapshot_id=S1))
    server.lose = 1
    provisioner.create_snapshot_volume(SnapshotVolumeCreate(alias="v2", snapshot_id=S1))
    assert provisioner.volume_by_alias("v2").snapshot_id == S1


def test_what_existed_before_is_an_error_even_if_equal(provisioner, volume):
    with pytest.raises(errors.AlreadyExistsError):
        provisioner.create_volume(
            _volume(storage_class=StorageClass(num_replicas=2)),
        )


EXISTS = Answer(errors.AlreadyExistsError("it exists").to_wire(), 409)
FOUND = {"uuid": V1.upper(), "alias": "v1", "capacity": 2, "numReplicas": 1}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"uuid": V2}, "uuid"),
        ({"alias": "other"}, "alias"),
        ({"capacity": 3}, "capacity"),
        ({"numReplicas": 2}, "numReplicas"),
        ({}, None),
    ],
)
def test_a_lost_create_of_something_else_is_an_error(answers, change, field):
    api = answers(ReadTimeout, EXISTS, Answer([FOUND | change]))
    if field is None:
        api.create_volume(_volume())
        return
    with pytest.raises(errors.AlreadyExistsError, match=f"differs in {field}") as caught:
        api.create_volume(_volume())
    assert caught.value.request_id


def test_a_lost_create_whose_alias_another_has_is_an_error(answers):
    api = answers(ReadTimeout, EXISTS, Answer([]))
    with pytest.raises(errors.AlreadyExistsError, match="it exists"):
        api.create_volume(_volume())


def test_a_lost_create_that_cannot_be_compared_is_that_error(answers):
    api = answers(ReadTimeout, EXISTS, ReadTimeout)
    with pytest.raises(errors.CommunicationError):
        api.create_volume(_volume())


@pytest.mark.parametrize(
    ("create", "found", "field"),
    [
        (
            lambda api: api.clone_volume(
                CloneCreate(source_volume_id=V2, alias="v1", volume_id=V1, capacity=2)
            ),
            FOUND | {"sourceVolumeId": V3},
            "sourceVolumeId",
        ),
        (
            lambda api: api.create_snapshot_volume(
                SnapshotVolumeCreate(alias="v1", snapshot_id=S1, volume_id=V1)
            ),
            FOUND | {"snapshotID": V3},
            "snapshotID",
        ),
        (
            lambda api: api.create_snapshot(
                SnapshotCreate(alias="s", volume_id=V1, snapshot_id=S1)
            ),
            {"snapshotID": S1, "alias": "s", "volumeID": V2, "capacity": 2},
            "volumeID",
        ),
        (
            lambda api: api.add_backend(BackendCreate(mgmt_ips=["10.0.0.1"], zone="a")),
            {"persistentID": "n", "mgmtIPs": ["10.0.0.1"], "zone": "b"},
            "zone",
        ),
    ],
)
def test_other_lost_creates_of_something_else(answers, create, found, field):
    api = answers(ReadTimeout, EXISTS, Answer([found]))
    with pytest.raises(errors.AlreadyExistsError, match=f"differs in {field}"):
        create(api)


@pytest.mark.parametrize("kind", ["volume", "snapshot", "backend", "host"])
def test_a_delete_whose_answer_was_lost_succeeds(answers, kind):
    gone = Answer(errors.DeviceNotFoundError("gone").to_wire(), 404)
    getattr(answers(ReadTimeout, gone), f"delete_{kind}")("x")
    with pytest.raises(errors.NotExistsError):
        getattr(answers(gone), f"delete_{kind}")("x")


# -- old and broken servers -----------------------------------------------------------------------


def test_not_available_texts_of_old_servers(answers):
    found = {
        "uuid": V1,
        "alias": "N/A",
        "capacity": 2,
        "maxIOPS": "N/A",
        "writable": "N/A",
        "snapshotID": "N/A",
        "location": [{"uuid": V2, "backend": "N/A", "replicaState": "Available", "x": {}}],
        "fromTheFuture": [1, 2],
    }
    volume = answers(Answer([found])).volume(V1)
    assert volume.alias == "N/A"
    assert (volume.max_iops, volume.writable, volume.snapshot_id) == (0, True, "")
    assert volume.location[0].backend.persistent_id == ""
    backend = {"persistentID": "Ab:cD", "portals": "N/A", "totalCapacity": "N/A", "mgmtIPs": None}
    assert answers(Answer([backend])).backend("Ab:cD").portals == []


@pytest.mark.parametrize("content", [[], {"status": "NotExists", "description": "none"}])
def test_both_ways_to_say_that_there_is_none(answers, content):
    for name in ("volume", "volume_by_alias", "backend", "snapshot", "snapshot_by_alias"):
        with pytest.raises(errors.NotExistsError):
            getattr(answers(Answer(content)), name)("x")


@pytest.mark.parametrize(
    "content",
    [
        FOUND,
        [FOUND, FOUND],
        ["text"],
        [None],
        [[]],
        [{"uuid": V1}],
        [FOUND | {"capacity": "many"}],
    ],
)
def test_a_broken_item_is_never_taken_for_none(answers, content):
    with pytest.raises(errors.ProtocolError):
        answers(Answer(content)).volume(V1)


@pytest.mark.parametrize("name", ["volumes", "backends", "snapshots", "hosts", "tenants"])
def test_a_list_must_be_a_list(answers, name):
    with pytest.raises(errors.ProtocolError, match="instead of a list"):
        getattr(answers(Answer({"status": "Success"})), name)()


def test_info_must_be_an_object(answers):
    with pytest.raises(errors.ProtocolError, match="a list instead of an object"):
        answers(Answer([])).info()


def test_identifiers_are_quoted(answers, network):
    with pytest.raises(errors.NotExistsError):
        answers(Answer([])).volume_by_alias("a/b?c d%2F")
    assert network.requests[-1].path == "/volumes_by_alias/a/b?c d%2F"
    assert network.requests[-1].params == {}


@pytest.mark.parametrize("identifier", ["", ".", ".."])
def test_an_identifier_that_is_a_path_is_not_sent(answers, network, identifier):
    with pytest.raises(errors.InvalidInputError):
        answers(Answer()).delete_volume(identifier)
    assert network.requests == []
