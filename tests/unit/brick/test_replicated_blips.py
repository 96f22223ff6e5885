# SPDX-License-Identifier: Apache-2.0
"""An attach while the connection to a leg is lost for a moment, or its device fails for good."""

import errno
import os

import pytest

from os_brick_nvmeof import errors
from tests.unit.brick.volumes import GIB, LEGS, NOTHING, PATH, World, runs, stale_first


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


class Failing:
    """Reads of one leg fail.

    :ivar left: how often. :ivar seconds: that each takes. :ivar away: seconds that its node is away
        from the first one on; None: the connection stays.
    """

    def __init__(self, world, leg, left, seconds=0.0, away=None):
        self.world, self.leg, self.left = world, leg, left
        self.seconds, self.away = seconds, away
        self.reads = 0
        world.kernel.on_arrival.append(self.arrived)

    def arrived(self, name):
        disk = self.world.kernel.blocks[name]
        if disk.volume.uuid == LEGS[self.leg]:
            read = disk.read
            disk.read = lambda offset, length: self.read(read, offset, length)

    def read(self, read, offset, length):
        self.reads += 1
        if self.left <= 0:
            return read(offset, length)
        self.left -= 1
        kernel, address = self.world.kernel, self.world.address(self.leg)
        if self.away is not None:
            kernel.go(address, "silent")
            kernel.sim.after(self.away, lambda: kernel.go(address, "live"))
            self.away = None
        kernel.sim.sleep(self.seconds)
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def timed(world, **changes):
    begin = world.kernel.sim.now
    path = world.attach(**changes)
    assert path == PATH
    return world.kernel.sim.now - begin


@pytest.mark.parametrize("away", [None, 2.0])
def test_an_attach_survives_that_a_leg_is_lost_for_a_moment(world, away):
    world.used()
    failing = Failing(world, 1, left=1, away=away)
    assert timed(world) < 4.5
    assert failing.reads > 1
    assert world.legs_in_sync() == [0, 1]
    assert world.md.read("md127") == {b"first"}


def test_all_legs_are_lost_for_a_moment(world):
    world.used()
    for leg in (0, 1):
        Failing(world, leg, left=1, away=1.0)
    assert timed(world) < 4.5
    assert world.legs_in_sync() == [0, 1]


def test_a_new_array_is_made_after_both_legs_were_read(world):
    Failing(world, 0, left=1, away=2.0)
    assert timed(world) < 4.5
    (create,) = runs(world)
    assert create[1] == "--create"
    assert world.legs_in_sync() == [0, 1]


def test_a_read_that_hangs_until_the_time_out_is_done_again(world):
    world.used()
    Failing(world, 0, left=1, seconds=9.0, away=3.0)
    assert timed(world) < 12
    assert world.legs_in_sync() == [0, 1]


def test_a_read_that_never_ends_is_done_again_for_a_moment(world):
    world.used()
    failing = Failing(world, 0, left=1, seconds=500.0)
    assert timed(world) < 12
    assert failing.reads == 2
    assert world.legs_in_sync() == [0, 1]


@pytest.mark.parametrize("new", [True, False])
def test_a_leg_that_fails_for_good_is_refused_and_nothing_is_written(world, new):
    if not new:
        world.used()
    before = len(runs(world))
    for leg in (0, 1):
        Failing(world, leg, left=99)
    begin = world.kernel.sim.now
    with pytest.raises(errors.UnknownDataError, match="cannot be read"):
        world.attach()
    assert world.kernel.sim.now - begin < 1
    assert len(runs(world)) == before
    world.settle()
    assert world.everything() == NOTHING


def test_one_leg_that_fails_for_good_may_have_more_than_the_other(world):
    world.used()
    failing = Failing(world, 1, left=99)
    with pytest.raises(errors.StaleError, match="cannot be read"):
        world.attach()
    assert failing.reads == 2
    world.settle()
    assert world.everything() == NOTHING
    assert len(runs(world)) == 2


def test_a_leg_that_stays_away_is_waited_for_no_longer_than_for_a_portal(world):
    world.used()
    failing = Failing(world, 1, left=1, away=300.0)
    begin = world.kernel.sim.now
    with pytest.raises(errors.StaleError, match="cannot be read"):
        world.attach()
    assert failing.reads == 1
    assert world.kernel.sim.now - begin < 4.5 + 2
    world.settle(120)
    assert world.everything() == NOTHING


def test_what_the_volume_can_do_without_is_not_waited_for(world):
    stale_first(world)
    world.settle(120)
    failing = Failing(world, 0, left=1, away=300.0)
    assert timed(world) < 1
    assert failing.reads == 1
    assert world.legs_in_sync() == [1]
    assert world.md.read("md127") == {b"new"}


def test_a_leg_of_another_size_than_at_first_is_not_read_again(world):
    world.used()
    failing = Failing(world, 1, left=1, away=1.0)
    target = world.targets[1]
    world.kernel.sim.after(0.5, lambda: target.resize(LEGS[1], 4 * GIB))
    with pytest.raises(errors.StaleError):
        world.attach()
    assert failing.reads == 1
