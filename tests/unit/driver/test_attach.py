# SPDX-License-Identifier: Apache-2.0
"""Attach and detach, in one call and in KumoScale's sequence."""

import copy
import uuid

import pytest
import requests
from cinder import exception
from os_brick.initiator.connectors import nvmeof

from kumo_client import naming
from os_brick_nvmeof import props
from tests.unit.driver import builders, kumoscale
from tests.unit.driver.kumoscale import Refused

ONE, TWO = builders.connector("compute-1"), builders.connector("compute-2")
OURS = ONE | {"kumo": {"version": 1, "abilities": ["freshness"]}}
SEQUENCE = ["POST /host_probe", "POST /publish", "GET /volumes/*", "GET /targets"]


@pytest.fixture(params=[(), kumoscale.ALL], ids=["kumoscale", "kumo"])
def any_driver(request, make_driver):
    return make_driver(state=kumoscale.KumoScale(request.param))


@pytest.fixture
def replicated(volume_type):
    return volume_type(kumo__num_replicas="2")


def created(driver, make_volume, **values):
    volume = make_volume(**values)
    driver.create_volume(volume)
    driver.server.calls.clear()
    return volume


def calls(driver, volume):
    return [name.replace(volume.name_id, "*") for name in driver.server.names()]


def test_one_call_where_the_server_offers_it(driver, make_volume):
    volume = created(driver, make_volume)
    driver.initialize_connection(volume, ONE)
    assert calls(driver, volume) == ["POST /publish"]
    assert driver.server.calls[0][2]["host"]["hostNqn"] == ONE["nqn"]
    driver.terminate_connection(volume, ONE)
    assert calls(driver, volume) == ["POST /publish", "POST /unpublish"]


def test_sequence_of_a_kumoscale(make_driver, make_volume, replicated):
    driver = make_driver(state=kumoscale.KumoScale(()))
    volume = created(driver, make_volume, type=replicated)
    driver.initialize_connection(volume, ONE)
    assert calls(driver, volume) == [*SEQUENCE, "GET /backends/node-1", "GET /backends/node-2"]
    probe = driver.server.calls[0][2]
    assert probe == {
        "hostNqn": ONE["nqn"],
        "hostId": ONE["uuid"],
        "name": "compute-1",
        "clientType": "Agent",
        "version": "cinder-kumo-1.0.0",
        "duration": 30,
        "multipath": False,
        "abilities": [],
    }


def test_connection_of_one_replica(any_driver, make_volume):
    volume = created(any_driver, make_volume)
    replica = any_driver.server.volumes[volume.id]["location"][0]["uuid"]
    assert any_driver.initialize_connection(volume, ONE) == {
        "driver_volume_type": "nvmeof",
        "data": {
            "vol_uuid": volume.id,
            "alias": f"volume-{volume.id}",
            "writable": True,
            "volume_replicas": [
                {
                    "vol_uuid": replica,
                    "target_nqn": naming.subsystem_nqn("node-1", ONE["nqn"], "plain"),
                    "portals": [("10.1.0.1", "4420", "TCP")],
                }
            ],
            "replica_count": 1,
            "kumo": {
                "version": 1,
                "class": "plain",
                "capacity": 1,
                "host_nqn": ONE["nqn"],
                "array_state": "",
                "shared": False,
                "accept_stale": False,
                "tenant": "0",
                "publication": 0,
                "replicas": [
                    {
                        "uuid": replica,
                        "state": "Available",
                        "backend": "node-1",
                        "node": "",
                        "freshness": "fresh" if any_driver.server.capabilities else "",
                        "events": 0,
                        "target_nqn": naming.subsystem_nqn("node-1", ONE["nqn"], "plain"),
                        "portals": [("10.1.0.1", "4420", "TCP")],
                    }
                ],
            },
        },
    }


def test_connection_of_two_replicas(any_driver, make_volume, replicated):
    volume = created(any_driver, make_volume, type=replicated)
    data = any_driver.initialize_connection(volume, ONE)["data"]
    assert data["alias"] == f"volume-{volume.id}"[:27]
    assert data["replica_count"] == 2
    assert [leg["portals"][0][0] for leg in data["volume_replicas"]] == ["10.1.0.1", "10.1.0.2"]
    assert len({leg["target_nqn"] for leg in data["volume_replicas"]}) == 2
    assert data["kumo"]["class"] == "replicated"


