# SPDX-License-Identifier: Apache-2.0
"""Fixtures of functional tests: the real provisioner over HTTPS and a fleet of fake nodes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.fleet import Fleet
from tests.fakes.provisioner import ProvisionerProcess


@pytest.fixture(scope="module")
def shared_provisioner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProvisionerProcess]:
    """One running provisioner for all tests of a module that do not break it."""
    process = ProvisionerProcess(tmp_path_factory.mktemp("provisioner") / "kumo")
    process.start()
    yield process
    process.stop()


@pytest.fixture
def provisioner(tmp_path: Path) -> Iterator[ProvisionerProcess]:
    """A running provisioner of one's own, without backends.

    See ProvisionerProcess: url, token, ca_file, client, start(), stop(), restart(), kill(),
    log_text(), register(node), reconcile().
    """
    process = ProvisionerProcess(tmp_path / "kumo")
    process.start()
    yield process
    process.stop()


@pytest.fixture
def fleet(provisioner: ProvisionerProcess) -> Iterator[Fleet]:
    """Fake nodes with the certificates and token of ``provisioner``; none at first.

    ``fleet.add(n)`` starts some, ``provisioner.register(node)`` makes one known.
    """
    nodes = Fleet(provisioner.node_certificate, provisioner.node_token)
    yield nodes
    nodes.close()
