# SPDX-License-Identifier: Apache-2.0
"""What may happen to a disk, and what never may."""

import pytest

from kumo_client import errors
from kumo_node.disks import Disk, Disks, State, plan
from kumo_node.spec import DiskRecord
from tests.fakes.node import FakeMachine
from tests.unit.node.conftest import MIB, replica, uid

PART = {"path": "/dev/vdb1", "type": "part", "mountpoints": [None]}


def disk_with(**changes):
    def change(disk):
        for name, value in changes.items():
            setattr(disk, name, value)

    return change


REFUSED = {
    "file system": (disk_with(signatures=["ext4"]), "holding data.*ext4"),
    "partition table": (disk_with(signatures=["gpt"]), "holding data"),
    "partitions": (disk_with(partitions=[PART]), "has partitions"),
    "orphan physical volume": (disk_with(pv=""), "without a group"),
}
NEVER = {
    "mounted": (disk_with(mountpoints=["/srv"]), "mounted on /srv"),
    "swap": (disk_with(mountpoints=["[SWAP]"], signatures=["swap"]), "mounted"),
    "mounted partition": (disk_with(partitions=[PART | {"mountpoints": ["/"]}]), "holds it"),
    "stacked": (
        disk_with(partitions=[{"path": "/dev/md0", "type": "raid1", "mountpoints": [None]}]),
        "holds it",
    ),
    "stacked on a partition": (
        disk_with(partitions=[PART | {"children": [{"path": "/dev/dm-0", "type": "crypt"}]}]),
        "holds it",
    ),
    "held": (disk_with(held=True), "holds it"),
    "cannot be opened": (disk_with(held=None), "cannot be opened"),
    "cannot be read": (disk_with(unreadable=True), "could not read"),
    "read-only": (disk_with(readonly=True), "read-only"),
    "a partition": (disk_with(type="part"), "not a whole disk"),
    "other group": (disk_with(pv="rootvg"), "in volume group rootvg"),
}


def refused(machine, match):
    before = {path: vars(disk).copy() for path, disk in machine.host.disks.items()}
    with pytest.raises(errors.UnsafeDiskError, match=match):
        machine.start()
    assert {path: vars(disk) for path, disk in machine.host.disks.items()} == before
    assert machine.host.vgs == {}
    assert machine.node.ctx.spec.data.disks == {}
    machine.kill()


@pytest.mark.parametrize("case", REFUSED | NEVER)
def test_a_disk_that_is_not_empty_is_refused(tmp_path, case):
    machine = FakeMachine(tmp_path, disks=("vdb", "vdc"))
    change, match = (REFUSED | NEVER)[case]
    change(machine.host.disks[str(tmp_path / "dev/vdb")])
    refused(machine, match)


@pytest.mark.parametrize("case", NEVER)
def test_not_even_wiping_touches_a_disk_in_use_or_unknown(tmp_path, case):
    machine = FakeMachine(tmp_path, disks=("vdb", "vdc"), wipe_disks=tmp_path / "dev/vdb")
    change, match = NEVER[case]
    change(machine.host.disks[str(tmp_path / "dev/vdb")])
    refused(machine, match)


@pytest.mark.parametrize("case", REFUSED)
def test_wiping_when_told(tmp_path, case):
    machine = FakeMachine(tmp_path, disks=("vdb", "vdc"), wipe_disks=tmp_path / "dev/vdb")
    change, _match = REFUSED[case]
    change(machine.host.disks[str(tmp_path / "dev/vdb")])
    assert machine.start() == []
    assert machine.host.disks[str(tmp_path / "dev/vdb")].pv == "kumo"
    assert sum(line.startswith("wipefs --all") for line in machine.host.log) == 1
    machine.reboot()
    machine.host.log.clear()
    assert machine.start() == []
    assert not any(line.startswith("wipefs --all") for line in machine.host.log)
    machine.kill()


def test_a_disk_not_listed_is_never_named_in_a_changing_command(tmp_path):
    machine = FakeMachine(tmp_path)
    other = machine.host.add_disk("vdz", signatures=["ext4"])
    machine.start()
    machine.node.replicas.put(uid(1), replica())
    assert not any(other.path in line for line in machine.host.log)
    lvm = [line for line in machine.host.log if line.startswith(("lv", "vgc", "vge"))]
    assert lvm
    assert all("--devices" in line for line in lvm)
    machine.kill()


def test_a_disk_that_was_ours_is_not_wiped_again(tmp_path):
    machine = FakeMachine(tmp_path, disks=("vdb", "vdc"), wipe_disks=tmp_path / "dev/vdb")
    machine.start()
    machine.kill()
    # Its metadata is gone: to the tools it is an empty disk now.
    machine.host.disks[str(tmp_path / "dev/vdb")].pv = None
    machine.host.log.clear()
    with pytest.raises(errors.KumoError, match="was in our volume group"):
        machine.start()
    assert not any(line.startswith(("wipefs --all", "vgextend")) for line in machine.host.log)
    machine.kill()


