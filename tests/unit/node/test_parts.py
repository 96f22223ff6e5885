# SPDX-License-Identifier: Apache-2.0
"""The small parts: executor, locks, record, options, kernel."""

import json
import os
import pathlib
import subprocess
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oslo_config import cfg

from kumo_client import errors, naming
from kumo_node import conf, kernel, lvm, spec
from kumo_node.conf import NodePortal, parse_portal, parse_portals
from kumo_node.executor import CommandError, SubprocessExecutor
from kumo_node.locks import Locks
from tests.fakes.node_lvm import FakeHost

TCP = NodePortal("tcp", "10.77.0.11")


# Executor.


class Process:
    """A process as subprocess.Popen gives it. ``ends``: what each wait for its end brings."""

    def __init__(self, returncode=0, out="", err="", ends=()):
        self.returncode, self.out, self.err, self.ends = returncode, out, err, list(ends)
        self.signals = []

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return None

    def communicate(self, timeout=None):
        self.timeout = timeout
        if self.ends and self.ends.pop(0) == "late":
            raise subprocess.TimeoutExpired("lvs", timeout)
        return self.out, self.err

    def terminate(self):
        self.signals.append("TERM")

    def kill(self):
        self.signals.append("KILL")


def run_as(monkeypatch, process):
    seen = {}

    def popen(argv, **kwargs):
        seen.update(kwargs, argv=argv)
        if isinstance(process, BaseException):
            raise process
        return process

    monkeypatch.setattr(subprocess, "Popen", popen)
    return seen


def test_commands_run_in_the_c_locale_without_input(monkeypatch):
    process = Process(0, "out", "a warning")
    seen = run_as(monkeypatch, process)
    assert SubprocessExecutor(7).run("lvs", "kumo") == "out"
    assert seen["argv"] == ("lvs", "kumo")
    assert seen["env"]["LC_ALL"] == "C"
    assert seen["stdin"] is subprocess.DEVNULL
    assert process.timeout == 7


@pytest.mark.parametrize(
    ("process", "definite", "text", "signals"),
    [
        (Process(5, "", "no such group\n"), True, "no such group", []),
        (Process(5, "said on stdout", ""), True, "said on stdout", []),
        (Process(-9), False, "", []),
        (Process(ends=["late", "ends"]), False, "no end after 7 s", ["TERM"]),
        (Process(ends=["late", "late"]), False, "no end after 7 s", ["TERM", "KILL"]),
    ],
)
def test_only_an_exit_code_is_a_definite_no(monkeypatch, process, definite, text, signals):
    run_as(monkeypatch, process)
    with pytest.raises(CommandError) as caught:
        SubprocessExecutor(7).run("lvs")
    assert caught.value.definite is definite
    assert text in caught.value.stderr
    assert process.signals == signals


def test_a_command_that_is_not_there_is_no_answer(monkeypatch):
    run_as(monkeypatch, FileNotFoundError("lvs"))
    with pytest.raises(CommandError, match="cannot be started") as caught:
        SubprocessExecutor(7).run("lvs")
    assert not caught.value.definite


# Locks.


def test_a_lock_that_is_held_makes_busy_and_others_do_not_wait():
    locks = Locks(timeout=0.01)
    with locks.hold("a", "b"):
        with pytest.raises(errors.BusyError), locks.hold("b", "c"):
            pass
        with pytest.raises(errors.BusyError), locks.hold("a", wait=False):
            pass
        with locks.hold("c"):
            pass
    with locks.hold("a", "b", "c", "a"):
        pass
    assert locks._locks == {}


def test_a_waiting_call_gets_its_turn():
    locks = Locks(timeout=5)
    order = []
    inside = threading.Event()

    def second():
        inside.wait()
        with locks.hold("a"):
            order.append("second")

    thread = threading.Thread(target=second)
    with locks.hold("a"):
        thread.start()
        inside.set()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


# Record.


def test_the_record_survives_and_counts_its_changes(tmp_path):
    first = spec.Spec(tmp_path / "state")
    identity = first.data.persistent_id
    with first.edit() as data:
        data.hosts.append("nqn.x")
    assert first.data.generation == 1
    first.close()
    second = spec.Spec(tmp_path / "state")
    assert (second.data.persistent_id, second.data.hosts) == (identity, ["nqn.x"])
    assert (tmp_path / "state/spec.json").stat().st_mode & 0o777 == 0o600
    second.close()


def test_a_change_that_fails_changes_nothing(tmp_path):
    record = spec.Spec(tmp_path)

    def change():
        with record.edit() as data:
            data.hosts.append("nqn.x")
            raise errors.NoSpaceError("full")

    with pytest.raises(errors.NoSpaceError):
        change()
    assert (record.data.hosts, record.data.generation) == ([], 0)
    record.close()


def test_a_disk_full_keeps_the_old_record(tmp_path, monkeypatch):
    record = spec.Spec(tmp_path)
    before = (tmp_path / "spec.json").read_text()

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError), record.edit() as data:
            data.hosts.append("nqn.x")
    assert (tmp_path / "spec.json").read_text() == before
    assert record.data.hosts == []
    record.close()


