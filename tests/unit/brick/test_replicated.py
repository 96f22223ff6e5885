# SPDX-License-Identifier: Apache-2.0
"""Volumes with several replicas, on a host whose kernel, md and mdadm are fakes like Linux."""

import errno
import functools

import pytest

from os_brick_nvmeof import errors, props, records, replicated
from os_brick_nvmeof.host import CommandError
from tests.unit.brick.volumes import GIB, LEGS, NOTHING, OVERHEAD, PATH, World, runs, stale_first


@pytest.fixture(params=[False, True], ids=["quiet", "udev"])
def both(tmp_path, request):
    """A host without and with udev's assembly of arrays."""
    return World(tmp_path, udev=request.param)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, udev=True)


# -- create, attach again, detach ---------------------------------------------------------------


def test_a_new_volume_is_made_used_and_let_go(both):
    assert both.attach() == PATH
    (create,) = runs(both)
    assert create == (
        "mdadm", "--create", PATH, "--run", "--metadata=1.2", "--level=1", "--raid-devices=2",
        "--bitmap=internal", "--assume-clean", "--uuid=6a1c2f40:00004000:80000000:000000aa",
        "--homehost=any", "--name=volume-1", "--size=1048576", "/dev/nvme0n1", "/dev/nvme1n1",
    )  # fmt: skip
    assert replicated.paths(both.ctx, both.volume()) == [PATH]
    both.md.write("md127", b"hello")
    assert both.md.read("md127") == {b"hello"}
    both.detach()
    both.settle()
    assert both.everything() == NOTHING
    assert replicated.paths(both.ctx, both.volume()) == []
    both.detach()


def test_the_array_is_exactly_as_large_as_its_volume(world):
    world.attach()
    assert world.md.arrays["md127"].size * 512 == GIB


def test_it_is_assembled_of_exactly_its_legs(both):
    both.used()
    assert both.attach() == PATH
    assert both.md.read("md127") == {b"first"}
    assert both.legs_in_sync() == [0, 1]
    assert not any("--run" in command for command in runs(both)[1:])


def test_three_legs(tmp_path):
    world = World(tmp_path, legs=3).used()
    world.attach()
    assert world.legs_in_sync() == [0, 1, 2]
    world.detach()
    assert world.everything() == NOTHING


def test_again_changes_nothing(world):
    world.attach()
    before = len(world.kernel.calls)
    assert world.attach() == PATH
    assert len(world.kernel.calls) == before
    world.used()
    world.attach()
    before = len(runs(world))
    assert world.attach() == PATH
    assert len(runs(world)) == before


def test_an_attached_volume_stays_so_whatever_its_legs_do(world):
    world.used()
    world.attach()
    world.hide(1, "silent")
    assert world.attach() == PATH
    assert world.legs_in_sync() == [0, 1]


def test_attached_again_for_writing_after_reading(world):
    world.used()
    world.attach(read_only=True)
    with pytest.raises(OSError, match="Read-only"):
        world.md.write("md127", b"x")
    world.detach()
    world.attach()
    world.md.write("md127", b"x")


def test_the_link_leads_to_our_array_even_when_udev_made_another(world):
    world.used()
    where = world.kernel.root / "dev/md"
    where.mkdir(exist_ok=True)
    (where / "volume-1").symlink_to("../md99")
    assert world.attach() == PATH
    assert (where / "volume-1").readlink().name == "md127"
    world.detach()
    world.settle()
    assert not (where / "volume-1").is_symlink()


def test_without_anybody_who_makes_links(tmp_path):
    world = World(tmp_path)
    world.md.links = False
    assert world.attach() == PATH
    assert (world.kernel.root / "dev/md/volume-1").readlink().name == "md127"
    world.detach()
    assert world.everything() == NOTHING


def test_a_link_that_cannot_be_made(tmp_path):
    world = World(tmp_path)
    world.md.links = False
    world.kernel.refusing["link"] = errno.EEXIST
    with pytest.raises(errors.ArrayError, match="cannot be made"):
        world.attach()


def test_the_name_of_another_volumes_array(tmp_path):
    world = World(tmp_path)
    world.attach()
    other = world.kernel.target("nqn.other", ("tcp", "10.0.0.9", "4420"))
    other.publish(LEGS[3], GIB + OVERHEAD)
    leg = props.Leg(LEGS[3], "nqn.other", (props.Portal("10.0.0.9", "4420", "tcp"),), node="n9")
    with pytest.raises(errors.ArrayError, match="another name"):
        world.attach(uuid="6a1c2f40-0000-4000-8000-0000000000bb", legs=(leg,))
    assert list(world.md.arrays) == ["md127"]
    assert len(world.kernel.controllers()) == 2


# -- detach -------------------------------------------------------------------------------------


