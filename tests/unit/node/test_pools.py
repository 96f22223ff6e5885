# SPDX-License-Identifier: Apache-2.0
"""A pool on each disk: taking disks, names, and what a node does without one of them."""

import pytest

from kumo_client import errors
from kumo_client.schemas.node import ReplicaSource
from kumo_node.disks import Disk, State
from kumo_node.pools import Naming, new_name
from kumo_node.spec import LAYOUT_GROUP, PoolRecord
from tests.fakes.node import FakeMachine
from tests.unit.node.conftest import MIB, export, replica, snapshot, uid

R1, R2, R3, S1 = uid(1), uid(2), uid(3), uid(0x51)


@pytest.fixture
def machine(tmp_path):
    made = FakeMachine(tmp_path, disks=("vdb", "vdc"), pool_layout="disk")
    assert made.start() == []
    yield made
    made.kill()


def pool_on(machine, name):
    """Name of the pool on a disk."""
    path = str(machine.root / "dev" / name)
    return next(n for n, p in machine.node.ctx.spec.data.pools.items() if p.path == path)


def test_each_disk_has_a_group_and_a_pool(machine):
    pools = machine.node.info().pools
    assert {pool.name for pool in pools} == {pool_on(machine, "vdb"), pool_on(machine, "vdc")}
    assert [(len(pool.ssds), pool.spans, pool.state) for pool in pools] == [(1, False, "ok")] * 2
    assert set(machine.host.vgs) == {f"kumo_{pool.name.removeprefix('ssd-')}" for pool in pools}
    for vg in machine.host.vgs.values():
        assert not vg.autoactivation
        assert f"kumo-owner-{machine.node.ctx.persistent_id}" in vg.tags


def test_commands_see_the_disk_of_their_group_only(machine):
    start = len(machine.host.log)
    machine.node.replicas.put(R1, replica(pool=pool_on(machine, "vdc")))
    machine.node.replicas.resize(R1, 64 * MIB)
    machine.node.replicas.delete(R1)
    for line in machine.host.log[start:]:
        assert f"--devices {machine.root}/dev/vdc " in line


def test_the_pools_of_a_node_stay_whatever_starts(machine):
    machine.node.replicas.put(R1, replica(pool=pool_on(machine, "vdb")))
    before = {pool.name for pool in machine.node.info().pools}
    machine.reboot()
    assert machine.start() == []
    assert {pool.name for pool in machine.node.info().pools} == before
    machine.kill()
    machine.options["pool_layout"] = "group"
    assert machine.start() == []
    assert {pool.name for pool in machine.node.info().pools} == before
    assert machine.node.replicas.get(R1).pool == pool_on(machine, "vdb")


def test_a_node_of_the_first_release_keeps_its_group(tmp_path):
    machine = FakeMachine(tmp_path, disks=("vdb",))
    machine.start()
    machine.node.replicas.put(R1, replica())
    with machine.node.ctx.spec.edit() as data:
        data.layout = ""
    machine.kill()
    machine.host.add_disk("vdc")
    machine.options |= {"pool_layout": "disk", "disks": f"{tmp_path}/dev/vdb,{tmp_path}/dev/vdc"}
    assert machine.start() == []
    (pool,) = machine.node.info().pools
    assert (pool.name, len(pool.ssds), pool.spans) == ("pool", 2, True)
    assert set(machine.host.vgs) == {"kumo"}
    assert machine.node.ctx.spec.data.layout == LAYOUT_GROUP
    machine.kill()


def test_replicas_go_to_the_pool_that_was_named_or_the_emptiest(machine):
    first, second = pool_on(machine, "vdb"), pool_on(machine, "vdc")
    assert machine.node.replicas.put(R1, replica(512, pool=first)).pool == first
    assert machine.node.replicas.put(R2, replica()).pool == second
    assert machine.node.replicas.put(R2, replica()).pool == second
    with pytest.raises(errors.InvalidInputError, match="no pool"):
        machine.node.replicas.put(R3, replica(pool="other"))
    with pytest.raises(errors.ConflictError):
        machine.node.replicas.put(R2, replica(pool=first))


def test_copies_stay_in_the_pool_of_their_source(machine):
    first, second = pool_on(machine, "vdb"), pool_on(machine, "vdc")
    machine.node.replicas.put(R1, replica(512, pool=first))
    assert machine.node.snapshots.put(S1, snapshot(R1)).pool == first
    for uuid, source in ((R2, ReplicaSource(replica=R1)), (R3, ReplicaSource(snapshot=S1))):
        with pytest.raises(errors.InvalidInputError, match="cannot be in"):
            machine.node.replicas.put(uuid, replica(512, source=source, pool=second))
        assert machine.node.replicas.put(uuid, replica(512, source=source)).pool == first