def test_two_daemons_cannot_have_one_record(tmp_path):
    first = spec.Spec(tmp_path)
    with pytest.raises(errors.ConfigError, match="in use by another"):
        spec.Spec(tmp_path)
    first.close()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"persistent_id": "x", "format": 2}', '{"persistent_id":"x","more":1}'],
)
def test_a_damaged_record_is_never_replaced(tmp_path, text):
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises(errors.ConfigError, match="damaged or of another version"):
        spec.Spec(tmp_path)
    assert path.read_text() == text


def test_a_record_that_cannot_be_read(tmp_path):
    (tmp_path / "spec.json").write_bytes(b"\xff\xfe")
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        spec.Spec(tmp_path)


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(errors.ConfigError, match="state_dir"):
        spec.Spec(tmp_path / "file" / "state")


def test_the_format_on_disk_is_pinned(tmp_path):
    """A further field needs a default; any other change a new format number and a conversion."""
    record = spec.Spec(tmp_path)
    with record.edit() as data:
        data.persistent_id = "P"
        data.layout = spec.LAYOUT_DISK
        data.disks["/dev/a"] = spec.DiskRecord(serial="S", ready=True)
        data.pools["p"] = spec.PoolRecord(vg="g", path="/dev/a", serial="S")
        data.copies["R"] = spec.CopyRecord(
            source_replica="Q",
            subsystem_nqn="n",
            host_nqn="h",
            portals=(spec.PortalRecord(ip="i", port=1, transport="TCP"),),
            bytes=1,
        )
        data.measured["p"] = spec.MeasuredRecord(iops=7, bw=8)
        data.replicas["R"] = spec.ReplicaRecord(volume_id="V", bytes=1, pool="p", token="t")
        data.snapshots["S"] = spec.SnapshotRecord(
            replica="R", snapshot_id="I", bytes=1, pool="p", token="t"
        )
        data.exports["R H"] = spec.ExportRecord(replica="R", host_nqn="H", io_class="plain", nsid=1)
    assert json.loads((tmp_path / "spec.json").read_text()) == {
        "format": 1, "generation": 1, "persistent_id": "P", "hosts": [], "layout": "disk",
        "copies": {"R": {
            "state": "running", "source_replica": "Q", "subsystem_nqn": "n", "host_nqn": "h",
            "portals": [{"ip": "i", "port": 1, "transport": "TCP"}], "bytes": 1, "offset": 0,
            "reason": "",
        }},
        "measured": {"p": {"iops": 7, "bw": 8, "how": "", "at": 0}},
        "disks": {"/dev/a": {"serial": "S", "ready": True}},
        "pools": {"p": {"vg": "g", "path": "/dev/a", "serial": "S", "bytes": 0}},
        "replicas": {"R": {
            "state": "creating", "volume_id": "V", "bytes": 1, "pool": "p", "token": "t",
            "target_bytes": None, "source_snapshot": None, "source_replica": None,
            "array_uuid": None, "array_name": None, "max_iops": 0, "max_bw": 0,
            "revert": None, "reverted": None, "other_name": None, "erase": "",
        }},
        "snapshots": {"S": {
            "state": "creating", "replica": "R", "snapshot_id": "I", "bytes": 1, "pool": "p",
            "token": "t", "erase": "",
        }},
        "exports": {"R H": {
            "state": "creating", "replica": "R", "host_nqn": "H", "io_class": "plain", "nsid": 1,
        }},
    }  # fmt: skip
    record.close()


def test_a_record_of_the_first_release_is_read(tmp_path):
    text = {
        "format": 1, "generation": 1, "persistent_id": "P", "hosts": [], "disks": {},
        "replicas": {"R": {
            "state": "ready", "volume_id": "V", "bytes": 1, "pool": "p", "token": "t",
            "target_bytes": None, "source_snapshot": None, "source_replica": None,
            "array_uuid": None, "array_name": None,
        }},
        "snapshots": {}, "exports": {},
    }  # fmt: skip
    (tmp_path / "spec.json").write_text(json.dumps(text))
    record = spec.Spec(tmp_path)
    assert record.data.replicas["R"].state == spec.READY
    assert (record.data.replicas["R"].max_iops, record.data.generation) == (0, 1)
    record.close()


# Options.


@pytest.mark.parametrize(
    ("text", "portal", "transport"),
    [
        ("tcp://10.0.0.1:4420", NodePortal("tcp", "10.0.0.1", 4420), "TCP"),
        (" TCP://10.0.0.1 ", NodePortal("tcp", "10.0.0.1", 4420), "TCP"),
        ("rdma://[FD00:0::11]:4421", NodePortal("rdma", "fd00::11", 4421), "RoCEv2"),
        ("RoCEv2://10.0.0.1:1", NodePortal("rdma", "10.0.0.1", 1), "RoCEv2"),
    ],
)
def test_portals(text, portal, transport):
    parsed = parse_portal(text)
    assert parsed == portal
    assert parsed.wire().transport == transport
    assert parse_portal(str(parsed)) == parsed
    assert parsed.adrfam == ("ipv6" if ":" in portal.ip else "ipv4")


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.1", "tcp:10.0.0.1:4420", "fc://10.0.0.1", "tcp://host:4420", "tcp://fd00::1:4420",
     "tcp://[10.0.0.1]:1", "tcp://10.0.0.1:0", "tcp://10.0.0.1:65536", "tcp://10.0.0.1:x"],
)  # fmt: skip
def test_portals_that_cannot_be(text):
    with pytest.raises(errors.ConfigError, match="portals"):
        parse_portal(text)


