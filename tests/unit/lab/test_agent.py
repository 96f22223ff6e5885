# SPDX-License-Identifier: Apache-2.0
import configparser
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab import agent, guest_brick
from lab.agent import Agent
from lab.errors import LabError
from os_brick_nvmeof.agent import conf

URL = "https://10.77.0.1:8090"
LEG = {"uuid": "11112222-0000", "place": "in sync", "path": "live", "recorded": "Available"}


class FakeMachine:
    """A compute machine with files and a unit, ``kumo-agent``."""

    name = "compute1"

    def __init__(self, clock):
        self.clock = clock
        self.files, self.modes, self.commands = {}, {}, []
        self.broken = False
        self.shown = []
        self.healed = ""

    def put(self, path, data, mode):
        self.files[path], self.modes[path] = data.decode(), mode

    def run(self, command, *, check=True, timeout=120.0):
        command = command if isinstance(command, str) else " ".join(command)
        self.commands.append(command)
        code, out = 0, ""
        if command == "systemctl start kumo-agent":
            self.clock.now += 7
            code = int(self.broken)
        elif command.startswith("journalctl"):
            out = "kumo-agent: set lock_path"
        elif "cat /run/kumo-agent" in command:
            self.clock.now += 1
            shown = self.shown.pop(0)
            out = "" if shown is None else json.dumps({"volumes": shown})
        elif "history.json" in command:
            out = self.healed
        elif "metrics" in command:
            out = '# HELP x y\nkumo_agent_volumes{state="good"} 2.0\nkumo_agent_rounds_total 7\n'
        elif command.endswith("plan -f json"):
            out = '{"actions": []}'
        assert not (check and code), command
        return SimpleNamespace(returncode=code, stdout=out, stderr="")


@pytest.fixture
def machine(clock, monkeypatch):
    monkeypatch.setattr(agent.time, "monotonic", clock)
    monkeypatch.setattr(agent.time, "sleep", clock.sleep)
    return FakeMachine(clock)


@pytest.fixture
def one(machine, tmp_path):
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text("CERTIFICATE")

    def kumo(*words):
        assert words[:4] == ("token", "create", "--role", "storage")
        return SimpleNamespace(stdout="secret\n")

    return Agent(machine, SimpleNamespace(url=URL, ca_file=ca_file, kumo=kumo))


def test_install_writes_what_the_agent_reads(one, machine, tmp_path):
    one.install(fail_after=2.5)
    assert machine.files[agent.TOKEN_FILE] == "secret"
    assert machine.modes[agent.TOKEN_FILE] == 0o640
    assert f"chgrp kumo-agent {agent.TOKEN_FILE}" in machine.commands[-1]
    assert machine.files[agent.CA] == "CERTIFICATE"
    file = tmp_path / "agent.conf"
    file.write_text(machine.files[agent.CONFIG])
    options = conf.load([str(file)]).kumo_agent
    assert options.provisioner_urls == [URL]
    assert (options.lock_path, options.fail_after) == (guest_brick.LOCKS, 2.5)
    assert options.user == "kumo-agent"
    shipped = Path(agent.__file__).parents[1] / "etc/systemd/kumo-agent.service"
    assert machine.files["/etc/systemd/system/kumo-agent.service"] == shipped.read_text()
    dropped = configparser.ConfigParser(strict=False)
    dropped.optionxform = str
    dropped.read_string(machine.files["/etc/systemd/system/kumo-agent.service.d/lab.conf"])
    assert "brick/ours" in dropped["Service"]["Environment"]
    assert dropped["Service"]["ExecStart"].endswith("agent.conf run")
    assert dropped["Service"]["ExecStartPre"].endswith(
        f"-o kumo-agent -g kumo-agent {guest_brick.LOCKS}"
    )


def test_start_tells_how_long_it_took_or_what_the_log_says(one, machine):
    assert one.start() == 7
    machine.broken = True
    with pytest.raises(LabError, match="set lock_path"):
        one.start()


def test_stop_kill_and_forget(one, machine):
    one.stop()
    one.kill()
    one.forget()
    assert machine.commands[:2] == [
        "systemctl stop kumo-agent",
        "systemctl kill -s KILL kumo-agent",
    ]
    assert "rm -rf /var/lib/kumo-agent/* /run/kumo-agent/status.json" in machine.commands[-1]


def test_wait_for_a_state(one, machine):
    bad = {"uuid": "v", "state": "degraded", "legs": [LEG], "notes": [{"text": "no live path"}]}
    machine.shown = [None, [bad], [bad | {"state": "good"}]]
    assert one.wait("v", "good", 10) == 4.0
    machine.shown = [[bad]] * 9
    with pytest.raises(LabError, match=r"not good .* degraded .11112222 in sync, live.*no live"):
        one.wait("v", "good", 3)
    machine.shown = [[]] * 9
    with pytest.raises(LabError, match="not known to the agent"):
        one.wait("v", "good", 3)


def test_history_metrics_and_plan(one, machine):
    assert one.history() == []
    machine.healed = json.dumps([{"volume": "v", "bytes": 1}, {"volume": "w", "bytes": 2}])
    assert one.history("w") == [{"volume": "w", "bytes": 2}]
    assert len(one.history()) == 2
    assert one.metrics() == {
        'kumo_agent_volumes{state="good"}': 2.0,
        "kumo_agent_rounds_total": 7.0,
    }
    assert one.plan() == {"actions": []}