def test_a_disk_added_later_grows_the_pool_and_its_metadata(tmp_path):
    machine = FakeMachine(tmp_path, disks=("vdb",))
    machine.start()
    small = machine.node.info().pools[0].total_bytes
    metadata = machine.host.lv("pool").metadata
    machine.kill()
    machine.host.add_disk("vdc", bytes=64 * 1024 * MIB)
    machine.options["disks"] = f"{tmp_path}/dev/vdb,{tmp_path}/dev/vdc"
    assert machine.start() == []
    assert machine.node.info().pools[0].total_bytes > small + 60 * 1024 * MIB
    assert machine.host.lv("pool").metadata > metadata
    machine.kill()


def test_a_group_of_somebody_else_is_not_used(tmp_path):
    machine = FakeMachine(tmp_path)
    machine.start()
    machine.kill()
    (tmp_path / "state/spec.json").unlink()
    with pytest.raises(errors.ConfigError, match="was not made by this node"):
        machine.start()
    machine.kill()


def test_a_group_that_misses_a_disk_is_not_used(tmp_path):
    machine = FakeMachine(tmp_path)
    machine.start()
    machine.kill()
    machine.host.vgs["kumo"].missing = 1
    with pytest.raises(errors.ConfigError, match="misses 1 of its disks"):
        machine.start()
    machine.kill()


def test_a_pool_that_does_not_zero_is_not_used(tmp_path):
    machine = FakeMachine(tmp_path)
    machine.start()
    machine.kill()
    machine.host.lv("pool").zero = False
    with pytest.raises(errors.ConfigError, match="does not zero"):
        machine.start()
    machine.kill()


def test_a_full_pool_fails_writes_and_does_not_queue_them(tmp_path):
    machine = FakeMachine(tmp_path)
    for _ in range(2):
        machine.start()
        machine.kill()
        assert machine.host.lv("pool").when_full == "error"
        machine.host.lv("pool").when_full = "queue"


def test_disks_too_small(tmp_path):
    machine = FakeMachine(tmp_path)
    machine.host.disks[str(tmp_path / "dev/vdb")].bytes = 64 * MIB
    with pytest.raises(errors.ConfigError, match="too small"):
        machine.start()
    machine.kill()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"disks": ""}, "disks is empty"),
        ({"wipe_disks": "/dev/vdq"}, "/dev/vdq is not in disks"),
        ({"disks": "{root}/dev/vdb,{root}/dev/vdb2"}, "same disk"),
        ({"disks": "{root}/dev/vdq"}, "is missing"),
    ],
)
def test_options_that_cannot_be(tmp_path, options, match):
    machine = FakeMachine(tmp_path)
    (tmp_path / "dev/vdb2").symlink_to("vdb")
    machine.options |= {key: text.format(root=tmp_path) for key, text in options.items()}
    with pytest.raises(errors.KumoError, match=match):
        machine.start()
    assert machine.host.vgs == {}
    machine.kill()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "could not be looked at"),
        ("null", "could not be looked at"),
        ("{}", "could not be looked at"),
        ('{"blockdevices": [{"name": "x"}]}', "could not be looked at"),
        ("[", "could not be looked at"),
        ('{"blockdevices": []}', "does not know it"),
    ],
)
def test_a_disk_of_which_lsblk_says_nothing_usable_is_unknown(tmp_path, text, reason):
    class Odd:
        def run(self, *argv):
            return text

    (tmp_path / "disk").touch()
    (disk,) = Disks(Odd(), lambda path: False).inspect([str(tmp_path / "disk")], {}, ["kumo"])
    assert disk.state is State.UNKNOWN
    assert reason in disk.reason


def test_wiping_that_fails(tmp_path):
    machine = FakeMachine(tmp_path, wipe_disks=tmp_path / "dev/vdb")
    machine.host.disks[str(tmp_path / "dev/vdb")].signatures = ["ext4"]
    machine.host.fail = [("wipefs.*--all", "Device or resource busy")]
    with pytest.raises(errors.UnsafeDiskError, match="cannot be wiped"):
        machine.start()
    assert machine.host.vgs == {}
    machine.kill()
    assert machine.start() == []
    machine.kill()


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("wipe", [True, False])
@pytest.mark.parametrize("record", [None, False, True])
def test_the_plan_for_each_case(state, wipe, record):
    disk = Disk("/dev/a", "/dev/a", state, "because", serial="S")
    recorded = {} if record is None else {"/dev/a": DiskRecord(serial="S", ready=record)}
    made = plan([disk], ["/dev/a"] if wipe else [], recorded)
    if state is State.OURS:
        expected = "keep"
    elif record:
        expected = "problems"
    elif state is State.EMPTY or (state is State.ORPHAN and record is False):
        expected = "add"
    elif wipe and state in (State.DATA, State.ORPHAN):
        expected = "wipe"
    else:
        expected = "problems"
    found = [name for name in ("keep", "add", "wipe", "problems") if getattr(made, name)]
    assert found == [expected]
