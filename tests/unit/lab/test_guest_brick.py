# SPDX-License-Identifier: Apache-2.0
import inspect
import io
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

    monkeypatch.setattr(guest_brick, "SOCKET", str(path))
    monkeypatch.setattr(guest_brick, "_Server", Server)
    monkeypatch.setattr(guest_brick, "Brick", lambda address: f"brick at {address}")
    guest_brick.serve("10.77.0.101")
    assert served == [(str(path), "brick at 10.77.0.101")]


def test_ask_sends_a_line_and_prints_the_answer(monkeypatch, capsys):
    ours, theirs = socket.socketpair()
    ours.sendall(b'{"result": 7}\n')
    ours.shutdown(socket.SHUT_WR)

    class Joined:
        """The other end of the pair, connected already."""

        def __init__(self, family):
            assert family == socket.AF_UNIX

        def connect(self, path):
            assert path == guest_brick.SOCKET

        def __enter__(self):
            return self

        def __exit__(self, *_):
            theirs.close()

        def __getattr__(self, name):
            return getattr(theirs, name)

    monkeypatch.setattr(guest_brick.socket, "socket", Joined)
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"call": "extend"}\nmore\n'))
    guest_brick.ask()
    assert json.loads(capsys.readouterr().out) == {"result": 7}
    with ours:
        assert ours.makefile().read() == '{"call": "extend"}\n'