def test_stock_connector_reads_it(any_driver, make_volume, replicated):
    """The key ``kumo`` changes nothing for the connector that os-brick ships."""
    any_driver.server.nodes["node-2"]["portals"][0]["transport"] = "RoCEv2"
    volume = created(any_driver, make_volume, type=replicated)
    data = any_driver.initialize_connection(volume, ONE)["data"]
    with_key = nvmeof.NVMeOFConnProps(copy.deepcopy(data))
    del data["kumo"]
    without = nvmeof.NVMeOFConnProps(data)
    for read in (with_key, without):
        assert read.is_replicated is True
        assert read.replica_count == 2
        assert read.cinder_volume_id == volume.id
        assert read.alias == data["alias"]
    assert [str(target) for target in with_key.targets] == [str(t) for t in without.targets]
    assert [target.portals[0].transport for target in with_key.targets] == ["tcp", "rdma"]
    assert [target.portals[0].port for target in with_key.targets] == ["4420", "4420"]


def test_attach_can_be_repeated(any_driver, make_volume):
    volume = created(any_driver, make_volume)
    first = any_driver.initialize_connection(volume, ONE)
    assert any_driver.initialize_connection(volume, ONE) == first
    assert any_driver.server.published == {(ONE["uuid"], volume.id)}


def test_detach_can_be_repeated(any_driver, make_volume):
    volume = created(any_driver, make_volume)
    any_driver.initialize_connection(volume, ONE)
    assert any_driver.terminate_connection(volume, ONE, force=False) is False
    assert any_driver.terminate_connection(volume, ONE) is False
    assert any_driver.server.published == set()


def test_no_connector_means_every_host(any_driver, make_volume):
    volume, other = created(any_driver, make_volume), created(any_driver, make_volume)
    for host in (ONE, TWO):
        any_driver.initialize_connection(volume, host)
    any_driver.initialize_connection(other, ONE)
    volume.volume_attachment.objects = [
        builders.attachment(volume.id, ONE),
        builders.attachment(volume.id, TWO),
    ]
    assert any_driver.terminate_connection(volume, None, force=True) is False
    assert any_driver.server.published == {(ONE["uuid"], other.id)}
    assert "hostId" not in any_driver.server.calls[-1][2]


def test_two_instances_of_one_host_share_a_publication(any_driver, make_volume):
    volume = created(any_driver, make_volume, multiattach=True, hosts=[ONE, ONE, TWO])
    for host in (ONE, ONE, TWO):
        any_driver.initialize_connection(volume, host)
    assert any_driver.terminate_connection(volume, ONE) is True
    assert any_driver.server.published == {(ONE["uuid"], volume.id), (TWO["uuid"], volume.id)}
    volume.volume_attachment.objects.pop(0)
    assert any_driver.terminate_connection(volume, ONE) is False
    assert any_driver.server.published == {(TWO["uuid"], volume.id)}


@pytest.mark.parametrize("status", ["uploading", "backing-up"])
def test_copy_to_an_image_leaves_the_instance_of_the_same_host_alone(driver, make_volume, status):
    """cinder-volume attaches a volume in use once more, without a record of it."""
    volume = created(driver, make_volume, status=status, hosts=[ONE])
    driver.initialize_connection(volume, ONE)
    driver.initialize_connection(volume, TWO)
    assert driver.terminate_connection(volume, ONE, force=True) is True
    assert driver.terminate_connection(volume, TWO, force=True) is False
    assert driver.server.published == {(ONE["uuid"], volume.id)}


def test_reserved_attachment_without_connector_does_not_count(driver, make_volume):
    volume = created(driver, make_volume, hosts=[ONE, None])
    driver.initialize_connection(volume, ONE)
    assert driver.terminate_connection(volume, ONE) is False
    assert driver.server.published == set()


