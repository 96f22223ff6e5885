# SPDX-License-Identifier: Apache-2.0
"""Log records as JSON, and the line of each request."""

import io
import json
import logging

import pytest
from oslo_log import log
from starlette.testclient import TestClient

from kumo_client import redact, request_id
from kumo_provisioner import app, auth
from kumo_provisioner.logs import JsonFormatter
from tests.unit.provisioner.conftest import TOKEN


class Lines:
    """What a logger wrote with the formatter."""

    def __init__(self, name):
        self._stream = io.StringIO()
        self.handler = logging.StreamHandler(self._stream)
        self.handler.setFormatter(JsonFormatter(["hush"]))
        self.handler.addFilter(redact.RedactingFilter(["hush"]))
        self.logger = logging.getLogger(name)

    def __enter__(self):
        self._level = self.logger.level
        self.logger.addHandler(self.handler)
        self.logger.setLevel(logging.DEBUG)
        return self

    def __exit__(self, *_):
        self.logger.removeHandler(self.handler)
        self.logger.setLevel(self._level)

    @property
    def all(self):
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


def test_one_line_with_everything():
    with Lines("kumo.test") as lines:
        log.getLogger("kumo.test").warning("first\nsecond %s", "ä", extra={"fields": {"n": 1}})
    (line,) = lines.all
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "WARNING",
        "logger": "kumo.test",
        "requestId": "",
        "message": "first\nsecond ä",
        "fields": {"n": 1},
    }


def test_an_exception_and_no_secret():
    with Lines("kumo.test") as lines:
        try:
            raise ValueError("the password is hush")
        except ValueError:
            log.getLogger("kumo.test").exception(
                "failed with hush", extra={"fields": {"a": "hush", "token": "x"}}
            )
    (line,) = lines.all
    assert "ValueError" in line["exception"]
    assert "hush" not in json.dumps(line)
    assert line["fields"]["token"] == redact.HIDDEN


def test_a_record_of_a_library_is_taken_as_it_is():
    record = logging.LogRecord("lib", logging.INFO, "f", 1, "a %d", (1,), None)
    assert json.loads(JsonFormatter().format(record))["message"] == "a 1"
    record.exc_info = (ValueError, ValueError("x"), None)
    assert "ValueError: x" in json.loads(JsonFormatter().format(record))["exception"]


@pytest.fixture
def access(core, conf, three):
    conf.set_override("access", True, group="logging")
    tokens = auth.Tokens({auth.digest(TOKEN): auth.Identity("admin", auth.ADMIN)})
    with TestClient(app.make(core, tokens, background=False)) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client


def test_a_line_for_each_request(access):
    make = logging.getLogRecordFactory()

    def factory(*args, **options):
        record = make(*args, **options)
        record.request_id = request_id.current()
        return record

    logging.setLogRecordFactory(factory)
    try:
        with Lines("kumo_provisioner.observer") as lines:
            answer = access.get("/volumes/some-secret-path")
            access.get("/nothing", headers={"Authorization": "Bearer wrong"})
    finally:
        logging.setLogRecordFactory(make)
    known, refused = lines.all
    ms = known["fields"].pop("ms")
    assert ms >= 0
    assert known["fields"] == {
        "method": "GET",
        "route": "/volumes/{uuid}",
        "status": 404,
        "identity": "admin",
    }
    assert known["requestId"] == answer.headers[request_id.HEADER]
    assert known["message"] == f"GET /volumes/{{uuid}} 404 {ms} ms admin"
    assert refused["fields"]["status"] == 401
    assert refused["fields"]["identity"] == ""


def test_no_line_without_the_option(web):
    with Lines("kumo_provisioner.observer") as lines:
        web.get("/volumes")
    assert lines.all == []