def test_a_disk_added_later_is_a_further_pool(machine):
    machine.kill()
    machine.host.add_disk("vdd")
    machine.options["disks"] += f",{machine.root}/dev/vdd"
    assert machine.start() == []
    assert len(machine.node.info().pools) == 3


def test_a_node_starts_without_a_disk_and_serves_the_others(machine):
    first, second = pool_on(machine, "vdb"), pool_on(machine, "vdc")
    for uuid, pool in ((R1, first), (R2, second)):
        machine.node.replicas.put(uuid, replica(pool=pool))
        machine.node.exports.put(uuid, export())
    machine.node.snapshots.put(S1, snapshot(R1))
    machine.reboot()
    machine.host.unplug("vdb")
    (problem,) = machine.start()
    assert "vdb is missing" in problem
    pools = {pool.name: pool for pool in machine.node.info().pools}
    assert (pools[first].state, pools[second].state) == ("failed", "ok")
    assert pools[first].total_bytes > 900 * MIB
    states = {item.uuid: item.state for item in machine.node.inventory().replicas}
    assert states == {R1: "failed", R2: "ok"}
    assert {uuid for _host, uuid in machine.nvmet.visible()} == {R2}
    with pytest.raises(errors.NoGroupsError, match="missing"):
        machine.node.replicas.put(R3, replica(pool=first))
    assert machine.node.replicas.put(R3, replica()).pool == second
    # Deleting is an intent; it is carried out when the disk is back.
    machine.node.exports.delete(R1, None)
    machine.node.replicas.delete(R1)
    machine.node.snapshots.delete(S1)
    assert machine.node.restore.round() == []
    assert {item.uuid for item in machine.node.inventory().replicas} == {R2, R3}
    machine.reboot()
    machine.host.plug("vdb")
    assert machine.start() == []
    assert machine.host.names() == {f"r-{R2}", f"r-{R3}"}
    assert machine.node.replicas.put(R1, replica(pool=first)).pool == first


def test_a_node_without_any_usable_pool_starts_and_says_so(machine):
    machine.reboot()
    for name in ("vdb", "vdc"):
        machine.host.unplug(name)
    assert len(machine.start()) == 2
    assert [pool.state for pool in machine.node.info().pools] == ["failed", "failed"]
    with pytest.raises(errors.NoGroupsError, match="no usable pool"):
        machine.node.replicas.put(R1, replica())


@pytest.mark.parametrize(
    ("how", "text", "state"),
    [("checksum error", "checksum", "failed"), ("hang", "unknown", "ok")],
)
@pytest.mark.parametrize("command", ["vgs", "lvs"])
def test_a_group_that_lvm_cannot_read_is_one_failed_pool(machine, command, how, text, state):
    machine.kill()
    machine.host.fail = [(f"^{command}.*--devices {machine.root}/dev/vdb", how)] * 4
    problems = machine.start()
    assert any(text in problem for problem in problems)
    assert sorted(pool.state for pool in machine.node.info().pools) == sorted([state, "ok"])
    machine.host.fail = []
    machine.later()
    machine.node.health.round()
    machine.node.health.round()
    assert {pool.state for pool in machine.node.info().pools} == {"ok"}
    assert machine.node.problems() == []


def test_a_pool_that_cannot_be_activated_is_tried_again(machine):
    machine.node.replicas.put(R1, replica(pool=pool_on(machine, "vdb")))
    machine.reboot()
    machine.host.fail = [(f"^lvchange.*--devices {machine.root}/dev/vdb", "thin_check failed")] * 2
    problems = machine.start()
    assert any("thin_check failed" in problem for problem in problems)
    assert machine.node.replicas.get(R1).state == "failed"
    machine.later()
    machine.node.health.round()
    machine.node.health.round()
    assert machine.node.restore.round() == []
    assert machine.node.replicas.get(R1).state == "ok"
    assert machine.host.lv(f"r-{R1}").active
    assert machine.node.problems() == []


def test_a_new_disk_that_is_refused_does_not_keep_a_node_in_service_down(machine):
    machine.kill()
    machine.host.add_disk("vdd", signatures=["ext4"])
    machine.options["disks"] += f",{machine.root}/dev/vdd"
    (problem,) = machine.start()
    assert "ext4" in problem
    assert len(machine.node.info().pools) == 2
    assert machine.host.disks[f"{machine.root}/dev/vdd"].signatures == ["ext4"]


