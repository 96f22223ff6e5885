# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import requests

from lab import services
from lab.errors import LabError
from lab.openstack import stack as stack_module
from lab.services import Cinder, Services


class FakeInside:
    """Stands for the thread in the namespace: refuses calls once it has ended."""

    made = []

    def __init__(self, name):
        self.name, self.open = name, True
        self.made.append(self)

    def call(self, function):
        assert self.open
        return function()

    def close(self):
        self.open = False


class Api:
    """Cinder's volume API: statuses of volumes and snapshots, each a list that is used up."""

    def __init__(self):
        self.tokens = 0
        self.requests = []
        self.statuses = {}
        self.code = None

    def token(self, settings, user, project):
        assert (user, project) == ("admin", "admin")
        self.tokens += 1
        return f"token-{self.tokens}"

    def request(self, method, url, *, json, headers, timeout):
        self.requests.append((method, url, json, headers))
        assert timeout >= 60
        kind, _, identifier = url.partition("/v3/")[2].partition("s/")
        states = self.statuses.get(identifier, [])
        response = requests.Response()
        response.status_code = self.code or (200 if states else 404)
        response.url = url
        response.raise_for_status()
        status = states.pop(0) if len(states) > 1 else states[0]
        response._content = b"" if method == "DELETE" else None
        if method == "GET":
            response._content = f'{{"{kind}": {{"status": "{status}"}}}}'.encode()
        return response


@pytest.fixture
def api(monkeypatch, clock):
    api = Api()
    FakeInside.made = []
    monkeypatch.setattr(services, "Inside", FakeInside)
    monkeypatch.setattr(stack_module, "Inside", FakeInside)
    monkeypatch.setattr(services.http, "request", api.request)
    monkeypatch.setattr(services.keystone, "token", api.token)
    times = SimpleNamespace(monotonic=clock, sleep=clock.sleep)
    monkeypatch.setattr(services, "time", times)
    return api


@pytest.fixture
def cinder(api):
    stack = SimpleNamespace(
        settings=SimpleNamespace(address="10.77.0.1"), exports=lambda: {"OS_USERNAME": "admin"}
    )
    return Cinder(stack, "kumo-x")


def test_a_request_has_a_token_that_is_fetched_once(cinder, api):
    api.statuses["v1"] = ["available"]
    for _ in range(2):
        assert cinder.request("GET", "/volumes/v1") == {"volume": {"status": "available"}}
    method, url, body, headers = api.requests[0]
    assert (method, url, body) == ("GET", "http://10.77.0.1:8776/v3/volumes/v1", None)
    assert headers["X-Auth-Token"] == "token-1"
    assert headers["OpenStack-API-Version"].startswith("volume 3.")
    assert api.tokens == 1


def test_an_answer_without_content(cinder, api):
    api.statuses["v1"] = ["available"]
    assert cinder.request("DELETE", "/volumes/v1") is None


def test_gone_only_when_cinder_says_so(cinder, api):
    assert cinder.status("volume", "v1") == "gone"
    api.code = 503
    with pytest.raises(OSError, match="503"):
        cinder.status("volume", "v1")


def test_no_answer_is_not_gone(cinder, monkeypatch):
    def refuse(*_, **__):
        raise requests.ConnectionError("Connection refused")

    monkeypatch.setattr(services.http, "request", refuse)
    with pytest.raises(OSError, match="refused"):
        cinder.wait("volume", "v1", "gone")


def test_wait_tells_the_seconds(cinder, api):
    api.statuses["s1"] = ["creating"] * 5 + ["available"]
    assert cinder.wait("snapshot", "s1", "available") == pytest.approx(0.5)


def test_wait_for_gone(cinder, api):
    assert cinder.wait("volume", "v1", "gone") == 0.0


@pytest.mark.parametrize("status", ["error", "error_deleting", "error_extending"])
def test_wait_ends_at_an_error(cinder, api, status, clock):
    api.statuses["v1"] = ["creating", status]
    with pytest.raises(LabError, match=f"volume v1 is {status} after 0 s"):
        cinder.wait("volume", "v1", "available")
    assert clock.now < 1001


def test_an_error_can_be_waited_for(cinder, api):
    api.statuses["v1"] = ["error"]
    assert cinder.wait("volume", "v1", "error") == 0.0


def test_wait_ends_when_the_time_is_over(cinder, api):
    api.statuses["v1"] = ["creating"]
    with pytest.raises(LabError, match="volume v1 is creating after 30 s"):
        cinder.wait("volume", "v1", "available", timeout=30)


@pytest.fixture
def running(api, tmp_path, monkeypatch):
    """Services whose parts only say that they were started."""
    monkeypatch.setenv("KUMO_CACHE", str(tmp_path / "cache"))
    machine = SimpleNamespace(name="compute1")
    lab = SimpleNamespace(
        name="x",
        netns="kumo-x",
        state_dir=tmp_path / "lab",
        processes=SimpleNamespace(
            netns="kumo-x", alive=lambda name: False, log_path=lambda name: tmp_path / name
        ),
        compute=[machine],
    )
    running = SimpleNamespace(events=[], backends=None, broken=set())

    def note(name):
        running.events.append(name)
        if name in running.broken:
            raise LabError(f"{name} did not come up")

    class FakeCompute:
        def __init__(self, machine, request):
            self.machine, self.request = machine, request

        def start(self):
            note("brick")

    monkeypatch.setattr(services, "Compute", FakeCompute)
    running.services = Services(lab)
    monkeypatch.setattr(running.services.plane, "start", lambda progress: note("plane"))
    monkeypatch.setattr(running.services.stack, "start", lambda progress: note("stack"))

    def start_volume(backends, progress):
        running.backends = backends
        progress("cinder-volume")
        note("volume")

    monkeypatch.setattr(running.services.stack, "start_volume", start_volume)
    return running


def test_cinder_volume_starts_when_its_provisioner_is_there(running, screen):
    (compute,) = running.services.start(screen)
    assert sorted(running.events[:3]) == ["brick", "plane", "stack"]
    assert running.events[3:] == ["volume"]
    assert compute.machine.name == "compute1"
    assert compute.request == running.services.cinder.request


def test_the_backend_is_ours_and_verifies_the_provisioner(running, screen):
    running.services.start(screen)
    plane = running.services.plane
    assert running.backends == {
        "kumo": {
            "volume_driver": "cinder_kumo.driver.KumoVolumeDriver",
            "volume_backend_name": "kumo",
            "kumo_urls": plane.url,
            "kumo_ca_file": str(plane.ca_file),
            "kumo_token_file": str(plane.token_file),
        }
    }


@pytest.mark.parametrize("part", ["plane", "stack", "brick"])
def test_without_one_part_cinder_volume_is_not_started(running, screen, part):
    running.broken = {part}
    with pytest.raises(LabError, match=f"{part} did not come up"):
        running.services.start(screen)
    assert "volume" not in running.events


def test_exports_are_those_of_both_commands(running):
    found = running.services.exports()
    assert found["KUMO_URL"] == "https://10.77.0.1:8090"
    assert found["OS_AUTH_URL"].startswith("http://10.77.0.1:")


def test_close_ends_the_threads_in_the_namespace(running):
    running.services.close()
    assert all(inside.name == "kumo-x" for inside in FakeInside.made)
    assert not [inside for inside in FakeInside.made if inside.open]
