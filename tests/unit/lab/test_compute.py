# SPDX-License-Identifier: Apache-2.0
import io
import json
from types import SimpleNamespace

import pytest

from lab import compute as compute_module
from lab import guest_brick
from lab.compute import BrickError, Compute
from lab.errors import LabError


class Wire:
    """One connection to the service in the guest, as its handler sees it."""

    def __init__(self, line):
        self.input, self.output = io.BytesIO(line), b""

    def makefile(self, mode, *_):
        return self.input

    def sendall(self, data):
        self.output += data


class FakeHost:
    """A compute machine with the service of :mod:`lab.guest_brick` and a connector."""

    name, address = "compute1", "10.77.0.101"

    def __init__(self, clock, events):
        self.clock, self.events = clock, events
        self.active = self.socket = False
        self.loading = 2  # how often the socket is looked for before it is there
        self.dies = False
        self.silent = False
        self.commands = []
        self.edition = compute_module.DEFAULT_EDITION
        self.devices = {}
        self.failing = {}
        self.connect_seen = []

    # The machine.

    def run(self, command, *, check=True, input=None, timeout=120.0):
        self.commands.append(command)
        code, out = 0, ""
        match command:
            case ["systemctl", "is-active", "-q", unit]:
                assert unit == f"kumo-brick-{self.edition}"
                code = 0 if self.active else 3
            case ["test", "-S", path]:
                assert path == guest_brick.socket_path(self.edition)
                code = int(not self._socket())
            case [python, flags, script, path] if script.endswith("lab/guest_ask.py"):
                assert (python, flags) == ("/usr/bin/python3", "-ISE")
                assert path == guest_brick.socket_path(self.edition)
                assert timeout >= 120
                out = "" if self.silent else self._ask(input)
            case str() if "systemd-run" in command:
                assert f"--unit kumo-brick-{self.edition} env PYTHONPATH=" in command
                assert f"/opt/kumo/src/brick/{self.edition}:/opt/kumo/src:" in command
                assert command.endswith(f"-m lab.guest_brick 10.77.0.101 {self.edition}")
                socket = guest_brick.socket_path(self.edition)
                self.socket = self.socket and f"rm -f {socket}" not in command
                self.active = not self.dies
            case str() if command.startswith(f"journalctl -u kumo-brick-{self.edition}"):
                out = "ModuleNotFoundError: os_brick"
        if check and code:
            raise LabError(f"code {code} from {command}")
        return SimpleNamespace(returncode=code, stdout=out, stderr="")

    def _socket(self):
        if self.active and self.loading == 0:
            self.socket = True
        self.loading = max(0, self.loading - 1)
        return self.socket

    def _ask(self, line):
        assert self.active
        assert self.socket
        wire = Wire(line.encode())
        guest_brick._Handler(wire, None, SimpleNamespace(brick=self))
        return wire.output.decode()

    # The connector.

    def _do(self, name):
        self.events.append(name)
        if name in self.failing:
            raise self.failing[name]

    def properties(self, multipath):
        self.multipath = multipath
        self._do("properties")
        return {"host": self.name, "nqn": "nqn.2014-08.org.nvmexpress:uuid:1"}

    def connect(self, data, multipath):
        assert multipath == self.multipath
        self._do("connect")
        self.devices[data["volume_id"]] = "/dev/nvme0n1"
        return {"type": "block", "path": "/dev/nvme0n1"}

    def extend(self, data, multipath):
        self._do("extend")
        assert data["device_path"] == self.devices[data["volume_id"]]
        return 2 << 30

    def disconnect(self, data, force, multipath):
        assert multipath == self.multipath
        self._do("disconnect")
        assert not force
        assert data["device_path"] == self.devices.pop(data["volume_id"])


class FakeCinder:
    """Attachments as Cinder's volume API keeps them."""

    def __init__(self, events):
        self.events = events
        self.attachments = {}
        self.deleting = None

    def __call__(self, method, path, body=None):
        match method, path.strip("/").split("/"):
            case "POST", ["attachments"]:
                self.events.append("create")
                wanted = body["attachment"]
                assert wanted["connector"]["nqn"].startswith("nqn.")
                identifier = f"a{len(self.attachments) + 1}"
                self.attachments[identifier] = "attaching"
                info = {"driver_volume_type": "nvmeof", "volume_id": wanted["volume_uuid"]}
                return {"attachment": {"id": identifier, "connection_info": info}}
            case "POST", ["attachments", identifier, "action"]:
                self.events.append("complete")
                assert body == {"os-complete": {}}
                assert self.attachments[identifier] == "attaching"
                self.attachments[identifier] = "attached"
            case "DELETE", ["attachments", identifier]:
                self.events.append("delete")
                if self.deleting:
                    raise self.deleting
                del self.attachments[identifier]
        return None


@pytest.fixture
def events():
    return []


@pytest.fixture
def host(clock, events, monkeypatch):
    times = SimpleNamespace(monotonic=clock, sleep=clock.sleep)
    monkeypatch.setattr(compute_module, "time", times)
    return FakeHost(clock, events)


@pytest.fixture
def cinder(events):
    return FakeCinder(events)


@pytest.fixture
def compute(host, cinder):
    compute = Compute(host, cinder)
    compute.start()
    return compute


