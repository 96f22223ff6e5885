# SPDX-License-Identifier: Apache-2.0
"""Locks exclude threads and processes, each name for itself."""

import errno
import fcntl
import os
import threading

import pytest

from os_brick_nvmeof import locks

UUID = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"


class OtherProcess:
    """Holds a lock through an open file of its own, as another process does."""

    def __init__(self, path, name):
        self.handle = os.open(os.path.join(path, locks.FILE), os.O_RDWR | os.O_CREAT, 0o660)
        assert locks._try(self.handle, locks._offset(name))

    def end(self, _seconds=None):
        os.close(self.handle)


def test_another_process_is_waited_for(tmp_path):
    other = OtherProcess(tmp_path, f"volume-{UUID}")
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 9:
            other.end()

    with locks.Locks(str(tmp_path), sleep).volume(UUID):
        pass
    assert slept[:3] == [0.001, 0.002, 0.004]
    assert max(slept) == 0.05
    assert len(slept) == 9


def test_names_do_not_wait_for_each_other(tmp_path):
    OtherProcess(tmp_path, f"volume-{UUID}")

    def refuse(_seconds):
        raise AssertionError("waited")

    taken = locks.Locks(str(tmp_path), refuse)
    with taken.volume(OTHER), taken.array(UUID), taken.subsystem("nqn.a"), taken.subsystem("nqn.b"):
        assert os.listdir(tmp_path) == [locks.FILE]


@pytest.mark.parametrize("on_disk", [True, False])
def test_threads_wait_for_each_other(tmp_path, on_disk):
    inside, most = 0, 0
    path = str(tmp_path / "made" / "when-needed") if on_disk else None

    def work():
        nonlocal inside, most
        for _ in range(20):
            with locks.Locks(path).volume(UUID):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)


def test_a_failure_inside_frees_the_lock(tmp_path):
    taken = locks.Locks(str(tmp_path))
    with pytest.raises(ValueError, match="inside"), taken.volume(UUID):
        raise ValueError("inside")
    OtherProcess(tmp_path, f"volume-{UUID}").end()


def test_a_lock_that_cannot_be_had_is_an_error(tmp_path, monkeypatch):
    def no_locks(*_args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with pytest.raises(OSError, match="No locks"), locks.Locks(str(tmp_path)).volume(UUID):
        pass


def test_the_file_of_root_serves_the_owner_of_the_directory(tmp_path, monkeypatch):
    owners = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda _handle, user, group: owners.append((user, group)))
    for _ in range(2):
        with locks.Locks(str(tmp_path)).volume(UUID):
            pass
    assert owners == [(os.stat(tmp_path).st_uid, os.stat(tmp_path).st_gid)]
