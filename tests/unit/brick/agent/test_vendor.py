# SPDX-License-Identifier: Apache-2.0
"""Vendors are found by name; Kumo's turns answers of the wire into what is planned with."""

import importlib.metadata

import pytest

from kumo_client import errors
from kumo_client.schemas.backend import Backend, BackendRef
from kumo_client.schemas.common import Portal
from kumo_client.schemas.host import Target
from kumo_client.schemas.task import Tag, Task
from kumo_client.schemas.volume import Location, Volume
from os_brick_nvmeof.agent import model, vendor
from os_brick_nvmeof.agent.vendors import kumo
from os_brick_nvmeof.props import Portal as Place

V = "0b6fe5d1-0000-4000-8000-000000000001"
A = "0b6fe5d1-0000-4000-8000-00000000000a"
B = "0b6fe5d1-0000-4000-8000-00000000000b"
IDENTITY = vendor.Identity("h", "nqn.host", "compute")


def points(monkeypatch, **named):
    found = [
        importlib.metadata.EntryPoint(name, value, vendor.GROUP) for name, value in named.items()
    ]
    monkeypatch.setattr(vendor.importlib.metadata, "entry_points", lambda group: found)


def test_ours_is_found_without_metadata(monkeypatch):
    points(monkeypatch)
    assert vendor.load("kumo") is kumo.make


def test_another_vendor_plugs_in(monkeypatch):
    points(monkeypatch, acme="os_brick_nvmeof.agent.vendors.kumo:make")
    assert vendor.load("acme") is kumo.make
    with pytest.raises(vendor.VendorError, match="'odd'; installed are acme, kumo"):
        vendor.load("odd")


def test_a_vendor_that_cannot_be_loaded_is_named(monkeypatch):
    points(monkeypatch, acme="os_brick_nvmeof.nothing:make")
    with pytest.raises(vendor.VendorError, match="vendor 'acme' cannot be loaded: No module"):
        vendor.load("acme")


class Server:
    """Answers of a KumoScale: no extension, portals with the nodes alone."""

    def __init__(self, targets):
        self.given = targets
        self.asked = []

    def supports(self, _name):
        return False

    def volume(self, uuid):
        self.asked.append(uuid)
        raise errors.NotExistsError("no such volume")

    def volume_by_alias(self, alias):
        if alias != "volume-1":
            raise errors.InvalidInputError("no such thing")
        places = [
            Location(uuid=A, backend=BackendRef(persistent_id="n1"), replica_state="Available"),
            Location(uuid=B, backend=BackendRef(persistent_id=""), replica_state="Missing"),
        ]
        return Volume(uuid=V, alias=alias, capacity=1, location=places, max_replica_down_time=5)

    def targets(self, host_id, volume_id):
        assert (host_id, volume_id) == ("h", V)
        return self.given

    def backend(self, uuid):
        self.asked.append(uuid)
        portals = [Portal(ip="[fd00::1]", transport="RoCEv2"), Portal(ip="10.0.0.1")]
        return Backend(persistent_id=uuid, state="Available", portals=portals)

    def backends(self):
        return [Backend(persistent_id="n1", state="Available")]

    def tasks(self, host_id):
        assert host_id == "h"
        tags = [Tag(name="replicaId", value=A)]
        return [Task(task_id="t", type="RemoteMigration", state="IDLE", volume_id=V, tags=tags)]


def target(nqn, node):
    return Target(target_name=nqn, name=nqn, backend=BackendRef(persistent_id=node))


def seen(alias="volume-1"):
    arrays = (
        model.Array("md1", "", "host:other", "clean", 2, ()),
        model.Array("md127", "0b6fe5d1-0000-4000-8000-0000000000ff", alias, "clean", 2, ()),
    )
    return model.Seen(arrays=arrays)


@pytest.mark.parametrize(
    ("targets", "nqns"),
    [
        ([target("nqn.1", "n1"), target("nqn.2", "n2")], ["nqn.1", ""]),
        ([target("nqn.all", "")], ["nqn.all", "nqn.all"]),
    ],
)
def test_a_kumoscale_is_asked_for_the_arrays_that_are_here(targets, nqns):
    server = Server(targets)
    found = kumo.KumoVendor(server, IDENTITY).pull(seen(), 100.0)
    (volume,) = found.volumes
    assert [leg.nqn for leg in volume.legs] == nqns
    assert (volume.replicas, volume.down_time, volume.replicated) == (0, 300.0, True)
    assert volume.legs[0].portals == (
        Place("fd00::1", "4420", "rdma"),
        Place("10.0.0.1", "4420", "tcp"),
    )
    assert {leg.freshness for leg in volume.legs} == {""}
    assert (found.nodes, found.time, found.stale) == ({"n1": "Available"}, 100.0, False)
    assert found.tasks[0].volume == V
    assert found.abilities == frozenset()


def test_a_volume_without_a_target_is_not_this_hosts():
    assert kumo.KumoVendor(Server([]), IDENTITY).pull(seen(), 0.0).volumes == ()
    assert kumo.KumoVendor(Server([]), IDENTITY).pull(seen("else"), 0.0).volumes == ()


@pytest.mark.parametrize(
    ("error", "definite", "away"),
    [
        (errors.CommunicationError("x"), False, True),
        (errors.ProtocolError("x"), False, True),
        (errors.InternalError("x"), False, False),
        (errors.NoSpaceError("x"), True, False),
        (errors.RemoteError("x", remote_code="Odd"), True, False),
    ],
)
def test_what_is_known_after_an_error(error, definite, away):
    class Failing:
        def add_replica(self, _volume):
            raise error

    with pytest.raises(vendor.VendorError) as caught:
        kumo.KumoVendor(Failing(), IDENTITY).request_replacement(model.Volume(V, "v", ()), A)
    assert (caught.value.definite, caught.value.away) == (definite, away)
    assert caught.value.code in ("Odd", error.code)
