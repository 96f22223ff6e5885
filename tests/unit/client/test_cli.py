# SPDX-License-Identifier: Apache-2.0
"""The kumo command, from arguments to output, over the fake network."""

import json

import pytest

from kumo_client import errors
from kumo_client.cli import output
from kumo_client.schemas.backend import BackendCreate
from kumo_client.schemas.host import Host, HostProbe
from kumo_client.schemas.snapshot import SnapshotCreate
from kumo_client.schemas.volume import StorageClass, VolumeCreate
from tests.fakes.http import Answer, BadCertificate, Script
from tests.unit.client.conftest import TOKEN, A

V1 = "6f5c2f0e-3c52-5b0c-9d5c-2f6a3f1f9a4e"
S1 = "00000000-0000-0000-0000-00000000000a"
H1 = "11111111-1111-1111-1111-111111111111"
NQN = "nqn.2014-08.org.nvmexpress:uuid:6f5c2f0e-3c52-5b0c-9d5c-2f6a3f1f9a4e"


pytestmark = pytest.mark.usefixtures("server", "_quiet_logging_afterwards")


@pytest.fixture
def filled(provisioner):
    """A server with one of everything."""
    provisioner.add_backend(BackendCreate(mgmt_ips=["10.0.0.1", "fd00::1"], rack="r1"))
    provisioner.create_volume(
        VolumeCreate(
            uuid=V1,
            alias="volume-" + V1,
            capacity=12,
            storage_class=StorageClass(num_replicas=2),
        )
    )
    provisioner.create_snapshot(SnapshotCreate(alias="s1", volume_id=V1, snapshot_id=S1))
    provisioner.probe_host(HostProbe(host_nqn=NQN, host_id=H1, name="compute-1"))
    provisioner.session.close()


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("noun", "words"),
    [
        ("backend", ["node-1", "Available", "10.0.0.1:443, [fd00::1]:443", "r1", "100"]),
        ("volume", [V1, "volume-" + V1, "12", "Available, Available", "node-1, node-2"]),
        ("snapshot", [S1, "s1", V1, "12", "2025-10-09 08:53:20 UTC"]),
        ("host", [H1, "compute-1", NQN, "Agent"]),
    ],
)
def test_lists_are_whole_in_a_pipe(kumo, noun, words):
    code, out, err = kumo(noun, "list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 5
    (row,) = [line for line in lines if words[0] in line]
    assert all(word in row for word in words)
    assert "\u2026" not in out
    assert len({len(line) for line in lines}) == 1


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("noun", ["backend", "volume", "snapshot", "host"])
@pytest.mark.parametrize("before", [True, False])
def test_lists_as_json(kumo, noun, before, server):
    argv = ("-f", "json", noun, "list") if before else (noun, "list", "-f", "json")
    code, out, _ = kumo(*argv)
    assert code == 0
    assert json.loads(out) == [item.wire() for item in getattr(server, f"{noun}s").values()]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("noun", "names"),
    [
        ("backend", ["node-1"]),
        ("volume", [V1, "volume-" + V1]),
        ("snapshot", [S1, "s1"]),
        ("host", [H1, H1.upper(), "compute-1"]),
    ],
)
def test_show(kumo, noun, names, server):
    (item,) = getattr(server, f"{noun}s").values()
    for name in names:
        code, out, _ = kumo(noun, "show", name, "-f", "json")
        assert (code, json.loads(out)) == (0, item.wire())
    code, out, _ = kumo(noun, "show", names[0])
    assert code == 0
    assert names[0] in out
    assert all(field in out for field in item.wire())


@pytest.mark.usefixtures("filled")
def test_a_volume_shows_a_line_for_each_replica(kumo, server):
    _, out, _ = kumo("volume", "show", V1)
    for number, location in enumerate(server.volumes[V1].location, start=1):
        (line,) = [line for line in out.splitlines() if location.uuid in line]
        assert f"backend=node-{number}, replicaState=Available" in line
        assert len(line) < 260


def test_empty_lists(kumo):
    code, out, _ = kumo("volume", "list")
    assert code == 0
    assert "UUID" in out
    assert kumo("volume", "list", "-f", "json")[1] == "[]\n"


def test_info(kumo):
    assert "publish-attach" in kumo("info")[1]
    assert json.loads(kumo("info", "-f", "json")[1])["totalFreeSpace"] == 90


@pytest.mark.usefixtures("filled")
def test_snapshots_of_a_volume(kumo):
    assert S1 in kumo("snapshot", "list", "--volume", V1)[1]
    assert kumo("snapshot", "list", "--volume", S1, "-f", "json")[1] == "[]\n"


def test_registering_and_forgetting_a_node(kumo, server):
    place = ("--rack", "r", "--zone", "z", "--region", "g")
    addresses = ("--mgmt-ip", "10.0.0.1", "--mgmt-ip", "10.0.0.2", "--mgmt-port", "8443")
    code, out, _ = kumo("backend", "add", *addresses, *place, "-f", "json")
    made = json.loads(out)
    assert code == 0
    assert made["persistentID"] == "node-1"
    assert made["mgmtIPs"] == ["10.0.0.1", "10.0.0.2"]
    assert made["mgmtPort"] == 8443
    assert (made["rack"], made["zone"], made["region"]) == ("r", "z", "g")
    assert kumo("backend", "delete", "node-1") == (0, "", "")
    assert server.backends == {}


