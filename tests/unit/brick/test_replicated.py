# SPDX-License-Identifier: Apache-2.0
"""Volumes with several replicas, on a host whose kernel, md and mdadm are fakes like Linux."""

import errno

import pytest

from os_brick_nvmeof import errors, props, replicated
from tests.fakes.host_sim import Killed
from tests.unit.brick import superblocks
from tests.unit.brick.volumes import GIB, LEGS, NOTHING, OVERHEAD, World

PATH = "/dev/md/volume-1"


@pytest.fixture(params=[False, True], ids=["quiet", "udev"])
def both(tmp_path, request):
    """A host without and with udev's assembly of arrays."""
    return World(tmp_path, udev=request.param)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, udev=True)


def runs(world):
    """Commands, as words."""
    return [call[1:] for call in world.kernel.calls if call[0] == "run"]


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


# -- the table "Data" of what stock os-brick does -----------------------------------------------


def stale_first(world):
    """Leg 0 fails, leg 1 is written, detached; leg 0 is back."""
    world.used(b"old")
    world.attach()
    world.hide(0)
    world.md.write("md127", b"new")
    world.detach()
    world.settle(5)
    world.back(0)


@pytest.mark.parametrize("how", ["refuses", "silent"])
def test_old_data_is_never_handed_out(both, how):
    stale_first(both)
    both.hide(1, how)
    for state in (props.OPEN, props.CLEAN, props.NEW):
        both.array_state = state
        with pytest.raises(errors.StaleError) as caught:
            both.attach()
        assert (caught.value.volume, caught.value.leg) == (both.volume().uuid, LEGS[1])
        assert caught.value.node == "n1"
        both.settle(120)
        assert both.everything() == NOTHING
    both.back(1)
    both.attach()
    assert both.md.read("md127") == {b"new"}
    both.settle()
    assert both.legs_in_sync() == [0, 1]
    assert both.md.read("md127") == {b"new"}


def test_an_operator_may_have_the_old_data(both):
    stale_first(both)
    both.hide(1)
    assert both.attach(accept_stale=True) == PATH
    assert both.md.read("md127") == {b"old"}
    both.md.write("md127", b"fork")
    both.detach()
    both.back(1)
    with pytest.raises(errors.StaleError, match="without the other"):
        both.attach()
    both.settle()
    assert both.everything() == NOTHING


def test_a_replaced_leg_is_filled(both):
    both.used()
    both.at_node(1).blocks.clear()
    both.told = [(props.FRESH, 0), (props.BLANK, 0)]
    both.attach()
    assert both.legs_in_sync() == [0]
    both.settle()
    assert both.legs_in_sync() == [0, 1]
    assert both.md.read("md127") == {b"first"}


def test_a_leg_that_lost_its_data_unnoticed(world):
    world.used()
    world.at_node(1).blocks.clear()
    with pytest.raises(errors.StaleError, match="it is blank"):
        world.attach()
    world.settle()
    assert world.everything() == NOTHING


def test_legs_with_different_old_data(world):
    world.at_node(0).blocks[0] = b"a" * 4096
    world.at_node(1).blocks[4 << 20] = b"b" * 4096
    with pytest.raises(errors.ForeignDataError) as caught:
        world.attach()
    assert (caught.value.leg, caught.value.node) == (LEGS[0], "n0")
    assert runs(world) == []
    assert world.everything() == NOTHING


@pytest.mark.parametrize("recycled", [(0, 1), (0,), (1,)])
def test_legs_of_an_earlier_volume(both, recycled):
    foreign = "0b6fe5d1-0000-4000-8000-000000000009"
    before = {}
    for number in recycled:
        block = superblocks.superblock(number, array=foreign, name=b"any:old")
        both.at_node(number).blocks[4096] = before[number] = block
    with pytest.raises(errors.ForeignDataError, match=foreign):
        both.attach()
    assert {number: both.at_node(number).blocks[4096] for number in recycled} == before
    both.settle()
    assert both.everything() == NOTHING


