# SPDX-License-Identifier: Apache-2.0
"""Processes of the lab: started in sessions of their own, recorded in a file, stopped to the last.

The record outlives the program that started them, so that a later command can stop what an earlier
one, even one that was killed, has left running.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from lab.errors import ProcessError

PROC = Path("/proc")
# The new process waits for a line, which is sent once its pid is on record; should we die before
# that, the line never comes and it ends by itself.
_GATE = ("/bin/sh", "-c", 'read -r _ && exec "$@" </dev/null', "start")
_POLL_SECONDS = 0.05
_LEFTOVER_SECONDS = 2.0
_KILL_SECONDS = 10.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]*")


class Child(Protocol):
    """A process that was started and waits to be released."""

    pid: int

    def release(self) -> None: ...

    def reap(self) -> None: ...


Spawn = Callable[[list[str], Mapping[str, str] | None, Path | None, Path], Child]


class _Gated:
    """A child behind the gate, leader of a session of its own."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self.pid = popen.pid

    def release(self) -> None:
        """Let it go on to its program."""
        assert self._popen.stdin is not None  # noqa: S101
        with contextlib.suppress(BrokenPipeError), self._popen.stdin as stdin:
            stdin.write(b"\n")

    def reap(self) -> None:
        """Collect its exit status if it has ended."""
        self._popen.poll()


def spawn(argv: list[str], env: Mapping[str, str] | None, cwd: Path | None, log: Path) -> _Gated:
    """Start ``argv`` behind the gate, with its output appended to ``log``.

    :raises OSError: the first program or ``cwd`` is missing.
    """
    with log.open("ab") as output:
        return _Gated(
            subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        )


@dataclass(frozen=True)
class Stat:
    """What proc(5) says in /proc/<pid>/stat."""

    pid: int
    state: str
    session: int
    start: int  # clock ticks after boot

    @property
    def runs(self) -> bool:
        """False for a process that only waits to be reaped."""
        return self.state not in "ZXx"


@dataclass(frozen=True)
class Record:
    """A process as written down; pid and start time and boot together are never used twice."""

    pid: int
    start: int
    boot: str
    argv: list[str]


