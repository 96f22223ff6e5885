# SPDX-License-Identifier: Apache-2.0
"""udev puts legs together while a volume is attached: it is waited for, and never trusted."""

import pytest

from os_brick_nvmeof import errors, udev
from tests.unit.brick.volumes import NOTHING, World, runs, stale_first

NEVER = 10_000


def world_of(path, legs=2, **seconds):
    """A host whose udev takes so many seconds for legs 0, 1, ... ("of0", ...)."""
    world = World(path, legs=legs, udev=True)
    world.used()
    world.settle()
    for name, value in seconds.items():
        world.md.udev_seconds[world.address(int(name.removeprefix("of")))] = value
    world.before = len(runs(world))
    return world


def ours(world):
    """mdadm commands of ours since the volume was prepared."""
    return [words[1] for words in runs(world)[world.before :]]


@pytest.mark.parametrize("legs", [2, 3])
def test_what_udev_puts_together_is_taken_as_it_is(tmp_path, legs):
    """One leg after the other, while we look on: nothing is stopped and begun anew."""
    world = world_of(tmp_path, legs, of0=0.05, of1=0.4, of2=0.9)
    begin = world.kernel.sim.now
    world.attach()
    assert ours(world) == []
    assert world.legs_in_sync() == list(range(legs))
    assert world.md.read("md127") == {b"first"}
    assert world.kernel.sim.now - begin < (0.4, 0.9)[legs - 2] + 0.1


def test_udev_that_does_not_assemble(tmp_path):
    world = world_of(tmp_path)
    world.md.udev_assembles = False
    world.attach()
    assert ours(world) == ["--assemble"]
    assert world.md.read("md127") == {b"first"}


@pytest.mark.parametrize("late", [0.05, 3.0, 3.1, NEVER])
def test_udev_that_comes_late_or_never(tmp_path, late):
    """It is waited for, but not for long; what it has begun is taken from it."""
    world = world_of(tmp_path, of1=late)
    begin = world.kernel.sim.now
    world.attach()
    assert world.kernel.sim.now - begin < min(late, udev.PATIENCE) + 0.5
    assert world.legs_in_sync() == [0, 1]
    assert world.md.read("md127") == {b"first"}
    world.settle(5)
    assert world.legs_in_sync() == [0, 1]
    world.detach()
    world.settle(5)
    assert world.everything() == NOTHING


@pytest.mark.parametrize("second", [0.001, 0.1, 2.99, NEVER])
@pytest.mark.parametrize("first", [0.001, 0.1, 2.99, NEVER])
def test_a_stale_leg_is_never_read_whenever_udev_comes(tmp_path, first, second):
    world = World(tmp_path, udev=True)
    stale_first(world)
    world.md.udev_seconds = {world.address(0): first, None: second}
    world.attach()
    assert world.md.read("md127") == {b"new"}
    world.settle(10)
    assert world.md.read("md127") == {b"new"}
    assert world.legs_in_sync() == [0, 1]


@pytest.mark.parametrize("seconds", [0.001, 1.0, NEVER])
def test_a_stale_leg_alone_is_refused_whenever_udev_comes(tmp_path, seconds):
    world = World(tmp_path, udev=True)
    stale_first(world)
    world.hide(1)
    world.md.udev_seconds[None] = seconds
    with pytest.raises(errors.StaleError):
        world.attach()
    world.settle(10)
    assert world.everything() == NOTHING


@pytest.mark.parametrize("holds", [0.001, 1.0, 2.9])
def test_a_refused_leg_is_kept_until_udev_has_let_it_go(tmp_path, holds):
    """Seen with Linux 6.1 on a busy machine: an inactive array was left, with a device gone."""
    world = World(tmp_path, udev=True)
    stale_first(world)
    world.hide(1)
    world.md.udev_holds = holds
    with pytest.raises(errors.StaleError):
        world.attach()
    world.settle(10)
    assert world.everything() == NOTHING


def test_what_a_udev_that_hangs_has_left_does_not_stop_the_next_attach(tmp_path):
    world = World(tmp_path, udev=True)
    stale_first(world)
    world.hide(1)
    world.md.udev_holds = udev.PATIENCE + 2
    with pytest.raises(errors.StaleError):
        world.attach()
    world.settle(10)
    assert list(world.md.arrays) == ["md127"]
    world.md.udev_holds = 0
    world.back(1)
    world.attach()
    assert world.legs_in_sync() != [0]
    assert [world.md.read(name) for name in world.md.arrays] == [{b"new"}]
    world.detach()
    world.settle(10)
    assert world.everything() == NOTHING


def test_a_host_without_udev_does_not_wait(tmp_path):
    world = World(tmp_path)
    assert udev.settle(world.ctx, ["nvme0n1"])


def at(world, device="nvme0n1"):
    number = (world.kernel.root / "sys/class/block" / device / "dev").read_text().strip()
    return world.kernel.root / "run/udev/data" / f"b{number}"


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("I:123\nE:ID_FS_TYPE=linux_raid_member\n", True),
        ("E:ID_PROCESSING=1\nI:123\n", False),
        ("S:disk/by-diskseq/4\n", False),
    ],
)
def test_what_udev_writes_down(tmp_path, text, done):
    world = World(tmp_path, udev=True)
    world.attach()
    at(world).write_text(text)
    begin = world.kernel.sim.now
    assert udev.settle(world.ctx, ["nvme0n1", "nvme1n1"]) is done
    assert (world.kernel.sim.now - begin >= udev.PATIENCE) is not done


def test_what_cannot_be_read_or_is_gone_is_not_waited_for(tmp_path):
    world = World(tmp_path, udev=True)
    world.attach()
    at(world).unlink()
    at(world).mkdir()
    begin = world.kernel.sim.now
    assert udev.settle(world.ctx, ["nvme0n1", "nvme7n1"])
    assert world.kernel.sim.now == begin


def test_the_legs_are_looked_at_again_when_another_host_writes(tmp_path):
    """It loses a leg, and writes, while we wait for udev."""
    world = world_of(tmp_path)
    before = [dict(world.at_node(number).blocks) for number in range(2)]
    world.attach()
    world.hide(0)
    world.md.write("md127", b"new")
    world.detach()
    world.settle(5)
    world.back(0)
    after = dict(world.at_node(1).blocks)
    for number in range(2):
        world.at_node(number).blocks.clear()
        world.at_node(number).blocks.update(before[number])
    world.md.udev_seconds[None] = NEVER
    world.kernel.sim.after(1.0, lambda: world.at_node(1).blocks.update(after))
    world.attach(shared=True)
    assert world.legs_in_sync() == [1]
    assert world.md.read("md127") == {b"new"}
