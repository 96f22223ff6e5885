# SPDX-License-Identifier: Apache-2.0
"""Filling a replica from a replica of another node."""

import errno
import os
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kumo_client import errors, naming
from kumo_client.schemas.common import Portal
from kumo_client.schemas.node import ArrayIdentity, CopySpec, RevertSpec
from kumo_node import copies, initiator, md_superblock, transfer
from kumo_node.initiator import Fabrics, Initiator, host_id
from kumo_node.kernel import COPY_RULES
from kumo_node.spec import Spec
from kumo_node.transfer import BLOCK, PIECE, Pace, ShortError, Transfer, differences
from tests.fakes.node import FakeMachine
from tests.unit.node import superblocks
from tests.unit.node.conftest import MIB, export, replica, snapshot, uid

R1, R2, R3, S1 = uid(1), uid(2), uid(3), uid(0x51)
SIZE = 16 * MIB
ADDRESS = "10.77.0.11"


class Pair:
    """Two machines: replica R1 of the source is exported to the target, which has an empty R2."""

    def __init__(self, root):
        self.source = FakeMachine(root / "source", hostname="source")
        self.target = FakeMachine(root / "target", hostname="target")
        for machine in (self.source, self.target):
            assert machine.start() == []
        self.target.fabrics.others[ADDRESS] = self.source
        self.target.node.copies.pause = 0.0
        self.host = naming.node_host_nqn(self.target.node.ctx.persistent_id)
        self.source.node.replicas.put(R1, replica())
        self.exported = self.source.node.exports.put(R1, export(self.host))
        self.target.node.replicas.put(R2, replica())

    @property
    def node(self):
        return self.target.node

    def write(self, data, at=0):
        with open(self.source.host.file(f"r-{R1}"), "r+b") as device:
            device.seek(at)
            device.write(data)

    def spec(self, **changes):
        portals = [Portal(ip="10.77.0.99", port=4420), Portal(ip=ADDRESS, port=4420)]
        wish = CopySpec(
            source_replica=R1,
            subsystem_nqn=self.exported.subsystem_nqn,
            host_nqn=self.host,
            portals=portals,
            bytes=SIZE,
        )
        return wish.model_copy(update=changes)

    def result(self, uuid=R2):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = self.node.copies.get(uuid)
            if found.state != "running":
                return found
            time.sleep(0.005)
        return found

    def same(self, uuid=R2):
        one = self.source.host.file(f"r-{R1}").read_bytes()
        return self.target.host.file(f"r-{uuid}").read_bytes()[: len(one)] == one

    def kill(self):
        for machine in (self.source, self.target):
            machine.kill()


@pytest.fixture
def pair(tmp_path):
    made = Pair(tmp_path)
    made.write(os.urandom(MIB))
    made.write(b"in the middle", at=9 * MIB + 3)
    made.write(b"end", at=SIZE - 3)
    yield made
    made.kill()


def test_the_replica_becomes_what_the_source_is(pair):
    assert "copy" in pair.node.info().abilities
    begun = pair.node.copies.put(R2, pair.spec())
    assert (begun.replica, begun.bytes) == (R2, SIZE)
    done = pair.result()
    assert (done.state, done.copied, done.reason) == ("done", SIZE, "")
    assert pair.same()
    # Zeros stay unallocated.
    stat = os.stat(pair.target.host.file(f"r-{R2}"))
    assert stat.st_blocks * 512 < 3 * MIB
    # Nothing of the connection is left, and udev was told before.
    assert pair.target.fabrics.connected == {}
    rule = (pair.target.root / COPY_RULES).read_text()
    assert pair.exported.subsystem_nqn in rule
    assert 'UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG}="1"' in rule
    options = pair.target.fabrics.log[-1]
    assert f"hostid={host_id(pair.host)}" in options
    assert pair.node.copies.put(R2, pair.spec()).state == "done"
    pair.node.exports.put(R2, export())
    for _ in range(2):
        pair.node.copies.delete(R2)
    with pytest.raises(errors.NotExistsError):
        pair.node.copies.get(R2)


