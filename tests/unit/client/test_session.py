# SPDX-License-Identifier: Apache-2.0
"""Repeats, failover and budget."""

import certifi
import pytest

from kumo_client import errors, request_id
from tests.fakes.http import (
    Answer,
    BadCertificate,
    BrokenBody,
    ConnectTimeout,
    ReadTimeout,
    Refused,
    Reset,
    Script,
    UnknownName,
)
from tests.unit.client.conftest import TOKEN, A, B

GOOD = Answer({"status": "Success", "description": "", "n": 1})
BUSY = Answer(errors.BusyError("working").to_wire(), 409)
NOT_SENT = [Refused, UnknownName, ConnectTimeout, BadCertificate]
LOST = [ReadTimeout, Reset, BrokenBody, Answer(b"<html>Bad Gateway</html>", 502)]
LASTING = [failure for failure in NOT_SENT + LOST if failure is not BadCertificate]


def test_what_is_sent(network, connect):
    network.servers[A] = Script(GOOD)
    with request_id.use("req-1234"):
        answer = connect().request("post", "/volumes", json={"a": 1}, params={"q": "x y"})
    assert answer["n"] == 1
    (sent,) = network.requests
    assert (sent.method, sent.path, sent.params, sent.json) == (
        "POST",
        "/volumes",
        {"q": "x y"},
        {"a": 1},
    )
    assert sent.headers["Authorization"] == f"Bearer {TOKEN}"
    assert sent.headers["X-Openstack-Request-Id"] == "req-1234"
    assert sent.headers["Content-Type"] == "application/json"
    assert sent.headers["User-Agent"] == "kumo-client"
    assert sent.timeout == (5.0, 60.0)
    assert network.verified[0][0] == "CERT_REQUIRED"


def test_the_token_is_asked_for_each_time(network, connect):
    network.servers[A] = Script(GOOD)
    tokens = iter(["first", "second"])
    session = connect(token=lambda: next(tokens))
    session.request("GET", "/info")
    session.request("GET", "/info")
    assert [sent.headers["Authorization"] for sent in network.requests] == [
        "Bearer first",
        "Bearer second",
    ]


def test_no_token_no_header(network, connect):
    network.servers[A] = Script(GOOD)
    connect(token=None).request("GET", "/info")
    assert "Authorization" not in network.requests[0].headers


def test_the_environment_changes_neither_token_nor_verification(
    network, connect, monkeypatch, tmp_path
):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine a.example login x password y\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(netrc))
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    network.servers[A] = Script(GOOD)
    connect().request("GET", "/info")
    assert network.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"
    assert network.verified[0][1] != str(netrc)


@pytest.mark.parametrize("failure", NOT_SENT)
def test_every_verb_fails_over_when_nothing_was_sent(network, connect, clock, failure):
    network.servers |= {A: Script(failure), B: Script(GOOD)}
    assert connect().request("POST", "/volumes")["n"] == 1
    assert network.calls() == [(A, "POST", "/volumes"), (B, "POST", "/volumes")]
    assert clock.slept == []


@pytest.mark.parametrize("failure", LOST)
@pytest.mark.parametrize(
    ("method", "idempotent"), [("GET", None), ("POST", True), ("DELETE", None)]
)
def test_an_idempotent_call_is_repeated_when_the_answer_is_lost(
    network, connect, failure, method, idempotent
):
    network.servers |= {A: Script(failure), B: Script(GOOD)}
    assert connect().request(method, "/x", idempotent=idempotent)["n"] == 1
    assert len(network.requests) == 2


@pytest.mark.parametrize("failure", LOST)
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_another_call_is_not_repeated_when_the_answer_is_lost(network, connect, failure, method):
    network.servers |= {A: Script(failure), B: Script(GOOD)}
    with pytest.raises(errors.CommunicationError, match="outcome: unknown") as caught:
        connect().request(method, "/x")
    assert network.calls() == [(A, method, "/x")]
    assert not caught.value.transient
    assert caught.value.details == {"outcome": "unknown"}


def test_a_body_that_cannot_be_unpacked_is_a_lost_answer(network, connect):
    network.servers[A] = Script(Answer(b"no gzip", headers={"Content-Encoding": "gzip"}))
    with pytest.raises(errors.CommunicationError, match="ContentDecodingError"):
        connect(A).request("POST", "/x")


def test_what_the_caller_is_handling_does_not_count(network, connect):
    """An earlier refused connection must not make a lost answer look unsent."""
    session = connect(A, budget=1)
    network.servers[A] = Script(*[Refused] * 20, ReadTimeout)
    with pytest.raises(errors.CommunicationError):
        session.request("POST", "/x")
    network.servers[A] = Script(ReadTimeout)
    network.requests.clear()
    try:
        raise ConnectionRefusedError from errors.CommunicationError("earlier")
    except ConnectionRefusedError:
        with pytest.raises(errors.CommunicationError, match="unknown"):
            session.request("POST", "/x")
    assert len(network.requests) == 1


def test_the_endpoint_that_answered_is_asked_first_next_time(network, connect):
    network.servers[B] = Script(Answer(errors.NotExistsError("no").to_wire(), 404))
    session = connect()
    for _ in range(2):
        with pytest.raises(errors.NotExistsError):
            session.request("GET", "/x")
    assert [base for base, _, _ in network.calls()] == [A, B, B]
    network.servers = {A: Script(GOOD)}
    session.request("GET", "/x")
    session.request("GET", "/x")
    assert [base for base, _, _ in network.calls()][3:] == [B, A, A]


