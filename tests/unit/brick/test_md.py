# SPDX-License-Identifier: Apache-2.0
"""mdadm as it is called, and md as sysfs shows it."""

import dataclasses
import errno
import os

import pytest

from os_brick_nvmeof import arrays, errors, freshness, md, props, sysfs, waiting
from os_brick_nvmeof import paths as legs
from os_brick_nvmeof.host import CommandError
from tests.unit.brick import superblocks
from tests.unit.brick.volumes import GIB, LEGS, World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def created(world):
    """Words of each mdadm --create."""
    return [call[1:] for call in world.kernel.calls if call[0] == "run" and call[2] == "--create"]


def connect(world):
    given = world.volume()
    return [one.device.name for one in legs.connect_legs(world.ctx, given, given.legs)]


def test_failfast_only_when_asked(tmp_path):
    for number, asked in enumerate((False, True)):
        (tmp_path / str(number)).mkdir()
        world = World(tmp_path / str(number))
        world.ctx = world.kernel.context(md_failfast=asked)
        world.attach()
        assert ("--failfast" in created(world)[0]) is asked


@pytest.mark.parametrize(
    ("kernel", "mdadm", "tried"),
    [
        ("6.17.9", True, ["internal"]),
        ("6.18.0-rc1", True, ["lockless"]),
        ("7.0", False, ["lockless", "internal"]),
        ("what", True, ["internal"]),
    ],
)
def test_a_lockless_bitmap_where_kernel_and_mdadm_have_it(world, kernel, mdadm, tried):
    world.md.release(kernel)
    world.md.lockless = mdadm
    world.ctx = world.kernel.context(bitmap="lockless")
    world.attach()
    assert [
        word.partition("=")[2]
        for words in created(world)
        for word in words
        if word.startswith("--bitmap=")
    ] == tried
    assert world.md.arrays["md127"].state == "clean"


def test_a_lockless_bitmap_is_not_given_up_when_nothing_is_known(world):
    world.md.release("6.18")
    world.md.lockless = True
    world.ctx = world.kernel.context(bitmap="lockless")
    mdadm = world.kernel.commands["mdadm"]
    answers = [CommandError(("mdadm", "--create"), None, "not done in time")]

    def first_hangs(*argv, timeout):
        if answers:
            raise answers.pop()
        return mdadm(*argv, timeout=timeout)

    world.kernel.commands["mdadm"] = first_hangs
    world.attach()
    assert all("--bitmap=lockless" in words for words in created(world))


@pytest.mark.parametrize("bad", [False, True])
def test_an_array_that_is_refused_tells_of_bad_blocks(world, bad):
    world.attach()
    world.md.write("md127", b"first")
    world.detach()
    world.array_state = props.OPEN
    volume = world.targets[0].volumes[1]
    block = bytearray(volume.blocks[4096])
    block[8] |= 8 if bad else 0
    block[216:220] = superblocks.csum(block).to_bytes(4, "little")
    volume.blocks[4096] = bytes(block)
    mdadm = world.kernel.commands["mdadm"]

    def refuses(*argv, timeout):
        if "--assemble" in argv:
            raise CommandError(argv, 1, "mdadm: failed to RUN_ARRAY: Invalid argument")
        return mdadm(*argv, timeout=timeout)

    world.kernel.commands["mdadm"] = refuses
    with pytest.raises(errors.ArrayError, match="Invalid argument") as caught:
        world.attach()
    assert ("noted bad blocks on nvme" in caught.value.text) is bad
    assert ("acknowledged may be on another leg" in caught.value.way_out) is bad


def test_bad_blocks_are_never_forgotten(world):
    """Another leg may have what was written there: mdadm's log of them stays, with its entries."""
    world.attach()
    world.md.write("md127", b"first")
    world.detach()
    world.array_state = props.OPEN
    world.attach()
    calls = [str(call) for call in world.kernel.calls if call[0] == "run"]
    assert any("--create" in call for call in calls)
    assert any("--assemble" in call for call in calls)
    assert not [call for call in calls if "bbl" in call or "--config" in call]