def test_the_leg_of_another_array_gets_its_identity(pair):
    pair.write(bytes(4096) + superblocks.superblock() + superblocks.bitmap())
    pair.node.replicas.put(R3, replica(array=ArrayIdentity(uuid=R3, name="another")))
    pair.node.copies.put(R3, pair.spec())
    assert pair.result(R3).state == "done"
    device = pair.node.ctx.lvm_of(pair.node.ctx.replica(R3)).device(f"r-{R3}")
    same = md_superblock.restamp(device, R3, "another")
    assert same is md_superblock.Outcome.SAME


def test_what_was_there_before_does_not_show_through(pair):
    with open(pair.target.host.file(f"r-{R2}"), "r+b") as device:
        device.write(b"x" * SIZE)
    pair.node.copies.put(R2, pair.spec())
    assert pair.result().state == "done"
    assert pair.same()


def test_a_namespace_with_another_uuid_is_never_taken(pair):
    pair.node.copies.put(R2, pair.spec(source_replica=R3))
    found = pair.result()
    assert found.state == "failed"
    assert "shows no namespace" in found.reason
    assert not any(pair.target.host.file(f"r-{R2}").read_bytes())
    assert pair.target.fabrics.connected == {}


def test_a_source_of_another_size_is_refused(pair):
    pair.target.fabrics.wrong_bytes = 4096
    pair.node.copies.put(R2, pair.spec())
    assert "has 16781312 bytes" in pair.result().reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"portals": []}, "has no portal"),
        ({"portals": [Portal(ip="10.77.0.99")]}, "refused"),
        ({"portals": [Portal(ip="a,nqn=b")]}, "not an IP address"),
        ({"subsystem_nqn": "nqn.a,traddr=10.0.0.1"}, "character"),
        ({"host_nqn": "nqn.2014-08.org.example:else"}, "refused"),
    ],
)
def test_sources_that_cannot_be_connected(pair, changes, reason):
    pair.node.copies.put(R2, pair.spec(**changes))
    found = pair.result()
    assert (found.state, found.copied) == ("failed", 0)
    assert reason in found.reason


def test_what_cannot_be_filled(pair):
    node = pair.node
    for uuid, changes, error in (
        (R3, {}, errors.NotExistsError),
        (R2, {"bytes": 32 * MIB}, errors.ConflictError),
        (R2, {"bytes": SIZE - 512}, errors.ConflictError),
    ):
        with pytest.raises(error):
            node.copies.put(uuid, pair.spec(**changes))
    node.exports.put(R2, export())
    with pytest.raises(errors.InUseError):
        node.copies.put(R2, pair.spec())
    node.exports.delete(R2, None)
    assert node.ctx.spec.data.copies == {}
    node.copies.delete(R2)


class Gate:
    """Holds copies up before each block until it is opened."""

    def __init__(self, monkeypatch):
        self.open = threading.Event()
        self.blocks = threading.Semaphore(0)
        self.reached = threading.Event()
        read = Transfer._read

        def gated(it, handle, memory, length, at, path):
            if memory is it._wanted:
                self.reached.set()
                while not self.open.is_set() and not self.blocks.acquire(timeout=0.005):
                    pass
            read(it, handle, memory, length, at, path)

        monkeypatch.setattr(Transfer, "_read", gated)

    def let(self, blocks):
        for _ in range(blocks):
            self.blocks.release()


@pytest.fixture
def gate(monkeypatch):
    made = Gate(monkeypatch)
    yield made
    made.open.set()


def test_while_it_is_filled_a_replica_is_left_alone(pair, gate):
    node = pair.node
    node.snapshots.put(S1, snapshot(R2))
    node.copies.put(R2, pair.spec())
    assert gate.reached.wait(5)
    for verb in (
        lambda: node.exports.put(R2, export()),
        lambda: node.snapshots.put(uid(0x52), snapshot(R2)),
        lambda: node.replicas.resize(R2, 32 * MIB),
        lambda: node.replicas.delete(R2),
        lambda: node.revert.put(R2, RevertSpec(snapshot=S1, operation=uid(7))),
    ):
        with pytest.raises(errors.InUseError, match="is being filled"):
            verb()
    assert node.replicas.put(R2, replica()).uuid == R2
    with pytest.raises(errors.ConflictError, match="is being filled from"):
        node.copies.put(R2, pair.spec(source_replica=R3))
    gate.open.set()
    assert pair.result().state == "done"
    node.replicas.delete(R2)
    assert node.ctx.spec.data.copies == {}


