# SPDX-License-Identifier: Apache-2.0
import json
import os
from types import SimpleNamespace

import pytest

from lab import guest_load
from lab.guest_load import BLOCK, Loop, operations


class EndError(BaseException):
    """Ends a loop that has no end."""


def test_a_write_and_a_read_of_one_block(tmp_path, monkeypatch):
    path = tmp_path / "device"
    path.write_bytes(bytes(BLOCK * 300))
    # Not every file system of a developer's machine has it.
    monkeypatch.setattr(guest_load.os, "O_DIRECT", 0)
    found = operations(str(path))
    found["write"](257)
    found["read"](257)
    assert path.read_bytes()[BLOCK : BLOCK + 8] == (257).to_bytes(8, "big")


def test_the_longest_wait_and_the_first_error_are_told(clock, monkeypatch):
    monkeypatch.setattr(guest_load, "time", SimpleNamespace(monotonic=clock, sleep=lambda _: None))

    def once(number):
        clock.sleep([0.1, 3.0, 0.2][number])
        if number == 2:
            raise OSError(5, "Input/output error")

    loop = Loop("write", once)
    loop.run()
    assert loop.told() == {"count": 3, "longest": 3.0, "error": "[Errno 5] Input/output error"}


def test_a_wait_that_has_not_ended_counts(clock, monkeypatch):
    monkeypatch.setattr(guest_load, "time", SimpleNamespace(monotonic=clock, sleep=clock.sleep))
    told = []

    def once(_number):
        clock.sleep(7.0)
        told.append(loop.told())
        raise EndError

    loop = Loop("read", once)
    with pytest.raises(EndError):
        loop.run()
    assert told == [{"count": 0, "longest": 7.0, "error": ""}]


def test_main_tells_of_both_and_ends_whatever_hangs(monkeypatch, capsys):
    left = []
    monkeypatch.setattr(guest_load, "operations", lambda path: {"write": None, "read": None})
    monkeypatch.setattr(guest_load.Loop, "run", lambda self: None)
    monkeypatch.setattr(guest_load, "time", SimpleNamespace(sleep=left.append))
    monkeypatch.setattr(os, "_exit", left.append)
    guest_load.main("/dev/x", 5.0)
    assert left == [5.0, 0]
    assert json.loads(capsys.readouterr().out)["write"]["count"] == 0
