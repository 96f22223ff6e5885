# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.fakes.agent_host import Host
from tests.unit.brick.agent.stories import Run


@pytest.fixture
def host(tmp_path):
    """A host with an attached volume that was written to."""
    found = Host(tmp_path)
    found.attach()
    found.md.write("md127", b"first")
    return found


@pytest.fixture
def run(host, tmp_path):
    """The agent on it."""
    return Run(host, tmp_path)
