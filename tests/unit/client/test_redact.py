# SPDX-License-Identifier: Apache-2.0
"""No secret in logs, errors or reprs."""

import io
import logging
import string
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kumo_client import errors, redact
from kumo_client.session import Session
from tests.fakes.http import Answer, FakeClock, ReadTimeout, Refused, Script, Transport
from tests.unit.client.conftest import A, B

# All that RFC 6750 allows; long enough not to be part of an ordinary word.
TOKENS = st.text(string.ascii_letters + string.digits + "-._~+/", min_size=12, max_size=60)
# Such a token can come back as a number.
DIGITS = st.integers(10**12, 10**30).map(str)


def _echo(form):
    """A server that shows the credentials it was given, in some form."""

    def answer(request):
        seen = request.headers["Authorization"]
        token = seen.removeprefix("Bearer ")
        return {
            "good": Answer({"status": "Success", "note": seen, "name": f"x{token}y"}),
            "list": Answer([{"alias": token}]),
            "error": Answer({"status": "InvalidInput", "description": seen, token: token}, 400),
            "code": Answer({"status": token, "description": ""}, 400),
            "page": Answer(f"<p>{token}</p>".encode(), 500),
            "number": Answer({"status": "Bad", "details": {"n": int(token)}}, 400)
            if token.isdigit()
            else Answer(token.encode(), 400),
            "gateway": Answer((" " * 1990 + token).encode(), 502),
            "unauthorized": Answer(f"{token} Status 401".encode(), 401),
        }[form]

    return answer


FORMS = ["good", "list", "error", "code", "page", "number", "gateway", "unauthorized"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    token=TOKENS | DIGITS,
    form=st.sampled_from(FORMS),
    first=st.sampled_from([Refused, ReadTimeout]),
)
def test_the_token_appears_nowhere(token, form, first):
    clock = FakeClock()
    network = Transport({A: Script(first), B: _echo(form)}, clock)
    session = Session(
        [A, B], token=token, ca_file=None, transport=network, clock=clock, sleep=clock.sleep
    )
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    loggers = [logging.getLogger(name) for name in ("kumo_client", "urllib3")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    try:
        session.request("POST", "/x", json={"password": token, "n": token}, idempotent=True)
    except errors.KumoError as exc:
        print(str(exc), repr(exc), exc.to_wire(), vars(exc), file=shown)
        logging.getLogger("kumo_client").exception("failed")
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
    print(repr(session), str(session), file=shown)
    assert "/x" in shown.getvalue()
    assert token not in shown.getvalue()


@pytest.mark.parametrize("token", ["", " ", "two words", "a\nb", "tök", "a\x00b", "=only"])
def test_a_token_that_is_none_is_refused_without_showing_it(connect, network, token):
    with pytest.raises(errors.ConfigError, match="token") as caught:
        connect(token=token)
    with pytest.raises(errors.ConfigError):
        connect(token=lambda: token).request("GET", "/x")
    assert network.requests == []
    if token.strip():
        assert token not in str(caught.value)


def test_surrounding_space_of_a_token_is_dropped(connect, network):
    network.servers[A] = Script(Answer())
    connect(token=" abc==\n").request("GET", "/x")
    assert network.requests[0].headers["Authorization"] == "Bearer abc=="


def test_requests_and_answers_are_logged_with_the_time(connect, network, caplog):
    network.servers[A] = Script(Answer({"status": "Success", "token": "t0p", "n": 7}, seconds=1.5))
    with caplog.at_level(logging.DEBUG, logger="kumo_client"):
        connect(A).request("POST", "/x", json={"alias": "v1", "dhchapKey": "k3y"})
    asked, answered = (record.getMessage() for record in caplog.records)
    assert "POST https://a.example:8090/x" in asked
    assert '"alias": "v1"' in asked
    assert "answered HTTP 200 in 1.500 s" in answered
    assert '"n": 7' in answered
    assert asked.split()[0] == answered.split()[0]
    assert asked.startswith("req-")
    assert "t0p" not in caplog.text
    assert "k3y" not in caplog.text


def test_bodies_that_are_not_json_are_logged_by_size(connect, network, caplog):
    network.servers[A] = Script(Answer(b"<p>secret page</p>", 500))
    with caplog.at_level(logging.DEBUG), pytest.raises(errors.ProtocolError):
        connect(A).request("GET", "/x")
    assert "18 bytes that are not JSON" in caplog.text


def test_long_bodies_are_cut(connect, network, caplog):
    network.servers[A] = Script(Answer([{"alias": "x" * 100_000}]))
    with caplog.at_level(logging.DEBUG):
        connect(A).request("GET", "/x")
    assert len(caplog.text) < 10_000


def test_the_same_trouble_is_warned_of_once(connect, network, caplog):
    network.servers[A] = Script(Refused, Refused, Refused, Answer())
    with caplog.at_level(logging.WARNING):
        connect(A).request("GET", "/x")
    assert caplog.text.count("Connection refused") == 1


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer s3cret",
        "authorization=bearer s3cret",
        "'Authorization': 'Bearer s3cret'",
        "{'Authorization': 'Basic s3cret'}",
        '{\\"Authorization\\": \\"s3cret\\"}',
        "a bearer   s3cret",
        'body {"token": "s3cret", "n": 1}',
        "db_password=s3cret host=x",
        "KUMO_TOKEN=s3cret",
        "dhchap_ctrl_key: s3cret",
    ],
)
def test_texts(text):
    hidden = redact.text(text)
    assert "s3cret" not in hidden
    assert redact.HIDDEN in hidden


def test_texts_without_secrets_stay():
    text = "node n1 bears volume v1: a bearer token is needed, basic checks passed"
    assert redact.text(text) == text


@pytest.mark.parametrize("unit", ["x", "token", "authorization ", "bearer ", "token = ", "\"'"])
def test_large_texts_take_no_time(unit):
    began = time.process_time()
    redact.text(unit * (1_000_000 // len(unit)))
    assert time.process_time() - began < 5


def test_the_filter_hides_in_message_and_traceback():
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    handler.addFilter(redact.RedactingFilter(["hush-hush"]))
    logger = logging.Logger("example")
    logger.addHandler(handler)
    try:
        raise ValueError("it was hush-hush, Bearer abc.def")
    except ValueError:
        logger.exception("sent %s with password=%s", "hush-hush", "pw1")
    assert "ValueError" in shown.getvalue()
    for secret in ("hush-hush", "pw1", "abc.def"):
        assert secret not in shown.getvalue()
