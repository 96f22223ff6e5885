# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process, with the real provisioner; this machine has no arrays of ours."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import os_brick_nvmeof
from tests.functional.provisioner.common import made_volume, new_id

NQN = "nqn.2014-08.org.nvmexpress:uuid:0b6fe5d1-0000-4000-8000-00000000d00d"
# A machine without nvme-cli has no NQN.
START = """
import sys
from os_brick import utils
utils.get_host_nqn = lambda *_: sys.argv[1]
utils.get_nvme_host_id = lambda *_: "0b6fe5d1-0000-4000-8000-00000000d00d"
from os_brick import privileged
# Where a wheel puts it; an environment for development may not have it yet.
privileged.__path__.append("PLUGIN")
from os_brick_nvmeof.agent import main
sys.exit(main.main(sys.argv[2:]))
"""

START = START.replace("PLUGIN", str(pathlib.Path(os_brick_nvmeof.__path__[0], "plugin/privileged")))


class Daemon:
    def __init__(self, directory, provisioner):
        self.directory = directory
        self.host_id = new_id()
        (directory / "token").write_text(provisioner.token)
        self.config = directory / "agent.conf"
        self.config.write_text(
            f"[DEFAULT]\ndebug = true\n[kumo_agent]\nprovisioner_urls = {provisioner.url}\n"
            f"provisioner_token_file = {directory}/token\n"
            f"provisioner_ca_file = {provisioner.ca_file}\nlook_interval = 0.5\n"
            f"provisioner_timeout = 2\nprobe_interval = 1\npull_interval = 1\n"
            f"host_id = {self.host_id}\nlock_path = {directory}/locks\n"
            f"state_dir = {directory}/state\nrun_dir = {directory}/run\nlog_json = true\n"
        )
        self.process = None

    def command(self, *words):
        return [sys.executable, "-c", START, NQN, "--config-file", str(self.config), *words]

    def start(self):
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command("run"), stdout=log, stderr=log)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(20)

    def status(self):
        try:
            return json.loads((self.directory / "run/status.json").read_text())
        except OSError:
            return {"time": 0, "volumes": [], "provisioner": {"away": True}}

    def log(self):
        return (self.directory / "log").read_text()


def until(condition, what, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


@pytest.fixture
def daemon(tmp_path, provisioner, fleet):
    for node in fleet.add(3):
        provisioner.register(node)
    found = Daemon(tmp_path, provisioner)
    yield found
    if found.process and found.process.poll() is None:
        found.process.kill()
        found.process.wait()


def test_it_runs_learns_and_ends(daemon, provisioner):
    client = provisioner.client
    daemon.start()
    until(lambda: [one for one in client.hosts() if one.uuid == daemon.host_id], daemon.log)
    (host,) = [one for one in client.hosts() if one.uuid == daemon.host_id]
    assert sorted(host.abilities) == ["array-report", "hold-writes"]
    uid = made_volume(client, replicas=2)
    body = {"hostId": daemon.host_id, "volId": uid}
    client.session.request("POST", "/publish", json=body)
    until(lambda: [one["uuid"] for one in daemon.status()["volumes"]] == [uid], daemon.log)
    assert daemon.status()["volumes"][0]["state"] == "not here"

    second = subprocess.run(daemon.command("run"), capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert "another kumo-agent runs" in second.stderr

    provisioner.kill()
    until(lambda: daemon.status()["provisioner"]["away"], daemon.log)
    assert [one["uuid"] for one in daemon.status()["volumes"]] == [uid]
    assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
    os.unlink(daemon.directory / "run/status.json")
    daemon.start()
    # What the provisioner said last is known after a restart without it.
    until(lambda: [one["uuid"] for one in daemon.status()["volumes"]] == [uid], daemon.log)
    provisioner.start()
    until(lambda: not daemon.status()["provisioner"]["away"], daemon.log)
    begun = time.monotonic()
    assert daemon.end() == 0
    assert time.monotonic() - begun < 5
    lines = [json.loads(line) for line in daemon.log().splitlines() if line.startswith("{")]
    assert any(line["message"].startswith("The provisioner is away") for line in lines)
    assert "Traceback" not in daemon.log()


def test_the_plan_and_one_round_from_the_command_line(daemon):
    run = subprocess.run(daemon.command("plan"), capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.strip()) == (0, "Nothing is to be done."), run.stderr
    run = subprocess.run(daemon.command("run", "--once"), capture_output=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert daemon.status()["time"] > 0
