# SPDX-License-Identifier: Apache-2.0
"""Erasing deleted volumes before their space is given back."""

import errno
import os
import threading

import pytest

from kumo_client import errors
from kumo_node import erase
from kumo_node.erase import overwrite
from kumo_node.spec import DELETING
from tests.fakes.node import FakeMachine
from tests.unit.node.conftest import MIB, export, replica, snapshot, uid
from tests.unit.node.test_crash import PowerLossError, Stopper

R1, S1 = uid(1), uid(0x51)
SECRET = b"secret of a tenant"


def start(tmp_path, how="zero", **options):
    machine = FakeMachine(tmp_path, secure_delete=how, **options)
    assert machine.start() == []
    machine.node.replicas.put(R1, replica())
    with open(machine.host.file(f"r-{R1}"), "r+b") as device:
        for at in (0, 5 * MIB + 17, 16 * MIB - len(SECRET)):
            device.seek(at)
            device.write(SECRET)
    return machine


def keep(machine, monkeypatch):
    """What volumes held when they were removed, by name."""
    held = {}
    remove = machine.host._cmd_lvremove

    def watched(args):
        for name in machine.host.names():
            held[name] = machine.host.file(name).read_bytes()
        return remove(args)

    monkeypatch.setattr(machine.host, "_cmd_lvremove", watched)
    return held


@pytest.mark.parametrize("how", ["zero", "discard"])
def test_the_answer_comes_first_and_the_volume_goes_later(tmp_path, monkeypatch, how):
    machine = start(tmp_path, how)
    node, held = machine.node, keep(machine, monkeypatch)
    node.snapshots.put(S1, snapshot(R1))
    log = len(machine.host.log)
    node.snapshots.delete(S1)
    node.replicas.delete(R1)
    node.replicas.delete(R1)
    assert len(machine.host.log) == log
    assert (node.inventory().replicas, node.inventory().snapshots) == ([], [])
    with pytest.raises(errors.BusyError, match="being deleted"):
        node.replicas.put(R1, replica())
    # Restoring leaves it alone.
    assert node.restore.round() == []
    assert machine.host.names() == {f"r-{R1}", f"s-{S1}"}
    node.erasing.round()
    assert machine.host.names() == set()
    assert held[f"r-{R1}"] == held[f"s-{S1}"] == bytes(16 * MIB)
    assert len(machine.host.discarded) == 2
    data = node.ctx.spec.data
    assert (data.replicas, data.snapshots) == ({}, {})
    machine.kill()


def test_off_deletes_at_once_and_what_was_asked_before_is_still_erased(tmp_path, monkeypatch):
    machine = start(tmp_path)
    machine.node.replicas.delete(R1)
    machine.kill()
    machine.options["secure_delete"] = "off"
    machine.reboot()
    assert machine.start() == []
    held = keep(machine, monkeypatch)
    machine.node.erasing.round()
    assert held[f"r-{R1}"] == bytes(16 * MIB)
    machine.node.replicas.put(R1, replica())
    machine.node.replicas.delete(R1)
    assert machine.host.names() == set()
    machine.kill()


def test_an_exported_replica_is_not_erased(tmp_path):
    machine = start(tmp_path)
    machine.node.exports.put(R1, export())
    with pytest.raises(errors.InUseError):
        machine.node.replicas.delete(R1)
    machine.node.erasing.round()
    assert SECRET in machine.host.file(f"r-{R1}").read_bytes()
    machine.kill()


def test_a_stop_between_any_two_steps_leaves_it_to_the_next_start(tmp_path, monkeypatch):
    for at in range(1, 100):
        machine = start(tmp_path / str(at), pool_layout="disk")
        machine.node.snapshots.put(S1, snapshot(R1))
        stopper = Stopper(machine, monkeypatch)
        held = keep(machine, monkeypatch)
        stopper.arm(at)
        try:
            machine.node.snapshots.delete(S1)
            machine.node.replicas.delete(R1)
            machine.node.erasing.round()
            done = True
        except PowerLossError:
            done = False
        stopper.arm(None)
        machine.reboot()
        assert machine.start() == []
        machine.node.snapshots.delete(S1)
        machine.node.replicas.delete(R1)
        machine.node.erasing.round()
        assert machine.host.names() == set()
        assert all(SECRET not in contents for contents in held.values())
        machine.kill()
        monkeypatch.undo()
        if done:
            assert at > 8
            return
    pytest.fail("never got through")