def test_a_copy_can_be_stopped_and_begun_again(pair, gate):
    node = pair.node
    node.copies.put(R2, pair.spec())
    assert gate.reached.wait(5)
    node.ctx.locks.timeout = 0.01
    with pytest.raises(errors.BusyError, match="waits for a device"):
        node.copies.delete(R2)
    node.ctx.locks.timeout = 5
    gate.let(1)
    node.copies.delete(R2)
    assert pair.target.fabrics.connected == {}
    assert not pair.same()
    gate.open.set()
    node.copies.put(R2, pair.spec())
    assert pair.result().state == "done"
    assert pair.same()


def test_only_so_many_are_under_way_and_share_a_connection(pair, gate):
    node = pair.node
    node.copies.parallel = 2
    others = [uid(0x10 + number) for number in range(3)]
    for uuid in others:
        node.replicas.put(uuid, replica())
        node.copies.put(uuid, pair.spec())
    assert gate.reached.wait(5)
    assert len(node.copies._jobs) == 2
    # A round of restoring starts no more than that.
    assert len(node.copies.pending()) == 1
    node.restore.round()
    assert len(node.copies._jobs) == 2
    gate.open.set()
    assert [pair.result(uuid).state for uuid in others] == ["done"] * 3
    assert pair.target.fabrics.connected == {}
    assert all(pair.same(uuid) for uuid in others)


@pytest.mark.parametrize("reboot", [False, True])
def test_a_restart_goes_on_from_where_it_was_durable(pair, gate, monkeypatch, reboot):
    monkeypatch.setattr(copies, "_DURABLE_BYTES", BLOCK)
    pair.node.copies.put(R2, pair.spec())
    gate.let(2)
    deadline = time.monotonic() + 5
    while pair.node.ctx.spec.data.copies[R2].offset < 2 * BLOCK and time.monotonic() < deadline:
        time.sleep(0.005)
    generation = pair.node.ctx.spec.data.generation
    gate.open.set()
    gate.let(0)
    pair.node.copies._ended = True
    for job in list(pair.node.copies._jobs.values()):
        job.stop.set()
    if reboot:
        pair.target.reboot()
    else:
        pair.target.kill()
    starts = []
    run = Transfer.run
    monkeypatch.setattr(Transfer, "run", lambda it, at: starts.append(at) or run(it, at))
    assert pair.target.start() == []
    assert pair.result().state == "done"
    assert starts == [] or starts[0] >= 2 * BLOCK
    assert pair.same()
    # Progress alone does not tell the provisioner that the inventory has changed.
    assert pair.node.ctx.spec.data.generation <= generation + 1


def test_a_kill_at_any_write_of_the_record_or_the_fabric_is_got_over(tmp_path, monkeypatch):
    """As test_crash.py does it for the verbs that work in the caller's thread."""

    class PowerLossError(BaseException):
        pass

    monkeypatch.setattr(copies, "_DURABLE_BYTES", BLOCK)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    write = Spec._write
    for stop in range(1, 60):
        pair = Pair(tmp_path / str(stop))
        pair.write(os.urandom(MIB), at=5 * MIB)
        count = [0]

        def step(what, count=count, stop=stop):
            count[0] += 1
            if count[0] == stop:
                raise PowerLossError(what)

        def stopped_write(spec, data, step=step, path=pair.node.ctx.spec.path):
            if spec.path == path:
                step("record before")
            write(spec, data)
            if spec.path == path:
                step("record after")

        monkeypatch.setattr(Spec, "_write", stopped_write)
        pair.target.fabrics.step = step
        try:
            pair.node.copies.put(R2, pair.spec())
        except PowerLossError:
            pass
        for thread in [t for t in threading.enumerate() if t.name.startswith("copy ")]:
            thread.join(10)
        dead = count[0] >= stop
        pair.target.fabrics.step = lambda what: None
        monkeypatch.setattr(Spec, "_write", write)
        pair.node.copies._ended = True
        pair.target.kill()
        assert pair.target.start() == []
        pair.node.copies.put(R2, pair.spec())
        assert pair.result().state == "done"
        assert pair.same()
        assert pair.target.fabrics.connected == {}
        pair.kill()
        if not dead:
            break
    assert 8 < stop < 59


