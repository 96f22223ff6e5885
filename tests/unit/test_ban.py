# SPDX-License-Identifier: Apache-2.0
"""The ban on real execution holds."""

import os
import socket
import subprocess

import pytest

from tests.unit.conftest import RealExecutionError


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: subprocess.run(["true"], check=False),
        lambda: os.system("true"),
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: socket.socket().connect(("127.0.0.1", 9)),
        lambda: socket.getaddrinfo("localhost", 80),
    ],
)
def test_the_outside_world_is_out_of_reach(attempt):
    with pytest.raises(RealExecutionError):
        attempt()
