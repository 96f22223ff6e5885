# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.functional.brick.environments import RELEASES, Environment, build_wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Our wheel, of this very tree."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def environments(tmp_path_factory, wheel):
    """An environment for each release of os-brick, with our wheel installed."""
    found = {}
    for release in RELEASES:
        found[release] = Environment(tmp_path_factory.mktemp("brick") / release, release)
        found[release].stock_files = found[release].files()
        found[release].install(wheel)
    return found


@pytest.fixture(params=RELEASES)
def environment(request, environments):
    """One after the other."""
    return environments[request.param]