@pytest.mark.parametrize("key", ["nqn", "uuid"])
@pytest.mark.parametrize("value", ["", None])
def test_connector_without_identity_is_refused(driver, make_volume, key, value):
    volume = created(driver, make_volume)
    connector = ONE | {key: value}
    if value is None:
        del connector[key]
    for call in (
        lambda: driver.validate_connector(connector),
        lambda: driver.initialize_connection(volume, connector),
    ):
        with pytest.raises(exception.InvalidConnectorException) as caught:
            call()
        assert f"{key} of host compute-1" in str(caught.value)
    assert driver.server.calls == []


def test_detach_needs_only_the_host_id(driver, make_volume):
    volume = created(driver, make_volume)
    driver.initialize_connection(volume, ONE)
    assert driver.terminate_connection(volume, {"uuid": ONE["uuid"]}) is False
    with pytest.raises(exception.InvalidConnectorException, match="uuid of host unknown"):
        driver.terminate_connection(volume, {"nqn": ONE["nqn"]})


def test_malformed_nqn_is_named(driver, make_volume):
    volume = created(driver, make_volume)
    with pytest.raises(exception.InvalidInput, match="host_nqn: String should match"):
        driver.initialize_connection(volume, ONE | {"nqn": "iqn.1993-08.org.debian:01:1"})


def test_unknown_volume(any_driver, make_volume):
    volume = make_volume()
    with pytest.raises(exception.VolumeBackendAPIException) as caught:
        any_driver.initialize_connection(volume, ONE)
    assert f"attach volume {volume.id} to host compute-1" in str(caught.value)
    assert any_driver.terminate_connection(volume, ONE) is False


def test_detach_of_a_volume_gone_is_success(any_driver, make_volume):
    any_driver.server.fail("POST /unpublish", Refused("NotExists", "no such volume", 404))
    assert any_driver.terminate_connection(make_volume(), ONE) is False


def test_detach_does_not_take_a_failure_for_gone(any_driver, make_volume):
    volume = created(any_driver, make_volume)
    any_driver.initialize_connection(volume, ONE)
    any_driver.server.fail("POST /unpublish", Refused("InternalError", "a defect", 500))
    with pytest.raises(exception.VolumeBackendAPIException, match="detach volume"):
        any_driver.terminate_connection(volume, ONE)
    any_driver.server.fail("POST /unpublish", Refused("InternalError", "a defect", 500))
    with pytest.raises(exception.VolumeBackendAPIException, match="from every host"):
        any_driver.terminate_connection(volume, None)
    assert any_driver.server.published == {(ONE["uuid"], volume.id)}


@pytest.mark.parametrize("call", ["GET /volumes/*", "GET /targets", "GET /backends/node-1"])
def test_failed_step_takes_the_publication_back(make_driver, make_volume, call):
    driver = make_driver(state=kumoscale.KumoScale(()))
    volume = created(driver, make_volume)
    driver.server.fail(call, Refused("NotAvailable", "no"))
    with pytest.raises(exception.VolumeBackendAPIException, match="NotAvailable"):
        driver.initialize_connection(volume, ONE)
    assert driver.server.published == set()


def test_failed_step_keeps_the_publication_of_an_attachment(make_driver, make_volume):
    driver = make_driver(state=kumoscale.KumoScale(()))
    volume = created(driver, make_volume, hosts=[ONE])
    driver.initialize_connection(volume, ONE)
    driver.server.fail("GET /targets", Refused("NotAvailable", "no"))
    with pytest.raises(exception.VolumeBackendAPIException, match="NotAvailable"):
        driver.initialize_connection(volume, ONE)
    assert driver.server.published == {(ONE["uuid"], volume.id)}


def test_failing_take_back_does_not_hide_the_reason(make_driver, make_volume, caplog):
    driver = make_driver(state=kumoscale.KumoScale(()))
    volume = created(driver, make_volume)
    driver.server.fail("GET /targets", Refused("NotAvailable", "first"))
    driver.server.fail("POST /unpublish", Refused("Conflict", "second"))
    with pytest.raises(exception.VolumeBackendAPIException, match="NotAvailable: first"):
        driver.initialize_connection(volume, ONE)
    assert "take back publication" in caplog.text


