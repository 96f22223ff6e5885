# SPDX-License-Identifier: Apache-2.0
import subprocess

import pytest

from lab.openstack import cli as module
from lab.openstack import config


class FakeRun:
    """Answers as subprocess.run with a recorded result."""

    def __init__(self, stdout="", code=0, stderr="", late=False):
        self.result = subprocess.CompletedProcess([], code, stdout, stderr)
        self.late, self.calls = late, []

    def __call__(self, argv, **options):
        self.calls.append((argv, options))
        if self.late:
            raise subprocess.TimeoutExpired(argv, options["timeout"])
        return self.result


@pytest.fixture
def cli():
    return module.Cli({"OS_PASSWORD": "hidden"}, "somewhere")


def use(monkeypatch, **result):
    run = FakeRun(**result)
    monkeypatch.setattr(module.subprocess, "run", run)
    return run


def test_runs_the_real_command_inside_the_namespace(cli, monkeypatch):
    run = use(monkeypatch, stdout='[{"ID": "1"}]')
    assert cli.json("volume", "list") == [{"ID": "1"}]
    argv, options = run.calls[0]
    openstack = str(config.BIN / "openstack")
    assert argv == f"ip netns exec somewhere {openstack} volume list -f json".split()
    assert options["env"]["OS_PASSWORD"] == "hidden"
    assert options["stdin"] is subprocess.DEVNULL


def test_failure_shows_command_and_reason_but_no_password(cli, monkeypatch):
    use(monkeypatch, code=1, stderr="Quota exceeded\n")
    with pytest.raises(module.CommandFailedError) as caught:
        cli.run("volume", "create", "v")
    assert str(caught.value) == "openstack volume create v: exit 1: Quota exceeded"


def test_command_that_does_not_end_is_a_failure(cli, monkeypatch):
    use(monkeypatch, late=True)
    with pytest.raises(module.CommandFailedError, match="no end after 120 s"):
        cli.run("volume", "list")


@pytest.mark.parametrize(
    ("result", "answer"),
    [
        ({}, True),
        ({"code": 1, "stderr": "No volume found for v"}, False),
        ({"code": 1, "stderr": "No Volume found for v"}, False),
    ],
)
def test_exists(cli, monkeypatch, result, answer):
    use(monkeypatch, **result)
    assert cli.exists("volume", "show", "v") is answer


def test_exists_does_not_take_an_unreachable_cloud_for_absence(cli, monkeypatch):
    use(monkeypatch, code=1, stderr="Unable to establish connection")
    with pytest.raises(module.CommandFailedError):
        cli.exists("volume", "show", "v")