def failing_reads(monkeypatch, failures, at=None):
    read, left = Transfer._read, [failures]

    def broken(it, handle, memory, length, where, path):
        if left[0] and memory is it._wanted and (at is None or where == at):
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        read(it, handle, memory, length, where, path)

    monkeypatch.setattr(Transfer, "_read", broken)


def test_a_source_that_is_away_for_a_moment_is_tried_again(pair, monkeypatch):
    failing_reads(monkeypatch, 3, at=2 * BLOCK)
    pair.node.copies.put(R2, pair.spec())
    assert pair.result().state == "done"
    assert pair.same()
    assert len([o for o in pair.target.fabrics.log if ADDRESS in o]) == 4


def test_a_source_that_stays_away_fails_the_copy(pair, monkeypatch, caplog):
    failing_reads(monkeypatch, 1000, at=BLOCK)
    pair.node.copies.put(R2, pair.spec())
    found = pair.result()
    assert found.state == "failed"
    assert "Input/output error" in found.reason
    # It is the caller who decides what comes next.
    assert pair.node.copies.put(R2, pair.spec()).state == "failed"
    assert pair.target.fabrics.connected == {}


def test_a_copy_that_waits_to_try_again_can_be_stopped(pair, monkeypatch):
    failing_reads(monkeypatch, 1000)
    pair.node.copies.pause = 1000.0
    pair.node.copies.put(R2, pair.spec())
    deadline = time.monotonic() + 5
    while not pair.target.fabrics.log and time.monotonic() < deadline:
        time.sleep(0.005)
    pair.node.copies.delete(R2)
    assert pair.node.copies._jobs == {}


