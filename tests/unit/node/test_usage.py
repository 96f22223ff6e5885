# SPDX-License-Identifier: Apache-2.0
"""How busy the pools are, and what they can deliver."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kumo_client import errors
from kumo_node import rates
from kumo_node.spec import MeasuredRecord
from kumo_node.usage import Sample, Series, parse
from tests.fakes.node import FakeMachine

# A disk of a machine that had run for some hours; 17 numbers since Linux 5.5.
STAT = """  118713    32764  9871242    51837   372261   419233 24918048   612347        0   281460
   672331        0        0        0        0    21456     8146
"""


class Disk:
    """The counters of a fake disk."""

    def __init__(self, machine, name="vdb"):
        self.path = machine.root / "sys/class/block" / name / "stat"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.reads = self.writes = self.sectors = 0
        self.write()

    def write(self):
        half = self.sectors // 2
        self.path.write_text(
            f"{self.reads} 0 {half} 0 {self.writes} 0 {self.sectors - half} 0 0 0 0\n"
        )

    def work(self, reads, writes, kib):
        self.reads += reads
        self.writes += writes
        self.sectors += kib * 2
        self.write()


@pytest.fixture
def clock(node):
    time = [1000.0]
    node.usage.clock = lambda: time[0]
    return time


def test_a_recorded_file_is_read():
    assert parse(STAT, 1.0) == Sample(1.0, 118713 + 372261, 9871242 + 24918048)


@pytest.mark.parametrize("text", ["", "1 2 3", "a b c d e f g", "1 2 3 4 5 6"])
def test_a_file_that_tells_nothing(text):
    assert parse(text, 1.0) is None


def test_the_mean_of_the_last_minutes_is_told(machine, node, clock):
    disk = Disk(machine)
    for _ in range(40):
        node.usage.sample()
        clock[0] += 10
        disk.work(reads=600, writes=400, kib=20480)
    node.usage.sample()
    (pool,) = node.info().pools
    assert (pool.iops, pool.bw, pool.window) == (100, 2048, 300)


def test_nothing_is_told_before_there_are_two_samples(machine, node, clock):
    assert node.info().pools[0].window == 0
    Disk(machine).work(5, 5, 5)
    node.usage.sample()
    assert (node.info().pools[0].iops, node.info().pools[0].window) == (0, 0)


def test_a_disk_that_was_away_begins_anew(machine, node, clock):
    disk = Disk(machine)
    disk.work(1000, 1000, 1000)
    node.usage.sample()
    machine.host.unplug("vdb")
    clock[0] += 10
    node.usage.sample()
    assert node.usage.of("pool").window == 0
    machine.host.plug("vdb")
    disk.work(1 << 20, 0, 0)
    for _ in range(2):
        clock[0] += 10
        node.usage.sample()
    assert (node.usage.of("pool").iops, node.usage.of("pool").window) == (0, 10)


def test_counters_that_start_anew_make_no_negative_use(machine, node, clock):
    disk = Disk(machine)
    disk.work(1000, 1000, 1000)
    node.usage.sample()
    disk.reads = disk.writes = 3
    disk.write()
    clock[0] += 10
    node.usage.sample()
    assert node.usage.of("pool").window == 0
    clock[0] += 10
    disk.work(50, 50, 100)
    node.usage.sample()
    assert (node.usage.of("pool").iops, node.usage.of("pool").bw) == (10, 10)


def test_a_disk_without_counters_and_one_that_is_not_ours_any_more(machine, node, clock):
    node.usage.sample()
    assert node.usage.of("pool").window == 0
    node.ctx.pools["pool"].disks = []
    node.usage.sample()
    assert node.usage.of("pool").iops == 0


def test_the_loop_samples_and_ends(machine, node):
    Disk(machine)
    node.usage.interval = 0.01
    node.usage.start()
    node.usage.stop()
    assert node.usage._series


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 1 << 40)), max_size=30))
def test_rates_are_never_negative_and_never_over_more_than_the_window(steps):
    series, at = Series(100.0), 0.0
    for seconds, counter in steps:
        at += seconds
        series.add(Sample(at, counter, counter))
        iops, bw, window = series.rates()
        assert iops >= 0
        assert bw >= 0
        assert 0 <= window <= 100


def test_what_is_given_wins_over_what_was_measured(tmp_path):
    machine = FakeMachine(tmp_path, disks=("vdb", "vdc"), pool_layout="disk")
    vdb = tmp_path / "dev/vdb"
    machine.options["disk_iops"] = f"{vdb}=500000,900"
    machine.options["disk_bw"] = f"{vdb}=3000000"
    machine.start()
    pools = machine.node.ctx.pools
    with machine.node.ctx.spec.edit() as data:
        for name in pools:
            data.measured[name] = MeasuredRecord(iops=7, bw=8)
    told = {pool.ssds[0].path: (pool.max_iops, pool.max_bw) for pool in machine.node.info().pools}
    assert told == {str(vdb): (500000, 3000000), str(tmp_path / "dev/vdc"): (900, 8)}
    machine.kill()


def test_a_pool_over_several_disks_delivers_what_the_slowest_does(tmp_path):
    machine = FakeMachine(tmp_path, disks=("vdb", "vdc"))
    machine.options["disk_iops"] = f"{tmp_path / 'dev/vdb'}=500,{tmp_path / 'dev/vdc'}=300"
    machine.start()
    (pool,) = machine.node.info().pools
    assert (pool.max_iops, pool.max_bw) == (300, 0)
    machine.kill()


@pytest.mark.parametrize("text", ["x", "/dev/a=", "/dev/a=-1", "/dev/a=1.5", "5,6"])
def test_rates_that_cannot_be_read(text):
    with pytest.raises(errors.ConfigError, match="disk_iops"):
        rates.parse("disk_iops", text.split(","))