def test_one_leg_is_an_array_too(tmp_path):
    world = World(tmp_path, legs=1)
    world.attach()
    assert "--force" in created(world)[0]
    world.detach()
    world.array_state = props.OPEN
    world.attach()
    assert world.legs_in_sync() == [0]


def test_a_place_for_a_leg_that_comes_later(world):
    names = connect(world)
    given = world.volume()
    plan = freshness.Create(given.legs[:1], missing=1)
    argv = md._create(world.ctx, given, plan, names[:1], "internal")
    assert argv[-2:] == [f"/dev/{names[0]}", "missing"]
    assert "--raid-devices=2" in argv
    assert "--force" not in argv


def test_a_volume_of_unknown_size_and_a_reader(world):
    given = world.volume(size=0)
    plan = freshness.Create(given.legs, mode=freshness.Mode.READ_ONLY)
    argv = md._create(world.ctx, given, plan, ["nvme0n1", "nvme1n1"], "internal")
    assert not [word for word in argv if word.startswith("--size")]
    assert "--readonly" in argv


def test_reads_of_new_volumes(world):
    world.attach(read_only=True)
    assert world.md.arrays["md127"].state == "readonly"


def test_a_mark_that_cannot_be_made_means_another_check(world):
    world.kernel.refusing["safe_mode_delay"] = errno.EINVAL
    world.attach()
    assert not md.marked(world.ctx, "md127")
    world.attach()
    assert md.marked(world.ctx, "md127")


def test_a_link_that_stays_behind(world):
    world.used()
    world.attach()
    world.kernel.refusing["link"] = errno.EPERM
    world.detach()
    assert (world.kernel.root / "dev/md/volume-1").is_symlink()
    assert world.attach() == "/dev/md/volume-1"


def test_adding_stops_when_nothing_is_known_of_the_first_try(world):
    world.attach()
    array = arrays.look(world.kernel.root, "md127")
    calls = []

    def hangs(*argv, timeout):
        calls.append(argv[3])
        raise CommandError(argv, None, "not done in time")

    world.kernel.commands["mdadm"] = hangs
    assert not md.add(world.ctx, world.volume(), array, "nvme9n1", full=False)
    assert calls == ["--re-add"]


def test_an_array_does_not_grow_in_time(world):
    world.attach()
    array = arrays.look(world.kernel.root, "md127")
    world.kernel.commands["mdadm"] = lambda *argv, timeout: ""
    with pytest.raises(errors.SizeError, match="should have"):
        md.grow(world.ctx, world.volume(), array, 2 * GIB)


def test_the_number_of_a_stopped_array_given_to_another_one(world):
    """The other array is not touched."""
    world.attach()
    array = arrays.look(world.kernel.root, "md127")
    other = dataclasses.replace(world.md.arrays["md127"])
    world.detach()
    world.settle()
    again = world.md._new("0b6fe5d1-0000-4000-8000-000000000001", "any:x", 2, other.size)
    again.members = {"sda": next(iter(other.members.values()))}
    world.md._start(again, "clean")
    before = len(world.kernel.calls)
    deadline = waiting.Deadline(world.ctx.clock, 1)
    md.stop(world.ctx, world.volume(), array, deadline)
    assert len(world.kernel.calls) == before
    assert world.md.arrays["md127"] is again


def test_an_array_that_is_being_deleted_answers_that_it_is_busy(world, monkeypatch):
    """Seen on Linux 6.12, between the stop and the end of its device."""
    world.attach()
    real, busy = sysfs.read, []

    def read(path):
        stopped = world.md.arrays.get("md127") is None or ("mdadm", "--stop") in [
            call[1:3] for call in world.kernel.calls
        ]
        if stopped and str(path).endswith("md127/md/array_state") and len(busy) < 3:
            busy.append(path)
            raise OSError(errno.EBUSY, "Device or resource busy")
        return real(path)

    monkeypatch.setattr(sysfs, "read", read)
    world.detach()
    world.settle()
    assert busy
    assert world.md.arrays == {}
    assert world.kernel.controllers() == []


