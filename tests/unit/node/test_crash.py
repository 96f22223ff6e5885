# SPDX-License-Identifier: Apache-2.0
"""Power loss or SIGKILL between any two steps of any verb.

Each verb is run again and again, stopped before its first, second, third ... command, configfs
change or write of the record, until it gets through. After each stop the daemon starts again,
with the kernel as it was left or after a reboot. Then nothing half-made is left, nothing that was
answered as done is lost, nothing of others has changed, and the same call succeeds.
"""

import pytest

from kumo_client.naming import GIB
from kumo_client.schemas.node import AdoptSpec, Limits, ReleaseSpec, ReplicaSource, RevertSpec
from kumo_node import restore
from kumo_node.spec import READY, Spec
from tests.fakes.node import FakeMachine
from tests.unit.node.conftest import HOST_A, HOST_B, MIB, VOLUME, export, replica, snapshot, uid

R1, R2, S1 = uid(1), uid(2), uid(0x51)
FOREIGN = "nqn.2001-01.org.example:theirs"


class PowerLossError(BaseException):
    """Not an Exception: no code of ours can catch it."""


class Stopper:
    """Stops everything before step number ``at``."""

    def __init__(self, machine, monkeypatch):
        self.count, self.at = 0, None
        machine.host.step = machine.nvmet.step = self.step
        machine.cgroup.step = self.step
        write = Spec._write

        def stopped_write(spec, data):
            self.step("record before")
            write(spec, data)
            self.step("record after")

        monkeypatch.setattr(Spec, "_write", stopped_write)

    def step(self, what):
        self.count += 1
        if self.count == self.at:
            raise PowerLossError(what)

    def arm(self, at):
        self.count, self.at = 0, at


def exported(node):
    node.replicas.put(R1, replica())
    node.exports.put(R1, export())


def two_exports(node):
    exported(node)
    node.exports.put(R1, export(HOST_B))


def with_snapshot(node):
    exported(node)
    node.snapshots.put(S1, snapshot(R1))


def reverted_once(node):
    """A replica that is larger than its snapshot, and has been reverted before."""
    with_snapshot(node)
    node.exports.delete(R1, None)
    node.revert.put(R1, REVERT.model_copy(update={"operation": uid(0x71)}))
    node.replicas.resize(R1, 64 * MIB)


REVERT = RevertSpec(snapshot=S1, operation=uid(0x70))


def adopted(node):
    return AdoptSpec(name="theirs", pool=next(iter(node.ctx.pools)), volume_id=VOLUME)


VERBS = {
    "create": (lambda n: None, lambda n: n.replicas.put(R1, replica())),
    "create beside": (exported, lambda n: n.replicas.put(R2, replica())),
    "export": (lambda n: n.replicas.put(R1, replica()), lambda n: n.exports.put(R1, export())),
    "second export": (
        lambda n: (exported(n), n.replicas.put(R2, replica())),
        lambda n: n.exports.put(R2, export()),
    ),
    "resize": (exported, lambda n: n.replicas.resize(R1, 64 * MIB)),
    "resize detached": (
        lambda n: n.replicas.put(R1, replica()),
        lambda n: n.replicas.resize(R1, 64 * MIB, grow_array=True),
    ),
    "snapshot": (exported, lambda n: n.snapshots.put(S1, snapshot(R1))),
    "copy": (
        with_snapshot,
        lambda n: n.replicas.put(R2, replica(64, source=ReplicaSource(snapshot=S1))),
    ),
    "clone": (
        exported,
        lambda n: n.replicas.put(R2, replica(64, source=ReplicaSource(replica=R1))),
    ),
    "delete snapshot": (with_snapshot, lambda n: n.snapshots.delete(S1)),
    "unexport": (two_exports, lambda n: n.exports.delete(R1, HOST_A)),
    "unexport all": (two_exports, lambda n: n.exports.delete(R1, None)),
    "revert": (reverted_once, lambda n: n.revert.put(R1, REVERT)),
    "adopt": (lambda n: n.replicas.put(R2, replica()), lambda n: n.adoption.adopt(R1, adopted(n))),
    "release delete": (
        lambda n: n.replicas.put(R1, replica()),
        lambda n: n.adoption.release(R1, ReleaseSpec(name="given")),
    ),
    "limits": (exported, lambda n: n.caps.put(R1, Limits(max_iops=500, max_bw=40960))),
    "delete": (lambda n: n.replicas.put(R1, replica()), lambda n: n.replicas.delete(R1)),
}


def answered(node):
    """What a caller knows to exist."""
    inventory = node.inventory()
    return {
        "replicas": {item.uuid for item in inventory.replicas},
        "snapshots": {item.uuid for item in inventory.snapshots},
        "exports": {(e.host_nqn, e.replica) for item in inventory.replicas for e in item.exports},
    }


