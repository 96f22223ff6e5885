# SPDX-License-Identifier: Apache-2.0
"""The agent as an ordinary user, with its daemon: real processes, which only root can start."""

import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from tests.functional.agent.test_daemon import Daemon, until

USER, UID, GID = "nobody", 65534, 65534
ROOT = pathlib.Path(__file__).parents[3]
# CAP_SYS_ADMIN and CAP_NET_ADMIN, as /proc/PID/status has them.
ALLOWED = f"{1 << 21 | 1 << 12:016x}"
NONE = f"{0:016x}"
PYTHON = [sys.executable, "-W", "ignore"]


def readable(path):
    """Whether others than root get there."""
    return all(one.stat().st_mode & stat.S_IXOTH for one in [path, *path.parents])


pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else"),
    pytest.mark.skipif(
        not all(map(readable, (ROOT, pathlib.Path(sys.prefix), pathlib.Path(os.__file__).parent))),
        reason="others than root cannot read this tree or its environment",
    ),
]


@pytest.fixture
def directory():
    """Others than root can come to it, unlike pytest's own."""
    path = pathlib.Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def start(directory, **streams):
    (directory / "secret").write_text("of root")
    (directory / "secret").chmod(0o600)
    config = directory / "agent.conf"
    config.write_text(
        f"[kumo_agent]\nuser = {USER}\nhost_id = h\nlock_path = {directory}/locks\n"
        f"state_dir = {directory}/state\nrun_dir = {directory}/run\n"
    )
    return subprocess.Popen(
        [*PYTHON, "-m", "tests.functional.agent.as_user", str(config), str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **streams,
    )


@pytest.fixture
def process(directory):
    for name in ("state", "locks", "held1", "held2"):
        (directory / name).mkdir()
    # What an agent that was root has left, and what is not its own.
    for name in ("state/memory.json", "locks/os-brick-kumo-subsystem-a", "locks/other"):
        (directory / name).write_text("{}")
        (directory / name).chmod(0o600)
    os.symlink(directory / "secret", directory / "state/link")
    os.chown(directory / "locks", UID, GID)
    made = start(directory)
    # Nobody waits for ever for a line of one that hangs.
    timer = threading.Timer(180, made.kill)
    timer.start()
    yield made
    timer.cancel()
    made.kill()
    made.wait()


def gone(pid):
    """Whether a process has ended; one that nobody has waited for is a zombie."""
    try:
        return " Z " in pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_it_has_no_capability_and_the_daemon_does_what_needs_root(directory, process):
    told = json.loads(process.stdout.readline())
    daemon = told.pop("pid")
    assert told == {
        "user": USER,
        "ids": [[UID] * 3, [GID] * 3],
        "caps": [NONE],
        "many threads": True,
        "no new privileges": ["1"],
        "daemon": [0, [ALLOWED, ALLOWED], "of root"],
        "here": ["PermissionError"] * 3,
        "there": ["PermissionError", "CommandError", "PermissionError"],
        "run": "C\n",
        "held": [["suspend_hi", "suspend_lo"], []],
        "ended": 0,
    }
    owners = {path: os.lstat(directory / path).st_uid for path in ("secret", "locks/other")}
    assert set(owners.values()) == {0}
    for path in ("state", "state/memory.json", "run", "locks/os-brick-kumo-subsystem-a"):
        assert os.stat(directory / path).st_uid == UID, path
    # It ends with the process, and what hangs in it as well; signals are not for it.
    os.kill(daemon, signal.SIGTERM)
    os.kill(daemon, signal.SIGINT)
    time.sleep(0.2)
    assert not gone(daemon)
    process.kill()
    process.wait()
    until(lambda: gone(daemon), lambda: "the daemon goes on", 20)


def test_a_daemon_that_is_gone_is_noticed(process):
    told = json.loads(process.stdout.readline())
    os.kill(told["pid"], signal.SIGKILL)
    assert process.stdout.readline() == "lost\n"
    assert process.wait(20) == 3


def daemon_of(pid):
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


@pytest.fixture
def agent(directory, provisioner):
    shutil.copy(provisioner.ca_file, directory / "ca.pem")
    found = Daemon(directory, provisioner)
    text = found.config.read_text().replace(str(provisioner.ca_file), f"{directory}/ca.pem")
    found.config.write_text(f"{text}user = {USER}\n")
    for name in ("token", "ca.pem"):
        os.chown(directory / name, 0, GID)
        (directory / name).chmod(0o640)
    yield found
    if found.process and found.process.poll() is None:
        found.process.kill()
        found.process.wait()


def test_the_whole_agent_as_a_user(agent, provisioner):
    client = provisioner.client
    planned = subprocess.run(agent.command("plan"), capture_output=True, text=True, timeout=60)
    assert (planned.returncode, planned.stdout.strip()) == (0, "Nothing is to be done."), planned
    agent.start()
    until(lambda: [one for one in client.hosts() if one.uuid == agent.host_id], agent.log)
    until(lambda: agent.status()["time"] > 0, agent.log)
    assert "Runs as user nobody" in agent.log()
    daemon = daemon_of(agent.process.pid)
    lines = pathlib.Path(f"/proc/{agent.process.pid}/status").read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith(("CapEff", "Uid"))] == [
        str(UID),
        NONE,
    ]
    shown = subprocess.run(
        agent.command("status"), capture_output=True, text=True, timeout=60, user=UID, group=GID
    )
    assert shown.returncode == 0, shown.stderr
    refused = subprocess.run(
        agent.command("plan"), capture_output=True, text=True, timeout=60, user=UID, group=GID
    )
    assert refused.returncode == 1
    assert "only root can become user nobody" in refused.stderr
    begun = time.monotonic()
    assert agent.end() == 0
    assert time.monotonic() - begun < 10
    until(lambda: gone(daemon), lambda: "the daemon goes on", 20)
    assert "Traceback" not in agent.log()
    agent.start()
    until(lambda: agent.log().count("Healing the volumes") == 2, agent.log)
    os.kill(daemon_of(agent.process.pid), signal.SIGKILL)
    assert agent.process.wait(20) == 1
    assert "its privileged daemon has ended" in agent.log()


def test_a_token_that_the_user_cannot_read_is_said(agent):
    (agent.directory / "token").chmod(0o600)
    run = subprocess.run(agent.command("plan"), capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert f"user nobody cannot read {agent.directory}/token" in run.stderr
