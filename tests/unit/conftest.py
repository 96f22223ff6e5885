# SPDX-License-Identifier: Apache-2.0
"""Unit tests run nothing for real: no process is started and no connection is made."""

import os
import socket
import subprocess

import pytest


class RealExecutionError(AssertionError):
    """A unit test tried to reach the outside world."""


def _banned(name):
    def refuse(*args, **kwargs):
        raise RealExecutionError(f"unit tests must not call {name}")

    return refuse


@pytest.fixture(autouse=True)
def no_real_execution(monkeypatch):
    """Ban processes and network; AF_UNIX socket pairs stay allowed (event loops need them)."""
    for name in ("system", "popen", "posix_spawn", "posix_spawnp", "execv", "execve", "execvp"):
        monkeypatch.setattr(os, name, _banned(f"os.{name}"))
    # Popen.__del__ reads this flag also of an object whose __init__ failed.
    monkeypatch.setattr(subprocess.Popen, "_child_created", False)
    monkeypatch.setattr(subprocess.Popen, "__init__", _banned("subprocess.Popen"))
    for name in ("connect", "connect_ex", "bind"):
        monkeypatch.setattr(socket.socket, name, _banned(f"socket.{name}"))
    monkeypatch.setattr(socket, "create_connection", _banned("socket.create_connection"))
    monkeypatch.setattr(socket, "getaddrinfo", _banned("socket.getaddrinfo"))
