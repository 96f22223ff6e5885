# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.unit.lab.fakes import Clock, Kernel, Labs, Screen


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def kernel(tmp_path, clock):
    return Kernel(tmp_path, clock)


@pytest.fixture
def screen(clock):
    return Screen(clock)


@pytest.fixture
def labs(tmp_path):
    return Labs(tmp_path / "labs")
