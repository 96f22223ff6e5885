# SPDX-License-Identifier: Apache-2.0
"""What the node does when LVM or the target refuse, and when others interfere."""

import errno
import threading
import traceback

import pytest

from kumo_client import errors
from kumo_client.schemas.node import ReplicaSource
from kumo_node import nvmet
from kumo_node.spec import DELETING, READY
from tests.fakes.node import FakeMachine
from tests.unit.node.conftest import HOST_A, MIB, export, replica, snapshot, uid

R1, R2, S1 = uid(1), uid(2), uid(0x51)


def only_ready(node):
    data = node.ctx.spec.data
    records = [*data.replicas.values(), *data.snapshots.values(), *data.exports.values()]
    return all(record.state == READY for record in records)


def test_a_volume_of_that_name_made_by_others_is_left_alone(machine, node):
    machine.host.foreign_lv(f"r-{R1}")
    with pytest.raises(errors.ConflictError, match="not ours"):
        node.replicas.put(R1, replica())
    assert f"r-{R1}" in machine.host.names()
    node.replicas.put(R2, replica())
    machine.host.foreign_lv(f"s-{S1}")
    with pytest.raises(errors.ConflictError, match="not ours"):
        node.snapshots.put(S1, snapshot(R2))
    assert machine.host.names() == {f"r-{R1}", f"r-{R2}", f"s-{S1}"}
    assert set(node.ctx.spec.data.replicas) == {R2}
    assert node.ctx.spec.data.snapshots == {}


@pytest.mark.parametrize("percent", ["data_percent", "metadata_percent"])
def test_a_nearly_full_pool_takes_nothing_new(machine, node, percent):
    node.replicas.put(R1, replica())
    setattr(machine.host, percent, 96.0)
    node.ctx.pools["pool"].state(max_age=0)
    for verb in (
        lambda: node.replicas.put(R2, replica()),
        lambda: node.snapshots.put(S1, snapshot(R1)),
        lambda: node.replicas.resize(R1, 64 * MIB),
    ):
        with pytest.raises(errors.NoSpaceError, match=r"96\.0 %"):
            verb()
    assert machine.host.names() == {f"r-{R1}"}
    node.exports.put(R1, export())
    node.exports.delete(R1, None)
    node.replicas.delete(R1)


def test_the_fill_level_is_warned_of(machine, node, caplog):
    machine.host.data_percent = 85.0
    for _ in range(2):
        node.health.round()
    assert caplog.text.count("More than 80 % of the data space of pool pool is used") == 1