def test_lost_provisioner_is_not_asked_twice(make_driver, make_volume):
    driver = make_driver()
    volume = created(driver, make_volume)
    driver.adapter.broken = requests.ConnectionError("no answer")
    with pytest.raises(exception.VolumeBackendAPIException, match="CommunicationError"):
        driver.initialize_connection(volume, ONE)
    assert "/unpublish" not in str([request.url for request in driver.adapter.requests])


def test_target_on_a_foreign_node_is_refused(make_driver, make_volume):
    driver = make_driver(state=kumoscale.KumoScale(()))
    volume = created(driver, make_volume)
    driver.server.misplaced_targets = True
    with pytest.raises(exception.VolumeBackendAPIException, match="holds no replica"):
        driver.initialize_connection(volume, ONE)
    assert driver.server.published == set()


def test_answer_without_volume_is_no_answer(driver, make_volume):
    volume = created(driver, make_volume)
    driver.server.fail("POST /publish", Refused("Success", "", 200))
    with pytest.raises(exception.VolumeBackendAPIException, match="no volume"):
        driver.initialize_connection(volume, ONE)


@pytest.mark.parametrize("state", ["Missing", "Terminating"])
def test_leg_out_of_the_array_is_not_handed_out(any_driver, make_volume, replicated, state):
    volume = created(any_driver, make_volume, type=replicated)
    legs = any_driver.server.volumes[volume.id]["location"]
    legs[1]["replicaState"] = state
    data = any_driver.initialize_connection(volume, OURS)["data"]
    assert [leg["vol_uuid"] for leg in data["volume_replicas"]] == [legs[0]["uuid"]]
    assert data["replica_count"] == 2
    assert data["alias"] == f"volume-{volume.id}"[:27]
    assert data["kumo"]["replicas"][1]["state"] == state


def test_our_connector_gets_every_leg_described(driver, make_volume, replicated):
    volume = created(driver, make_volume, type=replicated)
    stored = driver.server.volumes[volume.id]
    stored |= {"arrayState": "open", "shared": True}
    stored["location"][0] |= {"freshness": "fresh", "events": 41, "nodeName": "storage-1"}
    stored["location"][1] |= {"freshness": "stale", "events": 7, "replicaState": "Missing"}
    data = driver.initialize_connection(volume, OURS)["data"]
    assert driver.server.calls[0][2]["host"]["abilities"] == ["freshness"]
    assert len(data["volume_replicas"]) == 1
    known = props.parse(data)
    assert (known.array_state, known.shared, known.host_nqn) == ("open", True, ONE["nqn"])
    assert (known.size, known.told, known.accept_stale) == (1 << 30, True, False)
    fresh, stale = known.legs
    assert (fresh.node, fresh.freshness, fresh.events) == ("storage-1", "fresh", 41)
    assert (stale.node, stale.freshness, stale.events) == ("node-2", "stale", 7)
    assert [str(portal) for portal in stale.portals] == ["tcp://10.1.0.2:4420"]
    assert stale.nqn == naming.subsystem_nqn("node-2", ONE["nqn"], "replicated")


@pytest.mark.parametrize("asker", [OURS, ONE], ids=["ours", "stock"])
def test_an_array_with_one_leg_left_stays_an_array(
    driver, make_volume, replicated, monkeypatch, asker
):
    volume = created(driver, make_volume, type=replicated)
    stored = driver.server.volumes[volume.id]
    stored |= {"arrayState": "clean", "wantedReplicas": 2}
    stored["location"][0] |= {"freshness": "fresh"}
    del stored["location"][1]
    # The provisioner goes by the replicas that were asked for.
    monkeypatch.setattr(kumoscale.naming, "io_class", lambda replicas: "replicated")
    data = driver.initialize_connection(volume, asker)["data"]
    assert data["alias"] == naming.array_name(volume.name)
    assert (data["replica_count"], data["kumo"]["class"]) == (1, "replicated")
    known = props.parse(data)
    assert known.replicated
    (leg,) = known.legs
    assert leg.nqn == naming.subsystem_nqn("node-1", ONE["nqn"], "replicated")


