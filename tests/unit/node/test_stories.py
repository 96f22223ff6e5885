# SPDX-License-Identifier: Apache-2.0
"""The life of replicas on one node, from the verbs down to the (fake) kernel."""

import pytest

from kumo_client import errors, naming
from kumo_client.schemas.node import ArrayIdentity, ReplicaSource
from tests.unit.node.conftest import HOST_A, HOST_B, MIB, export, replica, snapshot, uid

R1, R2, R3, S1 = uid(1), uid(2), uid(3), uid(0x51)


def test_a_whole_life_leaves_nothing(machine, node):
    before = machine.nvmet.tree()
    made = node.replicas.put(R1, replica(16))
    assert (made.bytes, made.block_size, made.pool, made.exports) == (16 * MIB, 512, "pool", [])

    seen = node.exports.put(R1, export())
    assert seen.nsid == 1
    assert seen.subsystem_nqn == naming.subsystem_nqn(node.ctx.persistent_id, HOST_A, "plain")
    assert [p.transport for p in seen.portals] == ["TCP", "RoCEv2"]
    assert set(machine.nvmet.visible()) == {(HOST_A, R1)}

    machine.host.file(f"r-{R1}").write_bytes(b"pattern" + bytes(20 * MIB - 7)[: 16 * MIB - 7])
    assert node.replicas.resize(R1, 32 * MIB).bytes == 32 * MIB
    assert machine.nvmet.sizes[seen.subsystem_nqn, 1] == 32 * MIB

    taken = node.snapshots.put(S1, snapshot(R1))
    assert (taken.bytes, taken.replica) == (32 * MIB, R1)
    assert not machine.host.lv(f"s-{S1}").active
    with open(machine.host.file(f"r-{R1}"), "r+b") as device:
        device.write(b"changed")

    copied = node.replicas.put(R2, replica(64, source=ReplicaSource(snapshot=S1)))
    assert copied.bytes == 64 * MIB
    cloned = node.replicas.put(R3, replica(32, source=ReplicaSource(replica=R1)))
    assert cloned.bytes == 32 * MIB
    assert machine.host.file(f"r-{R2}").read_bytes()[:7] == b"pattern"
    assert machine.host.file(f"r-{R3}").read_bytes()[:7] == b"changed"

    node.exports.delete(R1, HOST_A)
    node.snapshots.delete(S1)
    for uuid in (R1, R2, R3):
        node.replicas.delete(uuid)
    assert machine.host.names() == set()
    after = machine.nvmet.tree()
    assert {path for path in after - before if not path.startswith("ports/")} == set()
    assert node.inventory().replicas == []
    data = node.ctx.spec.data
    assert (data.replicas, data.snapshots, data.exports, data.hosts) == ({}, {}, {}, [])


def test_every_verb_can_be_repeated(machine, node):
    for _ in range(2):
        first = node.replicas.put(R1, replica())
        assert first.bytes == 16 * MIB
    for _ in range(2):
        assert node.exports.put(R1, export()).nsid == 1
    for _ in range(2):
        assert node.replicas.resize(R1, 32 * MIB).bytes == 32 * MIB
    for _ in range(2):
        assert node.snapshots.put(S1, snapshot(R1)).bytes == 32 * MIB
    for _ in range(2):
        node.exports.delete(R1, HOST_A)
        node.snapshots.delete(S1)
    for _ in range(2):
        node.replicas.delete(R1)
    assert machine.host.names() == set()


def test_verbs_cost_one_or_two_commands(machine, node):
    def commands(verb, *args):
        start = len(machine.host.log)
        verb(*args)
        return [line.split()[0] for line in machine.host.log[start:]]

    assert commands(node.replicas.put, R1, replica()) == ["lvcreate"]
    assert commands(node.exports.put, R1, export()) == []
    assert commands(node.replicas.resize, R1, 32 * MIB) == ["lvextend"]
    assert commands(node.snapshots.put, S1, snapshot(R1)) == ["lvcreate"]
    bigger = replica(64, source=ReplicaSource(snapshot=S1))
    assert commands(node.replicas.put, R2, bigger) == ["lvcreate", "lvextend"]
    same = replica(32, source=ReplicaSource(replica=R1))
    assert commands(node.replicas.put, R3, same) == ["lvcreate"]
    assert commands(node.replicas.get, R1) == []
    assert commands(node.inventory) == []
    assert commands(node.exports.delete, R1, None) == []
    assert commands(node.replicas.delete, R1) == ["lvremove"]
    assert commands(node.snapshots.delete, S1) == ["lvremove"]


