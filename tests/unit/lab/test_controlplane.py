# SPDX-License-Identifier: Apache-2.0
import contextlib
import io
import json
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import kumo_node.conf
import kumo_provisioner.main
from lab import controlplane
from lab.controlplane import ControlPlane, inventory
from lab.errors import LabError


class FakeMachine:
    """A machine with files and a unit, ``kumo-node``."""

    role = "storage"

    def __init__(self, number, ssds=2):
        self.name, self.address = f"storage{number}", f"10.77.0.{10 + number}"
        self.spec = SimpleNamespace(ssds=ssds, number=number)
        self.files, self.modes, self.commands = {}, {}, []
        self.active = self.broken = False

    def ssd_path(self, number):
        return f"/dev/disk/by-id/nvme-{self.name}-ssd{number}"

    def put(self, path, data, mode):
        self.files[path], self.modes[path] = data.decode(), mode

    def run(self, command, *, check=True, timeout=120.0):
        self.commands.append(command)
        code, out = 0, ""
        if command == "systemctl is-active -q kumo-node":
            code = 0 if self.active else 3
        elif command == "systemctl start kumo-node":
            assert "/etc/kumo/node.conf" in self.files
            self.active = not self.broken
            code = int(self.broken)
        elif str(command).startswith("journalctl"):
            out = "disk has a signature"
        if check and code:
            raise LabError(f"{self.name}: code {code}")
        return SimpleNamespace(returncode=code, stdout=out, stderr="")


class World:
    """The programs of the control plane: a provisioner that knows backends, and its command."""

    def __init__(self, directory, clock):
        self.clock = clock
        self.alive, self.answers_after = False, 0
        self.backends, self.environment, self.words = [], {}, []
        # By address: until when the provisioner takes a node for unavailable.
        self.away = {}
        self.starts = []
        self.refusals = {}
        self.machines = [FakeMachine(1), FakeMachine(2)]
        self.log = ["Traceback", "ValueError: bad port"]
        self.dies = False
        processes = SimpleNamespace(
            start=self.start,
            alive=lambda name: self.alive,
            tail=lambda name: self.log,
            kill=lambda name: self.stop("SIGKILL"),
            stop=lambda name: self.stop("SIGTERM"),
            send=lambda name, number: self.starts.append((name, signal.Signals(number).name)),
        )
        self.lab = SimpleNamespace(
            state_dir=directory, netns="kumo-x", storage=self.machines, processes=processes
        )

    def start(self, name, argv):
        assert not self.alive
        self.starts.append(argv)
        self.alive = not self.dies

    def stop(self, signal):
        self.starts.append(signal)
        self.alive = False

    def sleep(self, seconds):
        self.clock.sleep(seconds)
        self.answers_after -= 1

    def run(self, argv, *, env=None, **_):
        if argv[1] == "init":
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                code = kumo_provisioner.main.main(argv[1:])
            return subprocess.CompletedProcess(argv, code, "", output.getvalue())
        assert argv[:4] == ["ip", "netns", "exec", "kumo-x"]
        assert Path(argv[4]).name == "kumo"
        self.environment = env
        return self.kumo(argv, argv[5:])

    def shown(self, ip):
        state = "Unavailable" if self.clock.now < self.away.get(ip, 0) else "Available"
        name = f"node-{ip}"
        return {"mgmtIPs": [ip], "name": name, "persistentID": f"id-{ip}", "state": state}

    def kumo(self, argv, words):
        self.words.append(words)
        if words[0] in self.refusals:
            return subprocess.CompletedProcess(argv, 1, "", f"{self.refusals[words[0]]}\n")
        if not self.alive or self.answers_after > 0:
            return subprocess.CompletedProcess(argv, 1, "", "connection refused\n")
        out = ""
        match words:
            case ["backend", "list", "-f", "json"]:
                out = json.dumps([self.shown(ip) for ip in self.backends])
            case ["backend", "add", "--mgmt-ip", ip]:
                assert ip not in self.backends
                self.backends.append(ip)
        return subprocess.CompletedProcess(argv, 0, out, "")


@pytest.fixture
def world(tmp_path, clock, monkeypatch):
    world = World(tmp_path / "lab", clock)
    world.lab.state_dir.mkdir()
    monkeypatch.setattr(subprocess, "run", world.run)
    times = SimpleNamespace(monotonic=clock, sleep=world.sleep)
    monkeypatch.setattr(controlplane, "time", times)
    return world


@pytest.fixture
def plane(world):
    return ControlPlane(world.lab)