def test_another_error_of_sysfs_is_not_taken_for_no(world, monkeypatch):
    world.attach()

    def read(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(sysfs, "read", read)
    with pytest.raises(OSError, match="Input/output"):
        arrays.look(world.kernel.root, "md127")


def test_arrays_that_are_not_there_or_tell_nothing(world):
    root = world.kernel.root
    assert arrays.look(root, "md5") is None
    assert arrays.names(root) == []
    assert arrays.find(world.ctx, world.volume()) is None
    assert arrays.holding(root, ["nvme0n1"]) == []
    world.attach()
    world.md.has_uuid = False
    home = root / "sys/class/block/md127/md"
    (home / "uuid").unlink()
    assert arrays.look(root, "md127").uuid == ""
    # Its members' superblocks tell.
    assert arrays.find(world.ctx, world.volume()).name == "md127"
    other = dataclasses.replace(world.volume(uuid=LEGS[0]), alias="volume-2")
    assert arrays.find(world.ctx, other) is None


def test_a_silent_array_that_holds_no_leg_of_ours_is_passed_over(world):
    world.attach()
    (world.kernel.root / "sys/class/block/md127/md/uuid").unlink()
    world.kernel.blocks.clear()
    assert arrays.find(world.ctx, world.volume()) is None
    with pytest.raises(errors.UnknownDataError, match="cannot be told apart"):
        arrays.find(world.ctx, world.volume(), ["nvme0n1"])


def test_only_arrays_that_may_be_the_one_are_read(world):
    """On a kernel that does not tell UUIDs, a host can have many."""
    world.md.has_uuid = False
    world.attach()
    (world.kernel.root / "sys/class/block/md127/md/uuid").unlink(missing_ok=True)
    given = world.volume()
    elsewhere = dataclasses.replace(given.legs[0], uuid=LEGS[3])
    before = len(world.kernel.calls)
    other = world.volume(uuid=LEGS[2], alias="x", legs=(elsewhere,))
    assert arrays.find(world.ctx, other) is None
    assert len(world.kernel.calls) == before
    assert arrays.find(world.ctx, given).name == "md127"
    # All legs were replaced since the attach: its name leads to it.
    assert arrays.find(world.ctx, world.volume(legs=(elsewhere,))).name == "md127"


def test_a_read_that_takes_too_long(world):
    names = connect(world)
    world.kernel.blocks[names[0]].read = lambda offset, length: world.kernel.sim.sleep(60)
    seen = arrays.read(world.ctx, f"/dev/{names[0]}", 1 << 30)
    assert "no answer for 10 s" in str(seen)


def test_an_array_without_members_is_stopped_too(world):
    """As one is left that udev began when its only leg went."""
    world.md._new(world.volume().uuid, "any:volume-1", 2, 2 << 20)
    array = arrays.look(world.kernel.root, "md127")
    assert (array.names, array.running) == (frozenset(), False)
    md.stop(world.ctx, world.volume(), array, waiting.Deadline(world.ctx.clock, 1))
    world.settle()
    assert world.md.arrays == {}


@pytest.mark.parametrize("attribute", ["uuid", "array_state"])
def test_an_array_that_is_being_deleted_is_not_found(world, monkeypatch, attribute):
    world.attach()
    real, number = sysfs.read, errno.EBUSY

    def read(path):
        if str(path).endswith(("md127/md/array_state", f"md127/md/{attribute}")):
            raise OSError(number, os.strerror(number))
        return real(path)

    monkeypatch.setattr(sysfs, "read", read)
    assert arrays.find(world.ctx, world.volume()) is None
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        arrays.find(world.ctx, world.volume())
