# SPDX-License-Identifier: Apache-2.0
"""A stack's settings below the test's own directory."""

import pytest

from lab.openstack import config


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("KUMO_CACHE", str(tmp_path / "cache"))
    return config.Settings.new("192.0.2.7", tmp_path / "state")