def test_two_hosts_and_two_classes_have_their_own_subsystems(machine, node):
    for uuid in (R1, R2):
        node.replicas.put(uuid, replica())
    one = node.exports.put(R1, export(HOST_A))
    two = node.exports.put(R2, export(HOST_A))
    other_host = node.exports.put(R1, export(HOST_B))
    assert (one.subsystem_nqn, one.nsid) == (two.subsystem_nqn, two.nsid - 1)
    assert other_host.subsystem_nqn != one.subsystem_nqn
    node.exports.delete(R2, HOST_A)
    assert node.exports.put(R2, export(HOST_A, "replicated")).subsystem_nqn != one.subsystem_nqn
    assert set(machine.nvmet.visible()) == {(HOST_A, R1), (HOST_A, R2), (HOST_B, R1)}
    for nqn in machine.nvmet.names("subsystems"):
        assert len(machine.nvmet.names("subsystems", nqn, "allowed_hosts")) == 1
        assert machine.nvmet.read("subsystems", nqn, "attr_allow_any_host") == "0"

    node.exports.delete(R1, None)
    assert set(machine.nvmet.visible()) == {(HOST_A, R2)}
    assert machine.nvmet.names("hosts") == [HOST_A]


def test_the_lowest_free_nsid_is_used_again(node):
    for uuid in (R1, R2, R3):
        node.replicas.put(uuid, replica())
    assert [node.exports.put(uuid, export()).nsid for uuid in (R1, R2)] == [1, 2]
    node.exports.delete(R1, None)
    assert node.exports.put(R3, export()).nsid == 1


def test_after_a_reboot_everything_is_back_without_the_provisioner(machine, node):
    for uuid in (R1, R2):
        node.replicas.put(uuid, replica())
        node.exports.put(uuid, export())
    node.snapshots.put(S1, snapshot(R1))
    before = node.inventory()
    seen = machine.nvmet.visible()
    machine.reboot()
    assert machine.nvmet.visible() == {}

    assert machine.start() == []
    assert machine.nvmet.visible() == seen
    after = machine.node.inventory()
    assert after.boot_id != before.boot_id
    assert after.model_copy(update={"boot_id": ""}) == before.model_copy(update={"boot_id": ""})
    assert not machine.host.lv(f"s-{S1}").active
    # The pool, and all volumes at once.
    assert sum("lvchange" in line for line in machine.host.log) == 2


def test_udev_is_told_to_leave_volumes_alone_before_any_is_active(machine):
    # Before and after Debian's renumbering of the rules of lvm2.
    rule = (machine.root / "run/udev/rules.d/12-kumo-node.rules").read_text()
    assert (machine.root / "run/udev/rules.d/57-kumo-node.rules").read_text() == rule
    digits = "[0-9a-f]" * 8
    assert f'ENV{{DM_VG_NAME}}!="kumo|kumo_{digits}"' in rule
    assert 'ENV{DM_UDEV_DISABLE_OTHER_RULES_FLAG}="1"' in rule
    log = machine.host.log
    assert log.index("udevadm control --reload") < next(
        number for number, line in enumerate(log) if line.startswith("vgcreate")
    )
    assert machine.host.vgs["kumo"].autoactivation is False


def test_a_portal_that_is_not_up_is_tried_again(machine, node):
    machine.nvmet.down.add(("rdma", "fd00::11"))
    node.replicas.put(R1, replica())
    assert [p.transport for p in node.exports.put(R1, export()).portals] == ["TCP"]
    assert node.restore.round() == []
    machine.nvmet.down.clear()
    assert node.restore.round() == []
    assert len(node.exports.of(R1)[0].portals) == 2
    start = len(machine.host.log)
    assert node.restore.round() == []
    assert machine.host.log[start:] == []


