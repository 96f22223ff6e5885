# SPDX-License-Identifier: Apache-2.0
"""Measuring what the pools deliver."""

import json
import pathlib
import shutil

import pytest
from oslo_log import log

from kumo_client import errors
from kumo_node import calibrate, conf, main
from kumo_node.calibrate import Calibration, Result, parse
from kumo_node.executor import CommandError
from kumo_node.lvm import TAG, made_tag
from tests.fakes.node import FakeMachine
from tests.unit.node.conftest import replica, uid

# fio 3.33, two processes on an emulated disk.
RECORDED = (pathlib.Path(__file__).parent / "data/fio-3.33-randread.json").read_text()


class FakeFio:
    """fio on a machine: what each way of access delivers, and what it was given."""

    def __init__(self, machine):
        self.machine = machine
        self.runs = []
        self.rates = {
            "randread": (90000, 360000), "read": (2000, 2048000),
            "randwrite": (40000, 160000), "write": (1500, 1536000),
        }  # fmt: skip
        self.fail = None

    def run(self, *argv):
        assert argv[0] == "fio"
        options = dict(word.removeprefix("--").partition("=")[::2] for word in argv[1:])
        self.runs.append(options)
        if self.fail:
            raise CommandError(argv, 1, self.fail)
        way = options["rw"]
        assert ("readonly" in options) is way.endswith("read")
        if way.endswith("write"):
            assert options["filename"].endswith("/kumo-calibrate")
            assert pathlib.Path(options["filename"]).exists()
        iops, bw = self.rates[way]
        job = json.loads(RECORDED)["jobs"][0]
        side, other = ("read", "write") if way.endswith("read") else ("write", "read")
        job[side] |= {"iops": iops + 0.4, "bw": bw}
        job[other] |= {"iops": 0.0, "bw": 0}
        return "note: something\n" + json.dumps({"jobs": [job]})


@pytest.fixture
def fio(machine):
    return FakeFio(machine)


def calibration(node, fio, **kwargs):
    said = []
    made = Calibration(node, fio, say=said.append, sleep=lambda seconds: None, **kwargs)
    made.said = said
    return made


def test_recorded_output_is_read():
    assert parse(RECORDED) == Result(9186, 36743)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"jobs": [{}]}', '{"jobs": 3}'])
def test_output_that_tells_nothing(text):
    with pytest.raises(errors.InternalError, match="no usable output"):
        parse(text)


def test_a_job_that_failed_is_an_error():
    with pytest.raises(errors.InternalError, match="error 5"):
        parse(RECORDED.replace('"error" : 0', '"error" : 5'))


def test_a_scratch_volume_tells_the_least_of_reads_and_writes(machine, node, fio):
    node.replicas.put(uid(1), replica())
    it = calibration(node, fio, seconds=7)
    it.run([])
    record = node.ctx.spec.data.measured["pool"]
    assert (record.iops, record.bw, record.how) == (40000, 1536000, "scratch")
    (pool,) = node.info().pools
    assert (pool.max_iops, pool.max_bw) == (40000, 1536000)
    assert machine.host.names() == {f"r-{uid(1)}"}
    first, *timed = fio.runs
    assert (first["rw"], "runtime" in first) == ("write", False)
    assert [(run["rw"], run["runtime"]) for run in timed] == [
        ("randread", "7"), ("read", "7"), ("randwrite", "7"), ("write", "7"),
    ]  # fmt: skip
    assert "40000 operations/s, 1536000 KB/s" in it.said[-1]


def test_read_only_touches_the_disk_and_nothing_else(machine, node, fio):
    start = len(machine.host.log)
    calibration(node, fio, how="read-only").run([str(machine.root / "dev/vdb")])
    assert (node.info().pools[0].max_iops, node.info().pools[0].max_bw) == (90000, 2048000)
    assert {run["filename"] for run in fio.runs} == {str(machine.root / "dev/vdb")}
    assert not any("lvcreate" in line for line in machine.host.log[start:])


