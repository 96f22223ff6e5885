# SPDX-License-Identifier: Apache-2.0
"""What becomes of good, bad and broken answers."""

import pytest

from kumo_client import errors
from tests.fakes.http import Answer, Script
from tests.unit.client.conftest import TOKEN, A, B


@pytest.fixture
def ask(network, connect):
    def send(answer, **options):
        network.servers[A] = Script(answer)
        return connect(A, budget=1).request("GET", "/x", **options)

    return send


@pytest.mark.parametrize(
    "content",
    [[], [{"uuid": "1", "status": "Broken"}], {}, {"status": "Success"}, {"version": "3"}],
)
@pytest.mark.parametrize("status", [200, 201])
def test_good_answers(ask, content, status):
    assert ask(Answer(content, status)) == content


def test_an_error_in_a_good_http_status_is_an_error(ask):
    with pytest.raises(errors.NotExistsError, match="no volume") as caught:
        ask(Answer({"status": "NotExists", "description": "no volume"}, 200))
    assert caught.value.details == {}


def test_a_status_that_the_caller_accepts(ask):
    body = {"status": "AlreadyPublished", "description": "", "replicas": []}
    assert ask(Answer(body), accept={"AlreadyPublished"}) == body
    with pytest.raises(errors.AlreadyPublishedError):
        ask(Answer(body))


def test_an_unknown_code_is_kept(ask):
    with pytest.raises(errors.RemoteError) as caught:
        ask(Answer({"status": "QuotaDrained", "description": "too much"}, 200))
    assert str(caught.value) == "QuotaDrained: too much."
    assert caught.value.to_wire()["status"] == "QuotaDrained"


def test_an_error_without_description(ask):
    with pytest.raises(errors.NoSpaceError, match="HTTP 409"):
        ask(Answer({"status": "NoSpace"}, 409))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(b""), "empty body"),
        (Answer(b"  \n"), "empty body"),
        (Answer(b"", 204), "empty body"),
        (Answer(b"<html><b>Hello</b></html>"), "not JSON: <html>"),
        (Answer(b'{"status": "Succ'), "not JSON"),
        (Answer(b"\xff\xfe\x00"), "not JSON"),
        (Answer(b"[" * 100_000), "not JSON"),
        (Answer(b"null"), "bare JSON"),
        (Answer(b'"Success"'), "bare JSON"),
        (Answer([], 500), "list instead"),
        (Answer({"status": 404, "error": "Not Found"}, 404), "HTTP 404"),
        (Answer({"detail": "Not Found"}, 404), "without saying which"),
        (Answer({"status": "Success"}, 500), "without saying which"),
        (Answer(b"", 302, {"Location": "https://elsewhere.example/"}), "redirection"),
    ],
)
def test_broken_answers(ask, network, answer, said):
    with pytest.raises((errors.ProtocolError, errors.RemoteError), match=said) as caught:
        ask(answer)
    assert not caught.value.transient
    assert not isinstance(caught.value, errors.NotExistsError)
    assert len(network.requests) == 1


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_proxy_without_a_server_leads_to_the_next_endpoint(network, connect, status):
    network.servers |= {A: Script(Answer(b"<html>", status)), B: Script(Answer())}
    assert connect().request("GET", "/x") == {"status": "Success"}


def test_bad_credentials_as_old_servers_say_it(ask):
    page = b"<html><title>HTTP Status 401</title></html>"
    with pytest.raises(errors.UnauthorizedError, match="Status 401"):
        ask(Answer(page, 401))
    with pytest.raises(errors.ForbiddenError):
        ask(Answer(page, 403))


def test_a_page_is_quoted_briefly_and_printably(ask):
    with pytest.raises(errors.ProtocolError) as caught:
        ask(Answer(b"\x1b[31m" + b"long page\n" * 1000))
    assert len(str(caught.value)) < 300
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_repeats_the_token_does_not_leak_it(ask):
    body = {
        "status": f"Bad{TOKEN}",
        "description": f"token {TOKEN} is wrong",
        "details": {TOKEN: [TOKEN]},
    }
    with pytest.raises(errors.RemoteError) as caught:
        ask(Answer(body, 401))
    assert TOKEN not in repr(vars(caught.value)) + str(caught.value)
