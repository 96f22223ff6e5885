# SPDX-License-Identifier: Apache-2.0
"""The agent's privileged daemon: what it does and refuses, and how it begins and ends."""

import os
import signal
import threading
import types

import pytest
from os_brick import privileged as stock
from oslo_privsep import daemon, priv_context

from os_brick_nvmeof import sysfs
from os_brick_nvmeof.agent import cutting, hold, rooted, user
from os_brick_nvmeof.privileged import LocalHost
from os_brick_nvmeof.props import Portal
from tests.fakes.agent_host import Host

MD = "/sys/class/block/md127/md"


@pytest.fixture
def inside(monkeypatch):
    """This process is the daemon."""
    monkeypatch.setattr(stock.default, "client_mode", False)
    monkeypatch.setattr(rooted.context, "client_mode", False)


# -- what it does ---------------------------------------------------------------------------------


def test_verbs_are_those_of_the_connector(inside, far, monkeypatch):
    monkeypatch.setitem(far.VERBS, "write", lambda path, value: ("done", (path, value)))
    monkeypatch.setattr(far, "_GRACE", 10)
    assert rooted.start("write", "/sys/x", "1") == ("done", ("/sys/x", "1"))
    LocalHost(far=rooted).write("/sys/x", "1")


def test_a_slow_verb_has_a_ticket(inside, far, monkeypatch):
    go = threading.Event()
    monkeypatch.setitem(far.VERBS, "read", lambda *_: (go.wait(10), ("done", b"x"))[1])
    monkeypatch.setattr(far, "_GRACE", 0)
    kind, ticket = rooted.start("read", "/dev/nvme0n1", 0, 4096)
    assert kind == "pending"
    assert rooted.outcome(ticket) == ("pending", ticket)
    rooted.forget(ticket)
    assert far._jobs == {}
    _, ticket = rooted.start("read", "/dev/nvme0n1", 0, 4096)
    go.set()
    assert far._jobs[ticket].done.wait(10)
    assert rooted.outcome(ticket) == ("done", b"x")


def test_the_host_asks_the_daemon_although_the_connector_has_none(far, monkeypatch):
    monkeypatch.setattr(stock.default, "client_mode", False)
    asked = []
    other = types.SimpleNamespace(start=lambda *given: (asked.append(given), ("done", None))[1])
    LocalHost(far=other).flush("/dev/md127")
    assert asked == [("flush", "/dev/md127")]


@pytest.fixture
def host(tmp_path, monkeypatch):
    found = Host(tmp_path)
    found.attach()
    monkeypatch.setattr(rooted, "_ROOT", found.kernel.root)
    return found


def test_only_connections_of_controllers_are_ended(inside, host, monkeypatch):
    ended = []
    monkeypatch.setattr(cutting, "end", lambda portal: (ended.append(portal), 5)[1])
    one = sysfs.controllers(host.kernel.root)[0]
    means = rooted.means("nova")
    there = Portal(one.address, one.port, "tcp")
    assert means.end(there) == 5
    assert means.end(Portal(there.address, "22", "tcp")) == 0
    assert means.end(Portal("192.0.2.77", there.port, "tcp")) == 0
    assert ended == [there]
    assert means.user == "nova"


def test_a_guard_is_begun_and_called_off(inside, monkeypatch):
    done = []

    def guard(path, seconds):
        done.append((path, seconds))
        return lambda: done.append("called off")

    monkeypatch.setattr(hold, "shell_guard", guard)
    means = rooted.means("nova")
    end = means.guard(MD, 2.5)
    other = means.guard(MD, 2.0)
    end()
    assert done == [(MD, 2.5), (MD, 2.0), "called off"]
    other()
    assert rooted._guards == {}


@pytest.mark.parametrize(
    ("path", "seconds"),
    [("/etc", 1.0), (f"{MD}/../../x", 1.0), (MD, 0.0), (MD, 1e9), (MD, float("nan"))],
)
def test_nothing_else_is_guarded(inside, path, seconds):
    with pytest.raises(PermissionError):
        rooted.begin_guard(path, seconds)


# -- how it begins and ends -----------------------------------------------------------------------


@pytest.fixture
def forking(monkeypatch):
    """The start of the daemon. :ivar problem: raised by it. :ivar masks: of signals, meanwhile."""
    found = types.SimpleNamespace(problem=None, masks=[])
    monkeypatch.setattr(stock.default, "client_mode", True)

    def start(_self, method):
        assert method is priv_context.Method.FORK
        found.masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        if found.problem:
            raise found.problem

    monkeypatch.setattr(priv_context.PrivContext, "start", start)
    return found


def test_it_is_forked_with_signals_held_back(forking):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    rooted.begin()
    assert {signal.SIGTERM, signal.SIGINT} <= forking.masks[0]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert not stock.default.client_mode


@pytest.mark.parametrize("problem", [daemon.FailedToDropPrivileges("no"), OSError("no")])
def test_a_daemon_that_does_not_start_is_said(forking, problem):
    forking.problem = problem
    with pytest.raises(user.UserError, match="the privileged daemon did not start: no"):
        rooted.begin()


def test_a_defect_stays_one(forking):
    forking.problem = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        rooted.begin()


class _LeftError(Exception):
    """In place of the end of a process."""


def test_what_fails_in_the_child_ends_it(forking, monkeypatch):
    def leave(code):
        raise _LeftError(code)

    pids = iter([1, 2])
    monkeypatch.setattr(os, "getpid", lambda: next(pids))
    monkeypatch.setattr(os, "_exit", leave)
    forking.problem = ConnectionResetError()
    with pytest.raises(_LeftError):
        rooted.begin()


def test_it_is_never_started_by_other_means(monkeypatch):
    class Gone:
        running = False

        def remote_call(self, *_given):
            raise BrokenPipeError

    monkeypatch.setattr(rooted.context, "channel", Gone())
    with pytest.raises(BrokenPipeError):
        rooted.outcome(1)
    monkeypatch.setattr(rooted.context, "channel", None)
    with pytest.raises(BrokenPipeError, match="has ended"):
        rooted.outcome(1)


def test_its_end_is_told(monkeypatch):
    reader = threading.Event()
    channel = types.SimpleNamespace(reader_thread=types.SimpleNamespace(join=reader.wait))
    monkeypatch.setattr(rooted.context, "channel", channel)
    told = threading.Event()
    rooted.when_ended(told.set)
    assert not told.is_set()
    reader.set()
    assert told.wait(20)


def test_what_has_not_begun_does_not_end(monkeypatch):
    monkeypatch.setattr(rooted.context, "channel", None)
    before = threading.active_count()
    rooted.when_ended(lambda: None)
    assert threading.active_count() == before