def test_a_disk_that_lost_its_contents_is_not_taken_again(machine):
    first = pool_on(machine, "vdb")
    machine.kill()
    machine.host.disks[f"{machine.root}/dev/vdb"].pv = None
    (problem,) = machine.start()
    assert "was in our volume group" in problem
    assert machine.node.ctx.pools[first].condition.state == "failed"


def test_a_group_of_another_node_on_a_disk_is_not_used(machine):
    machine.kill()
    for vg in machine.host.vgs.values():
        vg.tags.clear()
    problems = machine.start()
    assert len(problems) == 2
    assert all("in volume group" in problem for problem in problems)


def test_names_are_stable_and_never_shared():
    naming = Naming("kumo", "pool")
    disk = Disk("/dev/a", "/dev/a", State.EMPTY, "", serial="S")
    name = new_name(disk, {})
    assert naming.pool_in(naming.group(name)) == name
    assert naming.pool_in("kumo_x") is naming.pool_in("kumo") is None
    held = {name: PoolRecord(vg=naming.group(name), path="/dev/b", serial="S")}
    other = new_name(disk, held)
    assert other != name
    held[other] = PoolRecord(vg=naming.group(other), path="/dev/a", serial="S")
    assert new_name(disk, held) == other
    held[other] = PoolRecord(vg=naming.group(other), path="/dev/c", serial="S")
    with pytest.raises(errors.ConfigError, match="taken"):
        new_name(disk, held)


def replace(machine, name, serial):
    """Another, empty disk in the place of one."""
    machine.host.unplug(name)
    disk = machine.host.add_disk(name)
    disk.serial = serial
    return disk


def test_a_disk_that_was_replaced_is_a_new_pool_and_the_old_one_goes_with_its_last_replica(machine):
    old = pool_on(machine, "vdb")
    machine.node.replicas.put(R1, replica(pool=old))
    machine.node.snapshots.put(S1, snapshot(R1))
    machine.reboot()
    replace(machine, "vdb", "NEW")
    assert machine.start() == []
    (problem,) = machine.node.problems()
    assert "vdb (serial SN-vdb) was replaced" in problem
    pools = {pool.name: pool.state for pool in machine.node.info().pools}
    assert len(pools) == 3
    assert pools[old] == "failed"
    machine.kill()
    assert machine.start() == []
    assert old in machine.node.ctx.pools
    machine.node.snapshots.delete(S1)
    machine.node.replicas.delete(R1)
    machine.kill()
    assert machine.start() == []
    assert old not in machine.node.ctx.pools
    assert machine.node.problems() == []
    data = machine.node.ctx.spec.data
    assert (len(data.pools), data.replicas, data.snapshots) == (2, {}, {})
    assert {pool.state for pool in machine.node.info().pools} == {"ok"}


def test_a_disk_taken_out_of_the_configuration_is_forgotten_when_nothing_is_on_it(machine):
    old = pool_on(machine, "vdb")
    machine.node.replicas.put(R1, replica(pool=old))
    machine.kill()
    machine.options["disks"] = f"{machine.root}/dev/vdc"
    assert machine.start() == []
    assert machine.node.replicas.get(R1).state == "failed"
    assert any("is not in option disks" in text for text in machine.node.problems())
    start = len(machine.host.log)
    machine.later()
    machine.node.health.round()
    assert not any("vdb" in line for line in machine.host.log[start:])
    machine.node.replicas.delete(R1)
    machine.kill()
    assert machine.start() == []
    assert old not in machine.node.ctx.pools
    assert f"{machine.root}/dev/vdb" not in machine.node.ctx.spec.data.disks
    # Given back, it is known by its group, and what is on it is told.
    machine.kill()
    machine.options["disks"] = f"{machine.root}/dev/vdb,{machine.root}/dev/vdc"
    assert machine.start() == []
    assert old in machine.node.ctx.pools
    (problem,) = machine.node.problems()
    assert f"r-{R1}" in problem
    assert "not on record" in problem


def test_a_disk_that_is_only_away_is_not_forgotten(machine):
    old = pool_on(machine, "vdb")
    machine.reboot()
    machine.host.unplug("vdb")
    for _ in range(2):
        machine.start()
        assert old in machine.node.ctx.pools
        machine.kill()