def test_another_volume_with_a_similar_device_name(tmp_path):
    """nvme1n1 is attached while nvme1n10 comes and goes: nothing happens to its array."""
    world = World(tmp_path)
    for target in world.targets:
        for number in range(2, 10):
            target.publish(f"0b6fe5d1-0000-4000-8000-0000000000{number:02}")
        target.publish(LEGS[2 + world.targets.index(target)], GIB + OVERHEAD)
    world.attach()
    other = tuple(
        props.Leg(
            LEGS[2 + number],
            f"nqn.{number}",
            (props.Portal(world.address(number), "4420", "tcp"),),
            node=f"n{number}",
            freshness=props.FRESH,
        )
        for number in range(2)
    )
    given = {"uuid": "6a1c2f40-0000-4000-8000-0000000000bb", "alias": "volume-2", "legs": other}
    assert world.attach(**given) == "/dev/md/volume-2"
    assert {"nvme0n10", "nvme1n10"} == set(world.md.arrays["md126"].members)
    world.detach(**given)
    assert list(world.md.arrays) == ["md127"]
    assert world.md.arrays["md127"].state == "clean"
    assert len(world.kernel.controllers()) == 2


@pytest.mark.parametrize("how", ["refuses", "silent"])
def test_a_new_volume_with_one_leg_dead(world, how):
    world.hide(1, how)
    begin = world.kernel.sim.now
    with pytest.raises(errors.UnreachableError) as caught:
        world.attach()
    assert world.kernel.sim.now - begin < 5
    assert caught.value.leg == LEGS[1]
    assert world.everything() == NOTHING
    assert world.at_node(0).blocks == {}


# -- degraded -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["refuses", "silent"])
def test_one_leg_dead_after_an_orderly_end(both, how):
    both.attach()
    both.md.write("md127", b"first")
    both.md.idle("md127")
    both.report()
    both.detach()
    both.array_state = props.CLEAN
    both.hide(1, how)
    begin = both.kernel.sim.now
    assert both.attach() == PATH
    assert both.kernel.sim.now - begin < 5
    assert both.legs_in_sync() == [0]
    assert both.md.read("md127") == {b"first"}
    assert [nqn for nqn, _ in both.kernel.controllers()] == ["nqn.0"]


def test_the_leg_that_went_on_alone_needs_nobody(world):
    stale_first(world)
    world.hide(0)
    world.attach()
    assert world.md.read("md127") == {b"new"}


def test_a_namespace_that_its_node_does_not_have(world):
    stale_first(world)
    world.targets[0].unpublish(LEGS[0])
    world.attach()
    assert world.md.read("md127") == {b"new"}
    assert [nqn for nqn, _ in world.kernel.controllers()] == ["nqn.1"]


def test_a_leg_that_lost_its_place_by_one_update_is_not_taken_for_good(both):
    """Its counter is one behind, and kernels before 6.8 would read from it."""
    both.used(b"old")
    both.attach()
    both.md.write("md127", b"same")
    device = next(name for name in both.md.arrays["md127"].members if both.leg_of(name) == 0)
    both.md.fail("md127", device)
    both.md.write("md127", b"new")
    both.md.crash()
    both.kernel.nvme.controllers and both.detach()
    both.md.udev = False
    both.attach()
    assert both.md.read("md127") == {b"new"}


def test_a_leg_that_cannot_be_read(world):
    world.used()
    world.md.udev = False
    world.kernel.refusing["read"] = errno.EIO
    with pytest.raises(errors.StaleError, match="cannot be read"):
        world.attach()
    world.settle()
    assert world.everything() == NOTHING
    assert len(runs(world)) == 2


def test_a_leg_that_cannot_be_added_does_not_fail_the_attach(world):
    stale_first(world)
    world.md.fails["--re-add"] = "--re-add is not possible"
    world.md.fails["--add-spare"] = "add new device failed: Invalid argument"
    world.attach()
    world.settle()
    assert world.legs_in_sync() == [1]


