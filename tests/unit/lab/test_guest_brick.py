# SPDX-License-Identifier: Apache-2.0
import inspect
import json
import socket
import sys
from types import ModuleType, SimpleNamespace

import pytest
from os_brick.initiator.connectors.nvmeof import NVMeOFConnector

from lab import guest_brick


def converse(line, brick):
    """What the service answers to one line."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(line)
        ours.shutdown(socket.SHUT_WR)
        guest_brick._Handler(theirs, None, SimpleNamespace(brick=brick))
        theirs.shutdown(socket.SHUT_WR)
        return json.loads(ours.makefile().readline())


def request(name, **arguments):
    return json.dumps({"call": name, "arguments": arguments}).encode() + b"\n"


class FakeBrick:
    def connect(self, data):
        if data["broken"]:
            raise ValueError("no path to any portal")
        return {"type": "block", "path": "/dev/nvme0n1"}


def test_a_call_is_answered_with_its_result_and_time():
    answer = converse(request("connect", data={"broken": False}), FakeBrick())
    assert answer["result"] == {"type": "block", "path": "/dev/nvme0n1"}
    assert answer["seconds"] >= 0
    assert "error" not in answer


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (request("connect", data={"broken": True}), "ValueError: no path to any portal"),
        (request("connect"), "TypeError: .*missing 1 required"),
        (request("format_disk"), "AttributeError: .*format_disk"),
        (b"no JSON\n", "JSONDecodeError: "),
        (b'{"call": "connect"}\n', "KeyError: 'arguments'"),
        (b"", "JSONDecodeError: "),
    ],
)
def test_every_error_is_told_and_traced(capsys, line, error):
    answer = converse(line, FakeBrick())
    assert "result" not in answer
    assert answer["seconds"] >= 0
    assert pytest.raises(LookupError, match=error).matches(LookupError(answer["error"]))
    assert "Traceback" in capsys.readouterr().err


class Connector:
    """Records calls, each checked against the signature of os-brick's own connector."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        signature = inspect.signature(getattr(NVMeOFConnector, name))

        def call(*args, **kwargs):
            bound = signature.bind(self, *args, **kwargs)
            self.calls.append((name, {k: v for k, v in bound.arguments.items() if k != "self"}))
            return {"connect_volume": {"path": "/dev/md127"}, "extend_volume": 2 << 30}.get(name)

        return call


@pytest.fixture
def os_brick(monkeypatch):
    """os-brick as far as the service uses it; none of its global state is touched."""
    found = SimpleNamespace(connector=Connector(), factory=[], properties=[], overrides=[])

    class Factory:
        @staticmethod
        def factory(protocol, root_helper, **options):
            found.factory.append((protocol, options))
            return found.connector

    def properties(root_helper, ip, multipath, enforce_multipath):
        found.properties.append((ip, multipath))
        return {"host": "compute1", "ip": ip, "nqn": "nqn.2014-08.org.nvmexpress:uuid:1"}

    class Conf:
        def __call__(self, args, **options):
            assert args == []

        def set_override(self, name, value, group):
            found.overrides.append((group, name, value))

        def clear_override(self, name, group):
            found.overrides.append((group, name, "cleared"))

    connector = SimpleNamespace(InitiatorConnector=Factory, get_connector_properties=properties)
    default = SimpleNamespace(
        default=SimpleNamespace(set_client_mode=lambda on: found.overrides.append(("client", on)))
    )
    modules = {
        "os_brick": SimpleNamespace(setup=lambda conf: None),
        "os_brick.initiator": SimpleNamespace(connector=connector),
        "os_brick.privileged": default,
        "oslo_concurrency": SimpleNamespace(
            lockutils=SimpleNamespace(set_defaults=lambda path: None)
        ),
        "oslo_config": SimpleNamespace(cfg=SimpleNamespace(CONF=Conf())),
    }
    for name, attributes in modules.items():
        module = ModuleType(name)
        module.__dict__.update(vars(attributes))
        monkeypatch.setitem(sys.modules, name, module)
    return found


def test_the_connector_is_used_as_nova_does(os_brick):
    brick = guest_brick.Brick("10.77.0.101")
    data = {"volume_id": "v", "device_path": "/dev/md127"}
    assert brick.properties()["ip"] == "10.77.0.101"
    assert brick.connect(data) == {"path": "/dev/md127"}
    assert brick.extend(data) == 2 << 30
    brick.disconnect(data, force=False)
    ((protocol, options),) = os_brick.factory
    assert protocol == "NVMEOF"
    assert options["use_multipath"] is False
    assert os_brick.connector.calls == [
        ("connect_volume", {"connection_properties": data}),
        ("extend_volume", {"connection_properties": data}),
        (
            "disconnect_volume",
            {"connection_properties": data, "device_info": None, "force": False},
        ),
    ]


