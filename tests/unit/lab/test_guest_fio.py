# SPDX-License-Identifier: Apache-2.0
import json
from types import SimpleNamespace

import pytest

from lab import guest_fio
from lab.errors import LabError
from lab.guest_fio import JOBS, SIZE, Load, Told, told


def job(name, *, longest=1_500_000, error=0):
    way = {"total_ios": 5, "lat_ns": {"max": 20}}
    slow = {"total_ios": 7, "lat_ns": {"max": longest}}
    return {"jobname": name, "error": error, "read": way, "write": slow}


ANSWER = "fio: terminating on signal 2\n" + json.dumps({"jobs": [job("a"), job("b", error=84)]})


def test_what_fio_tells():
    assert told(ANSWER) == [Told("a", 12, 0.0015, 0), Told("b", 12, 0.0015, 84)]


def test_a_job_that_never_read_has_no_longest_read():
    one = job("a")
    one["read"]["lat_ns"] = {}
    assert told(json.dumps({"jobs": [one]}))[0].longest == 0.0015


@pytest.mark.parametrize("text", ["", "fio: cannot open", "{", '{"jobs": []}'])
def test_no_answer(text):
    with pytest.raises(LabError, match="fio"):
        told(text)


class Machine:
    def __init__(self):
        self.commands = []
        self.polls = 0

    def run(self, command, *, check=True, timeout=120.0):
        text = command if isinstance(command, str) else " ".join(command)
        self.commands.append(text)
        code = 0
        if "is-active" in text:
            self.polls -= 1
            code = 0 if self.polls >= 0 else 3
        return SimpleNamespace(
            stdout=ANSWER if text.startswith("cat") else "", returncode=code, stderr=""
        )


def test_jobs_use_parts_of_their_own():
    machine = Machine()
    load = Load(machine, "/dev/md/volume")
    load.fill()
    load.start()
    load.check()
    fill, start, check = machine.commands
    assert f"--rw=write --do_verify=0 --size={SIZE}" in fill
    assert f"--rw=read --size={SIZE}" in check
    assert start.count("--filename=/dev/md/volume") == len(JOBS)
    assert [f"--offset={at * 8}m" in start for at in range(3)] == [True] * 3


def test_stop(monkeypatch, clock):
    monkeypatch.setattr(guest_fio.time, "monotonic", clock)
    monkeypatch.setattr(guest_fio.time, "sleep", clock.sleep)
    machine = Machine()
    machine.polls = 3
    assert [one.name for one in Load(machine, "/dev/md0").stop()] == ["a", "b"]
    assert clock.now == 1001.5
    machine.polls = 10_000
    with pytest.raises(LabError, match="hangs"):
        Load(machine, "/dev/md0").stop()
