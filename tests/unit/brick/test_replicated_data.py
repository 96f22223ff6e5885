# SPDX-License-Identifier: Apache-2.0
"""Whose data is handed out: what stock gets wrong, legs that are lost, and who came before."""

import dataclasses
import errno
import functools

import pytest

from os_brick_nvmeof import arrays, errors, md, paths, props, replicated, waiting
from tests.unit.brick import superblocks
from tests.unit.brick.volumes import GIB, LEGS, NOTHING, OVERHEAD, PATH, World, runs, stale_first


@pytest.fixture(params=[False, True], ids=["quiet", "udev"])
def both(tmp_path, request):
    """A host without and with udev's assembly of arrays."""
    return World(tmp_path, udev=request.param)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, udev=True)


# -- the table "Data" of what stock os-brick does -----------------------------------------------


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
    orderly(both)
    both.hide(1, how)
    assert both.attach() == PATH
    assert both.legs_in_sync() == [0]
    assert both.md.read("md127") == {b"first"}
    assert [nqn for nqn, _ in both.kernel.controllers()] == ["nqn.0"]


def orderly(world):
    """Attached, written, detached, reported."""
    world.attach()
    world.md.write("md127", b"first")
    world.md.idle("md127")
    world.report()
    world.detach()
    world.array_state = props.CLEAN


def test_a_silent_leg_is_given_up_when_the_other_is_proven(both):
    orderly(both)
    both.hide(1, "silent")
    begin = both.kernel.sim.now
    both.attach()
    assert 2.5 <= both.kernel.sim.now - begin < 3
    both.back(1)
    both.settle(120)
    assert [nqn for nqn, _ in both.kernel.controllers()] == ["nqn.0"]
    both.detach()
    assert both.everything() == NOTHING


def test_a_silent_leg_is_awaited_when_it_may_be_needed(both):
    orderly(both)
    both.array_state = props.OPEN
    both.hide(1, "silent")
    begin = both.kernel.sim.now
    with pytest.raises(errors.StaleError, match="no answer in time"):
        both.attach()
    assert both.kernel.sim.now - begin >= 4
    begin = both.kernel.sim.now
    both.attach(accept_stale=True)
    assert both.kernel.sim.now - begin >= 4


def test_a_silent_leg_is_given_up_once_a_slow_one_is_there(both):
    orderly(both)
    both.hide(1, "silent")
    both.kernel.nvme.scan_seconds = 3
    begin = both.kernel.sim.now
    both.attach()
    assert 3 <= both.kernel.sim.now - begin < 3.5


def test_a_leg_whose_lost_connection_is_still_there_is_given_up(both):
    orderly(both)
    plain = both.volume(legs=both.volume().legs[1:])
    paths.connect_legs(both.ctx, plain, plain.legs)
    both.hide(1, "silent")
    begin = both.kernel.sim.now
    both.attach()
    assert both.kernel.sim.now - begin < 3
    assert both.legs_in_sync() == [0]


def test_no_leg_is_given_up_that_was_asked_just_now(tmp_path):
    """On a host that is so busy that our own threads come late."""
    world = World(tmp_path)
    orderly(world)
    world.hide(1, "silent")
    world.ctx = world.kernel.context(degraded_timeout=0.5)
    begin = world.kernel.sim.now
    world.attach()
    assert 1.5 <= world.kernel.sim.now - begin < 2


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


@pytest.mark.parametrize("attached", [False, True])
def test_an_array_that_stock_made_has_a_uuid_of_its_own(world, attached):
    world.used()
    world.attach()
    array = world.md.arrays["md127"]
    array.uuid = "0b6fe5d1-0000-4000-8000-000000000009"
    for device in array.members:
        world.md._store(array, device)
    world.md._show(array)
    if not attached:
        world.detach()
        world.settle()
        assert world.everything() == NOTHING
    assert world.attach() == PATH
    (found,) = world.md.arrays.values()
    assert found.uuid == "0b6fe5d1-0000-4000-8000-000000000009"
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


def test_a_leg_that_is_not_handed_out_may_be_the_newer_one(world):
    world.used()
    given = world.volume()
    missing = dataclasses.replace(given.legs[1], nqn="", portals=(), state=props.MISSING)
    with pytest.raises(errors.StaleError, match="not handed out to this host") as caught:
        world.attach(legs=(given.legs[0], missing))
    assert caught.value.leg == LEGS[1]


def test_superblocks_are_read_again_while_another_host_writes(world):
    """The other host writes between the reads of the two legs: one looks older than it is."""
    world.used()
    world.md.udev = False
    real, reads = arrays.content, []

    def content(ctx, device, size):
        seen = real(ctx, device, size)
        reads.append(device)
        return dataclasses.replace(seen, events=seen.events + 4) if len(reads) == 1 else seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "content", content)
        world.attach(shared=True)
    assert world.legs_in_sync() == [0, 1]


def test_what_a_failed_attach_cannot_take_back_is_told(world, caplog):
    stale_first(world)
    world.hide(1)
    world.md.fails["--stop"] = "no"
    real = md.stop

    def stop(ctx, volume, array, deadline, stuck=None):
        world.md.users.add(array.name)
        real(ctx, volume, array, deadline, stuck)

    def undo(ctx, outcomes):
        raise errors.StillInUseError("nvme0 does not go")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(md, "stop", stop)
        patch.setattr(replicated.legs, "undo", undo)
        with pytest.raises(errors.StaleError):
            world.attach()
    assert "An array of the failed attach of volume" in caplog.text
    assert "nvme0 does not go" in caplog.text
    world.md.users.clear()
    world.detach()
    world.settle(120)
    assert world.everything() == NOTHING


@pytest.mark.parametrize("seed", range(3))
def test_eight_volumes_at_once_on_shared_subsystems(tmp_path, seed):
    world = World(tmp_path, udev=True, seed=seed)
    volumes = []
    for number in range(8):
        legs = []
        for node, target in enumerate(world.targets):
            uuid = f"0b6fe5d1-0000-4000-8000-00000000{node:02}{number:02}"
            target.publish(uuid, GIB + OVERHEAD)
            legs.append(dataclasses.replace(world.volume().legs[node], uuid=uuid))
        volumes.append(
            world.volume(
                uuid=f"6a1c2f40-0000-4000-8000-0000000000{number:02}",
                alias=f"volume-{number}",
                legs=tuple(legs),
            )
        )
    works = [functools.partial(replicated.attach, world.ctx, volume) for volume in volumes]
    found = waiting.together(world.ctx, works, "attach")
    assert found == [f"/dev/md/volume-{number}" for number in range(8)]
    assert len(world.kernel.controllers()) == 2
    assert {one.uuid for one in world.md.arrays.values()} == {one.uuid for one in volumes}
    works = [functools.partial(replicated.detach, world.ctx, volume) for volume in volumes]
    waiting.together(world.ctx, works, "detach")
    world.settle()
    # One leg of the first volume is still listed there, and nobody ever attached it.
    assert world.md.arrays == {}
