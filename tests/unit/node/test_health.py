# SPDX-License-Identifier: Apache-2.0
"""Disks that fail and come back, and pools that get full, while the node runs."""

import threading

import pytest

from kumo_client import errors
from kumo_node import health
from tests.fakes.node import FakeMachine
from tests.unit.node.conftest import HOST_B, MIB, export, replica, uid
from tests.unit.node.test_pools import pool_on

R1, R2, R3 = uid(1), uid(2), uid(3)


@pytest.fixture
def machine(tmp_path):
    made = FakeMachine(tmp_path, disks=("vdb", "vdc"), pool_layout="disk")
    assert made.start() == []
    for uuid, disk in ((R1, "vdb"), (R2, "vdc")):
        made.node.replicas.put(uuid, replica(pool=pool_on(made, disk)))
        made.node.exports.put(uuid, export())
    made.node.health.changed.clear()
    yield made
    made.kill()


def look(machine, rounds=1):
    for _ in range(rounds):
        machine.later()
        machine.node.health.round()


def states(machine):
    return {pool.ssds[0].path[-3:]: pool.state for pool in machine.node.info().pools}


def vg_of(machine, disk):
    return machine.host.vgs[machine.node.ctx.pools[pool_on(machine, disk)].lvm.vg]


def test_a_disk_that_is_pulled_and_given_back(machine):
    calls = []
    machine.node.health.observers.append(lambda: calls.append(1))
    machine.host.unplug("vdb")
    look(machine)
    assert states(machine) == {"vdb": "failed", "vdc": "ok"}
    assert machine.node.health.changed.is_set()
    assert calls == [1]
    look(machine, 3)
    assert calls == [1]
    assert [r.state for r in machine.node.inventory().replicas] == ["failed", "ok"]
    assert any("vdb is missing" in text for text in machine.node.info().problems)
    first = pool_on(machine, "vdb")
    ssd = next(p for p in machine.node.info().pools if p.name == first).ssds[0]
    assert (ssd.state, ssd.serial) == ("failed", "SN-vdb")
    # Nothing is tried on it meanwhile.
    start = len(machine.host.log)
    for _ in range(3):
        assert machine.node.restore.round() == []
    assert not any("vdb" in line for line in machine.host.log[start:])
    with pytest.raises(errors.BackendUnavailableError, match="has failed"):
        machine.node.exports.put(R1, export(HOST_B))

    machine.host.plug("vdb")
    look(machine)
    # What was active lay on the disk that was pulled: it was taken down and made again.
    assert any(line.startswith("vgchange") for line in machine.host.log[start:])
    assert machine.node.restore.round() == []
    look(machine)
    assert states(machine) == {"vdb": "ok", "vdc": "ok"}
    assert {uuid for _host, uuid in machine.nvmet.visible()} == {R1, R2}
    assert machine.node.problems() == []
    assert len(calls) == 3


def test_a_disk_that_was_pulled_and_given_back_between_two_looks(machine):
    machine.host.unplug("vdb")
    machine.host.plug("vdb")
    look(machine)
    assert machine.node.restore.round() == []
    look(machine)
    assert states(machine)["vdb"] == "ok"
    assert machine.host.lv(f"r-{R1}").active
    assert {uuid for _host, uuid in machine.nvmet.visible()} == {R1, R2}


def test_a_disk_given_back_while_the_daemon_was_away(machine):
    machine.kill()
    machine.host.unplug("vdb")
    machine.start()
    assert states(machine)["vdb"] == "failed"
    machine.host.plug("vdb")
    look(machine)
    assert any(line.startswith("vgchange -an") or "vgchange" in line for line in machine.host.log)
    assert machine.node.restore.round() == []
    look(machine)
    assert machine.node.problems() == []
    assert {uuid for _host, uuid in machine.nvmet.visible()} == {R1, R2}