def test_start_makes_keys_starts_all_and_registers_the_nodes(world, plane, screen):
    world.answers_after = 3
    plane.start(screen)
    assert plane.ca_file.exists()
    assert plane.token_file.exists()
    assert [Path(argv[0]).name for argv in world.starts] == ["kumo-provisioner"]
    assert world.starts[0][1:] == ["--config-file", str(plane.directory / "provisioner.conf")]
    assert all(machine.active for machine in world.machines)
    assert world.backends == ["10.77.0.11", "10.77.0.12"]
    assert world.environment["KUMO_URL"] == "https://10.77.0.1:8090"
    assert world.environment["KUMO_CA_FILE"] == str(plane.ca_file)
    assert world.environment["KUMO_TOKEN_FILE"] == str(plane.token_file)
    for text in ("kumo-provisioner", "kumo-node on storage2", "registering the storage nodes"):
        assert text in screen.text


def test_start_again_starts_and_registers_only_what_is_missing(world, plane, screen):
    plane.start(screen)
    token = plane.token_file.read_text()
    added = FakeMachine(3)
    world.machines.append(added)
    world.machines[0].commands.clear()
    plane.start(screen)
    assert len(world.starts) == 1
    assert world.machines[0].commands == ["systemctl is-active -q kumo-node"]
    assert world.backends == ["10.77.0.11", "10.77.0.12", "10.77.0.13"]
    assert plane.token_file.read_text() == token
    assert added.active


def test_the_node_can_read_what_it_is_given(world, plane, screen, tmp_path):
    plane.start(screen)
    machine = world.machines[1]
    file = tmp_path / "node.conf"
    file.write_text(machine.files["/etc/kumo/node.conf"])
    conf = kumo_node.conf.load([], [str(file)])
    assert conf.hostname == "storage2"
    assert list(conf.disks) == [f"/dev/disk/by-id/nvme-storage2-ssd{n}" for n in (1, 2)]
    portals = kumo_node.conf.parse_portals(conf.portals)
    assert [str(portal) for portal in portals] == [
        "tcp://10.77.0.12:4420",
        "tcp://10.77.0.182:4420",
    ]
    assert conf.tls_cert_file in machine.files
    assert conf.token_file in machine.files
    for name in ("disks", "portals", "hostname"):
        lines = file.read_text().splitlines()
        assert len([line for line in lines if line.startswith(f"{name} =")]) == 1


def test_secrets_are_readable_by_root_alone_and_differ(world, plane, screen):
    plane.start(screen)
    one, other = world.machines
    for path in ("/etc/kumo/node.conf", "/etc/kumo/node.pem", "/etc/kumo/node.token"):
        assert one.modes[path] == 0o600
    assert one.files["/etc/kumo/node.pem"] != other.files["/etc/kumo/node.pem"]
    assert one.files["/etc/kumo/node.token"] != plane.token_file.read_text()


def test_the_node_runs_as_the_shipped_unit_says(world, plane, screen):
    plane.start(screen)
    files = world.machines[0].files
    unit = files["/etc/systemd/system/kumo-node.service"]
    assert "Type=notify" in unit
    drop_in = files["/etc/systemd/system/kumo-node.service.d/lab.conf"].splitlines()
    # The empty line takes the command of the unit back (systemd.service(5)).
    assert drop_in[1] == "ExecStartPre=+/usr/sbin/ip address replace 10.77.0.181/24 dev eth0"
    assert drop_in[2] == "ExecStart="
    assert "/etc/kumo/node.conf" in drop_in[3]
    commands = world.machines[0].commands
    reload = commands.index("systemctl daemon-reload && systemctl enable kumo-node")
    assert reload < commands.index("systemctl start kumo-node")


def test_a_failed_init_is_told(world, plane, screen, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "kumo-provisioner: bad address\n")
    monkeypatch.setattr(subprocess, "run", lambda argv, **_: failed)
    with pytest.raises(LabError, match=r"kumo-provisioner init: kumo-provisioner: bad address$"):
        plane.start(screen)
    assert world.starts == []


def test_a_node_that_does_not_start(world, plane, screen):
    world.machines[1].broken = True
    with pytest.raises(LabError, match=r"storage2: kumo-node did not start:\ndisk has a sign"):
        plane.start(screen)
    assert world.backends == []


def test_a_provisioner_that_ends(world, plane, screen):
    world.dies = True
    with pytest.raises(LabError) as caught:
        plane.start_provisioner(screen)
    assert str(caught.value).splitlines() == [
        "kumo-provisioner does not answer: connection refused",
        *world.log,
    ]


def test_a_provisioner_that_never_answers(world, plane, screen):
    world.answers_after = 10**6
    with pytest.raises(LabError, match="does not answer: connection refused"):
        plane.start_provisioner(screen)
    assert world.clock.now == pytest.approx(1300, abs=1)


