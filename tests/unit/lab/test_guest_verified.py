# SPDX-License-Identifier: Apache-2.0
"""The load that verifies every block, on files."""

import json
import mmap
import random
import threading
import time

import pytest

from lab import guest_verified
from lab.guest_verified import BLOCK, Device, Job, Jobs, made, number_of


@pytest.fixture
def buffer():
    return mmap.mmap(-1, BLOCK)


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "device"
    made.write_bytes(bytes(16 * BLOCK))
    return str(made)


@pytest.fixture
def device(path, buffer, monkeypatch):
    monkeypatch.setattr(guest_verified, "DIRECT", 0)
    one = Device(path, 8, 2 * BLOCK, random.Random(1))
    one.fill(buffer)
    return one


def test_a_block_tells_which_it_is_and_how_often_it_was_written():
    data = made(3, 7)
    assert len(data) == BLOCK
    assert number_of(3, data) == 7
    assert number_of(2, data) == -1
    assert number_of(3, data[:100] + b"x" + data[101:]) == -1
    assert number_of(0, bytes(BLOCK)) == -1


def put(path, block, data):
    with open(path, "r+b") as file:
        file.seek(block * 2 * BLOCK)
        file.write(data)


def test_what_was_acknowledged_must_be_there(device, path, buffer):
    device.write(buffer, 3)
    assert device.check(buffer) == []
    put(path, 3, made(3, 1))
    assert device.check(buffer) == [f"{path}: block 3 has number 1, not 2 to 2"]
    put(path, 3, made(4, 2))
    assert "block 3 has number -1" in device.read(buffer, 3)


def test_what_was_written_in_vain_may_be_there_or_not(device, path, buffer, monkeypatch):
    def fail(*_arguments):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(guest_verified.os, "pwrite", fail)
        with pytest.raises(OSError, match="Input/output"):
            device.write(buffer, 3)
    assert device.check(buffer) == []
    put(path, 3, made(3, 2))
    assert device.check(buffer) == []
    device.write(buffer, 3)
    put(path, 3, made(3, 2))
    assert device.check(buffer) == [f"{path}: block 3 has number 2, not 3 to 3"]


def test_a_job_goes_on_after_an_error_and_tells_of_it_once():
    outcomes = iter([OSError(5, "no"), "odd", None])

    def once(_buffer):
        found = next(outcomes)
        if isinstance(found, OSError):
            raise found
        return found

    job = Job("write", once, 0.0)
    for _ in range(3):
        job.once()
    told = job.taken()
    assert (told["count"], told["errors"], told["error"]) == (3, 1, "[Errno 5] no")
    assert told["wrong"] == "odd"
    assert job.taken()["count"] == 0
    job._since = time.monotonic() - 3.0
    assert job.taken()["longest"] >= 3.0


def test_jobs_let_go_of_a_device_and_take_another_path(path, monkeypatch, tmp_path):
    monkeypatch.setattr(guest_verified, "DIRECT", 0)
    plan = {"paths": [path], "count": 8, "stride": 2 * BLOCK, "pause": 0.001, "seed": 3}
    jobs = Jobs(plan)
    assert jobs.check() == {"blocks": 8, "wrong": []}
    assert jobs.close() == {"hangs": 0}
    told = jobs.take()
    assert {name: one["errors"] for name, one in told.items()} == {"write": 0, "read": 0}
    other = tmp_path / "other"
    (tmp_path / "device").rename(other)
    assert jobs.open([str(other)]) == {"blocks": 8, "wrong": []}
    assert jobs.close() == {"hangs": 0}
    assert json.loads(json.dumps(told)) == told


def test_a_device_is_not_let_go_of_while_operations_hang(path, monkeypatch):
    monkeypatch.setattr(guest_verified, "DIRECT", 0)
    jobs = Jobs({"paths": [path], "count": 8, "stride": BLOCK, "pause": 0.001, "seed": 3})
    begun, end = threading.Semaphore(0), threading.Event()

    def hang(_buffer):
        begun.release()
        end.wait()

    assert jobs.close() == {"hangs": 0}
    for job in jobs._jobs:
        job._once = hang
    jobs.open([path])
    for _ in jobs._jobs:
        assert begun.acquire(timeout=60)
    monkeypatch.setattr(guest_verified, "_CLOSE_SECONDS", 0.01)
    assert jobs.close() == {"hangs": 2}
    (device,) = jobs._devices
    assert device.check(mmap.mmap(-1, BLOCK)) == []
    end.set()


def test_several_writers_share_the_blocks_of_a_device(path, monkeypatch):
    monkeypatch.setattr(guest_verified, "DIRECT", 0)
    plan = {"paths": [path], "count": 8, "stride": BLOCK, "pause": 0.0, "seed": 3}
    jobs = Jobs(plan | {"writers": 3, "readers": 2})
    (device,) = jobs._devices
    assert [job.name for job in jobs._jobs] == ["write"] * 3 + ["read"] * 2
    assert {device.any(1, 3) for _ in range(200)} == {1, 4}
    while sum(device._done) < 8 + 30:
        time.sleep(0.001)
    assert jobs.close() == {"hangs": 0}
    told = jobs.take()
    assert not any(one["wrong"] or one["errors"] for one in told.values())
    assert jobs.open([path]) == {"blocks": 8, "wrong": []}