def check(machine):
    """Record, LVM and configfs say the same, and nothing is half-made."""
    node, host = machine.node, machine.host
    data = node.ctx.spec.data
    records = [*data.replicas.values(), *data.snapshots.values(), *data.exports.values()]
    assert {record.state for record in records} <= {READY}
    names = {f"r-{uuid}" for uuid in data.replicas} | {f"s-{uuid}" for uuid in data.snapshots}
    given = {name for name in host.names() if name in ("theirs", "given")}
    assert host.names() == names | given
    # Nothing that was there, and is not ours to delete, is ever lost.
    adopted = {record.other_name for record in data.replicas.values()} - {None}
    assert len(given | adopted) == (2 if "given" in given else 1)
    assert not any(host.lv(name).tags for name in given)
    assert all(record.revert is None for record in data.replicas.values())
    assert set(machine.nvmet.visible()) == answered(node)["exports"]
    for uuid, record in data.replicas.items():
        assert record.target_bytes is None
        assert host.lv(f"r-{uuid}").bytes == record.bytes
        assert host.lv(f"r-{uuid}").active
    for record in data.exports.values():
        replica_record = data.replicas[record.replica]
        iops, bps = replica_record.max_iops, replica_record.max_bw * 1024
        assert machine.cgroup.of(host.lv(f"r-{record.replica}")) == (iops, iops, bps, bps)
        key = (node.ctx.subsystem(record), record.nsid)
        assert machine.nvmet.sizes[key] == data.replicas[record.replica].bytes
    assert set(machine.nvmet.names("subsystems")) == {
        FOREIGN, *(node.ctx.subsystem(record) for record in data.exports.values())
    }  # fmt: skip
    assert set(machine.nvmet.names("hosts")) == {FOREIGN, *data.hosts}
    assert set(data.hosts) == {record.host_nqn for record in data.exports.values()}
    assert not restore.plan(data, node.restore.observe())


def add_theirs(machine):
    machine.nvmet.mkdir("hosts", FOREIGN)
    machine.nvmet.mkdir("subsystems", FOREIGN)
    machine.nvmet.link(("hosts", FOREIGN), "subsystems", FOREIGN, "allowed_hosts", FOREIGN)


@pytest.mark.parametrize(
    ("reboot", "layout"),
    [(False, "group"), (True, "disk")],
    ids=["killed", "rebooted with a pool on each disk"],
)
@pytest.mark.parametrize("verb", VERBS)
def test_a_stop_between_any_two_steps(tmp_path, monkeypatch, verb, reboot, layout):
    setup, call = VERBS[verb]
    stops = 0
    while stops < 200:
        stops += 1
        machine = FakeMachine(tmp_path / str(stops), pool_layout=layout)
        stopper = Stopper(machine, monkeypatch)
        machine.start()
        machine.host.foreign_lv("theirs", size=GIB)
        add_theirs(machine)
        setup(machine.node)
        before = answered(machine.node)
        stopper.arm(stops)
        try:
            call(machine.node)
            done = True
        except PowerLossError:
            done = False
        stopper.arm(None)
        if reboot:
            machine.reboot()
            add_theirs(machine)
        else:
            machine.kill()
        assert machine.start() == []
        check(machine)
        after = answered(machine.node)
        if "delete" not in verb and "unexport" not in verb:
            assert all(before[kind] <= after[kind] for kind in before)
        call(machine.node)
        check(machine)
        machine.kill()
        monkeypatch.undo()
        if done:
            break
    # Intent and outcome alone are four stops.
    assert 4 < stops < 200


@pytest.mark.parametrize("layout", ["group", "disk"])
def test_a_stop_while_the_disks_are_taken(tmp_path, monkeypatch, layout):
    for at in range(1, 200):
        machine = FakeMachine(tmp_path / str(at), disks=("vdb", "vdc", "vdd"), pool_layout=layout)
        machine.host.disks[str(machine.root / "dev/vdc")].signatures = ["ext4"]
        machine.options["wipe_disks"] = str(machine.root / "dev/vdc")
        stopper = Stopper(machine, monkeypatch)
        stopper.arm(at)
        try:
            machine.start()
            done = True
        except PowerLossError:
            done = False
        stopper.arm(None)
        machine.reboot()
        assert machine.start() == []
        pools = machine.node.info().pools
        assert len(pools) == (1 if layout == "group" else 3)
        assert sum(len(pool.ssds) for pool in pools) == 3
        assert sum(pool.total_bytes for pool in pools) > 2900 * MIB
        machine.node.replicas.put(R1, replica())
        machine.kill()
        monkeypatch.undo()
        if done:
            assert at > 8
            return
    pytest.fail("never got through")


@pytest.mark.parametrize("how", ["lost", "hang"])
@pytest.mark.parametrize(
    "verb", [name for name in VERBS if "export" not in name and name != "limits"]
)
def test_a_command_whose_outcome_is_unknown(tmp_path, verb, how):
    """The call fails as transient; repeated, it succeeds; given up, it is undone or finished."""
    for repeat in (True, False):
        machine = FakeMachine(tmp_path / str(repeat))
        machine.start()
        machine.host.foreign_lv("theirs", size=GIB)
        add_theirs(machine)
        setup, call = VERBS[verb]
        setup(machine.node)
        machine.host.fail = [(r"^lv(create|extend|remove|rename)", how)]
        with pytest.raises(Exception, match="unknown") as caught:
            call(machine.node)
        assert caught.value.transient
        if repeat and not verb.startswith("delete"):
            call(machine.node)
        else:
            assert machine.node.restore.round() == []
        check(machine)
        machine.kill()