def test_a_defect_is_told_and_ends_the_copy(pair, monkeypatch, caplog):
    def broken(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(pair.node.copies, "_transfer", broken)
    pair.node.copies.put(R2, pair.spec())
    assert "ZeroDivisionError" in pair.result().reason
    assert "ended by a defect" in caplog.text


def test_a_controller_that_cannot_be_removed_is_told(pair, caplog):
    def refuse(controller):
        raise OSError(errno.EBUSY, "busy")

    delete = pair.target.fabrics.delete
    pair.target.fabrics.delete = refuse
    pair.node.copies.put(R2, pair.spec())
    assert pair.result().state == "done"
    assert "cannot be removed" in caplog.text
    pair.target.fabrics.delete = delete


def test_a_kernel_without_the_module_cannot_copy(tmp_path, caplog):
    machine = FakeMachine(tmp_path)
    machine.host.fail = [("modprobe -n nvme-tcp", "Module nvme-tcp not found")]
    machine.start()
    assert "copy" not in machine.node.info().abilities
    assert "nvme-tcp not found" in caplog.text
    machine.kill()
    (tmp_path / "sys/module/nvme_tcp").mkdir()
    machine.start()
    assert "copy" in machine.node.info().abilities
    machine.kill()


def test_a_module_that_cannot_be_loaded_fails_the_copy(pair):
    pair.target.host.fail = [("modprobe nvme-", "no")] * 100
    pair.node.copies.put(R2, pair.spec())
    assert "module nvme-tcp" in pair.result().reason


def test_udev_that_takes_no_rule_stops_the_copy_before_it_connects(pair):
    pair.target.host.fail = [("udevadm", "no")]
    pair.node.copies.put(R2, pair.spec())
    assert "udev does not take" in pair.result().reason
    assert pair.target.fabrics.log == []


# The parts.


def test_a_connection_that_is_there_already_is_used(pair):
    it = pair.node.copies.initiator
    portals = pair.spec().portals
    it.connect(pair.exported.subsystem_nqn, pair.host, portals)
    tries = len(pair.target.fabrics.log)
    it.connect(pair.exported.subsystem_nqn, pair.host, portals)
    assert len(pair.target.fabrics.log) == tries
    (pair.target.root / "sys/class/nvme/nvme0/hostnqn").unlink()
    it.connect(pair.exported.subsystem_nqn, pair.host, portals)
    pair.target.fabrics.reboot()


def test_a_controller_that_has_gone_by_itself(pair):
    it = pair.node.copies.initiator
    base = pair.target.root / "sys/class/nvme/nvme7"
    base.mkdir(parents=True)
    (base / "subsysnqn").write_text("nqn.a")
    (base / "hostnqn").write_text("nqn.b")
    it.disconnect("nqn.a", "nqn.b")
    # Nothing was written to a controller that has no such file any more.
    assert sorted(path.name for path in base.iterdir()) == ["hostnqn", "subsysnqn"]


def test_the_files_of_the_kernel(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "sys/class/nvme/nvme3").mkdir(parents=True)
    (tmp_path / "dev/nvme-fabrics").write_text("")
    (tmp_path / "sys/class/nvme/nvme3/delete_controller").write_text("")
    made = Initiator(None, None, tmp_path).fabrics
    assert isinstance(made, Fabrics)
    assert made.connect("nqn=x") == ""
    made.delete("nvme3")
    assert (tmp_path / "dev/nvme-fabrics").read_text() == "nqn=x"
    assert (tmp_path / "sys/class/nvme/nvme3/delete_controller").read_text() == "1"


def test_the_host_id_goes_with_the_name():
    nqn = "nqn.2014-08.org.nvmexpress:uuid:11111111-1111-1111-1111-11111111111A"
    assert host_id(nqn) == "11111111-1111-1111-1111-11111111111a"
    assert host_id("nqn.a") == host_id("nqn.a") != host_id("nqn.b")
    portal = Portal(ip="FD00::11", port=4421, transport="RoCEv2")
    text = initiator._options("nqn.a", nqn, portal, "rdma")
    assert text.startswith("transport=rdma,traddr=fd00::11,trsvcid=4421,nqn=nqn.a,")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=8), st.data())
def test_writing_the_differences_makes_blocks_equal(pieces, data):
    other = data.draw(st.lists(st.sampled_from([0, 1]), min_size=len(pieces), max_size=len(pieces)))
    wanted, have = (b"".join(bytes([n]) * 16 for n in item) for item in (pieces, other))
    made, written = bytearray(have), 0
    for first, end in differences(wanted, have, piece=16):
        made[first:end] = wanted[first:end]
        written += end - first
    assert bytes(made) == wanted
    assert written == 16 * sum(a != b for a, b in zip(pieces, other, strict=True))


def test_short_devices_are_errors(tmp_path, monkeypatch):
    for name, size in (("a", BLOCK), ("b", BLOCK // 2), ("c", BLOCK)):
        (tmp_path / name).write_bytes(b"x" * size if name == "a" else bytes(size))
    paths = {name: str(tmp_path / name) for name in "abc"}
    for source, target in (("a", "b"), ("b", "a")):
        with (
            Transfer(paths[source], paths[target], BLOCK, direct=False) as short,
            pytest.raises(ShortError, match="gave"),
        ):
            list(short.run(0))
    monkeypatch.setattr(transfer.os, "pwritev", lambda *args: 512)
    with (
        Transfer(paths["a"], paths["c"], BLOCK, direct=False) as short,
        pytest.raises(ShortError, match="took"),
    ):
        list(short.run(0))
    with pytest.raises(FileNotFoundError), Transfer(paths["a"], str(tmp_path / "none"), 1):
        pass
    assert PIECE <= BLOCK


def test_a_rate_is_kept():
    now, waits = [0.0], []

    def wait(seconds):
        waits.append(seconds)
        now[0] += seconds

    pace = Pace(100, lambda: now[0], wait)
    for _ in range(4):
        pace.did(50)
        now[0] += 0.1
    assert now[0] == pytest.approx(2.1)
    Pace(0, lambda: now[0], wait).did(1 << 40)
    assert sum(waits) == pytest.approx(1.7)
