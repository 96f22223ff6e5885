# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import amqp
import pytest

from lab.openstack import cinder, http, keystone, rabbitmq

BACKENDS = {"one": {"volume_driver": "a.B"}, "two": {"volume_driver": "a.B"}}


class Bus:
    """The broker and the scheduler as readiness sees them."""

    def __init__(self):
        self.queues, self.pools = {}, []

    def consumers(self, settings, queue):
        return self.queues.get(queue, 0)

    def request(self, method, url, **options):
        if url.endswith("/auth/tokens"):
            return SimpleNamespace(headers={"X-Subject-Token": "t"})
        assert options["headers"] == {"X-Auth-Token": "t"}
        return SimpleNamespace(json=lambda: {"pools": [{"name": name} for name in self.pools]})


@pytest.fixture
def bus(monkeypatch):
    bus = Bus()
    monkeypatch.setattr(rabbitmq, "consumers", bus.consumers)
    monkeypatch.setattr(http, "request", bus.request)
    return bus


def test_volume_service_is_ready_when_every_backend_reports_and_listens(settings, bus):
    ready = cinder.volume(settings, BACKENDS).ready
    assert not ready()
    bus.queues["cinder-volume.kumo@one"] = 1
    bus.pools = ["kumo@one#a", "kumo@one#b"]
    assert not ready()
    bus.queues["cinder-volume.kumo@two"] = 1
    assert not ready()
    bus.pools.append("kumo@two#a")
    assert ready()


def test_pools_remembered_from_an_earlier_process_do_not_make_it_ready(settings, bus):
    bus.pools = ["kumo@one#a", "kumo@two#a"]
    assert not cinder.volume(settings, BACKENDS).ready()


def test_scheduler_is_ready_when_it_takes_messages(settings, bus):
    scheduler = cinder.scheduler(settings)
    assert not scheduler.ready()
    bus.queues["cinder-scheduler"] = 1
    assert scheduler.ready()


def test_services_read_only_our_config(settings):
    cinder.write_config(settings)
    argv = cinder.volume(settings, BACKENDS).argv
    root = settings.state_dir / "cinder"
    assert argv[-4:] == [
        *["--config-file", str(root / "cinder-volume.conf")],
        *["--config-dir", str(root / "conf.d")],
    ]
    assert list((root / "conf.d").iterdir()) == []
    assert (root / "cinder-volume.conf").stat().st_mode & 0o077 == 0


def test_service_token_is_asked_for_in_its_own_project(settings, monkeypatch):
    asked = []

    def request(method, url, json):
        asked.append(json["auth"])
        return SimpleNamespace(headers={"X-Subject-Token": "nova's"})

    monkeypatch.setattr(http, "request", request)
    assert keystone.token(settings, "nova", "service") == "nova's"
    assert asked[0]["scope"]["project"]["name"] == "service"
    user = asked[0]["identity"]["password"]["user"]
    assert user["password"] == settings.passwords["nova"]


class FakeConnection:
    """amqp.Connection to a broker that answers a passive declaration with ``answer``."""

    answer = None

    def __init__(self, host, **options):
        assert host == "192.0.2.7:5672"
        self.collected = False

    def connect(self):
        if isinstance(self.answer, ConnectionError):
            raise self.answer

    def channel(self):
        return self

    def queue_declare(self, queue, passive):
        assert passive
        if isinstance(self.answer, Exception):
            raise self.answer
        return SimpleNamespace(consumer_count=self.answer)

    def collect(self):
        self.collected = True


@pytest.mark.parametrize(("answer", "count"), [(2, 2), (amqp.exceptions.NotFound("no queue"), 0)])
def test_consumers_of_a_queue(settings, monkeypatch, answer, count):
    monkeypatch.setattr(FakeConnection, "answer", answer)
    monkeypatch.setattr(amqp, "Connection", FakeConnection)
    assert rabbitmq.consumers(settings, "q") == count


@pytest.mark.parametrize(
    "answer", [amqp.exceptions.AccessRefused("bad login"), ConnectionRefusedError("nobody")]
)
def test_broker_that_cannot_be_asked_is_not_an_empty_queue(settings, monkeypatch, answer):
    monkeypatch.setattr(FakeConnection, "answer", answer)
    monkeypatch.setattr(amqp, "Connection", FakeConnection)
    with pytest.raises(OSError, match=r"bad login|nobody"):
        rabbitmq.consumers(settings, "q")