def read_stat(pid: int, proc: Path = PROC) -> Stat | None:
    """The state of ``pid``; None when there is no such process."""
    try:
        text = (proc / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name, in brackets, may hold anything; the words after it start with field 3.
    words = text.rpartition(")")[2].split()
    return Stat(pid, words[0], int(words[3]), int(words[19]))


class Processes:
    """Named processes whose records and logs are below ``state_dir``.

    :param netns: network namespace (``ip netns``) they run in; None for our own.
    """

    def __init__(
        self,
        state_dir: Path,
        netns: str | None,
        *,
        spawn: Spawn = spawn,
        proc: Path = PROC,
        kill: Callable[[int, int], None] = os.kill,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.state_dir = Path(state_dir)
        self.netns = netns
        self._spawn, self._proc, self._kill = spawn, proc, kill
        self._clock, self._sleep = clock, sleep
        self._file = self.state_dir / "processes.json"
        self._children: dict[int, Child] = {}
        self._threads = threading.RLock()
        self._holds_file = False

    def start(
        self,
        name: str,
        argv: list[str],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> int:
        """Start ``argv`` and return the pid, which leads a session and a process group of its own.

        :param env: the whole environment; None for ours.
        :raises ProcessError: ``name`` runs already, or the process could not be started.
        """
        if not _NAME.fullmatch(name):
            raise ProcessError(f"{name!r} cannot be the name of a process")
        log = self.log_path(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        inside = ["ip", "netns", "exec", self.netns] if self.netns else []
        with self._locked():
            if self.alive(name):
                raise ProcessError(f"{name} runs already")
            self.kill(name)  # what a dead leader has left of its session
            try:
                child = self._spawn([*inside, *_GATE, *argv], env, cwd, log)
            except OSError as error:
                raise ProcessError(f"cannot start {name}: {error}") from error
            self._children[child.pid] = child
            stat = read_stat(child.pid, self._proc)
            if stat is None:
                raise ProcessError(f"{name} ended at once", f"Its log is {log}.")
            records = self._read()
            records[name] = Record(child.pid, stat.start, self._boot(), list(argv))
            self._write(records)
            child.release()
        return child.pid

    def alive(self, name: str) -> bool:
        """Whether the process runs (the leader of its session; not a zombie)."""
        record = self._read().get(name)
        if record is None:
            return False
        stat = self._leader(record)
        return stat is not None and stat.runs

    def pid(self, name: str) -> int | None:
        """The pid of ``name`` if it runs."""
        record = self._read().get(name)
        return record.pid if record is not None and self.alive(name) else None

    def stop(self, name: str, timeout: float = 10, sig: int = signal.SIGTERM) -> None:
        """Send ``sig`` to the process; kill what is left of its session after ``timeout`` seconds.

        A process that does not run, or is unknown, is stopped already.

        :raises ProcessError: something survived SIGKILL.
        """
        record = self._read().get(name)
        if record is None:
            return
        if self.alive(name):
            self._send(record.pid, sig)
            self._wait(lambda: not self.alive(name), timeout)
            # Children of a leader that ended in order end a moment later.
            if not self.alive(name):
                self._wait(lambda: not self._session(record), min(timeout, _LEFTOVER_SECONDS))
        self.kill(name)

    def kill(self, name: str) -> None:
        """SIGKILL every process of the session, whatever group it is in, and forget the record.

        :raises ProcessError: something survived.
        """
        record = self._read().get(name)
        if record is None:
            return

        def gone() -> bool:
            members = self._session(record)
            for pid in members:
                self._send(pid, signal.SIGKILL)
            return not members

        if not self._wait(gone, _KILL_SECONDS):
            left = ", ".join(map(str, self._session(record)))
            raise ProcessError(f"{name}: processes {left} survived SIGKILL")
        self._children.pop(record.pid, None)
        with self._locked():
            records = self._read()
            if records.get(name) == record:
                del records[name]
                self._write(records)

    def send(self, name: str, sig: int) -> None:
        """Send a signal to every process of the session; to one that does not run, nothing."""
        record = self._read().get(name)
        for pid in self._session(record) if record is not None else ():
            self._send(pid, sig)

    def stop_all(self) -> None:
        """Stop everything, the youngest first; a failure does not keep the rest from being stopped.

        :raises ProcessError: at the end, naming all that could not be stopped.
        """
        failures = []
        for name in reversed(self.names()):
            try:
                self.stop(name)
            except (ProcessError, OSError) as error:
                failures.append(str(error))
        if failures:
            raise ProcessError("; ".join(failures))

    def log_path(self, name: str) -> Path:
        """The file that holds the output of ``name``."""
        return self.state_dir / "logs" / f"{name}.log"

    def tail(self, name: str, lines: int = 20) -> list[str]:
        """The last ``lines`` of output; empty when there is none."""
        try:
            text = self.log_path(name).read_text(errors="replace")
        except FileNotFoundError:
            return []
        return text.splitlines()[-lines:]

    def names(self) -> list[str]:
        """Names on record in the order they were started, including those that have ended."""
        return list(self._read())

    def _leader(self, record: Record) -> Stat | None:
        """The recorded process itself, never another that was given its number later."""
        child = self._children.get(record.pid)
        if child is not None:
            child.reap()
        if record.boot != self._boot():
            return None
        stat = read_stat(record.pid, self._proc)
        return stat if stat is not None and stat.start == record.start else None

    def _session(self, record: Record) -> list[int]:
        """Running processes of the session that the recorded process made."""
        # The kernel gives a number out again only when its session is empty (kernel/pid.c), so a
        # stranger with this number, or another boot, means that nothing of ours is left.
        stranger = read_stat(record.pid, self._proc) is not None or record.boot != self._boot()
        if stranger and self._leader(record) is None:
            return []
        stats = (
            read_stat(int(p.name), self._proc) for p in self._proc.iterdir() if p.name.isdigit()
        )
        return [s.pid for s in stats if s is not None and s.session == record.pid and s.runs]

    def _send(self, pid: int, sig: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._kill(pid, sig)

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = self._clock() + seconds
        while not condition():
            if self._clock() >= deadline:
                return False
            self._sleep(_POLL_SECONDS)
        return True

    def _boot(self) -> str:
        return (self._proc / "sys/kernel/random/boot_id").read_text().strip()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer of the records at a time, among threads and among commands."""
        with self._threads:
            if self._holds_file:
                yield
                return
            with (self.state_dir / "processes.lock").open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._holds_file = True
                try:
                    yield
                finally:
                    self._holds_file = False

    def _read(self) -> dict[str, Record]:
        try:
            text = self._file.read_text()
        except FileNotFoundError:
            return {}
        return {name: Record(**fields) for name, fields in json.loads(text).items()}

    def _write(self, records: dict[str, Record]) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({name: asdict(record) for name, record in records.items()}))
        new.replace(self._file)
