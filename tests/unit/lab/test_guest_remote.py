# SPDX-License-Identifier: Apache-2.0
"""Calls of an agent in a process of its own to its provisioner, over a faked socket."""

import types

import pytest

from lab import guest_remote
from lab.guest_remote import Desk, Remote
from os_brick_nvmeof.agent.vendor import News, VendorError


class Link:
    """One end of a connection, which the desk serves at once."""

    def __init__(self, desk):
        self.desk, self.inbox = desk, []

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        return None

    def send(self, request):
        if not self.desk.answers.is_set():
            return
        end = Link(self.desk)
        end.recv = lambda: request
        end.send = self.inbox.append
        self.desk._serve(end)

    def poll(self, _seconds):
        return bool(self.inbox)

    def recv(self):
        return self.inbox.pop()


class Asked:
    def task(self, uuid):
        return uuid or None

    def wait(self, since, seconds):
        return News(since, seconds > 1)

    def retire(self, volume, leg):
        raise VendorError("no", code="Busy", definite=True)


@pytest.fixture
def desk(monkeypatch):
    monkeypatch.setattr(guest_remote, "Listener", lambda path: types.SimpleNamespace(path=path))
    made = Desk(Asked(), "/nowhere/kumo.sock")
    monkeypatch.setattr(guest_remote, "Client", lambda path: Link(made))
    return made


def test_answers_and_refusals_come_back(desk):
    remote = Remote()
    assert remote.task("t") == "t"
    assert remote.wait(3, 5) == News(3, True)
    with pytest.raises(VendorError) as refused:
        remote.retire(None, "leg")
    assert (refused.value.code, refused.value.definite) == ("Busy", True)
    assert desk.calls == ["task", "wait", "retire"]


def test_one_that_is_frozen_or_not_there_is_away(desk, monkeypatch):
    desk.answers.clear()
    with pytest.raises(VendorError) as frozen:
        Remote().task("t")
    assert frozen.value.away

    def refused(path):
        raise ConnectionRefusedError(path)

    monkeypatch.setattr(guest_remote, "Client", refused)
    with pytest.raises(VendorError) as away:
        Remote().task("t")
    assert away.value.away


def test_an_agent_that_was_killed_takes_no_answer(desk):
    link = Link(desk)
    link.recv = lambda: (_ for _ in ()).throw(EOFError())
    desk._serve(link)
    assert desk.calls == []
