# SPDX-License-Identifier: Apache-2.0
"""The two sockets of a virtual machine: its guest agent and its monitor, over socket pairs."""

import base64
import contextlib
import itertools
import json
import socket
import threading
import time


class HangupError(Exception):
    """The fake closes the connection instead of answering."""


class LineServer:
    """Serves each connection in a thread of its own; a subclass says what it answers."""

    def __init__(self):
        self.connections = 0
        self.refuse = None
        self._threads = []

    def connect(self, *_):
        if self.refuse is not None:
            raise self.refuse
        self.connections += 1
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=(ours,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return theirs

    def join(self):
        """Wait until the client has closed every connection."""
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive(), "a connection was left open"

    def _serve(self, sock):
        with sock, contextlib.suppress(OSError, HangupError):
            sock.sendall(self.greeting())
            with sock.makefile("rb") as lines:
                for line in lines:
                    sock.sendall(self.answer(line))

    def greeting(self):
        return b""


def encode(message):
    return json.dumps(message).encode() + b"\n"


class FakeGuest(LineServer):
    """A guest with files and processes, seen through qemu-guest-agent.

    :ivar program: ``(argv, stdin) -> (code, stdout, stderr)``, or the number of a signal; None for
        a process that never ends.
    """

    def __init__(self):
        super().__init__()
        self.files = {}
        self.calls = []
        self.environment = {}
        self.program = lambda argv, stdin: (0, "", "")
        self.commands = []
        self.polls = 0  # how often a process is still running when it is asked for
        self.errors = {}
        self.mute = set()
        self.hangup = set()
        self.stale = b""
        self.extra = {}
        self.now = time.time
        self.killed = []
        self._processes = {}
        self._handles = {}
        self._numbers = itertools.count(1000)

    def greeting(self):
        return self.stale

    def answer(self, line):
        delimited = line.startswith(b"\xff")
        message = json.loads(line.lstrip(b"\xff"))
        name, arguments = message["execute"], message.get("arguments", {})
        if name == "guest-sync-delimited":
            assert delimited, "the agent's parser was not reset"
            return b"\xff" + encode({"return": arguments["id"]})
        self.calls.append((name, arguments))
        if name in self.hangup:
            raise HangupError
        if name in self.mute:
            return b""
        if name in self.errors:
            return encode({"error": {"class": "GenericError", "desc": self.errors[name]}})
        handler = getattr(self, "_" + name.removeprefix("guest-").replace("-", "_"))
        return encode({"return": handler(**{k.replace("-", "_"): v for k, v in arguments.items()})})

    def called(self, name):
        return [arguments for each, arguments in self.calls if each == name]

    def _ping(self):
        return {}

    def _get_time(self):
        return int(self.now() * 1e9)

    def _exec(self, path, arg, capture_output=False, input_data=None):
        number = next(self._numbers)
        if path == "/usr/bin/kill":
            self.killed.append(arg)
            return {"pid": number}
        assert path == "/usr/bin/env"
        assert arg[0] == "-i"
        assert capture_output
        count = sum(1 for _ in itertools.takewhile(lambda word: "=" in word, arg[1:]))
        self.environment = dict(word.split("=", 1) for word in arg[1 : count + 1])
        argv = arg[count + 1 :]
        command = argv[2] if argv[:2] == ["/bin/sh", "-c"] else argv
        self.commands.append(command)
        stdin = base64.b64decode(input_data) if input_data is not None else None
        self._processes[number] = [self.polls, self.program(command, stdin)]
        return {"pid": number}

    def _exec_status(self, pid):
        entry = self._processes[pid]
        if entry[1] is None or entry[0] > 0:
            entry[0] -= 1
            return {"exited": False}
        del self._processes[pid]
        if isinstance(entry[1], int):
            return {"exited": True, "signal": entry[1]}
        code, out, err = entry[1]
        status = {"exited": True, "exitcode": code, **self.extra}
        for key, text in (("out-data", out), ("err-data", err)):
            if text:
                data = text if isinstance(text, bytes) else text.encode()
                status[key] = base64.b64encode(data).decode()
        return status

    def _file_open(self, path, mode):
        number = next(self._numbers)
        if mode == "w":
            self.files[path] = b""
        self._handles[number] = [path, 0]
        return number

    def _file_write(self, handle, buf_b64):
        data = base64.b64decode(buf_b64)
        self.files[self._handles[handle][0]] += data
        return {"count": len(data), "eof": False}

    def _file_read(self, handle, count):
        path, start = self._handles[handle]
        part = self.files[path][start : start + count]
        self._handles[handle][1] += len(part)
        eof = start + len(part) >= len(self.files[path])
        return {"count": len(part), "buf-b64": base64.b64encode(part).decode(), "eof": eof}

    def _file_close(self, handle):
        del self._handles[handle]
        return {}

    @property
    def open_files(self):
        return len(self._handles)


class FakeMonitor(LineServer):
    """QEMU's monitor: says what the machine does and freezes it."""

    def __init__(self):
        super().__init__()
        self.status = "running"
        self.events = 0
        self.commands = []
        self.errors = {}
        self.hangup = set()
        self.raw = None

    def greeting(self):
        return encode({"QMP": {"version": {}, "capabilities": []}})

    def answer(self, line):
        message = json.loads(line)
        name = message["execute"]
        self.commands.append((name, message["arguments"]))
        if name == "qmp_capabilities":
            return encode({"return": {}})
        assert self.commands[-2][0] == "qmp_capabilities"
        if name in self.hangup:
            raise HangupError
        if self.raw is not None:
            return self.raw
        if name in self.errors:
            return encode({"error": {"class": "GenericError", "desc": self.errors[name]}})
        if name in ("stop", "cont"):
            self.status = {"stop": "paused", "cont": "running"}[name]
        result = {"status": self.status} if name == "query-status" else {}
        events = encode({"event": name.upper(), "data": {}}) * self.events
        return events + encode({"return": result})