@pytest.mark.parametrize(
    ("change", "state"), [({"read_only": True}, "readonly"), ({"shared": True}, "read-auto")]
)
def test_nothing_is_written_for_a_reader_or_a_second_host(both, change, state):
    stale_first(both)
    before = [dict(both.at_node(number).blocks) for number in range(2)]
    both.attach(**change)
    assert both.md.arrays["md127"].state == state
    assert both.legs_in_sync() == [1]
    both.settle()
    assert [both.at_node(number).blocks for number in range(2)] == before
    both.detach()
    assert [both.at_node(number).blocks for number in range(2)] == before


def test_a_reader_does_not_grow_an_array(world):
    world.used()
    with pytest.raises(errors.SizeError, match="must not be"):
        world.attach(read_only=True, size=2 * GIB)
    world.settle()
    assert world.everything() == NOTHING


def test_an_array_that_was_extended_while_detached_is_grown_at_the_attach(world):
    world.used()
    for number, target in enumerate(world.targets):
        target.resize(LEGS[number], 2 * GIB + OVERHEAD)
    world.attach(size=2 * GIB)
    assert world.md.arrays["md127"].size * 512 == 2 * GIB


# -- stock os-brick, udev, and who came before --------------------------------------------------


def test_an_array_that_stock_attached_is_taken_and_let_go(world):
    world.used()
    world.attach()
    array = world.md.arrays["md127"]
    array.delay = "0.204"
    world.md._show(array)
    world.md.users.add("md127")
    before = len(runs(world))
    assert world.attach() == PATH
    assert len(runs(world)) == before
    world.md.users.clear()
    world.detach()
    world.settle()
    assert world.everything() == NOTHING


def test_an_array_in_use_stays_when_a_leg_is_lost_meanwhile(world):
    world.used()
    world.attach()
    array = world.md.arrays["md127"]
    array.delay = "0.204"
    world.md._show(array)
    world.md.users.add("md127")
    world.hide(1, "silent")
    assert world.attach() == PATH
    assert list(world.md.arrays) == ["md127"]


def test_an_array_that_was_started_without_a_check_is_checked(tmp_path):
    """mdadm-last-resort started the stale leg alone after a reboot."""
    world = World(tmp_path)
    stale_first(world)
    world.hide(1)
    world.attach(accept_stale=True)
    array = world.md.arrays["md127"]
    array.delay = "0.204"
    world.md._show(array)
    with pytest.raises(errors.StaleError):
        world.attach()
    world.settle(120)
    assert world.md.arrays == {}


def test_udev_took_the_stale_leg_before_us(tmp_path):
    world = World(tmp_path, udev=True)
    stale_first(world)
    world.attach()
    assert world.md.read("md127") == {b"new"}


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.004, 0.01, 0.02, 0.05])
@pytest.mark.parametrize("has_uuid", [True, False])
def test_udev_at_any_moment(tmp_path, delay, has_uuid):
    world = World(tmp_path, udev=True)
    world.md.has_uuid = has_uuid
    world.used()
    world.kernel.nvme.arrive_seconds = delay / 2
    world.md.step_seconds = 0.01
    assert world.attach() == PATH
    (name,) = world.md.arrays
    assert world.md.read(name) == {b"first"}
    assert world.legs_in_sync(name) == [0, 1]
    world.detach()
    world.settle()
    assert world.everything() == NOTHING


def test_an_array_that_cannot_be_told_apart(tmp_path):
    world = World(tmp_path, udev=True)
    world.md.has_uuid = False
    world.used()
    world.hide(0)
    world.kernel.refusing["read"] = errno.EIO
    with pytest.raises(errors.KumoBrickError):
        world.attach()


def test_mdadm_fails_once(world):
    world.md.fails["--create"] = "RUN_ARRAY failed"
    assert world.attach() == PATH
    world.used()
    world.md.fails["--assemble"] = "/dev/nvme0n1 is busy - skipping"
    assert world.attach() == PATH


def test_mdadm_never_works(world):
    world.kernel.commands["mdadm"] = lambda *argv, timeout: world.md._no("cannot")
    world.md._argv = ("mdadm", "--create")
    with pytest.raises(errors.ArrayError, match="did not come up in 10 s"):
        world.attach()
    assert world.everything() == NOTHING


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


# -- killed -------------------------------------------------------------------------------------


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
