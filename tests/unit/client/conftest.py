# SPDX-License-Identifier: Apache-2.0
"""A session over the fake network."""

import logging

import pytest

from kumo_client.api.provisioner import Provisioner
from kumo_client.cli import main as cli
from kumo_client.session import Session
from tests.fakes.http import FakeClock, Transport
from tests.fakes.http_operator import FakeOperatorProvisioner
from tests.fakes.http_provisioner import FakeProvisioner
from tests.unit.client import operator

TOKEN = "s3cret-token"
A = "https://a.example:8090"
B = "https://b.example:8090"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def network(clock):
    return Transport(clock=clock)


@pytest.fixture
def connect(network, clock):
    """Make a session with endpoints A and B, or others."""

    def make(*endpoints, **options):
        options = {"token": TOKEN, "ca_file": None} | options
        return Session(
            endpoints or (A, B), transport=network, clock=clock, sleep=clock.sleep, **options
        )

    return make


@pytest.fixture
def server(network):
    """A provisioner at endpoint A."""
    network.servers[A] = FakeProvisioner(TOKEN)
    return network.servers[A]


@pytest.fixture
def operated(network):
    """A provisioner of ours at endpoint A, with all extensions."""
    network.servers[A] = FakeOperatorProvisioner(TOKEN)
    return network.servers[A]


@pytest.fixture
def api(operated, connect, clock):
    """Calls to the one with all extensions."""
    return Provisioner(connect(A), clock=clock)


@pytest.fixture
def provisioner(server, connect, clock):
    return Provisioner(connect(A), clock=clock)


@pytest.fixture
def _quiet_logging_afterwards():
    yield
    logging.getLogger("kumo_client").handlers.clear()
    logging.getLogger("kumo_client").setLevel(logging.NOTSET)


@pytest.fixture
def kumo(network, capsys, tmp_path):
    """Run the command; gives (exit code, stdout, stderr)."""

    def run(*argv, **environ):
        environ = {
            "KUMO_URL": A,
            "KUMO_TOKEN": TOKEN,
            "KUMO_TIMEOUT": "0.1",
            "XDG_CONFIG_HOME": str(tmp_path),
        } | environ
        code = cli.main(argv, environ, network)
        return code, *capsys.readouterr()

    return run


filled = operator.filled
slept = operator.slept