def test_no_portal_is_an_error_and_each_counts_once():
    with pytest.raises(errors.ConfigError, match="portals is empty"):
        parse_portals([])
    assert parse_portals(["tcp://10.0.0.1", "tcp://10.0.0.1:4420"]) == [
        NodePortal("tcp", "10.0.0.1")
    ]


def test_every_option_says_what_it_is_for():
    ((group, opts),) = conf.list_opts()
    assert group is None
    assert all(len(opt.help) > 20 for opt in opts)


def test_the_sample_configuration_can_be_read():
    sample = pathlib.Path(__file__).parents[3] / "etc/kumo/node.conf.sample"
    options = conf.load([], files=[str(sample)])
    assert len(options.disks) == 2
    assert parse_portals(options.portals) == [NodePortal("tcp", "10.77.0.11")]


def test_a_wrong_option_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "node.conf"
    path.write_text("[DEFAULT]\nmax_overprovision = 0.5\n")
    options = conf.load([], files=[str(path)])
    with pytest.raises(cfg.ConfigFileValueError):
        _ = options.max_overprovision


# LVM.


@settings(max_examples=200, deadline=None)
@given(st.integers(128 << 20, 1 << 50), st.sampled_from([64, 128, 1024]))
def test_a_new_pool_fits_the_group(free, chunk):
    extents, metadata, made = lvm.pool_layout(free, naming.EXTENT, chunk)
    assert extents * naming.EXTENT + 2 * metadata <= free
    assert free - (extents * naming.EXTENT + 2 * metadata) < naming.EXTENT
    assert metadata % naming.EXTENT == 0
    assert metadata <= lvm.MAX_METADATA
    assert extents * naming.EXTENT // (made * 1024) * 64 <= metadata
    assert made >= chunk


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"report": [{}]}'])
def test_a_report_that_cannot_be_understood(text):
    class Odd:
        def run(self, *argv):
            return text

    with pytest.raises(errors.InternalError, match="no usable report"):
        lvm.Lvm(Odd(), vg="kumo", pool="pool").groups(everywhere=True)


# Kernel.


def test_modules_are_loaded_once(tmp_path):
    host = FakeHost(tmp_path)
    made = kernel.Kernel(host, tmp_path)
    portals = [TCP, NodePortal("rdma", "10.0.0.1")]
    for _ in range(2):
        made.load(portals)
        (tmp_path / "sys/kernel/config/nvmet").mkdir(exist_ok=True)
    assert host.log == [
        "modprobe -a nvmet nvmet-rdma nvmet-tcp",
        f"mount -t configfs configfs {tmp_path}/sys/kernel/config",
    ]


@pytest.mark.parametrize(
    ("pattern", "match"),
    [
        ("modprobe", "cannot be loaded"),
        ("mount", "cannot be mounted"),
        ("udevadm", "does not take"),
    ],
)
def test_a_host_that_cannot_serve_is_told_at_start(tmp_path, pattern, match):
    host = FakeHost(tmp_path)
    host.fail = [(pattern, "not here")]
    made = kernel.Kernel(host, tmp_path)

    def start():
        made.load([TCP])
        made.hide_volumes("kumo")

    with pytest.raises(errors.ConfigError, match=match):
        start()


def test_a_rule_that_cannot_be_written(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(errors.ConfigError, match="cannot be written"):
        kernel.Kernel(FakeHost(tmp_path), tmp_path).hide_volumes("kumo")


@pytest.mark.parametrize(("number", "answer"), [(16, True), (13, None), (2, None)])
def test_whether_a_disk_is_held_has_three_answers(monkeypatch, number, answer):
    def refuse(path, flags):
        assert flags & os.O_EXCL
        raise OSError(number, "no")

    monkeypatch.setattr(os, "open", refuse)
    assert kernel.is_held("/dev/vdb") is answer


def test_a_disk_that_opens_is_not_held(tmp_path):
    (tmp_path / "disk").touch()
    assert kernel.is_held(str(tmp_path / "disk")) is False


class Channel:
    sent = []

    def __init__(self, *args):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return None

    def sendto(self, data, address):
        if "refuse" in address:
            raise OSError("no listener")
        self.sent.append((data, address))


def test_systemd_is_told(monkeypatch, caplog):
    monkeypatch.setattr(kernel.socket, "socket", Channel)
    Channel.sent.clear()
    for address in ("", "/run/systemd/notify", "@abstract", "/refuse"):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        kernel.notify("READY=1")
    assert Channel.sent == [(b"READY=1", "/run/systemd/notify"), (b"READY=1", "\0abstract")]
    assert "cannot be told" in caplog.text