@pytest.mark.parametrize("command", ["^blkdiscard", "^lvs", "^lvremove"])
@pytest.mark.parametrize("how", ["refused", "hang"])
def test_what_fails_is_told_once_and_tried_again(tmp_path, caplog, command, how):
    machine = start(tmp_path)
    machine.node.replicas.delete(R1)
    machine.host.fail = [(command, how)] * 2
    machine.node.erasing.round()
    (problem,) = machine.node.info().problems
    assert f"r-{R1}" in problem
    machine.node.erasing.round()
    if command == "^lvremove":
        # The contents are gone; what is left is restoring's.
        assert machine.node.restore.round() != [] or machine.host.names() == set()
    assert caplog.text.count("is not erased yet") == 1
    machine.host.fail = []
    machine.node.erasing.round()
    assert machine.node.restore.round() == []
    assert machine.host.names() == set()
    assert machine.node.info().problems == []
    machine.kill()


def test_erasing_waits_for_a_disk_that_is_away(tmp_path, monkeypatch):
    machine = start(tmp_path, pool_layout="disk")
    machine.node.replicas.delete(R1)
    machine.reboot()
    machine.host.unplug("vdb")
    machine.start()
    machine.node.erasing.round()
    assert machine.host.names() == {f"r-{R1}"}
    machine.host.plug("vdb")
    machine.later()
    machine.node.health.round()
    held = keep(machine, monkeypatch)
    machine.node.erasing.round()
    assert machine.host.names() == set()
    assert held[f"r-{R1}"] == bytes(16 * MIB)
    machine.kill()


def test_a_volume_that_is_not_ours_any_more_is_not_touched(tmp_path):
    machine = start(tmp_path)
    machine.node.replicas.delete(R1)
    machine.host.lv(f"r-{R1}").tags.clear()
    machine.node.erasing.round()
    assert machine.node.ctx.spec.data.replicas == {}
    assert SECRET in machine.host.file(f"r-{R1}").read_bytes()
    machine.kill()


def test_the_loop_erases_and_ends_between_two_windows(tmp_path, monkeypatch):
    machine = start(tmp_path)
    erasing = machine.node.erasing
    monkeypatch.setattr(erase, "WINDOW", 4 * MIB)
    begun = threading.Event()
    discard = erasing._discard

    def slow(*args):
        begun.set()
        erasing._stop.wait(5)
        discard(*args)

    monkeypatch.setattr(erasing, "_discard", slow)
    erasing.interval = 0.001
    machine.node.replicas.delete(R1)
    erasing.start()
    assert begun.wait(5)
    machine.kill()
    assert len(machine.host.discarded) == 1
    assert machine.host.names() == {f"r-{R1}"}
    machine.start()
    assert machine.node.ctx.spec.data.replicas[R1].state == DELETING
    machine.node.erasing.round()
    assert machine.host.names() == set()
    machine.kill()


# The writes themselves.


def test_only_what_is_not_zeros_is_written(tmp_path, monkeypatch):
    path = tmp_path / "device"
    path.write_bytes(bytes(8 * MIB))
    with open(path, "r+b") as device:
        device.seek(5 * MIB)
        device.write(SECRET)
        device.seek(7 * MIB)
        device.write(SECRET)
    written, pwritev = [], os.pwritev

    def watched(handle, buffers, at):
        written.append(at)
        return pwritev(handle, buffers, at)

    monkeypatch.setattr(os, "pwritev", watched)
    overwrite(str(path), 4 * MIB, 2 * MIB)
    assert written == [5 * MIB]
    assert path.read_bytes().count(SECRET) == 1


@pytest.mark.parametrize(("number", "raised"), [(errno.ENOSPC, False), (errno.EIO, True)])
def test_a_full_pool_is_no_reason_to_stop(tmp_path, monkeypatch, number, raised):
    path = tmp_path / "device"
    path.write_bytes(SECRET + bytes(4 * MIB - len(SECRET)))

    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwritev", refuse)
    if raised:
        with pytest.raises(OSError, match="Input/output"):
            overwrite(str(path), 0, 4 * MIB)
    else:
        overwrite(str(path), 0, 4 * MIB)


@pytest.mark.parametrize(("number", "raised"), [(errno.EINVAL, False), (errno.ENXIO, True)])
def test_a_device_without_direct_io_is_written_through_the_cache(
    tmp_path, monkeypatch, number, raised
):
    path = tmp_path / "device"
    path.write_bytes(SECRET + bytes(4 * MIB - len(SECRET)))
    real = os.open

    def picky(name, flags, *args, **kwargs):
        if flags & os.O_DIRECT:
            raise OSError(number, os.strerror(number))
        return real(name, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", picky)
    if raised:
        with pytest.raises(OSError, match="No such device"):
            overwrite(str(path), 0, 4 * MIB)
    else:
        overwrite(str(path), 0, 4 * MIB)
        assert path.read_bytes() == bytes(4 * MIB)
