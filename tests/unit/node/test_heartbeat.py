# SPDX-License-Identifier: Apache-2.0
"""Telling the provisioner how the node is."""

import json
import threading
import time

import pytest
import requests
from requests.adapters import BaseAdapter

from kumo_client import errors
from kumo_client.api.provisioner import Provisioner
from kumo_client.session import Session
from kumo_node import heartbeat, main
from kumo_node.heartbeat import Heartbeats
from tests.fakes.node import FakeMachine
from tests.unit.node.conftest import replica, uid

TOKEN = "a-token-for-heartbeats"


class FakeProvisioner(BaseAdapter):
    """POST /heartbeat over the real wire; ``answer`` is the next, as (status, body)."""

    def __init__(self):
        super().__init__()
        self.beats, self.headers = [], []
        self.answer = (200, {"status": "Success"})

    def send(self, request, **kwargs):
        self.headers.append(request.headers)
        response = requests.Response()
        response.request, response.url = request, request.url
        response.status_code, body = self.answer
        response._content = json.dumps(body).encode()
        if response.status_code == 200:
            assert request.path_url == "/heartbeat"
            self.beats.append(json.loads(request.body))
        return response

    def close(self):
        pass

    def client(self):
        session = Session(["https://p:1"], token=TOKEN, ca_file=None, transport=self, budget=0.1)
        return Provisioner(session)


@pytest.fixture
def there():
    return FakeProvisioner()


def made(there, node, **kwargs):
    return Heartbeats(there.client(), node.info, **kwargs)


def test_a_heartbeat_says_what_info_says(there, node):
    node.replicas.put(uid(1), replica())
    beats = made(there, node, clock=lambda: 1234.0)
    assert beats.beat()
    assert there.beats == [node.info().wire()]
    assert there.beats[0]["generation"] == node.ctx.spec.data.generation
    assert (beats.ok, beats.failed, beats.last) == (1, 0, 1234.0)


def test_a_failure_is_told_once_and_slows_down(there, node, caplog):
    caplog.set_level("INFO")
    beats = made(there, node)
    there.answer = (401, {"status": "Unauthorized", "description": "no"})
    pauses = []
    for _ in range(4):
        assert not beats.beat()
        pauses.append(beats.pause())
    assert pauses == [19.0, 39.0, 59.0, 59.0]
    assert caplog.text.count("cannot be told") == 1
    there.answer = (200, {"status": "Success"})
    assert beats.beat()
    assert beats.pause() == 9.0
    assert "told again" in caplog.text
    assert TOKEN not in caplog.text
    assert (beats.ok, beats.failed) == (1, 4)


def test_a_node_that_cannot_tell_keeps_the_loop(there, node, caplog):
    def broken():
        raise ZeroDivisionError

    beats = Heartbeats(there.client(), broken)
    assert not beats.beat()
    assert "could not be made" in caplog.text

    def refused():
        raise errors.InternalError("lvs failed")

    beats = Heartbeats(there.client(), refused)
    assert not beats.beat()
    assert "lvs failed" in caplog.text


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_one_is_sent_at_the_start_and_at_once_when_something_changed(there, node, monkeypatch):
    monkeypatch.setattr(heartbeat, "_LEAST", 0.01)
    node.conf.set_override("heartbeat_interval", 1000)
    node.tell(there.client())
    wait_for(lambda: len(there.beats) == 1)
    for observer in node.health.observers:
        observer()
    wait_for(lambda: len(there.beats) == 2)
    node.close()
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def options(tmp_path, **values):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "beat.token").write_text(f"{TOKEN}\n")
    return FakeMachine(
        tmp_path,
        provisioner_urls="https://a:8090,https://b:8090",
        provisioner_token_file=tmp_path / "beat.token",
        **values,
    ).conf()


def test_the_options_make_a_session_with_all_urls(tmp_path, there):
    conf = options(tmp_path)
    session = heartbeat.receiver(conf, "1").session
    assert session.endpoints == ("https://a:8090", "https://b:8090")
    session._http.mount("https://", there)
    session.request("POST", "/heartbeat", json={})
    (tmp_path / "beat.token").write_text("another-token-now")
    session.request("POST", "/heartbeat", json={})
    assert [headers["Authorization"] for headers in there.headers] == [
        f"Bearer {TOKEN}",
        "Bearer another-token-now",
    ]


def test_options_that_cannot_be_used(tmp_path):
    conf = options(tmp_path)
    (tmp_path / "beat.token").unlink()
    with pytest.raises(errors.ConfigError, match="provisioner_token_file"):
        heartbeat.receiver(conf, "1")
    conf.set_override("provisioner_token_file", None)
    with pytest.raises(errors.ConfigError, match="provisioner_token_file is needed"):
        heartbeat.receiver(conf, "1")
    conf.set_override("provisioner_urls", [])
    assert heartbeat.receiver(conf, "1") is None


def test_wrong_options_do_not_keep_the_node_from_serving(tmp_path, caplog):
    conf = options(tmp_path, provisioner_ca_file=tmp_path / "none.pem")
    machine = FakeMachine(tmp_path / "machine")
    machine.start()
    main._begin_heartbeats(machine.node, conf)
    assert "No heartbeats" in caplog.text
    assert machine.node.heartbeats is None
    conf.set_override("provisioner_urls", [])
    main._begin_heartbeats(machine.node, conf)
    assert machine.node.heartbeats is None
    machine.kill()


def test_heartbeats_begin_with_the_daemon(tmp_path, node, monkeypatch, there):
    monkeypatch.setattr(heartbeat, "receiver", lambda conf, version: there.client())
    main._begin_heartbeats(node, options(tmp_path / "conf"))
    wait_for(lambda: len(there.beats) >= 1)
    assert there.beats[0]["persistentID"] == node.ctx.persistent_id
    node.close()
