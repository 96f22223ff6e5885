# SPDX-License-Identifier: Apache-2.0
"""Writes held for a snapshot, by the whole agent on a faked host."""

import dataclasses
import errno

import pytest

from os_brick_nvmeof.agent import hold, model
from tests.unit.brick.agent.stories import A, B
from tests.unit.brick.volumes import VOLUME


def hold_task(host, legs=(A, B), seconds="2"):
    tags = {"volId": VOLUME, "legs": ",".join(legs), "holdSeconds": seconds}
    task = model.Task("h", model.HOLD_WRITES, model.IDLE, "", 0.0, tags)
    host.storage.tasks["h"] = task
    host.md.idle("md127")

    def taken():
        now = host.storage.tasks["h"]
        host.storage.tasks["h"] = dataclasses.replace(now, status="Taken")

    return taken


def ended(host):
    return [call[1:] for call in host.storage.calls if call[0] == "task"]


def held(host):
    return [value for _, attribute, value in host.md.held if attribute == "suspend_hi"]


def test_writes_are_held_until_the_snapshot_is_taken(host, run):
    run.rounds(2)
    host.storage.script = [lambda: None, hold_task(host)]
    assert "HoldWrites" in run.round()
    assert ended(host) == [("RUNNING", ""), ("FINISHED", "Success")]
    assert held(host) == [str(host.md.arrays["md127"].size), "0"]
    assert run.guarded == [("/sys/class/block/md127/md", 2.5), "off"]


def test_writes_go_on_when_nobody_takes_the_snapshot(host, run):
    run.rounds(2)
    hold_task(host, seconds="0.5")
    begun = host.kernel.sim.now
    run.round(0)
    assert ended(host) == [("RUNNING", ""), ("FAILED", "HoldExpired")]
    assert held(host)[-1] == "0"
    assert host.kernel.sim.now - begun < 1


def test_writes_go_on_when_the_provisioner_goes_away(host, run):
    run.rounds(2)
    hold_task(host)
    host.storage.script = [lambda: setattr(host.storage, "away", True)] * 2
    run.round()
    assert held(host)[-1] == "0"


@pytest.mark.parametrize("hangs", ["task", "report_task"])
def test_a_provisioner_that_hangs_keeps_neither_writes_nor_a_detach_waiting(
    host, run, monkeypatch, hangs
):
    run.rounds(2)
    hold_task(host)
    sim, ask = host.kernel.sim, getattr(host.storage, hangs)

    def slow(*args, **given):
        sim.sleep(30)
        return ask(*args, **given)

    monkeypatch.setattr(host.storage, hangs, slow)
    begun, free = sim.now, []

    def detach():
        sim.sleep(0.1)
        with host.ctx.locks.volume(VOLUME):
            free.append((sim.now - begun, held(host)[-1]))

    sim.start(detach, "detach")
    run.round(0)
    ((seconds, last),) = free
    assert (last, 2 <= seconds <= 2 + hold.GRACE) == ("0", True)
    assert ended(host)[-1] == ("FAILED", "HoldExpired")
    # What was told late came before the end.
    assert ended(host).count(("RUNNING", "")) == 1
    assert run.guarded[-1] == "off"


@pytest.mark.parametrize("which", ["begin", "end"])
def test_a_kernel_that_waits_for_io_under_way_keeps_no_detach_waiting(
    host, run, monkeypatch, which
):
    run.rounds(2)
    host.storage.script = [lambda: None, hold_task(host)]
    sim, write = host.kernel.sim, host.kernel.write

    def slow(path, value):
        if path.endswith("suspend_hi") and (value == "0") == (which == "end"):
            sim.sleep(8)
        write(path, value)

    monkeypatch.setattr(host.kernel, "write", slow)
    begun, free = sim.now, []

    def detach():
        sim.sleep(0.05)
        with host.ctx.locks.volume(VOLUME):
            free.append(sim.now - begun)

    sim.start(detach, "detach")
    run.round(0)
    host.settle(0.1)
    assert free[0] <= 2 + hold.GRACE + 0.2
    assert ended(host)[-1] == ("FAILED", "HoldExpired")
    # It is guarded until the writes go on.
    assert run.guarded[-1] != "off"
    host.settle(10)
    assert held(host)[-1] == "0"
    assert run.guarded[-1] == "off"


def test_an_array_that_cannot_be_held_is_let_go(host, run):
    run.rounds(2)
    hold_task(host)
    host.kernel.refusing["suspend_hi"] = errno.EINVAL
    run.round()
    assert held(host) == ["0"]
    assert run.guarded[-1] == "off"


def test_nothing_is_held_when_the_guard_cannot_be_started(host, run):
    run.rounds(2)
    hold_task(host)

    def none(_path, _seconds):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    run.agent._guard = none
    run.round()
    assert held(host) == []


def test_a_hold_that_was_left_behind_is_ended_at_the_start(host, run):
    run.rounds(2)
    path = host.kernel.root / "sys/class/block/md127/md/suspend_hi"
    path.write_text("2048\n")
    host.storage.away = True
    run.start()
    run.agent.stop()
    run.agent.start()
    assert path.read_text() == "0\n"
