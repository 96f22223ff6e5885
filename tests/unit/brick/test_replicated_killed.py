# SPDX-License-Identifier: Apache-2.0
"""The process of an attach or detach is killed anywhere; who tries again succeeds."""

import pytest

from os_brick_nvmeof import props
from tests.fakes.host_sim import Killed
from tests.unit.brick.volumes import NOTHING, PATH, World


def killed(world, work):
    """Run it; True when it was killed on the way."""
    try:
        work()
    except Killed:
        world.kernel.sim.bury()
        world.kernel.kill_at = None
        world.ctx.locks.taken.clear()
        world.settle(0.5)
        return True
    world.kernel.kill_at = None
    return False


def again(world):
    """After any death the volume can be attached, has its data, and can be let go."""
    assert world.attach() == PATH
    (name,) = world.md.arrays
    if world.array_state != props.NEW:
        assert world.md.read(name) == {b"first"}
    assert world.legs_in_sync(name) == [0, 1]
    world.detach()
    world.settle(5)
    assert world.everything() == NOTHING


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("story", ["create", "assemble", "detach"])
def test_killed_at_any_call_of_the_host(tmp_path, story, late):
    for number in range(100):
        (tmp_path / str(number)).mkdir()
        # Each call dies with udev's assembly, before or after it, and without, the other way.
        world = World(tmp_path / str(number), udev=(number % 2 == 0) is late)
        if story != "create":
            world.used()
        if story == "detach":
            world.attach()
        world.kernel.kill_late = late
        world.kernel.kill_at = len(world.kernel.calls) + number
        done = not killed(world, world.detach if story == "detach" else world.attach)
        again(world)
        if done:
            assert number > 2
            return
    raise AssertionError("it never ended")


@pytest.mark.parametrize("udev", [False, True])
@pytest.mark.parametrize("story", ["create", "assemble"])
def test_mdadm_is_killed_in_any_step(tmp_path, story, udev):
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        world = World(tmp_path / str(number), udev=udev)
        if story == "assemble":
            world.used()
        world.md.die_in = number
        done = not killed(world, world.attach)
        world.md.die_in = None
        again(world)
        if done:
            assert number > 1 or udev
            return
    raise AssertionError("it never ended")


@pytest.mark.parametrize("udev", [False, True])
def test_a_host_that_dies_with_the_volume_attached(tmp_path, udev):
    world = World(tmp_path, udev=udev)
    world.used(b"old")
    world.attach()
    world.md.write("md127", b"first")
    world.md.crash()
    for controller in list(world.kernel.nvme.controllers.values()):
        world.kernel.nvme.drop(controller)
    world.kernel.boot()
    again(world)
