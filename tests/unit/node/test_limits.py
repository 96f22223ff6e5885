# SPDX-License-Identifier: Apache-2.0
"""Caps of replicas: recorded, and kept by the kernel."""

import pytest

from kumo_client import errors
from kumo_client.schemas.node import Limits
from kumo_node.throttle import Cap, Cgroup, Throttle
from tests.fakes.node import FakeMachine
from tests.unit.node.conftest import export, replica, uid

R1, R2 = uid(1), uid(2)
CAPS = Limits(max_iops=1000, max_bw=20480)
KEPT = (1000, 1000, 20480 * 1024, 20480 * 1024)
NONE = (0, 0, 0, 0)


def kept(machine, uuid=R1):
    return machine.cgroup.of(machine.host.lv(f"r-{uuid}"))


def test_caps_are_recorded_with_the_replica_and_changed_later(node):
    assert node.replicas.put(R1, replica(limits=CAPS)).limits == CAPS
    # A repetition of the first call does not take back what was set since.
    other = Limits(max_iops=5)
    assert node.caps.put(R1, other).limits == other
    assert node.replicas.put(R1, replica(limits=CAPS)).limits == other
    generation = node.ctx.spec.data.generation
    assert node.caps.put(R1, other).limits == other
    assert node.ctx.spec.data.generation == generation
    assert node.inventory().replicas[0].limits == other
    assert node.inventory().generation == node.info().generation == generation
    assert node.caps.put(R1, Limits()).limits == Limits()


def test_a_replica_that_is_not_there_has_no_caps(node):
    with pytest.raises(errors.NotExistsError):
        node.caps.put(R1, CAPS)


def test_an_export_has_its_caps_before_a_host_can_see_it(machine, node):
    node.replicas.put(R1, replica(limits=CAPS))
    assert "limits" in node.info().abilities
    seen = []

    def step(what):
        if "enable=1" in what:
            seen.append(kept(machine))

    machine.nvmet.step = step
    node.exports.put(R1, export())
    assert seen == [KEPT]
    node.caps.put(R1, Limits(max_bw=51200))
    assert kept(machine) == (0, 0, 51200 * 1024, 51200 * 1024)
    node.caps.put(R1, Limits())
    assert kept(machine) == NONE
    assert machine.cgroup.rules["blkio.throttle.read_bps_device"] == {}


def test_caps_are_back_after_a_reboot(machine, node):
    for uuid in (R2, R1):
        node.replicas.put(uuid, replica(limits=CAPS if uuid == R1 else None))
        node.exports.put(uuid, export())
    machine.reboot()
    machine.cgroup.rules.clear()
    assert machine.start() == []
    assert (kept(machine), kept(machine, R2)) == (KEPT, NONE)


def test_caps_that_others_changed_are_put_right(machine, node, caplog):
    for uuid in (R1, R2):
        node.replicas.put(uuid, replica(limits=CAPS if uuid == R1 else None))
        node.exports.put(uuid, export())
    machine.cgroup.write("blkio.throttle.read_iops_device", "252:3 7")
    one, two = (f"252:{machine.host.lv(f'r-{uuid}').number}" for uuid in (R1, R2))
    machine.cgroup.write("blkio.throttle.read_iops_device", f"{one} 7")
    machine.cgroup.write("blkio.throttle.write_bps_device", f"{two} 7")
    assert node.restore.round() == []
    assert (kept(machine), kept(machine, R2)) == (KEPT, NONE)
    start = len(caplog.text)
    assert node.restore.round() == []
    assert "Capping" not in caplog.text[start:]


def test_a_kernel_that_refuses_is_asked_again(machine, node):
    node.replicas.put(R1, replica())
    node.exports.put(R1, export())

    def refuse(what):
        raise OSError(22, "Invalid argument")

    machine.cgroup.step = refuse
    with pytest.raises(errors.InternalError, match="does not cap"):
        node.caps.put(R1, CAPS)
    assert len(node.restore.round()) == 1
    assert "does not cap" in node.info().problems[0]
    machine.cgroup.step = lambda what: None
    assert node.restore.round() == []
    assert kept(machine) == KEPT
    assert node.info().problems == []


def test_an_export_that_cannot_be_capped_is_not_made(machine, node):
    node.replicas.put(R1, replica(limits=CAPS))

    def refuse(what):
        raise OSError(22, "Invalid argument")

    machine.cgroup.step = refuse
    with pytest.raises(errors.InternalError, match="does not cap"):
        node.exports.put(R1, export())
    assert node.exports.of(R1) == []


