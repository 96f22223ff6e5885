# SPDX-License-Identifier: Apache-2.0
"""Completion in the shell: what is offered, and that nothing ever fails in the middle of a line."""

import argparse
import io
import logging
import uuid

import argcomplete
import pytest

from kumo_client.cli import complete
from kumo_client.cli import main as cli
from kumo_client.schemas.backend import BackendCreate
from kumo_client.schemas.host import HostProbe
from kumo_client.schemas.snapshot import SnapshotCreate
from kumo_client.schemas.volume import VolumeCreate
from tests.fakes.http import Refused, Script
from tests.unit.client.conftest import TOKEN, A

V1, V2, S1 = (str(uuid.UUID(int=number)) for number in range(1, 4))
ENVIRON = {"KUMO_URL": A, "KUMO_TOKEN": TOKEN, "XDG_CONFIG_HOME": "/nowhere"}


@pytest.fixture
def filled(api, operated):
    for number in (1, 2):
        api.add_backend(BackendCreate(mgmt_ips=[f"10.0.0.{number}"]))
    api.create_volume(VolumeCreate(uuid=V1, alias="v1", capacity=1))
    api.create_volume(VolumeCreate(uuid=V2, alias="w", capacity=1))
    api.create_snapshot(SnapshotCreate(alias="s1", volume_id=V1, snapshot_id=S1))
    api.probe_host(HostProbe(host_nqn="nqn.2014-08.org.x:h", host_id="h1", name="compute-1"))
    operated.found("node-1", V2)
    operated.begin("Drain", backend_id="node-1")
    operated.volumes[V1].location[0].backend.name = "node-1"
    return operated


def values(network, ask, prefix="", **args):
    return complete.values(ask, prefix, argparse.Namespace(**args), ENVIRON, network)


def test_what_is_offered(filled, network):
    assert values(network, complete.ask_backends, "node-2") == ["node-2", "node-2"]
    assert values(network, complete.ask_volumes) == ["v1", V1, "w", V2]
    assert values(network, complete.ask_volumes, "v") == ["v1"]
    assert values(network, complete.ask_snapshots) == ["s1", S1]
    assert values(network, complete.ask_hosts) == ["compute-1", "h1"]
    assert values(network, complete.ask_tenants) == ["0"]
    assert values(network, complete.ask_tasks) == list(filled.tasks_)
    assert values(network, complete.ask_garbage) == [V2]
    replica = filled.volumes[V1].location[0].uuid
    assert values(network, complete.ask_replicas, volume="v1") == [replica, "node-1"]


def test_no_more_than_anybody_reads(filled, network, monkeypatch):
    monkeypatch.setattr(complete, "MOST", 3)
    assert len(values(network, complete.ask_volumes)) == 3


def test_a_failure_completes_nothing_and_is_logged(filled, network, caplog, clock):
    caplog.set_level(logging.DEBUG, logger="kumo_client")
    network.clock = None
    assert values(network, complete.ask_replicas, volume="nothing") == []
    assert "volume nothing does not exist" in caplog.text
    network.servers[A] = Script(Refused)
    assert complete.values(complete.ask_volumes, "", argparse.Namespace(), {}, network) == []
    assert "the address of the provisioner is not set" in caplog.text


def test_the_shell_asks_in_a_short_time(filled, network, monkeypatch):
    monkeypatch.setattr(complete, "SECONDS", 0.01)
    network.servers[A] = Script(Refused)
    assert values(network, complete.ask_hosts, timeout="600") == []


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("kumo vol", ["volume "]),
        ("kumo volume mig", ["migrate "]),
        ("kumo backend drain --st", ["--stop "]),
        ("kumo volume show v", ["v1 "]),
        ("kumo replica remove v1 node-", ["node-1 "]),
        ("kumo backend maintenance node-1 o", ["on", "off"]),
        ("kumo -f j", ["json "]),
    ],
)
def test_the_whole_way(filled, network, monkeypatch, line, offered):
    """As the shell asks: through argcomplete, the parser and the completers."""
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setenv("_ARGCOMPLETE_IFS", "\n")
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    session = complete.config.Settings.session
    monkeypatch.setattr(
        complete.config.Settings,
        "session",
        lambda self, transport: session(self, transport=network),
    )
    # Otherwise it takes file descriptor 9, whoever has it.
    monkeypatch.setattr(
        argcomplete.CompletionFinder,
        "_init_debug_stream",
        lambda self: monkeypatch.setattr(argcomplete.io, "debug_stream", io.StringIO()),
    )

    class Ended(Exception):  # noqa: N818
        pass

    def end(code):
        raise Ended

    out = io.StringIO()
    with pytest.raises(Ended):
        argcomplete.autocomplete(cli.build_parser(), exit_method=end, output_stream=out)
    assert sorted(out.getvalue().split("\n")) == sorted(offered)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_what_the_shell_reads(kumo, shell, network):
    code, out, _ = kumo("completion", shell, KUMO_URL="")
    assert code == 0
    assert "_ARGCOMPLETE=1" in out
    assert "kumo" in out
    assert "#compdef kumo" in out
    assert network.requests == []