NOT_OURS = [None, "yes", {}, {"abilities": "freshness"}, {"abilities": None}]


def refused(driver, volume, leg, connector):
    with pytest.raises(exception.VolumeBackendAPIException) as caught:
        driver.initialize_connection(volume, connector)
    text = str(caught.value)
    assert f"{leg['uuid']} on node-2 is" in text
    assert volume.id in text
    assert "Install cinder-kumo on that host" in text
    assert driver.server.published == set()


@pytest.mark.parametrize("said", NOT_OURS)
def test_a_degraded_array_is_refused_to_the_stock_connector(
    any_driver, make_volume, replicated, said
):
    volume = created(any_driver, make_volume, type=replicated)
    leg = any_driver.server.volumes[volume.id]["location"][1]
    leg["replicaState"] = "Missing"
    refused(any_driver, volume, leg, ONE | {"kumo": said})


def test_a_stale_leg_is_refused_to_the_stock_connector(driver, make_volume, replicated):
    volume = created(driver, make_volume, type=replicated)
    leg = driver.server.volumes[volume.id]["location"][1]
    leg["freshness"] = "stale"
    refused(driver, volume, leg, ONE)


def test_a_leg_never_filled_is_not_for_the_stock_connector(driver, make_volume, replicated):
    volume = created(driver, make_volume, type=replicated)
    fresh, blank = driver.server.volumes[volume.id]["location"]
    blank |= {"freshness": "blank", "replicaState": "Unknown"}
    for host, legs in ((ONE, [fresh]), (OURS, [fresh, blank])):
        data = driver.initialize_connection(volume, host)["data"]
        assert [leg["vol_uuid"] for leg in data["volume_replicas"]] == [leg["uuid"] for leg in legs]
        assert data["replica_count"] == len(data["kumo"]["replicas"]) == 2


def test_a_leg_without_target_is_refused_to_the_stock_connector(
    make_driver, make_volume, replicated
):
    driver = make_driver(state=kumoscale.KumoScale(()))
    volume = created(driver, make_volume, type=replicated)
    driver.server.without_target.add("node-2")
    with pytest.raises(exception.VolumeBackendAPIException, match="on node-2 is not offered"):
        driver.initialize_connection(volume, ONE)
    assert len(driver.initialize_connection(volume, OURS)["data"]["volume_replicas"]) == 1


def test_all_or_nothing_is_asked_of_a_server_that_knows_it(make_driver, make_volume, replicated):
    for capabilities, asked in ((kumoscale.ALL, None), (kumoscale.COMPLETE, True)):
        driver = make_driver(state=kumoscale.KumoScale(capabilities))
        volume = created(driver, make_volume, type=replicated)
        driver.initialize_connection(volume, ONE)
        assert driver.server.calls[0][2].get("complete") is asked
        driver.initialize_connection(volume, OURS)
        assert "complete" not in driver.server.calls[1][2]


def test_an_operator_may_accept_old_data_for_one_volume(
    make_driver, make_volume, replicated, caplog
):
    wanted = str(uuid.uuid4())
    driver = make_driver(f"kumo_accept_stale = {wanted}")
    volume, other = make_volume(type=replicated, id=wanted), make_volume(type=replicated)
    for made in (volume, other):
        driver.create_volume(made)
        driver.server.volumes[made.id]["location"][1]["replicaState"] = "Missing"
    data = driver.initialize_connection(volume, ONE)["data"]
    assert props.parse(data).accept_stale is True
    assert f"Volume {volume.id} is named in kumo_accept_stale" in caplog.text
    with pytest.raises(exception.VolumeBackendAPIException, match="Stale"):
        driver.initialize_connection(other, ONE)


def test_no_leg_left_is_an_error_that_names_them(any_driver, make_volume):
    volume = created(any_driver, make_volume)
    any_driver.server.volumes[volume.id]["location"][0]["replicaState"] = "Missing"
    with pytest.raises(exception.VolumeBackendAPIException) as caught:
        any_driver.initialize_connection(volume, ONE)
    assert "on node-1 is Missing" in str(caught.value)
    assert any_driver.server.published == set()