def test_caps_that_cannot_be_read_are_a_problem(machine, node, monkeypatch):
    monkeypatch.setattr(machine.cgroup, "lines", lambda name: ["garbage"])
    assert "cannot be read" in node.restore.round()[0]


def test_low_caps_are_raised_to_the_floor(machine, node):
    node.replicas.put(R1, replica(limits=Limits(max_iops=3, max_bw=1)))
    node.exports.put(R1, export())
    assert kept(machine) == (200, 200, 10240 * 1024, 10240 * 1024)
    assert node.replicas.get(R1).limits == Limits(max_iops=3, max_bw=1)
    node.caps.put(R1, Limits(max_iops=1 << 39))
    assert kept(machine)[:2] == ((1 << 32) - 1,) * 2


BUSY = "mount: /run/kumo/blkio: kumo-blkio already mounted or mount point busy."


def machine_with(tmp_path, mode, io=True):
    machine = FakeMachine(tmp_path, throttle=mode)
    control = tmp_path / "sys/fs/cgroup/cgroup.subtree_control"
    control.parent.mkdir(parents=True)
    control.write_text("cpu io memory pids\n" if io else "memory pids\n")
    return machine


@pytest.mark.parametrize(("io", "why"), [(True, "IOWeight"), (False, "already mounted")])
def test_without_caps_the_node_says_so_and_serves(tmp_path, caplog, io, why):
    machine = machine_with(tmp_path, "auto", io)
    machine.host.fail = [("^nsenter", BUSY), ("^mount -t cgroup", BUSY)]
    assert machine.start() == []
    node = machine.node
    assert "limits" not in node.info().abilities
    assert why in caplog.text
    node.replicas.put(R1, replica(limits=CAPS))
    node.exports.put(R1, export())
    assert node.caps.put(R1, Limits()).limits == Limits()
    assert machine.cgroup.rules == {}
    machine.kill()


def test_caps_that_are_required_and_cannot_be_had_stop_the_start(tmp_path):
    machine = machine_with(tmp_path, "required")
    machine.host.fail = [("^nsenter", BUSY), ("^mount -t cgroup", BUSY)]
    with pytest.raises(errors.ConfigError, match="IOWeight"):
        machine.start()
    machine.kill()
    assert machine.start() == []
    assert "limits" in machine.node.info().abilities
    machine.kill()


def test_without_nsenter_the_mount_is_the_daemons_own(tmp_path):
    machine = FakeMachine(tmp_path)
    machine.host.fail = [("^nsenter", "cannot be started")]
    assert machine.start() == []
    assert "limits" in machine.node.info().abilities
    machine.kill()
    start = len(machine.host.log)
    assert machine.start() == []
    assert not any("cgroup" in line for line in machine.host.log[start:])
    machine.kill()


def test_switched_off_it_leaves_the_controller_to_others(tmp_path, caplog):
    machine = FakeMachine(tmp_path)
    machine.start()
    machine.kill()
    machine.options["throttle"] = "off"
    machine.start()
    assert "limits" not in machine.node.info().abilities
    assert "blkio" not in (tmp_path / "proc/self/mounts").read_text()
    machine.kill()
    machine.options["throttle"] = "auto"
    machine.start()
    machine.kill()
    machine.options["throttle"] = "off"
    machine.host.fail = [("umount", "target is busy")]
    machine.start()
    assert "until the next boot" in caplog.text
    machine.kill()


def test_the_files_of_the_group_are_written_as_they_are(tmp_path):
    (tmp_path / "f").write_text("")
    group = Cgroup(tmp_path)
    group.write("f", "1:2 3")
    assert group.lines("f") == ["1:2 3"]


def test_a_hierarchy_that_others_mounted_is_used(tmp_path):
    where = tmp_path / "sys/fs/cgroup/blkio"
    where.mkdir(parents=True)
    mounts = tmp_path / "proc/self/mounts"
    throttle = Throttle(None, tmp_path)
    mounts.parent.mkdir(parents=True)
    mounts.write_text("cgroup /sys/fs/cgroup/blkio cgroup rw,nosuid,blkio 0 0\n")
    throttle.prepare()
    assert throttle.works
    for way in ("read", "write"):
        for kind in ("iops", "bps"):
            (where / f"blkio.throttle.{way}_{kind}_device").write_text("8:0 5\n")
    assert throttle.seen() == {"8:0": Cap(5, 5)}


def test_a_place_that_cannot_be_made(tmp_path, caplog):
    (tmp_path / "run").write_text("a file")
    throttle = Throttle(None, tmp_path)
    throttle.prepare()
    assert not throttle.works
    assert "cannot be made" in throttle.reason