def test_a_refused_registration(world, plane, screen):
    plane.start_provisioner(screen)
    world.refusals["backend"] = "NodeUnreachable: 10.77.0.11"
    with pytest.raises(LabError, match="kumo backend list -f json: NodeUnreachable"):
        plane._register()


def test_a_node_that_was_away_is_awaited(world, plane, screen):
    plane.start(screen)
    world.away["10.77.0.12"] = world.clock.now + 30
    world.backends.append("10.77.0.99")
    world.away["10.77.0.99"] = float("inf")
    plane.start(screen)
    assert world.clock.now == pytest.approx(world.away["10.77.0.12"], abs=2)
    world.away["10.77.0.12"] = float("inf")
    with pytest.raises(LabError, match=r"node-10\.77\.0\.12 is Unavailable$"):
        plane.start(screen)


def test_one_node_alone_gets_new_replicas(world, plane, screen):
    plane.start(screen)
    world.words.clear()
    with pytest.raises(ValueError, match="odd"), plane.only("node-10.77.0.11"):
        raise ValueError("odd")
    assert [words for words in world.words if "list" not in words] == [
        ["backend", "cordon", "id-10.77.0.12"],
        ["backend", "uncordon", "id-10.77.0.12"],
    ]


def test_some_nodes_alone_get_new_replicas(world, plane, screen):
    plane.start(screen)
    world.words.clear()
    with plane.only("node-10.77.0.11", "node-10.77.0.12"):
        pass
    assert [words for words in world.words if "list" not in words] == []


def test_kill_stop_and_start_again(world, plane, screen):
    plane.start_provisioner(screen)
    plane.kill()
    plane.start_provisioner(screen)
    plane.stop()
    assert [each for each in world.starts if isinstance(each, str)] == ["SIGKILL", "SIGTERM"]
    assert plane.kumo("info", check=False).returncode == 1


def test_freeze_and_thaw(world, plane, screen):
    plane.freeze()
    plane.thaw()
    assert world.starts == [("kumo-provisioner", "SIGSTOP"), ("kumo-provisioner", "SIGCONT")]


class FakeInside:
    """Counts what is called inside a namespace."""

    def __init__(self, name):
        self.name, self.calls, self.open = name, 0, True

    def call(self, function):
        assert self.open
        self.calls += 1
        return function()

    def close(self):
        self.open = False


def test_a_client_calls_inside_the_namespace(world, plane, screen, monkeypatch):
    plane.start(screen)
    seen = {}

    class Api:
        def __init__(self, session):
            seen["session"] = session

        def volume(self, identifier, deep=False):
            return (identifier, deep)

    def session(urls, **options):
        return urls, options

    monkeypatch.setattr(controlplane, "Inside", FakeInside)
    monkeypatch.setattr(controlplane, "Session", session)
    monkeypatch.setattr(controlplane, "Provisioner", Api)
    client = plane.client(budget=5)
    assert client.volume("v1", deep=True) == ("v1", True)
    urls, options = seen["session"]
    assert urls == [plane.url]
    assert options["token"] == plane.token_file.read_text().strip()
    assert options["ca_file"] == str(plane.ca_file)
    assert options["budget"] == 5
    assert (client._inside.name, client._inside.calls) == ("kumo-x", 1)
    client.close()
    assert not client._inside.open


class Answering:
    def __init__(self, name, role, text="", error=None):
        self.name, self.role, self.text, self.error = name, role, text, error
        self.asked = []

    def run(self, command):
        self.asked.append(command)
        if self.error:
            raise self.error
        return SimpleNamespace(stdout=self.text)


def test_inventory_asks_each_machine_for_what_it_can_have():
    storage = Answering("storage1", "storage", "lv r-1\nsubsystem nqn.x\nnamespace u-1\n")
    compute = Answering("compute1", "compute")
    lab = SimpleNamespace(machines={"storage1": storage, "compute1": compute})
    assert inventory(lab) == {
        "storage1": ["lv r-1", "subsystem nqn.x", "namespace u-1"],
        "compute1": [],
    }
    assert "nvmet/subsystems" in storage.asked[0]
    assert "/sys/block/md" in compute.asked[0]
    # Without this, a failed lvs would read as "no volumes".
    assert "|| exit 1" in storage.asked[0]


def test_inventory_of_a_machine_that_does_not_answer():
    machine = Answering("storage1", "storage", error=LabError("no answer"))
    with pytest.raises(LabError, match="no answer"):
        inventory(SimpleNamespace(machines={"storage1": machine}))