def test_what_is_in_use_is_not_detached(world):
    world.used()
    world.attach()
    world.md.users.add("md127")
    with pytest.raises(errors.StillInUseError, match="a process has it open"):
        world.detach()
    assert list(world.md.arrays) == ["md127"]
    assert len(world.kernel.controllers()) == 2
    (world.kernel.root / "sys/class/block/md127/holders/dm-3").mkdir()
    with pytest.raises(errors.StillInUseError, match="dm-3 is made of it"):
        world.detach()
    (world.kernel.root / "sys/class/block/md127/holders/dm-3").rmdir()
    (world.kernel.root / "proc/mounts").write_text(f"{PATH} /mnt ext4 rw 0 0\n")
    with pytest.raises(errors.StillInUseError, match="mounted at /mnt"):
        world.detach()
    world.md.users.clear()
    world.detach()
    world.settle()
    assert world.everything() == NOTHING


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("silent", [(1,), (0, 1)])
@pytest.mark.parametrize("stock", [False, True])
def test_silent_legs_do_not_hold_a_detach_up(world, force, silent, stock):
    world.used()
    world.attach()
    world.md.write("md127", b"more")
    if stock:
        for controller in world.kernel.nvme.controllers.values():
            at = world.kernel.root / "sys/class/nvme" / controller.name / "fast_io_fail_tmo"
            at.write_text("off\n")
    for number in silent:
        world.hide(number, "silent")
    begin = world.kernel.sim.now
    world.detach(force)
    assert world.kernel.sim.now - begin < 15
    world.settle(120)
    assert world.everything() == NOTHING


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("silent", [(1,), (0, 1)])
@pytest.mark.parametrize("ago", [0, 10])
def test_lost_legs_hold_a_detach_up_for_no_longer_than_their_time_out(world, force, silent, ago):
    world.used()
    world.attach()
    world.md.write("md127", b"more")
    for number in silent:
        world.hide(number, "silent")
    world.settle(ago)
    limit = world.ctx.conf.os_brick_nvmeof.replicated_fast_io_fail
    begin = world.kernel.sim.now
    world.detach(force)
    assert world.kernel.sim.now - begin < max(0, limit - ago) + 1
    world.settle()
    assert world.everything() == NOTHING


def test_a_forced_detach_of_what_is_in_use_raises_in_the_end(world):
    world.used()
    world.attach()
    world.md.users.add("md127")
    with pytest.raises(errors.StillInUseError):
        world.detach(force=True)
    world.settle(5)
    assert world.kernel.controllers() == []


def test_a_leg_that_joined_since_the_attach_is_let_go_too(world):
    third = world.kernel.target("nqn.2", ("tcp", "10.0.0.3", "4420"))
    third.publish(LEGS[2], GIB + OVERHEAD)
    stale_first(world)
    world.hide(0)
    given = world.volume()
    world.told.append((props.BLANK, 0))
    world.attach()
    world.settle()
    assert world.legs_in_sync() == [1, 2]
    replicated.detach(world.ctx, given)
    world.settle()
    assert world.everything() == NOTHING


def test_the_subsystem_of_another_volume_stays(world):
    world.targets[0].publish("0b6fe5d1-0000-4000-8000-000000000001")
    world.used()
    world.attach()
    world.kernel.hold("nvme0n2", "dm-9")
    world.detach()
    world.settle()
    assert [nqn for nqn, _ in world.kernel.controllers()] == ["nqn.0"]


def begun_by_udev(world):
    """Another volume is published to this host, and not attached: udev begins with its one leg."""
    other = "0b6fe5d1-0000-4000-8000-0000000000ee"
    world.targets[0].publish(other)
    world.used()
    world.attach()
    world.kernel.hold("nvme0n2", "md99")
    where = world.kernel.root / "sys/class/block/md99/md"
    where.mkdir(parents=True, exist_ok=True)
    (where / "array_state").write_text("inactive\n")
    return other


@pytest.mark.parametrize("stops", [True, False])
def test_what_udev_began_with_a_published_leg_is_stopped(world, stops):
    begun_by_udev(world)
    seen = []

    mdadm = world.kernel.commands["mdadm"]

    def run(*argv, timeout):
        if argv[-1] != "/dev/md99":
            return mdadm(*argv, timeout=timeout)
        seen.append(argv)
        if not stops:
            raise CommandError(argv, 1, "Cannot stop")
        world.kernel.let_go("nvme0n2", "md99")
        return ""

    world.kernel.commands["mdadm"] = run
    world.detach()
    world.settle()
    assert seen == [("mdadm", "--stop", "/dev/md99")]
    assert [nqn for nqn, _ in world.kernel.controllers()] == ([] if stops else ["nqn.0"])


def test_what_udev_began_with_a_leg_on_its_way_is_left_alone(world):
    other = begun_by_udev(world)
    records.note(world.ctx, "nqn.0", [other], records.ATTACHED, [other])
    world.detach()
    world.settle()
    assert [nqn for nqn, _ in world.kernel.controllers()] == ["nqn.0"]


