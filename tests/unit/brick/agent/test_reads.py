# SPDX-License-Identifier: Apache-2.0
"""Superblocks that are read while nodes are silent, and how long a look takes then."""

import collections

import pytest

from os_brick_nvmeof import superblock, waiting
from os_brick_nvmeof.agent import observe, reads
from os_brick_nvmeof.agent.observe import Observer
from os_brick_nvmeof.agent.reads import Reads
from tests.unit.brick.agent.stories import A, B


class Slow:
    """Reads of some devices hang until they are let go; all are counted.

    :ivar hangs: seconds that a read of a device takes.
    """

    def __init__(self, host, monkeypatch):
        self.sim, self.read = host.kernel.sim, host.kernel.read
        self.hangs, self.begun = {}, collections.Counter()
        self.now = self.most = 0
        monkeypatch.setattr(host.kernel, "read", self)

    def __call__(self, device, offset, length):
        name = device.removeprefix("/dev/")
        self.begun[name] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        self.sim.sleep(self.hangs.get(name, 0.001))
        self.now -= 1
        return self.read(device, offset, length)


@pytest.fixture
def slow(host, monkeypatch):
    return Slow(host, monkeypatch)


def device(host, leg):
    return next(
        each for each in host.kernel.devices() if host.kernel.blocks[each].volume.uuid == leg
    )


def deadline(host, seconds):
    return waiting.Deadline(host.ctx.clock, seconds)


def test_all_are_read_at_once_and_not_too_many(host, slow, monkeypatch):
    monkeypatch.setattr(reads, "PARALLEL", 3)
    size = (host.kernel.root / "sys/class/block" / device(host, A) / "size").read_text()
    for number in range(8):
        name = f"nvme7n{number}"
        home = host.kernel.root / "sys/class/block" / name
        home.mkdir()
        (home / "size").write_text(size)
        host.kernel.blocks[name] = host.kernel.blocks[device(host, A)]
        (host.kernel.root / "dev" / name).write_text("")
        slow.hangs[name] = 1.0
    names = sorted(slow.hangs)
    begin = host.kernel.sim.now
    found = Reads(host.ctx).of(names, deadline(host, 30))
    assert sorted(found) == names
    assert all(isinstance(one, superblock.Superblock) for one in found.values())
    assert slow.most == 3
    assert host.kernel.sim.now - begin < 3.5
    # Hanging ones keep the rest from being begun, and then only those that are free are.
    slow.hangs |= dict.fromkeys(names[:3], 50.0)
    hurried = Reads(host.ctx)
    assert hurried.of(names, deadline(host, 2)) == {}
    assert sorted(hurried.of(names, deadline(host, 5))) == names[3:]
    host.settle(60)
    assert sorted(hurried.of(names[3:], deadline(host, 5))) == names[3:]


def test_one_that_hangs_is_not_asked_again_until_it_has_ended(host, slow):
    one, other = device(host, A), device(host, B)
    slow.hangs[one] = 40.0
    made = Reads(host.ctx)
    begin = host.kernel.sim.now
    assert made.of([one, other], deadline(host, 3)).keys() == {other}
    assert 3 <= host.kernel.sim.now - begin < 3.1
    assert made.of([one, other], deadline(host, 3)).keys() == {other}
    assert host.kernel.sim.now - begin < 3.2
    assert slow.begun[one] == 1
    host.settle(40)
    slow.hangs.clear()
    assert made.of([one, other], deadline(host, 3)).keys() == {one, other}


def test_an_array_is_told_of_by_its_other_leg_when_one_hangs(host, slow, run):
    observer, wanted = Observer(host.ctx), run.agent.vendor.pull(None, 0.0)
    (first, second) = sorted([device(host, A), device(host, B)])
    slow.hangs[first] = 60.0
    begin = host.kernel.sim.now
    seen = observer.look(wanted)
    assert host.kernel.sim.now - begin < observe.READ_SECONDS
    assert seen.arrays[0].events > 0
    assert seen.arrays[0].alias == "volume-1"
    assert slow.begun == {first: 1, second: 1}


def test_a_look_is_bounded_when_every_leg_hangs_and_says_that_it_could_not_tell(host, slow, run):
    observer, wanted = Observer(host.ctx), run.agent.vendor.pull(None, 0.0)
    before = observer.look(wanted)
    assert slow.begun.total() == 1
    # Nothing has changed: nothing is read.
    assert observer.look(wanted) == before
    assert slow.begun.total() == 1
    host.settle(observe.KEPT + 1)
    slow.hangs = dict.fromkeys([device(host, A), device(host, B)], 300.0)
    begin = host.kernel.sim.now
    seen = observer.look(wanted)
    assert host.kernel.sim.now - begin < observe.READ_SECONDS + 0.1
    # Its name is known, its counter is not.
    assert (seen.arrays[0].alias, seen.arrays[0].events) == ("volume-1", 0)
    begin = host.kernel.sim.now
    observer.look(wanted)
    assert host.kernel.sim.now - begin < 0.1
    host.settle(310)
    slow.hangs.clear()
    assert observer.look(wanted).arrays == before.arrays


def test_a_leg_in_no_array_that_hangs_could_not_be_told(host, slow, run):
    wanted = run.agent.vendor.pull(None, 0.0)
    run.lose()
    run.rounds(2)
    host.back(1)
    host.settle(3)
    observer = Observer(host.ctx)
    lost = device(host, B)
    slow.hangs[lost] = 20.0
    assert observer.look(wanted).superblocks == {}
    host.settle(20)
    slow.hangs.clear()
    assert observer.look(wanted).superblocks.keys() == {B}