def test_overprovisioning_has_a_limit(tmp_path):
    machine = FakeMachine(tmp_path, max_overprovision=1.0)
    machine.start()
    total = machine.node.info().pools[0].total_bytes // MIB
    machine.node.replicas.put(R1, replica(total - 64))
    with pytest.raises(errors.NoSpaceError, match="may promise"):
        machine.node.replicas.put(R2, replica(128))
    with pytest.raises(errors.NoSpaceError):
        machine.node.snapshots.put(S1, snapshot(R1))
    with pytest.raises(errors.NoSpaceError):
        machine.node.replicas.resize(R1, (total + 64) // 4 * 4 * MIB)
    machine.node.replicas.resize(R1, total * MIB)
    assert machine.node.ctx.spec.data.replicas[R1].target_bytes is None
    machine.kill()


def test_no_pool_is_no_groups(machine, node):
    del machine.host.vgs["kumo"].lvs["pool"]
    node.ctx.pools["pool"].state(max_age=0)
    with pytest.raises(errors.NoGroupsError):
        node.replicas.put(R1, replica())
    assert node.info().pools == []


@pytest.mark.parametrize("verb", ["create", "copy", "extend"])
def test_lvm_that_refuses_leaves_nothing(machine, node, verb):
    node.replicas.put(R1, replica())
    machine.host.fail = [("^lvextend" if verb == "extend" else "^lvcreate", "no more")]
    source = None if verb == "create" else ReplicaSource(replica=R1)
    with pytest.raises(errors.InternalError, match="no more"):
        node.replicas.put(R2, replica(64, source=source))
    assert machine.host.names() == {f"r-{R1}"}
    assert set(node.ctx.spec.data.replicas) == {R1}


def test_an_undo_that_fails_too_is_done_by_the_next_round(machine, node):
    node.replicas.put(R1, replica())
    machine.host.fail = [("^lvextend", "no more"), ("^lvremove", "hang")]
    with pytest.raises(errors.BackendUnavailableError):
        node.replicas.put(R2, replica(64, source=ReplicaSource(replica=R1)))
    assert not only_ready(node)
    with pytest.raises(errors.NotExistsError):
        node.replicas.get(R2)
    assert node.restore.round() == []
    assert machine.host.names() == {f"r-{R1}"}
    assert only_ready(node)


def test_a_resize_that_is_refused_keeps_the_size(machine, node):
    node.replicas.put(R1, replica())
    machine.host.fail = [("^lvextend", "no more")]
    with pytest.raises(errors.InternalError, match="no more"):
        node.replicas.resize(R1, 64 * MIB)
    assert node.replicas.get(R1).bytes == 16 * MIB
    assert node.ctx.spec.data.replicas[R1].target_bytes is None
    assert node.replicas.resize(R1, 64 * MIB).bytes == 64 * MIB


def test_a_resize_whose_outcome_is_unknown_is_finished(machine, node):
    node.replicas.put(R1, replica())
    seen = node.exports.put(R1, export())
    machine.host.fail = [("^lvextend", "lost")]
    with pytest.raises(errors.BackendUnavailableError):
        node.replicas.resize(R1, 64 * MIB)
    with pytest.raises(errors.BusyError, match="being resized"):
        node.snapshots.put(S1, snapshot(R1))
    with pytest.raises(errors.ConflictError):
        node.replicas.resize(R1, 32 * MIB)
    assert node.restore.round() == []
    assert machine.nvmet.sizes[seen.subsystem_nqn, 1] == 64 * MIB
    assert node.replicas.get(R1).bytes == 64 * MIB


def test_a_target_that_does_not_take_the_size_is_asked_again(machine, node, monkeypatch):
    node.replicas.put(R1, replica())
    seen = node.exports.put(R1, export())
    with monkeypatch.context() as patch:
        patch.setattr(node.ctx.nvmet, "revalidate", refusal(errno.EIO))
        with pytest.raises(errors.InternalError, match="did not take the new size"):
            node.replicas.resize(R1, 64 * MIB)
    assert node.restore.round() == []
    assert machine.nvmet.sizes[seen.subsystem_nqn, 1] == 64 * MIB


def refusal(number):
    def refuse(*args, **kwargs):
        raise OSError(number, "refused")

    return refuse


def test_a_target_that_refuses_an_export_leaves_nothing(machine, node, monkeypatch):
    node.replicas.put(R1, replica())
    write = machine.nvmet.write

    def broken(value, *parts):
        if parts[-1] == "enable" and value == "1":
            raise OSError(errno.EIO, "refused")
        write(value, *parts)

    with monkeypatch.context() as patch:
        patch.setattr(machine.nvmet, "write", broken)
        with pytest.raises(errors.InternalError, match="refused the export"):
            node.exports.put(R1, export())
    assert machine.nvmet.names("subsystems") == machine.nvmet.names("hosts") == []
    assert node.ctx.spec.data.exports == {}


def test_a_link_that_fails_for_good_is_not_taken_for_a_portal_that_is_down(
    machine, node, monkeypatch
):
    node.replicas.put(R1, replica())
    link = machine.nvmet.link

    def broken(target, *parts):
        if parts[0] == "ports":
            raise OSError(errno.ENOMEM, "no memory")
        link(target, *parts)

    monkeypatch.setattr(machine.nvmet, "link", broken)
    with pytest.raises(errors.InternalError, match="no memory"):
        node.exports.put(R1, export())
    assert node.ctx.spec.data.exports == {}


def test_a_removal_that_the_target_refuses_is_finished_later(machine, node, monkeypatch):
    node.replicas.put(R1, replica())
    node.exports.put(R1, export())
    with monkeypatch.context() as patch:
        patch.setattr(node.ctx.nvmet, "remove", refusal(errno.EBUSY))
        with pytest.raises(errors.InternalError, match="did not give up"):
            node.exports.delete(R1, None)
    with pytest.raises(errors.BusyError, match="being removed"):
        node.exports.put(R1, export())
    with pytest.raises(errors.InUseError):
        node.replicas.delete(R1)
    assert node.restore.round() == []
    assert machine.nvmet.visible() == {}
    node.replicas.delete(R1)


def test_a_volume_held_open_on_the_node_is_in_use_and_goes_later(machine, node):
    node.replicas.put(R1, replica())
    machine.host.fail = [("^lvremove", "Logical volume kumo/r-1 in use.")] * 2
    with pytest.raises(errors.InUseError, match="held open"):
        node.replicas.delete(R1)
    assert node.ctx.spec.data.replicas[R1].state == DELETING
    with pytest.raises(errors.BusyError, match="being deleted"):
        node.replicas.put(R1, replica())
    assert len(node.restore.round()) == 1
    assert node.restore.round() == []
    assert machine.host.names() == set()


def test_a_snapshot_being_deleted_cannot_be_taken_again_at_once(machine, node):
    node.replicas.put(R1, replica())
    node.snapshots.put(S1, snapshot(R1))
    machine.host.fail = [("^lvremove", "hang")]
    with pytest.raises(errors.BackendUnavailableError):
        node.snapshots.delete(S1)
    with pytest.raises(errors.BusyError, match="being deleted"):
        node.snapshots.put(S1, snapshot(R1))
    with pytest.raises(errors.NotExistsError):
        node.replicas.put(R2, replica(source=ReplicaSource(snapshot=S1)))
    node.snapshots.delete(S1)
    assert machine.host.names() == {f"r-{R1}"}


def test_a_volume_that_lvm_made_but_did_not_activate_is_activated(machine, node):
    machine.host.fail = [("^lvcreate", "lost")]
    with pytest.raises(errors.BackendUnavailableError):
        node.replicas.put(R1, replica())
    machine.host._deactivate(machine.host.vgs["kumo"], machine.host.lv(f"r-{R1}"))
    assert node.replicas.put(R1, replica()).bytes == 16 * MIB
    assert machine.host.lv(f"r-{R1}").active


def test_a_replica_whose_volume_is_gone_is_told_and_kept_on_record(machine, node):
    for uuid in (R1, R2):
        node.replicas.put(uuid, replica())
        node.exports.put(uuid, export())
    machine.reboot()
    del machine.host.vgs["kumo"].lvs[f"r-{R1}"]
    problems = machine.start()
    assert len(problems) == 1
    assert R1 in problems[0]
    assert set(machine.nvmet.visible()) == {(HOST_A, R2)}
    assert machine.node.replicas.get(R1).bytes == 16 * MIB
    with pytest.raises(errors.BackendUnavailableError, match="not active"):
        machine.node.exports.put(R1, export("nqn.2014-08.org.nvmexpress:uuid:x"))


def test_a_volume_that_a_killed_command_left_suspended_is_resumed(machine, node, caplog):
    for uuid in (R1, R2):
        node.replicas.put(uuid, replica())
    machine.host.suspend(f"r-{R1}")
    with node.ctx.locks.hold(f"replica {R1}"):
        assert node.restore.round() == []
        assert node.ctx.pools["pool"].lvm.is_suspended(f"r-{R1}")
    start = len(machine.host.log)
    assert node.restore.round() == []
    assert not node.ctx.pools["pool"].lvm.is_suspended(f"r-{R1}")
    assert [line.split()[0] for line in machine.host.log[start:]] == ["lvchange"]
    assert "left suspended" in caplog.text


def test_a_problem_that_stays_is_told_once(machine, node, caplog):
    node.replicas.put(R1, replica())
    machine.reboot()
    del machine.host.vgs["kumo"].lvs[f"r-{R1}"]
    for _ in range(2):
        machine.start() if machine.node is None else machine.node.restore.round()
    assert caplog.text.count("does not exist") == 1


def test_activation_that_fails_is_tried_again(machine, node):
    node.replicas.put(R1, replica())
    node.exports.put(R1, export())
    machine.reboot()
    machine.host.fail = [("^lvchange.*-K", "device-mapper: reload ioctl failed")]
    assert len(machine.start()) == 2
    assert machine.node.restore.round() == []
    assert set(machine.nvmet.visible()) == {(HOST_A, R1)}


def test_a_port_of_somebody_else_on_our_address_is_shared(machine, node):
    fs = machine.nvmet
    fs.mkdir("ports", "7")
    for name, value in {"trtype": "tcp", "adrfam": "ipv4", "traddr": "10.77.0.11",
                        "trsvcid": "4420"}.items():  # fmt: skip
        fs.write(value, "ports", "7", f"addr_{name}")
    fs.mkdir("subsystems", "nqn.theirs")
    fs.link(("subsystems", "nqn.theirs"), "ports", "7", "subsystems", "nqn.theirs")
    node.replicas.put(R1, replica())
    assert len(node.exports.put(R1, export()).portals) == 2
    assert len(fs.names("ports", "7", "subsystems")) == 2
    node.exports.delete(R1, None)
    assert fs.names("ports", "7", "subsystems") == ["nqn.theirs"]


def test_a_port_number_taken_for_another_address(machine, node):
    number = str(nvmet.port_id(node.ctx.portals[0]))
    machine.nvmet.mkdir("ports", number)
    for name, value in {"trtype": "tcp", "adrfam": "ipv4", "traddr": "10.0.0.9",
                        "trsvcid": "4420"}.items():  # fmt: skip
        machine.nvmet.write(value, "ports", number, f"addr_{name}")
    machine.nvmet.mkdir("subsystems", "nqn.theirs")
    machine.nvmet.link(("subsystems", "nqn.theirs"), "ports", number, "subsystems", "nqn.theirs")
    node.replicas.put(R1, replica())
    with pytest.raises(errors.ConflictError, match="another address"):
        node.exports.put(R1, export())
    assert machine.nvmet.names("subsystems") == ["nqn.theirs"]


def test_a_namespace_changed_by_others_is_not_taken_for_ours(machine, node):
    node.replicas.put(R1, replica())
    nqn = node.exports.put(R1, export()).subsystem_nqn
    base = ("subsystems", nqn, "namespaces", "1")
    machine.nvmet.write("0", *base, "enable")
    machine.nvmet.write(R2, *base, "device_uuid")
    machine.nvmet.write("1", *base, "enable")
    (problem,) = node.restore.round()
    assert "Namespace 1" in problem
    with pytest.raises(errors.ConflictError):
        node.exports.put(R1, export())


def test_a_further_host_let_in_by_others_is_put_out(machine, node):
    node.replicas.put(R1, replica())
    nqn = node.exports.put(R1, export()).subsystem_nqn
    machine.nvmet.mkdir("hosts", "nqn.theirs")
    machine.nvmet.link(("hosts", "nqn.theirs"), "subsystems", nqn, "allowed_hosts", "nqn.theirs")
    assert node.restore.round() == []
    assert set(machine.nvmet.visible()) == {(HOST_A, R1)}


def test_a_host_entry_made_or_used_by_others_stays(machine, node):
    machine.nvmet.mkdir("hosts", HOST_A)
    node.replicas.put(R1, replica())
    node.exports.put(R1, export())
    node.exports.delete(R1, None)
    assert machine.nvmet.names("hosts") == [HOST_A]
    machine.nvmet.rmdir("hosts", HOST_A)

    node.exports.put(R1, export())
    machine.nvmet.mkdir("subsystems", "nqn.theirs")
    where = ("subsystems", "nqn.theirs", "allowed_hosts", HOST_A)
    machine.nvmet.link(("hosts", HOST_A), *where)
    node.exports.delete(R1, None)
    assert machine.nvmet.names("hosts") == [HOST_A]


def test_a_host_entry_that_cannot_be_removed_is_an_error(machine, node, monkeypatch):
    node.replicas.put(R1, replica())
    node.exports.put(R1, export())
    rmdir = machine.nvmet.rmdir

    def broken(*parts):
        if parts[0] == "hosts":
            raise OSError(errno.EPERM, "not permitted")
        rmdir(*parts)

    with monkeypatch.context() as patch:
        patch.setattr(machine.nvmet, "rmdir", broken)
        with pytest.raises(errors.InternalError, match="not permitted"):
            node.exports.delete(R1, None)
    assert node.restore.round() == []
    assert machine.nvmet.names("hosts") == []


def test_the_number_of_queues_is_bounded_when_told(tmp_path):
    machine = FakeMachine(tmp_path, max_io_queues=4)
    machine.start()
    machine.node.replicas.put(R1, replica())
    nqn = machine.node.exports.put(R1, export()).subsystem_nqn
    assert machine.nvmet.read("subsystems", nqn, "attr_qid_max") == "4"
    machine.nvmet.discovered.add(nqn)
    machine.node.exports.put(R1, export())
    machine.kill()


def test_calls_on_one_object_wait_and_on_others_do_not(machine, node):
    with node.ctx.locks.hold(f"replica {R1}"):
        with pytest.raises(errors.BusyError) as caught:
            node.replicas.put(R1, replica())
        assert caught.value.transient
        node.replicas.put(R2, replica())


def test_a_round_leaves_alone_what_a_call_works_on(machine, node):
    machine.host.fail = [("^lvcreate", "hang")]
    with pytest.raises(errors.BackendUnavailableError):
        node.replicas.put(R1, replica())
    with node.ctx.locks.hold(f"replica {R1}"):
        assert node.restore.round() == []
        assert R1 in node.ctx.spec.data.replicas
    node.restore.round()
    assert node.ctx.spec.data.replicas == {}


def test_many_calls_at_once(machine, node):
    wrong = []

    def life(number):
        try:
            for _ in range(3):
                node.replicas.put(uid(number), replica())
                node.exports.put(uid(number), export())
                node.snapshots.put(uid(0x100 + number), snapshot(uid(number)))
                node.exports.delete(uid(number), None)
                node.snapshots.delete(uid(0x100 + number))
                node.replicas.delete(uid(number))
        except Exception:  # noqa: BLE001 - shown below
            wrong.append(traceback.format_exc())

    threads = [threading.Thread(target=life, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, "\n".join(wrong)
    assert machine.host.names() == set()
    assert machine.nvmet.names("subsystems") == machine.nvmet.names("hosts") == []


def test_the_loop_goes_on_after_a_round_that_failed(tmp_path, monkeypatch, caplog):
    machine = FakeMachine(tmp_path, restore_interval=1)
    machine.start()
    restore = machine.node.restore
    restore.interval = 0.001
    rounds = []
    enough = threading.Event()

    def odd():
        rounds.append(1)
        if len(rounds) == 1:
            raise errors.InternalError("lvs failed")
        if len(rounds) > 2:
            enough.set()
        return []

    monkeypatch.setattr(restore, "round", odd)
    restore.start()
    assert enough.wait(5)
    machine.kill()
    assert "ended early" in caplog.text
