# SPDX-License-Identifier: Apache-2.0
"""Errors keep their type and facts over the wire."""

import json

import pytest

from kumo_client import errors
from tests.fakes.http import Answer, Script
from tests.unit.client.conftest import A

CODES = sorted(errors.known_codes())


def _example(cls):
    return cls(
        "it did not work",
        volume="vol-1",
        node="node-1",
        way_out="try this",
        details={"n": [1]},
        request_id="req-1",
    )


def test_the_codes_are_stable():
    assert CODES == [
        "AlreadyExists",
        "AlreadyPublished",
        "BackendUnavailable",
        "Busy",
        "CommunicationError",
        "ConfigError",
        "Conflict",
        "DatabaseUnavailable",
        "DeviceNotFound",
        "Forbidden",
        "InUse",
        "InternalError",
        "InvalidInput",
        "InvalidLocationValue",
        "LastReplica",
        "MethodNotAllowed",
        "NoGroups",
        "NoSpace",
        "NotAvailable",
        "NotCoherent",
        "NotExists",
        "NotReady",
        "OutdatedRecord",
        "OverBudget",
        "ProtocolError",
        "Stale",
        "TooManyReplicas",
        "Unauthorized",
        "UnsafeDisk",
        "VolumeNotPublished",
    ]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("transient", [True, False])
def test_every_code_over_the_wire(code, transient, network, connect):
    cls = errors.known_codes()[code]
    sent = _example(cls)
    sent.transient = transient
    network.servers[A] = Script(Answer(sent.to_wire(), cls.http_status))
    with pytest.raises(errors.KumoError) as caught:
        connect(A, budget=0.1).request("GET", "/x")
    got = caught.value
    assert type(got) is cls
    assert got.code == code
    assert got.to_wire() == sent.to_wire()
    assert (got.volume, got.node, got.way_out) == ("vol-1", "node-1", "try this")
    assert len(network.requests) == 1 or transient


@pytest.mark.parametrize("code", CODES)
def test_relaying_does_not_change_an_error(code):
    wire = _example(errors.known_codes()[code]).to_wire()
    for _ in range(3):
        wire = errors.from_wire(json.loads(json.dumps(wire)), 409).to_wire()
    assert wire == _example(errors.known_codes()[code]).to_wire()


def test_internal_error_has_its_own_class():
    assert type(errors.from_wire({"status": "InternalError"}, 500)) is errors.InternalError


def test_an_unknown_code_keeps_its_name_and_transience():
    error = errors.from_wire({"status": "NewThing", "transient": True}, 503)
    assert isinstance(error, errors.RemoteError)
    assert error.transient
    assert error.remote_code == "NewThing"
    assert "HTTP 503" in str(error)


@pytest.mark.parametrize("junk", [5, [], {"a": 1}, True, ""])
def test_junk_in_the_fields_of_an_error(junk):
    body = dict.fromkeys(("description", "volume", "node", "details", "wayOut", "requestId"), junk)
    error = errors.from_wire({"status": "NoSpace", "transient": "yes"} | body, 409)
    assert isinstance(error, errors.NoSpaceError)
    assert error.transient is False
    assert "NoSpace" in str(error)
    assert error.volume is None


def test_the_description_names_volume_node_and_way_out_once():
    error = errors.InUseError(
        "volume v1 is in use.", volume="v1", node="n1", way_out="detach it first"
    )
    assert str(error) == "InUse: volume v1 is in use. Node: n1. detach it first."


def test_old_clients_see_bad_credentials_in_the_text():
    assert "Status 401" in errors.UnauthorizedError("no token").to_wire()["description"]
    assert "Status 403" in errors.ForbiddenError("not yours").to_wire()["description"]
