# SPDX-License-Identifier: Apache-2.0
"""Nodes that are down, slow, lie or lose answers; many clients; restarts; bad input; secrets."""

import http.client
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from kumo_client import errors
from kumo_client.naming import GIB
from tests.fakes.fleet import ADDRESS
from tests.functional.provisioner import common


def until(condition, what, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def states(client):
    return sorted(one.state for one in client.backends())


def test_a_restart_keeps_everything(provisioner, fleet):
    for node in fleet.add(2):
        provisioner.register(node, zone="nova", rack=node.model.name)
    client = provisioner.client
    uid = common.made_volume(client, 2)
    common.made_snapshot(client, uid)
    answer = common.publish(client, common.made_volume(client, 2))

    def everything():
        return (
            [(one.uuid, one.location[0].uuid, one.published_hosts) for one in client.volumes()],
            client.snapshots(),
            [one.nqn for one in client.hosts()],
            [(one.persistent_id, one.zone, one.rack) for one in client.backends()],
            client.targets(host_id="host-1"),
        )

    before = everything()
    provisioner.restart()
    assert everything() == before
    assert answer.replicas[0].target_nqn in {one.target_name for one in before[-1]}
    counts = provisioner.reconcile()
    assert not any(value for value in counts.values() if isinstance(value, int))
    common.assert_consistent(provisioner, fleet)


def test_a_node_that_dies_and_returns(provisioner, fleet):
    first = fleet.add(3)[0]
    for node in fleet.nodes:
        provisioner.register(node)
    client = provisioner.client
    ids = [common.made_volume(client, 3) for _ in range(3)]
    common.publish(client, ids[0])
    first.down()
    until(lambda: "Unavailable" in states(client), "the loss was not noticed")
    begun = time.monotonic()
    client.delete_volume(ids[1])
    common.unpublish(client, ids[0])
    assert common.publish(client, ids[2]).status == "Success"
    assert time.monotonic() - begun < 5, "a node known to be down is not waited for"
    with pytest.raises(errors.NoSpaceError, match="Unavailable"):
        common.made_volume(client, 3)
    pair = client.volume(common.made_volume(client, 2))
    assert first.persistent_id not in {one.backend.persistent_id for one in pair.location}
    assert len(client.targets(volume_id=ids[2])) == 3
    assert len(first.state.replicas) == 3
    first.reboot()
    # Nobody asks for it: the probe that sees the node come back starts the reconcile.
    until(lambda: len(first.state.replicas) == 2, "the deleted replica stayed")
    until(lambda: len(first.state.exports) == 1, "the exports were not repaired")
    assert states(client) == ["Available"] * 3
    common.assert_consistent(provisioner, fleet)


@pytest.mark.parametrize("loss", ["lose_answer", "lose_request"])
def test_a_lost_answer_is_asked_for_again(provisioner, fleet, loss):
    node = fleet.add(1)[0]
    provisioner.register(node)
    client = provisioner.client
    for method, path in (
        ("PUT", "/v1/replicas/[^/]+$"),
        ("PUT", "/v1/snapshots"),
        ("PUT", "/exports"),
        ("PATCH", "/v1/replicas"),
        ("DELETE", "/exports"),
        ("DELETE", "/v1/snapshots"),
        ("DELETE", "/v1/replicas/[^/]+$"),
    ):
        getattr(node, loss)(method, path)
    uid = common.made_volume(client)
    snapshot = common.made_snapshot(client, uid)
    common.publish(client, uid)
    client.extend_volume(uid, 2)
    common.assert_consistent(provisioner, fleet)
    common.unpublish(client, uid)
    client.delete_snapshot(snapshot)
    client.delete_volume(uid)
    assert fleet.objects() == set()
    assert all(rule.times == 0 for rule in node._rules)


def test_a_slow_node_costs_an_error_and_no_space(provisioner, fleet):
    provisioner.configure({"nodes": {"budget": "1.5"}})
    provisioner.restart()
    fast, slow = fleet.add(2)
    for node in fleet.nodes:
        provisioner.register(node)
    slow.slow("PUT", "/v1/replicas", 2.5)
    client = provisioner.new_client(budget=2.0)
    begun = time.monotonic()
    with pytest.raises((errors.BackendUnavailableError, errors.CommunicationError)):
        client.create_volume(common.volume(2))
    assert time.monotonic() - begun < 8
    slow.clear_faults()
    fleet.settle()
    # The call that was given up has taken effect since.
    provisioner.reconcile()
    provisioner.reconcile()
    assert fleet.objects() == set()
    common.made_volume(provisioner.client, 2)
    assert len(fast.state.replicas) == 1


def test_errors_of_a_node_reach_the_client_as_what_they_are(provisioner, fleet):
    node = fleet.add(1)[0]
    provisioner.register(node)
    for given, expected in (
        (errors.NoSpaceError("full"), errors.NoSpaceError),
        (errors.UnauthorizedError("who are you"), errors.NotAvailableError),
        (errors.InternalError("bug"), errors.BackendUnavailableError),
    ):
        node.fail("PUT", "/v1/replicas", given, times=1)
        with pytest.raises(expected) as caught:
            common.made_volume(provisioner.client)
        assert caught.value.request_id.startswith("req-")
        assert caught.value.request_id in provisioner.log_text()
    assert fleet.objects() == set()


def test_many_creates_on_a_nearly_full_fleet_never_sell_too_much(provisioner, fleet):
    for node in fleet.add(3, total_bytes=8 * GIB, overcommit=1.0):
        provisioner.register(node)
    clients = threading.local()

    def create(number):
        client = getattr(clients, "client", None) or provisioner.new_client(budget=30)
        clients.client = client
        try:
            return common.made_volume(client, 1 + number % 2, gib=1 + number % 3)
        except errors.NoSpaceError:
            return None

    with ThreadPoolExecutor(16) as pool:
        made = [uid for uid in pool.map(create, range(32)) if uid]
    assert 0 < len(made) < 32
    common.assert_consistent(provisioner, fleet)
    assert {one.uuid for one in provisioner.client.volumes()} == set(made)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda uid: provisioner.new_client().delete_volume(uid), made))
    assert fleet.objects() == set()
    assert provisioner.client.tenants()[0].consumed_capacity == 0


