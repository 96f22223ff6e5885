# SPDX-License-Identifier: Apache-2.0
"""QEMU guest agent: run commands and move files in a guest without its network.

Protocol: QEMU documentation, "QEMU Guest Agent Protocol Reference"; one JSON object per line over
a unix socket that leads to a virtio serial port.
"""

from __future__ import annotations

import base64
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.errors import LabError

_CHUNK = 1 << 20


class GuestAgentError(LabError):
    """The agent refused a command, or did not answer in time."""


class CommandFailedError(LabError):
    """A command in a guest ended with another code than 0."""


@dataclass(frozen=True)
class Result:
    """What a command in a guest left: its output as text and its exit code."""

    stdout: str
    stderr: str
    returncode: int


def connect_unix(path: Path) -> socket.socket:
    """Connect to a unix socket.

    :raises OSError: nobody listens there, or the path is longer than unix(7) allows.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock


class _Stream:
    """One connection to an agent: JSON objects, one per line.

    :param deadline: when to give up, by the monotonic clock.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._buffer = b""

    def synchronise(self, number: int) -> None:
        """Skip whatever an earlier connection left half-read (guest-sync-delimited)."""
        # 0xFF resets the agent's parser; it answers with 0xFF before the reply.
        self._send_all(b"\xff")
        self.send({"execute": "guest-sync-delimited", "arguments": {"id": number}})
        while True:
            try:
                if self.read().get("return") == number:
                    return
            except ValueError:
                continue

    def send(self, message: dict[str, Any]) -> None:
        """Send one object."""
        self._send_all(json.dumps(message).encode() + b"\n")

    def read(self) -> dict[str, Any]:
        """The next object.

        :raises OSError: nothing came in time, or the connection is closed.
        :raises ValueError: the line holds something else.
        """
        while b"\n" not in self._buffer:
            self._sock.settimeout(self._left())
            data = self._sock.recv(1 << 16)
            if not data:
                raise ConnectionResetError("the virtual machine closed the port")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line[line.rfind(b"\xff") + 1 :])
        if not isinstance(answer, dict):
            raise ValueError("not an object")
        return answer

    def _send_all(self, data: bytes) -> None:
        self._sock.settimeout(self._left())
        self._sock.sendall(data)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        return left


class GuestAgent:
    """One guest's agent. Safe for several threads: a request and its answer are one step.

    :param connect: makes a connected stream; called for each request.
    """

    def __init__(self, name: str, connect: Callable[[], socket.socket]) -> None:
        self._name = name
        self._connect = connect
        self._lock = threading.Lock()
        self._ids = itertools.count(int(time.time() * 1000) % (1 << 30))

    def call(self, command: str, timeout: float = 20.0, **arguments: Any) -> Any:
        """Return the answer of one agent command.

        :param timeout: seconds to wait for the answer.
        :raises GuestAgentError: refused, no answer, or no connection.
        """
        with self._lock:
            try:
                answer = self._exchange(command, arguments, time.monotonic() + timeout)
            except (OSError, ValueError) as error:
                raise GuestAgentError(
                    f"{self._name}: the guest agent does not answer {command}: {error}"
                ) from error
        if "error" in answer:
            text = answer["error"].get("desc", answer["error"])
            raise GuestAgentError(f"{self._name}: {command}: {text}")
        return answer.get("return")

    def _exchange(self, command: str, arguments: dict[str, Any], deadline: float) -> dict[str, Any]:
        # QEMU serves one client at a time: a connection for each request lets other commands of
        # the lab in between.
        with self._connect() as sock:
            stream = _Stream(sock, deadline)
            stream.synchronise(next(self._ids))
            stream.send({"execute": command, "arguments": arguments})
            return stream.read()

    def ping(self, timeout: float = 2.0) -> bool:
        """Does the agent answer?"""
        try:
            self.call("guest-ping", timeout=timeout)
        except GuestAgentError:
            return False
        return True

    def run(
        self,
        command: str | list[str],
        *,
        input: bytes | None = None,
        timeout: float = 300.0,
        env: dict[str, str] | None = None,
    ) -> Result:
        """Run a command (a text goes through ``/bin/sh -c``) and wait for its end.

        :param timeout: seconds; the command, but not what it has started, is killed after them.
        :raises GuestAgentError: the agent did not answer, the time is over, or the output is
            longer than the agent keeps.
        """
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else command
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LC_ALL": "C"}
        environment |= {"HOME": "/root"} | (env or {})
        arguments: dict[str, Any] = {
            "path": "/usr/bin/env",
            "arg": ["-i", *(f"{k}={v}" for k, v in environment.items()), *argv],
            "capture-output": True,
        }
        if input is not None:
            arguments["input-data"] = base64.b64encode(input).decode()
        deadline = time.monotonic() + timeout
        pid = self.call("guest-exec", timeout=min(timeout, 60), **arguments)["pid"]
        status = self._wait(pid, deadline)
        if status is None:
            self.call("guest-exec", path="/usr/bin/kill", arg=["-KILL", str(pid)])
            raise GuestAgentError(
                f"{self._name}: not done after {timeout:.0f} s: {' '.join(argv)[:300]}"
            )
        if status.get("out-truncated") or status.get("err-truncated"):
            raise GuestAgentError(f"{self._name}: too much output from: {' '.join(argv)[:300]}")
        return Result(
            stdout=_text(status.get("out-data")),
            stderr=_text(status.get("err-data")),
            returncode=int(status.get("exitcode", 128 + int(status.get("signal", 0)))),
        )

    def _wait(self, pid: int, deadline: float) -> dict[str, Any] | None:
        pause = 0.02
        while time.monotonic() < deadline:
            left = max(1.0, deadline - time.monotonic())
            status = self.call("guest-exec-status", timeout=min(60.0, left), pid=pid)
            if status["exited"]:
                return dict(status)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        return None

    def put(self, path: str, data: bytes) -> None:
        """Write a file in the guest."""
        handle = self.call("guest-file-open", path=path, mode="w")
        try:
            for start in range(0, len(data), _CHUNK):
                chunk = base64.b64encode(data[start : start + _CHUNK]).decode()
                self.call("guest-file-write", timeout=60, handle=handle, **{"buf-b64": chunk})
        finally:
            self.call("guest-file-close", handle=handle)

    def get(self, path: str) -> bytes:
        """Read a file of the guest."""
        handle = self.call("guest-file-open", path=path, mode="r")
        parts = []
        try:
            while True:
                part = self.call("guest-file-read", timeout=60, handle=handle, count=_CHUNK)
                parts.append(base64.b64decode(part["buf-b64"]))
                if part["eof"]:
                    return b"".join(parts)
        finally:
            self.call("guest-file-close", handle=handle)


def _text(data: str | None) -> str:
    return base64.b64decode(data).decode(errors="replace") if data else ""