def test_a_disk_that_cannot_be_read(machine):
    disk = machine.host.disks[f"{machine.root}/dev/vdb"]
    disk.dead = True
    look(machine)
    assert states(machine) == {"vdb": "failed", "vdc": "ok"}
    disk.dead = False
    start = len(machine.host.log)
    look(machine)
    assert states(machine)["vdb"] == "ok"
    # It was never away: nothing was taken down.
    assert not any("vgchange" in line for line in machine.host.log[start:])


@pytest.mark.parametrize("command", ["^dd if=.*vdb", "^dmsetup"])
def test_what_could_not_be_told_changes_no_state(machine, command):
    machine.host.fail = [(command, "hang")]
    look(machine)
    assert states(machine) == {"vdb": "ok", "vdc": "ok"}
    assert any("could not be told" in text for text in machine.node.info().problems)
    look(machine)
    assert machine.node.info().problems == []


def test_a_pool_that_device_mapper_has_given_up_is_opened_again(machine):
    vg_of(machine, "vdb").mode = "Fail"
    machine.host.fail = [("^vgchange", "Logical volume in use")]
    look(machine)
    assert states(machine)["vdb"] == "failed"
    assert any("cannot be opened" in text and "in use" in text for text in machine.node.problems())
    machine.node.health.round()
    assert any("cannot be opened" in text for text in machine.node.problems())
    look(machine)
    assert machine.node.restore.round() == []
    look(machine)
    assert machine.node.problems() == []
    assert {uuid for _host, uuid in machine.nvmet.visible()} == {R1, R2}


def test_a_pool_that_is_not_active_for_a_moment_is_looked_at_again(machine):
    """LVM gives a pool another device when its first volume is made."""
    look(machine)
    vg = vg_of(machine, "vdb")
    pool = machine.host.lv("pool", vg.name)
    start = len(machine.host.log)
    pool.active = False
    look(machine)
    assert machine.node.problems() == []
    assert machine.node.health._pause() == 1
    # An answer that does not come tells nothing of it.
    machine.host.fail = [("^dmsetup", "hang")]
    look(machine)
    pool.active = True
    look(machine)
    assert machine.node.problems() == []
    assert machine.node.health._pause() == 5
    pool.active = False
    look(machine)
    assert not any("-ay" in line for line in machine.host.log[start:])
    look(machine)
    assert machine.node.problems() == [f"Pool {pool_on(machine, 'vdb')} is not active"]
    look(machine)
    assert machine.node.problems() == []
    assert pool.active


def test_a_pool_is_not_taken_down_while_a_call_works_on_its_exports(machine):
    vg_of(machine, "vdb").mode = "Fail"
    with machine.node.ctx.locks.hold(f"replica {R1}"):
        look(machine)
    assert any("cannot be opened" in text for text in machine.node.problems())
    look(machine, 2)
    assert states(machine)["vdb"] == "ok"


def test_a_read_only_pool_serves_reads_and_takes_nothing(machine):
    vg = vg_of(machine, "vdb")
    vg.mode, vg.needs_check = "ro", True
    look(machine)
    assert states(machine)["vdb"] == "readonly"
    assert [r.state for r in machine.node.inventory().replicas] == ["ok", "ok"]
    pool = pool_on(machine, "vdb")
    for verb in (
        lambda: machine.node.replicas.put(R3, replica(pool=pool)),
        lambda: machine.node.replicas.resize(R1, 64 * MIB),
    ):
        with pytest.raises(errors.NoGroupsError, match="readonly"):
            verb()
    vg.mode, vg.needs_check = "rw", False
    look(machine)
    assert machine.node.problems() == []