def test_a_volumes_way_in_the_order_of_nova(compute, cinder, host, events):
    attachment = compute.attach("v1")
    assert events == ["properties", "create", "connect", "complete"]
    assert attachment.path == "/dev/nvme0n1"
    assert cinder.attachments == {"a1": "attached"}
    assert compute.extend(attachment) == 2 << 30
    del events[:]
    compute.detach(attachment)
    assert events == ["disconnect", "delete"]
    assert cinder.attachments == {}
    assert host.devices == {}


def test_times_are_those_of_the_connector(compute, monkeypatch):
    now = iter(range(0, 1000, 7))
    times = SimpleNamespace(monotonic=lambda: next(now))
    monkeypatch.setattr(guest_brick, "time", times)
    assert compute.attach("v1").seconds == 7.0


def test_a_failed_connect_leaves_no_attachment(compute, cinder, host, events, capsys):
    host.failing["connect"] = RuntimeError("no portal answers")
    with pytest.raises(BrickError, match=r"compute1: connect: RuntimeError: no portal answers$"):
        compute.attach("v1")
    assert events == ["properties", "create", "connect", "delete"]
    assert cinder.attachments == {}
    assert "Traceback" in capsys.readouterr().err


def test_when_the_attachment_stays_both_errors_are_told(compute, cinder, host):
    host.failing["connect"] = RuntimeError("no portal answers")
    cinder.deleting = OSError("500 Server Error")
    with pytest.raises(OSError, match="500") as caught:
        compute.attach("v1")
    assert "no portal answers" in str(caught.value.__context__)


def test_without_connector_properties_cinder_is_not_asked(compute, cinder, host, events):
    host.failing["properties"] = OSError("no /etc/nvme/hostnqn")
    with pytest.raises(BrickError, match="hostnqn"):
        compute.attach("v1")
    assert events == ["properties"]


def test_a_failed_disconnect_keeps_the_attachment(compute, cinder, host):
    attachment = compute.attach("v1")
    host.failing["disconnect"] = RuntimeError("device is busy")
    with pytest.raises(BrickError, match="disconnect: RuntimeError: device is busy"):
        compute.detach(attachment)
    assert cinder.attachments == {"a1": "attached"}
    host.failing.clear()
    compute.detach(attachment)
    assert cinder.attachments == {}


def test_a_failed_extend(compute, host):
    attachment = compute.attach("v1")
    host.failing["extend"] = RuntimeError("no such array")
    with pytest.raises(BrickError, match="extend: RuntimeError: no such array"):
        compute.extend(attachment)


def test_a_service_that_dies_over_a_call(compute, host):
    host.silent = True
    with pytest.raises(BrickError, match="compute1: properties: no answer: ''"):
        compute.attach("v1")


def test_start_waits_for_the_socket(host, cinder):
    Compute(host, cinder).start()
    assert host.socket
    assert host.clock.now == 1001.0


def test_start_again_starts_nothing(compute, host):
    del host.commands[:]
    compute.start()
    assert not [command for command in host.commands if "systemd-run" in command]


def test_start_waits_for_a_service_that_another_command_has_started(host, cinder):
    host.active = True
    Compute(host, cinder).start()
    assert host.socket
    assert not [command for command in host.commands if "systemd-run" in command]


def test_the_socket_of_a_dead_service_is_not_taken_for_the_new_one(host, cinder):
    host.socket = True
    Compute(host, cinder).start()
    assert host.clock.now == 1001.0


def test_a_service_that_ends_at_once(host, cinder):
    host.dies = True
    with pytest.raises(LabError, match=r"os-brick did not start:\nModuleNotFoundError"):
        Compute(host, cinder).start()


def test_a_service_that_never_listens(host, cinder):
    host.loading = 10**6
    with pytest.raises(LabError, match="compute1: os-brick did not start"):
        Compute(host, cinder).start()
    assert host.clock.now == pytest.approx(1300, abs=1)


def test_a_request_is_one_line_of_json(compute, host, monkeypatch):
    lines = []
    monkeypatch.setattr(host, "_ask", lambda line: lines.append(line) or '{"error": "seen"}')
    arguments = {"data": {"text": "two\nlines"}}
    with pytest.raises(BrickError, match="seen"):
        compute.brick.call("connect", **arguments)
    assert lines[0].count("\n") == 1
    assert json.loads(lines[0]) == {"call": "connect", "arguments": arguments}


@pytest.mark.parametrize("multipath", [False, True])
def test_an_edition_of_os_brick_with_or_without_multipath(host, cinder, multipath):
    host.edition = "ours"
    compute = Compute(host, cinder, "ours", multipath=multipath)
    compute.start()
    compute.detach(compute.attach("v1"))
    assert host.multipath is multipath


def test_disconnected_by_one_edition_and_forgotten(compute, cinder, host, events):
    attachment = compute.reserve("v1")
    compute.connect(attachment)
    compute.disconnect(attachment)
    assert events == ["properties", "create", "connect", "disconnect"]
    compute.forget(attachment)
    assert cinder.attachments == {}


def test_a_call_that_is_to_be_killed(compute, host, monkeypatch):
    lines = []
    answer = '{"result": false, "seconds": 0.5}'
    monkeypatch.setattr(host, "_ask", lambda line: lines.append(line) or answer)
    assert compute.brick.call_killed("connect", 0.5, data={}) is False
    assert json.loads(lines[0]) == {"call": "connect", "arguments": {"data": {}}, "kill_after": 0.5}
