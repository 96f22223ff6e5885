# SPDX-License-Identifier: Apache-2.0
import errno
import threading

import pytest

from lab.openstack import netns


class FakeLibc:
    """setns(2) as seen by its caller; fails with ``number`` if given."""

    def __init__(self, number=0):
        self.number, self.threads = number, []

    def setns(self, descriptor, kind):
        assert kind == 0x40000000
        self.threads.append(threading.current_thread().name)
        return -1 if self.number else 0


def use(monkeypatch, tmp_path, libc):
    (tmp_path / "lab").touch()
    monkeypatch.setattr(netns, "DIRECTORY", tmp_path)
    monkeypatch.setattr(netns.ctypes, "CDLL", lambda *args, **kwargs: libc)
    monkeypatch.setattr(netns.ctypes, "get_errno", lambda: libc.number)


def test_only_its_own_thread_enters_the_namespace(monkeypatch, tmp_path):
    libc = FakeLibc()
    use(monkeypatch, tmp_path, libc)
    inside = netns.Inside("lab")
    name = inside.call(lambda: threading.current_thread().name)
    inside.close()
    assert libc.threads == [name]
    assert name != threading.current_thread().name


def test_exceptions_pass_through():
    inside = netns.Inside(None)
    with pytest.raises(KeyError):
        inside.call(lambda: {}["x"])
    inside.close()


def test_refused_namespace_is_an_error(monkeypatch, tmp_path):
    use(monkeypatch, tmp_path, FakeLibc(errno.EPERM))
    with pytest.raises(OSError, match="cannot enter network namespace lab") as caught:
        netns.Inside("lab")
    assert caught.value.errno == errno.EPERM


def test_missing_namespace_is_an_error(monkeypatch, tmp_path):
    use(monkeypatch, tmp_path, FakeLibc())
    with pytest.raises(FileNotFoundError):
        netns.Inside("other")
