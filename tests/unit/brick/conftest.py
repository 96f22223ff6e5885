# SPDX-License-Identifier: Apache-2.0
import pathlib

import os_brick.initiator.connectors
import os_brick.privileged
import pytest

PLUGIN = pathlib.Path(__file__).resolve().parents[3] / "os_brick_nvmeof" / "plugin"
# As an installed wheel has it: our modules beside os-brick's own.
os_brick.privileged.__path__.insert(0, str(PLUGIN / "privileged"))


@pytest.fixture
def far():
    """The module that runs in the privileged daemon."""
    from os_brick.privileged import kumo

    return kumo