def test_only_the_pools_that_are_named_are_measured(tmp_path):
    machine = FakeMachine(tmp_path, disks=("vdb", "vdc"), pool_layout="disk")
    machine.start()
    fio = FakeFio(machine)
    calibration(machine.node, fio).run([str(tmp_path / "dev/vdc")])
    (name,) = machine.node.ctx.spec.data.measured
    assert machine.node.ctx.pools[name].paths() == [str(tmp_path / "dev/vdc")]
    with pytest.raises(errors.InvalidInputError, match="not in a pool"):
        calibration(machine.node, fio).run(["/dev/sda"])
    machine.kill()


def test_fio_that_fails_leaves_no_volume(machine, node, fio):
    fio.fail = "fio: engine libaio not loadable"
    with pytest.raises(errors.InternalError, match="not loadable"):
        calibration(node, fio).run([])
    assert machine.host.names() == set()
    assert node.ctx.spec.data.measured == {}


def test_what_a_killed_run_left_is_removed_and_what_is_anothers_is_not(machine, node, fio):
    machine.host.foreign_lv("kumo-calibrate", tags={TAG, made_tag("calibrate")})
    calibration(node, fio).run([])
    assert machine.host.names() == set()
    machine.host.foreign_lv("kumo-calibrate")
    with pytest.raises(errors.InternalError, match="already exists"):
        calibration(node, fio).run([])
    assert machine.host.names() == {"kumo-calibrate"}


def test_a_pool_in_use_is_not_measured(machine, node, fio):
    stat = machine.root / "sys/class/block/vdb/stat"
    stat.parent.mkdir(parents=True, exist_ok=True)
    time, count = [0.0], [0]

    def pass_time(seconds):
        time[0] += seconds
        count[0] += 1000
        stat.write_text(f"{count[0]} 0 0 0 0 0 0 0\n")

    pass_time(0)
    node.usage.clock = lambda: time[0]
    it = Calibration(node, fio, say=lambda text: None, sleep=pass_time)
    with pytest.raises(errors.BusyError, match="500 operations/s"):
        it.run([])
    assert fio.runs == []
    it.force = True
    it.run([])
    assert node.ctx.spec.data.measured


def test_a_full_pool_is_not_filled(machine, node, fio):
    machine.host.data_percent = 97.0
    node.ctx.pools["pool"].state(max_age=0)
    with pytest.raises(errors.NoSpaceError):
        calibration(node, fio).run([])


# The command.


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    machine = FakeMachine(tmp_path)
    machine.conf()
    fio = FakeFio(machine)
    monkeypatch.setattr(main, "Node", lambda options: machine.start_node())
    monkeypatch.setattr(main, "SubprocessExecutor", lambda timeout: fio)
    monkeypatch.setattr(calibrate, "_LOOK_SECONDS", 0)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(log, "setup", lambda *args: None)

    def run(*args):
        code = main.main(["calibrate", *args, "--config-file", str(tmp_path / "node.conf")])
        return code, capsys.readouterr()

    run.machine, run.fio = machine, fio
    return run


def test_the_command_measures_and_records(command):
    code, said = command("--all", "--seconds", "3")
    assert code == 0
    assert "pool: 40000 operations/s, 1536000 KB/s" in said.out
    machine = command.machine
    assert machine.start() == []
    assert machine.node.info().pools[0].max_iops == 40000
    machine.kill()


def test_the_command_refuses_what_is_unclear(command, monkeypatch):
    disk = str(command.machine.root / "dev/vdb")
    for args, text in (
        ((), "--all"),
        (("--all", "--disk", disk), "--all"),
        (("--all", "--scratch", "--read-only"), "exclude"),
        (("--disk", "/dev/none"), "not in a pool"),
    ):
        code, said = command(*args)
        assert code == 1
        assert text in said.err
    assert command("--disk", disk, "--read-only")[0] == 0
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "fio is not installed" in command("--all")[1].err


def test_the_command_refuses_while_the_daemon_runs(command):
    machine = command.machine
    machine.start()
    running = machine.node
    code, said = command("--all")
    assert code == 1
    assert "in use by another kumo-node" in said.err
    running.close()


def test_the_options_are_of_the_command_line_only():
    known = {option.dest for option in conf.OPTS}
    assert known.isdisjoint(option.dest for option in conf.CALIBRATE_OPTS)
