# SPDX-License-Identifier: Apache-2.0
"""QEMU machine protocol: what is done to a virtual machine from outside.

Protocol: QEMU documentation, "QEMU QMP Reference Manual".
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

from lab.errors import LabError


class QmpError(LabError):
    """QEMU refused a command or did not answer."""


def execute(
    connect: Callable[[], socket.socket], command: str, timeout: float = 10.0, **arguments: Any
) -> Any:
    """Send one command over a connection of its own and return its answer.

    :param connect: makes a stream connected to the monitor.
    :param timeout: seconds for each read.
    :raises QmpError: refused, or no answer.
    """
    try:
        with connect() as sock:
            sock.settimeout(timeout)
            with sock.makefile("rwb") as stream:
                _answer(stream)  # the greeting
                _ask(stream, "qmp_capabilities", {})
                return _ask(stream, command, arguments)
    except (OSError, ValueError) as error:
        raise QmpError(f"the virtual machine monitor does not answer {command}: {error}") from error


def _ask(stream: Any, command: str, arguments: dict[str, Any]) -> Any:
    message = {"execute": command, "arguments": arguments}
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()
    return _answer(stream)


def _answer(stream: Any) -> Any:
    """The next answer; events in between are skipped."""
    while True:
        line = stream.readline()
        if not line:
            raise OSError("connection closed")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("not an object")
        if "error" in message:
            raise QmpError(f"virtual machine monitor: {message['error'].get('desc')}")
        if "return" in message or "QMP" in message:
            return message.get("return")