def test_wear_and_warnings_of_an_ssd(tmp_path):
    machine = FakeMachine(tmp_path, disks=("nvme0n1",), pool_layout="disk")
    disk = machine.host.disks[f"{tmp_path}/dev/nvme0n1"]
    disk.smart = {"critical_warning": 1, "temperature": 300, "percent_used": 95, "media_errors": 3}
    count = tmp_path / "sys/class/block/nvme0n1/device/ioerr_cnt"
    count.parent.mkdir()
    count.write_text("0x1f\n")
    machine.start()
    (pool,) = machine.node.info().pools
    (ssd,) = pool.ssds
    assert (ssd.wear_percent, ssd.media_errors, ssd.temperature) == (95, 3, 27)
    assert (ssd.critical_warning, ssd.io_errors, ssd.state) == (1, 31, "ok")
    spare, wear = machine.node.info().problems
    assert "spare space is below" in spare
    assert "90 % or more" in wear
    start = len(machine.host.log)
    machine.later(60)
    machine.node.health.round()
    assert not any(line.startswith("nvme") for line in machine.host.log[start:])
    machine.kill()


def test_a_pool_that_gets_full_is_given_its_reserve_once(machine):
    vg, pool = vg_of(machine, "vdb"), machine.node.ctx.pools[pool_on(machine, "vdb")]
    size = machine.host.lv("pool", vg.name).bytes
    assert machine.host._free(vg) >= 8 * MIB
    for percent, text in ((85, "More than 80 %"), (96, "nothing new"), (99, "writes to new")):
        vg.data_percent = percent
        look(machine)
        (problem,) = machine.node.problems()
        assert text in problem
        assert states(machine)["vdb"] == ("full" if percent > 95 else "ok")
    grown = machine.host.lv("pool", vg.name).bytes
    assert grown - size >= 8 * MIB
    assert machine.host._free(vg) < 4 * MIB
    assert states(machine)["vdc"] == "ok"
    vg.mode = "out_of_data_space"
    look(machine)
    assert states(machine)["vdb"] == "full"
    assert machine.host.lv("pool", vg.name).bytes == grown
    # Room was made: everything goes on, and no new reserve is taken at a start.
    vg.mode, vg.data_percent = "rw", 50
    look(machine)
    assert machine.node.problems() == []
    assert pool.wire_state() == "ok"
    machine.kill()
    assert machine.start() == []
    assert machine.host.lv("pool", vg.name).bytes == grown


def test_metadata_that_runs_out_is_given_a_part_of_the_reserve(tmp_path):
    machine = FakeMachine(tmp_path, disks=("vdb",), pool_layout="disk", pool_reserve_percent=10)
    machine.start()
    metadata = machine.host.lv("pool").metadata
    machine.host.metadata_percent = 99
    look(machine)
    assert machine.host.lv("pool").metadata > metadata
    machine.kill()


def test_a_pool_grows_into_space_that_was_added_to_its_group(machine):
    vg = vg_of(machine, "vdb")
    size = machine.host.lv("pool", vg.name).bytes
    machine.host.disks[f"{machine.root}/dev/vdb"].bytes += 1024 * MIB
    look(machine)
    assert machine.host.lv("pool", vg.name).bytes == size
    vg.data_percent = 85
    machine.host.fail = [("^lvextend", "no")]
    look(machine)
    assert any("cannot be grown: lvextend failed" in text for text in machine.node.problems())
    look(machine)
    assert machine.host.lv("pool", vg.name).bytes > size + 900 * MIB
    assert machine.host._free(vg) > 12 * MIB


def test_the_loop_hurries_while_a_pool_gets_full(machine):
    assert machine.node.health._pause() == 5
    vg_of(machine, "vdb").data_percent = 85
    look(machine)
    assert machine.node.health._pause() == 1


def test_the_loop_goes_on_after_a_look_that_failed(machine, monkeypatch, caplog):
    looks, enough = [], threading.Event()

    def odd():
        looks.append(1)
        if len(looks) == 1:
            raise errors.InternalError("odd")
        enough.set()

    monkeypatch.setattr(machine.node.health, "round", odd)
    monkeypatch.setattr(machine.node.health, "pace", health.Pace(0.001))
    machine.node.health.start()
    assert enough.wait(5)
    machine.kill()
    assert "ended early" in caplog.text