def test_locks_are_where_root_may_write_and_no_helper_is_started(os_brick):
    guest_brick.Brick("10.77.0.101")
    assert ("os_brick", "lock_path", "/run/lock/os-brick") in os_brick.overrides
    assert ("client", False) in os_brick.overrides


def test_options_are_set_for_a_time(os_brick):
    brick = guest_brick.Brick("10.77.0.101")
    brick.configure("os_brick_nvmeof", {"connect_timeout": 15.0})
    brick.configure("os_brick_nvmeof", {"connect_timeout": None})
    assert os_brick.overrides[-2:] == [
        ("os_brick_nvmeof", "connect_timeout", 15.0),
        ("os_brick_nvmeof", "connect_timeout", "cleared"),
    ]


def test_serve_replaces_the_socket_of_an_earlier_service(monkeypatch, tmp_path):
    path = tmp_path / "brick.sock"
    path.touch()
    served = []

    class Server:
        def __init__(self, address, handler):
            assert not path.exists()
            assert handler is guest_brick._Handler
            self.address = address

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def serve_forever(self):
            served.append((self.address, self.brick))

    monkeypatch.setattr(guest_brick, "socket_path", {"ours": str(path)}.__getitem__)
    monkeypatch.setattr(guest_brick, "_Server", Server)
    monkeypatch.setattr(guest_brick, "Brick", lambda address: f"brick at {address}")
    guest_brick.serve("10.77.0.101", "ours")
    assert served == [(str(path), "brick at 10.77.0.101")]


def test_one_connector_for_each_way_of_connecting(os_brick):
    brick = guest_brick.Brick("10.77.0.101")
    for multipath in (True, False, True):
        brick.connect({"volume_id": "v"}, multipath=multipath)
    assert [options["use_multipath"] for _, options in os_brick.factory] == [True, False]
    brick.properties(multipath=True)
    assert os_brick.properties == [("10.77.0.101", True)]
    assert brick.kind().endswith("test_guest_brick.Connector")


class Child:
    """A forked process; ends by itself at ``ends``, with ``code``."""

    def __init__(self, monkeypatch, clock, ends, code=0):
        self.clock, self.ends, self.code, self.killed = clock, ends, code, False
        for name in ("fork", "waitpid", "kill"):
            monkeypatch.setattr(guest_brick.os, name, getattr(self, name))
        times = SimpleNamespace(monotonic=clock, sleep=clock.sleep)
        monkeypatch.setattr(guest_brick, "time", times)

    def fork(self):
        self.ends += self.clock()
        return 77

    def waitpid(self, pid, options):
        assert pid == 77
        if self.killed:
            return 77, 9
        return (77, self.code << 8) if self.clock() >= self.ends else (0, 0)

    def kill(self, pid, number):
        assert (pid, number) == (77, 9)
        self.killed = True


@pytest.mark.parametrize(
    ("ends", "code", "done", "killed"),
    [(0.2, 0, True, False), (0.2, 1, False, False), (0.9, 0, False, True)],
)
def test_a_call_that_is_killed(monkeypatch, clock, ends, code, done, killed):
    child = Child(monkeypatch, clock, ends, code)
    line = json.dumps({"call": "connect", "arguments": {}, "kill_after": 0.5}).encode()
    answer = guest_brick.perform(FakeBrick(), line)
    assert answer["result"] is done
    assert child.killed is killed


@pytest.mark.parametrize(("broken", "code"), [(False, 0), (True, 1)])
def test_the_process_that_is_to_be_killed_makes_the_call(monkeypatch, broken, code):
    class ExitError(BaseException):
        pass

    def leave(number):
        raise ExitError(number)

    monkeypatch.setattr(guest_brick.os, "fork", lambda: 0)
    monkeypatch.setattr(guest_brick.os, "_exit", leave)
    request = {"call": "connect", "arguments": {"data": {"broken": broken}}, "kill_after": 1}
    with pytest.raises(ExitError, match=str(code)):
        guest_brick.perform(FakeBrick(), json.dumps(request).encode())


def test_it_talks_when_it_is_asked_to(monkeypatch):
    levels = []
    monkeypatch.setattr(guest_brick.logging, "basicConfig", lambda level: levels.append(level))
    guest_brick.Brick.__new__(guest_brick.Brick).talk()
    assert levels == [guest_brick.logging.DEBUG]