@pytest.mark.parametrize("failure", LASTING)
def test_the_budget_ends_the_repeats(network, connect, clock, failure):
    network.servers |= {A: Script(failure), B: Script(failure)}
    began = clock.now
    with pytest.raises(errors.CommunicationError) as caught:
        connect(budget=30, read_timeout=7).request("GET", "/x")
    assert caught.value.transient
    assert A in str(caught.value)
    assert B in str(caught.value)
    assert 20 < clock.now - began <= 30.2
    assert len(network.requests) > 3


def test_the_last_word_of_a_server_outlives_a_later_silence(network, connect):
    down = errors.BackendUnavailableError("node 10.0.0.9 does not answer", node="10.0.0.9")
    network.servers[A] = Script(Answer(down.to_wire(), 503), ReadTimeout)
    with pytest.raises(errors.BackendUnavailableError, match=r"10\.0\.0\.9") as caught:
        connect(A, budget=30).request("PUT", "/x")
    assert caught.value.transient
    assert len(network.requests) > 1


def test_pauses_grow_and_stay_bounded(network, connect, clock):
    network.servers[A] = Script(Refused)
    with pytest.raises(errors.CommunicationError):
        connect(A, budget=60).request("GET", "/x")
    assert 0.1 <= clock.slept[0] <= 0.2
    assert max(clock.slept) <= 5.0
    assert all(pause >= 2.5 for pause in clock.slept[6:])


def test_a_call_may_have_a_budget_of_its_own(network, connect, clock):
    network.servers[A] = Script(ReadTimeout)
    began = clock.now
    with pytest.raises(errors.CommunicationError, match="within 3 s"):
        connect(A).request("GET", "/x", budget=3)
    assert clock.now - began == pytest.approx(3, abs=0.2)
    assert network.requests[0].timeout == (3, 3)


def test_the_ca_file_is_used(network, connect):
    network.servers[A] = Script(GOOD)
    connect(ca_file=certifi.where()).request("GET", "/x")
    assert network.verified == [("CERT_REQUIRED", certifi.where(), None)]


def test_service_that_comes_back_is_found_again(network, connect):
    network.servers[A] = Script(Refused, Refused, GOOD)
    assert connect(A).request("POST", "/x")["n"] == 1


def test_an_untrusted_certificate_everywhere_ends_at_once(network, connect, clock):
    network.servers |= {A: Script(BadCertificate), B: Script(BadCertificate)}
    with pytest.raises(errors.CommunicationError, match="not trusted") as caught:
        connect().request("GET", "/x")
    assert len(network.requests) == 2
    assert clock.slept == []
    assert not caught.value.transient


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_transient_error_is_repeated(network, connect, clock, method):
    network.servers[A] = Script(BUSY, BUSY, GOOD)
    assert connect().request(method, "/x")["n"] == 1
    assert len(clock.slept) == 2


def test_a_transient_error_that_stays_is_the_result(network, connect, clock):
    unavailable = errors.BackendUnavailableError("no answer", node="n1")
    network.servers[A] = Script(Answer(unavailable.to_wire(), 503))
    with pytest.raises(errors.BackendUnavailableError) as caught:
        connect(budget=10).request("POST", "/x")
    assert caught.value.node == "n1"
    assert caught.value.repeated
    assert len(network.requests) > 3


def test_an_error_that_is_not_transient_is_not_repeated(network, connect, clock):
    body = errors.BusyError("working").to_wire() | {"transient": False}
    network.servers[A] = Script(Answer(body, 409))
    with pytest.raises(errors.BusyError) as caught:
        connect().request("GET", "/x")
    assert not caught.value.transient
    assert not caught.value.repeated
    assert len(network.requests) == 1


def test_an_error_after_a_lost_answer_says_so(network, connect):
    exists = Answer(errors.AlreadyExistsError("there").to_wire(), 409)
    network.servers[A] = Script(ReadTimeout, exists)
    with pytest.raises(errors.AlreadyExistsError) as caught:
        connect(A).request("POST", "/x", idempotent=True)
    assert caught.value.repeated


def test_an_error_after_a_refused_connection_is_no_repeat(network, connect):
    exists = Answer(errors.AlreadyExistsError("there").to_wire(), 409)
    network.servers[A] = Script(Refused, exists)
    with pytest.raises(errors.AlreadyExistsError) as caught:
        connect(A).request("POST", "/x", idempotent=True)
    assert not caught.value.repeated


def test_one_request_id_for_all_tries_and_in_the_error(network, connect):
    network.servers |= {A: Script(ReadTimeout), B: Script(Answer(b"", 500))}
    with pytest.raises(errors.ProtocolError) as caught:
        connect().request("GET", "/x")
    ids = {sent.headers["X-Openstack-Request-Id"] for sent in network.requests}
    assert ids == {caught.value.request_id}
    assert request_id.valid(ids.pop())
    assert request_id.current() is None


def test_the_request_id_of_the_server_is_kept(network, connect):
    body = errors.NoSpaceError("full", request_id="req-of-server").to_wire()
    network.servers[A] = Script(Answer(body, 409))
    with pytest.raises(errors.NoSpaceError) as caught:
        connect().request("GET", "/x")
    assert caught.value.request_id == "req-of-server"


def test_a_malformed_request_id_is_not_passed_on():
    with request_id.use("req-1\nInjected: yes") as chosen:
        assert request_id.current() == chosen
        assert request_id.valid(chosen)
        assert "Injected" not in chosen


def test_closing(connect):
    with connect() as session:
        assert repr(session) == f"<Session {A} {B}>"