def test_many_callers_of_one_volume_take_turns(provisioner, fleet):
    for node in fleet.add(2):
        provisioner.register(node)
    uid = common.made_volume(provisioner.client, 2)
    hold = fleet.nodes[0].hold("PUT", "/exports")

    def publish(_):
        return common.publish(provisioner.new_client(budget=20), uid).status

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(publish, number) for number in range(8)]
        hold.wait()
        hold.release()
        told = sorted(answer.result() for answer in answers)
    assert told == ["AlreadyPublished"] * 7 + ["Success"]
    with ThreadPoolExecutor(8) as pool:
        grown = [pool.submit(provisioner.new_client().extend_volume, uid, 4) for _ in range(4)]
        assert [one.result() is not NotImplemented for one in grown] == [True] * 4
    assert provisioner.client.volume(uid).capacity == 4
    common.assert_consistent(provisioner, fleet)


def raw(provisioner, method, target, body=None, headers=None):
    """(HTTP status, body) of a request that no client of ours would send."""
    context = ssl.create_default_context(cafile=provisioner.ca_file)
    connection = http.client.HTTPSConnection(
        urlsplit(provisioner.url).netloc, context=context, timeout=10
    )
    all_headers = {"Authorization": f"Bearer {provisioner.token}"} | (headers or {})
    connection.putrequest(method, target, skip_accept_encoding=True)
    if body is not None:
        all_headers.setdefault("Content-Length", str(len(body)))
    for name, value in all_headers.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "target", "body", "headers", "status"),
    [
        ("GET", "/volumes_by_alias/%ff", None, {}, 404),
        ("GET", "/volumes_by_alias/%ED%A0%80", None, {}, 404),
        ("GET", "/volumes_by_alias/%00", None, {}, 404),
        ("GET", "/volumes/" + "x" * 5000, None, {}, 400),
        ("GET", "/backends/%2e%2e%2f", None, {}, 404),
        ("GET", "/hosts?hostName=%ff%00", None, {}, 200),
        ("GET", "/targets?hostId=%ff", None, {}, 200),
        ("DELETE", "/hosts/%ff", None, {}, 404),
        ("PATCH", "/volumes/x", b"", JSON, 400),
        ("POST", "/volumes", b"", JSON, 400),
        ("POST", "/volumes", b'{"alias": "a", "capacity": 1', JSON, 400),
        ("POST", "/volumes", None, {"Content-Length": "999999999999"}, 413),
        ("GET", "/tenants", None, {"Authorization": "Bearer Unknown"}, 401),
        ("PROPFIND", "/volumes", None, {}, 405),
    ],
)
def test_requests_that_no_client_should_send(
    shared_provisioner, method, target, body, headers, status
):
    got, content = raw(shared_provisioner, method, target, body, headers)
    assert got == status, content
    assert content.startswith(b"{" if status >= 400 else b"[")
    if status >= 400:
        assert b'"description"' in content


def test_no_secret_is_in_any_log(provisioner, fleet):
    node = fleet.add(1)[0]
    provisioner.register(node)
    uid = common.made_volume(provisioner.client)
    stolen = "stolen-token-0123456789"
    with pytest.raises(errors.UnauthorizedError):
        provisioner.session(token=stolen).request("GET", "/volumes")
    node.fail("DELETE", "/v1/replicas", errors.InternalError("bug"), times=2)
    provisioner.client.delete_volume(uid)
    provisioner.stop()
    text = provisioner.log_text()
    assert "backend.added" in text
    assert "DEBUG" in text
    for secret in (provisioner.token, provisioner.node_token, stolen):
        assert secret not in text
    lines = [line for line in text.splitlines() if "Created volume" in line]
    assert len(lines) == 1
    assert "[None req-" in lines[0] or " req-" in lines[0]


def test_it_ends_in_order_and_finishes_what_it_works_on(provisioner, fleet):
    node = fleet.add(1)[0]
    provisioner.register(node)
    hold = node.hold("PUT", "/v1/replicas")
    made = []
    thread = threading.Thread(target=lambda: made.append(common.made_volume(provisioner.client)))
    thread.start()
    hold.wait()
    threading.Timer(0.5, hold.release).start()
    assert provisioner.stop() == 0
    thread.join(10)
    assert len(made) == 1
    assert "Traceback" not in provisioner.log_text()
    provisioner.start()
    assert [one.uuid for one in provisioner.client.volumes()] == made


def test_a_node_with_a_foreign_certificate_is_not_trusted(provisioner, fleet, tmp_path):
    from kumo_provisioner import init
    from tests.fakes.fleet import Fleet

    init.make(tmp_path / "foreign", [ADDRESS], [ADDRESS], 1)
    foreign = Fleet(tmp_path / "foreign" / "nodes" / f"{ADDRESS}.pem", provisioner.node_token)
    try:
        with pytest.raises(errors.BackendUnavailableError, match="certificate"):
            provisioner.new_client(budget=1.0).add_backend(common.backend_of(foreign.add(1)[0]))
    finally:
        foreign.close()
    assert provisioner.client.backends() == []