def test_no_portal_at_all_is_an_error_and_leaves_nothing(machine, node):
    machine.nvmet.down |= {("rdma", "fd00::11"), ("tcp", "10.77.0.11")}
    node.replicas.put(R1, replica())
    with pytest.raises(errors.BackendUnavailableError, match="No portal") as caught:
        node.exports.put(R1, export())
    assert caught.value.transient
    assert node.exports.of(R1) == []
    assert machine.nvmet.names("subsystems") == machine.nvmet.names("hosts") == []


def test_a_reboot_with_no_network_yet_keeps_the_exports(machine, node):
    node.replicas.put(R1, replica())
    node.exports.put(R1, export())
    machine.reboot()
    machine.nvmet.down |= {("rdma", "fd00::11"), ("tcp", "10.77.0.11")}
    problems = machine.start()
    assert len(problems) == 1
    assert "No portal" in problems[0]
    assert [e.portals for e in machine.node.exports.of(R1)] == [[]]
    machine.nvmet.down.clear()
    assert machine.node.restore.round() == []
    assert set(machine.nvmet.visible()) == {(HOST_A, R1)}


def test_info_tells_pool_and_portals(machine, node):
    node.replicas.put(R1, replica(64))
    node.snapshots.put(S1, snapshot(R1))
    info = node.info()
    (pool,) = info.pools
    assert info.name == "storage-1"
    assert info.boot_id
    assert [p.ip for p in info.portals] == ["10.77.0.11", "fd00::11"]
    assert pool.provisioned_bytes == 128 * MIB
    assert 900 * MIB < pool.total_bytes < 1024 * MIB
    assert pool.used_bytes == int(pool.total_bytes * 0.01)
    assert [ssd.serial for ssd in pool.ssds] == ["SN-vdb"]


def test_wishes_that_contradict_what_is(machine, node):
    node.replicas.put(R1, replica(16))
    node.exports.put(R1, export())
    for wrong, error in [
        (lambda: node.replicas.put(R1, replica(32)), errors.ConflictError),
        (lambda: node.replicas.put(R1, replica(16, array=ArrayIdentity(uuid=R2, name="x"))),
         errors.ConflictError),
        (lambda: node.replicas.resize(R1, 8 * MIB), errors.ConflictError),
        (lambda: node.replicas.resize(R1, 17 * MIB), errors.InvalidInputError),
        (lambda: node.replicas.resize(R2, 16 * MIB), errors.NotExistsError),
        (lambda: node.replicas.get(R2), errors.NotExistsError),
        (lambda: node.replicas.delete(R1), errors.InUseError),
        (lambda: node.replicas.put(R2, replica(17)), errors.InvalidInputError),
        (lambda: node.replicas.put(R2, replica(16, pool="other")), errors.InvalidInputError),
        (lambda: node.replicas.put(R2, replica(8, source=ReplicaSource(replica=R1))),
         errors.InvalidInputError),
        (lambda: node.replicas.put(R2, replica(16, source=ReplicaSource(replica=R3))),
         errors.NotExistsError),
        (lambda: node.replicas.put(R2, replica(16, source=ReplicaSource(snapshot=S1))),
         errors.NotExistsError),
        (lambda: node.replicas.put(R2, replica(16, source=ReplicaSource(snapshot=S1, replica=R1))),
         errors.InvalidInputError),
        (lambda: node.exports.put(R1, export(io_class="replicated")), errors.ConflictError),
        (lambda: node.exports.put(R2, export()), errors.NotExistsError),
        (lambda: node.exports.put(R1, export("nqn.x/../../../etc")), errors.InvalidInputError),
        (lambda: node.exports.delete(R1, "nqn.x/../../../etc"), errors.InvalidInputError),
        (lambda: node.snapshots.put(S1, snapshot(R2)), errors.NotExistsError),
    ]:  # fmt: skip
        generation = node.ctx.spec.data.generation
        with pytest.raises(error):
            wrong()
        assert node.ctx.spec.data.generation == generation
    assert machine.host.names() == {f"r-{R1}"}


def test_a_repeated_snapshot_of_another_replica_is_a_conflict(node):
    for uuid in (R1, R2):
        node.replicas.put(uuid, replica())
    node.snapshots.put(S1, snapshot(R1))
    with pytest.raises(errors.ConflictError):
        node.snapshots.put(S1, snapshot(R2))
    with pytest.raises(errors.ConflictError):
        node.snapshots.put(S1, snapshot(R1, snapshot_id=0xBB))