def test_an_error_is_one_line_with_the_request_id(kumo, network):
    code, out, err = kumo("volume", "show", V1)
    assert (code, out) == (1, "")
    sent = network.requests[-1].headers["X-Openstack-Request-Id"]
    assert err == f"kumo: error: NotExists: volume {V1} does not exist. (request {sent})\n"


@pytest.mark.parametrize("noun", ["backend", "host", "snapshot", "volume"])
def test_what_does_not_exist(kumo, noun):
    code, _, err = kumo(noun, "show", "nothing")
    assert code == 1
    assert f"NotExists: {noun} nothing does not exist." in err


def test_an_ambiguous_name(kumo, server):
    server.hosts = {key: Host(uuid=key, nqn=NQN, name="twin") for key in ("1", "2")}
    code, _, err = kumo("host", "show", "twin")
    assert code == 1
    assert "there are 2 of host twin. give the uuid." in err


def test_an_error_of_the_server_with_line_breaks_stays_on_one_line(kumo, network):
    body = errors.NoGroupsError("first\nsecond \x1b[31mred", node="n1").to_wire()
    network.servers[A] = Script(Answer(body, 409))
    code, _, err = kumo("backend", "add", "--mgmt-ip", "10.0.0.1")
    assert code == 1
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_no_answer_and_an_untrusted_server(kumo, network):
    network.servers[A] = Script(BadCertificate)
    code, _, err = kumo("info")
    assert code == 1
    assert "not trusted" in err
    network.servers.clear()
    code, _, err = kumo("info")
    assert code == 1
    assert "Connection refused" in err


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"KUMO_URL": ""}, "KUMO_URL"),
        ({"KUMO_TOKEN": ""}, "KUMO_TOKEN"),
        ({"KUMO_URL": "http://a.example"}, "not https"),
        ({"KUMO_CA_FILE": "/missing.pem"}, "/missing.pem does not exist"),
        ({"KUMO_TOKEN": "two words"}, "the token"),
    ],
)
def test_missing_or_wrong_settings(kumo, environ, said):
    code, out, err = kumo("info", **environ)
    assert (code, out) == (2, "")
    assert said in err
    assert "two words" not in err


def test_wrong_values_are_usage_errors(kumo, network):
    code, _, err = kumo("backend", "add", "--mgmt-ip", "10.0.0.1", "--mgmt-port", "70000")
    assert code == 2
    assert "mgmt_port" in err
    code, _, err = kumo("backend", "add", "--mgmt-ip", "10.0.0.1", "--rack", "a\nb")
    assert code == 2
    assert network.requests == []


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("backend",),
        ("backend", "add"),
        ("volume", "show"),
        ("volume", "list", "-f", "yaml"),
        ("backend", "add", "--mgmt-ip", "a", "--mgmt-port", "x"),
    ],
)
def test_wrong_usage(kumo, argv):
    with pytest.raises(SystemExit) as caught:
        kumo(*argv)
    assert caught.value.code == 2


def test_debug_shows_requests_without_the_token(kumo):
    code, _, err = kumo("--debug", "info")
    assert code == 0
    assert f"GET {A}/info" in err
    assert TOKEN not in err


def test_what_looks_like_markup_or_steers_the_terminal_is_shown_plainly(kumo, provisioner):
    provisioner.create_volume(VolumeCreate(uuid=V1, alias="[red]x[/red] :smile:", capacity=1))
    assert "[red]x[/red] :smile:" in kumo("volume", "list")[1]
    assert output.plain("a\x1b[2Jb\nc") == "a?[2Jb\nc"


def test_a_reader_that_goes_away_is_no_error(kumo, monkeypatch, tmp_path):
    class Gone:
        def __init__(self, file):
            self.file = file

        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

        def fileno(self):
            return self.file.fileno()

    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr("sys.stdout", Gone(file))
        assert kumo("volume", "list", "-f", "json")[0] == 0


def test_interruption(kumo, network):
    def interrupt(request):
        raise KeyboardInterrupt

    network.servers[A] = interrupt
    code, _, err = kumo("info")
    assert (code, err) == (130, "kumo: error: interrupted\n")


@pytest.mark.parametrize("terminal", ["xterm", "dumb"])
@pytest.mark.parametrize("columns", ["40", "90", "300"])
def test_uuids_are_not_wrapped_on_a_narrow_terminal(kumo, filled, monkeypatch, columns, terminal):
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    for argv in (("volume", "list"), ("volume", "show", V1)):
        assert V1 in kumo(*argv)[1]


def test_a_replica_on_a_node_that_is_not_known_any_more(kumo, server, filled):
    server.volumes[V1].location[0].backend.persistent_id = ""
    assert "?, node-2" in kumo("volume", "list")[1]
    assert "backend=?" in kumo("volume", "show", V1)[1]


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, ""), (1_760_000_000_000, "2025-10-09 08:53:20 UTC"), (10**30, str(10**30))],
)
def test_times(milliseconds, text):
    assert output.when(milliseconds) == text