def test_a_leg_that_fell_silent_unnoticed_before_the_detach(world):
    """Of a connection that stock made; its keep-alive notices later."""
    world.used()
    world.attach()
    world.md.write("md127", b"more")
    for controller in world.kernel.nvme.controllers.values():
        at = world.kernel.root / "sys/class/nvme" / controller.name / "fast_io_fail_tmo"
        at.write_text("off\n")
        if controller.options["traddr"] == world.address(1):
            later = functools.partial(world.kernel.nvme.set_state, controller, "connecting")
            world.kernel.sim.after(8, later)
    world.kernel.go(world.address(1), "silent", noticed=False)
    begin = world.kernel.sim.now
    world.detach()
    assert 8 < world.kernel.sim.now - begin < 20
    world.settle(120)
    assert world.everything() == NOTHING


@pytest.mark.parametrize("limit", [1, -1])
def test_a_leg_that_never_fails_is_cut_off(world, limit):
    world.ctx = world.kernel.context(replicated_fast_io_fail=limit)
    world.used()
    world.attach()
    world.md.write("md127", b"more")
    world.hide(1, "silent")
    world.detach()
    world.settle(120)
    assert world.everything() == NOTHING


def test_a_forced_detach_that_succeeds_without_its_legs_tells_what_was_lost(world):
    world.used()
    world.attach()
    world.md.users.add("md127")
    world.kernel.on_departure.append(lambda name: world.md.users.clear())
    with pytest.raises(errors.StillInUseError, match="did not stop in 20 s"):
        world.detach(force=True)
    world.settle(5)
    assert world.everything() == NOTHING


# -- extend -------------------------------------------------------------------------------------


def resize(world, size, numbers=(0, 1)):
    for number in numbers:
        world.targets[number].resize(LEGS[number], size + OVERHEAD)


@pytest.mark.parametrize("size", [GIB, 3 * GIB])
@pytest.mark.parametrize("quiet", [False, True])
def test_all_legs_grow_and_then_the_array(world, size, quiet):
    """Also when the properties still have the old size, and nodes send no events."""
    world.used()
    world.attach()
    for target in world.targets:
        target.quiet = quiet
    resize(world, 3 * GIB)
    assert replicated.extend(world.ctx, world.volume(size=size)) == 3 * GIB
    assert world.md.arrays["md127"].size * 512 == 3 * GIB
    assert world.md.resynced == []
    assert replicated.extend(world.ctx, world.volume(size=size)) == 3 * GIB


def test_who_promises_no_zeros_gets_a_resync(world):
    world.used()
    world.attach()
    resize(world, 2 * GIB)
    assert replicated.extend(world.ctx, world.volume(told=False)) == 2 * GIB
    assert world.md.resynced == ["md127"]


def test_legs_that_do_not_agree(world):
    world.used()
    world.attach()
    resize(world, 2 * GIB, (0,))
    with pytest.raises(errors.SizeError) as caught:
        replicated.extend(world.ctx, world.volume(size=2 * GIB))
    assert (caught.value.leg, caught.value.node) == (LEGS[1], "n1")
    assert world.md.arrays["md127"].size * 512 == GIB


def test_a_leg_that_is_silent_while_the_volume_grows(world):
    world.used()
    world.attach()
    resize(world, 2 * GIB)
    world.kernel.nodes[world.address(1)] = "silent"
    with pytest.raises(errors.SizeError) as caught:
        replicated.extend(world.ctx, world.volume(size=2 * GIB))
    assert (caught.value.volume, caught.value.leg) == (world.volume().uuid, LEGS[1])


def test_a_lost_leg_does_not_stop_the_volume_from_growing(world):
    world.used()
    world.attach()
    world.hide(1)
    world.md.write("md127", b"x")
    resize(world, 2 * GIB)
    assert replicated.extend(world.ctx, world.volume(size=2 * GIB)) == 2 * GIB


def test_mdadm_cannot_grow(world):
    world.used()
    world.attach()
    resize(world, 2 * GIB)
    world.md.fails["--grow"] = "Cannot set device size: No space left on device"
    with pytest.raises(errors.ArrayError, match="No space left"):
        replicated.extend(world.ctx, world.volume(size=2 * GIB))


def test_a_volume_that_is_not_attached_cannot_grow(world):
    with pytest.raises(errors.ArrayError, match="attach it first"):
        replicated.extend(world.ctx, world.volume())


def test_a_member_that_cannot_be_read_while_growing(world):
    world.used()
    world.attach()
    world.kernel.refusing["read"] = errno.EIO
    with pytest.raises(errors.UnknownDataError) as caught:
        replicated.extend(world.ctx, world.volume(size=2 * GIB))
    assert caught.value.leg in LEGS


def test_an_array_of_other_things_is_not_grown(world):
    world.used()
    world.attach()
    at = world.kernel.root / "sys/class/block/md127/md/dev-sda"
    at.mkdir()
    (at / "state").write_text("in_sync\n")
    with pytest.raises(errors.ArrayError, match="no legs: sda"):
        replicated.extend(world.ctx, world.volume(size=2 * GIB))
