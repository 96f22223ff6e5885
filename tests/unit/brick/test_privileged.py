# SPDX-License-Identifier: Apache-2.0
"""What needs root: only few files and programs, and nobody waits for somebody else's call."""

import errno
import os
import re
import socket
import subprocess
import threading

import pytest
from os_brick import privileged as stock

from os_brick_nvmeof import host
from os_brick_nvmeof.privileged import LocalHost

OPTIONS = "transport=tcp,traddr=10.0.0.1,trsvcid=4420,nqn=nqn.2014-08.org.nvmexpress:uuid:a"
CONTROLLER = "/sys/class/nvme/nvme3/delete_controller"


@pytest.fixture
def near(far, monkeypatch):
    """The process is root and does everything itself."""
    monkeypatch.setattr(stock.default, "client_mode", False)
    return LocalHost()


@pytest.fixture
def daemon(far, monkeypatch):
    """The process has a daemon; its channel calls the functions here."""

    class Channel:
        running = True

        def remote_call(self, name, args, kwargs, timeout):
            return getattr(far, name.rpartition(".")[2]).args[0](*args, **kwargs)

    monkeypatch.setattr(stock.default, "client_mode", True)
    monkeypatch.setattr(stock.default, "channel", Channel())


def test_connecting_answers_what_the_kernel_says(near, far, monkeypatch, tmp_path):
    device = tmp_path / "nvme-fabrics"
    device.write_text("x" * len(OPTIONS) + "instance=3,cntlid=1\n")
    monkeypatch.setattr(far, "FABRICS", str(device))
    assert near.fabrics(OPTIONS) == "instance=3,cntlid=1"
    assert device.read_text().startswith(OPTIONS)


def test_the_kernel_tells_the_options_it_knows(near, far, monkeypatch, tmp_path):
    device = tmp_path / "nvme-fabrics"
    device.write_text("instance=-1,cntlid=-1,transport=%s\n")
    monkeypatch.setattr(far, "FABRICS", str(device))
    assert near.fabrics("") == "instance=-1,cntlid=-1,transport=%s"
    assert device.read_text() == "instance=-1,cntlid=-1,transport=%s\n"


def test_a_device_is_flushed(near, far, monkeypatch, tmp_path):
    device, flushed = tmp_path / "nvme0n1", []
    device.touch()
    monkeypatch.setattr(far, "_DEVICES", re.compile(re.escape(str(device))))
    monkeypatch.setattr(far.fcntl, "ioctl", lambda handle, request: flushed.append(request))
    near.flush(str(device))
    assert flushed == [0x1261]


def identifying(far, monkeypatch, tmp_path, status):
    device, sent = tmp_path / "nvme3", []
    device.touch()

    def ioctl(handle, request, command):
        sent.append((request, len(command), far._ADMIN_COMMAND.unpack(command)))
        # The kernel writes the answer to the address in the command.
        far.ctypes.memmove(sent[0][2][6], b"answer", 6)
        return status

    monkeypatch.setattr(far, "_CONTROLLERS", re.compile(re.escape(str(device))))
    monkeypatch.setattr(far.fcntl, "ioctl", ioctl)
    return str(device), sent


def test_a_controller_is_asked(near, far, monkeypatch, tmp_path):
    device, sent = identifying(far, monkeypatch, tmp_path, 0)
    answer = near.identify(device, 3, 7)
    assert (len(answer), answer[:6]) == (4096, b"answer")
    request, length, command = sent[0]
    # The size is part of the request's number.
    assert (request, length) == (0xC0484E41, (0xC0484E41 >> 16) & 0x3FFF)
    assert command[:3] == (6, 0, 7)
    assert command[8:10] == (4096, 3)


def test_a_controller_refuses_to_answer(near, far, monkeypatch, tmp_path):
    device, _sent = identifying(far, monkeypatch, tmp_path, 0x400B)
    with pytest.raises(OSError, match="status 0x400b") as caught:
        near.identify(device, 0, 7)
    assert caught.value.errno == errno.EIO


def test_a_portal_is_probed(near, monkeypatch):
    class Connection:
        closed = 0

        def __call__(self, address, timeout):
            self.asked = (address, timeout)
            return self

        def close(self):
            self.closed += 1

    connection = Connection()
    monkeypatch.setattr(socket, "create_connection", connection)
    near.probe("fd00::1", "4420", 0.5)
    assert (connection.asked, connection.closed) == ((("fd00::1", 4420), 0.5), 1)


def test_the_kernels_errors_arrive(near, far, monkeypatch):
    def refuse(options):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setitem(far.VERBS, "fabrics", refuse)
    with pytest.raises(ConnectionRefusedError) as caught:
        near.fabrics(OPTIONS)
    assert caught.value.errno == errno.ECONNREFUSED
    assert caught.value.filename == "/dev/nvme-fabrics"


def test_an_attribute_is_written(near, far, monkeypatch, tmp_path):
    attribute = tmp_path / "delete_controller"
    attribute.touch()
    monkeypatch.setattr(far, "_ATTRIBUTES", re.compile(re.escape(str(attribute))))
    near.write(str(attribute), "1")
    assert attribute.read_text() == "1"


def test_a_device_is_read_in_whole_blocks(near, far, monkeypatch, tmp_path):
    device = tmp_path / "nvme0n1"
    device.write_bytes(b"a" * 4096 + b"b" * 4096 + b"end")
    monkeypatch.setattr(far, "_DEVICES", re.compile(re.escape(str(device))))
    monkeypatch.setattr(os, "O_DIRECT", 0)
    assert near.read(str(device), 4096, 4096) == b"b" * 4096
    assert near.read(str(device), 8192, 4096) == b"end"


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("fabrics", ("nqn=a\x00b",)),
        ("fabrics", ("nqn=a b",)),
        ("fabrics", ("transport=tcp",)),
        ("write", ("/etc/passwd", "x")),
        ("write", ("/sys/class/nvme/nvme0/../../../kernel/x", "x")),
        ("write", ("/sys/block/sda/uevent", "add")),
        ("write", ("/sys/block/md0/md/dev-sda/../../x", "x")),
        ("write", ("/sys/block/md0/queue/scheduler", "x")),
        ("write", (CONTROLLER + "\n", "1")),
        ("write", (CONTROLLER, "1" * 5000)),
        ("read", ("/dev/sda", 0, 4096)),
        ("read", ("/dev/nvme0n1", 512, 4096)),
        ("read", ("/dev/nvme0n1", -4096, 4096)),
        ("read", ("/dev/nvme0n1", 0, 512)),
        ("read", ("/dev/nvme0n1", 0, 0)),
        ("read", ("/dev/nvme0n1", 0, 1 << 30)),
        ("read", ("/dev/md/../sda", 0, 4096)),
        ("flush", ("/dev/sda",)),
        ("identify", ("/dev/sda", 0, 1)),
        ("identify", ("/dev/nvme3", 1, 1)),
    ],
)
def test_nothing_else_is_touched(near, verb, arguments):
    with pytest.raises(PermissionError):
        getattr(near, verb)(*arguments)


@pytest.mark.parametrize(
    "path",
    [
        CONTROLLER,
        "/sys/class/nvme-fabrics/ctl/nvme10/rescan_controller",
        "/sys/devices/virtual/nvme-fabrics/ctl/nvme10/fast_io_fail_tmo",
        "/sys/class/nvme-subsystem/nvme-subsys0/iopolicy",
        "/sys/block/md127/md/array_state",
        "/sys/class/block/md127/md/dev-nvme0n1/state",
        "/sys/block/md_vol-1/md/bitmap/location",
        "/sys/block/md127/uevent",
        "/sys/block/nvme0n1/uevent",
    ],
)
def test_these_attributes_may_be_written(near, far, monkeypatch, path):
    opened = []

    def gone(name, flags):
        opened.append((name, flags & os.O_ACCMODE))
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "open", gone)
    with pytest.raises(FileNotFoundError):
        near.write(path, "1")
    assert opened == [(path, os.O_WRONLY)]


class Program:
    """Stands for subprocess.Popen: ends with a code, or does not end before it is killed."""

    def __init__(self, code=0, output="", complaint="", hangs=False):
        self.returncode, self.killed, self.reaped = code, False, threading.Event()
        self._texts, self._hangs = (output, complaint), hangs

    def __call__(self, argv, **options):
        self.argv, self.options = argv, options
        return self

    def communicate(self, timeout=None):
        if timeout is not None and self._hangs:
            raise subprocess.TimeoutExpired(self.argv, timeout)
        self.reaped.set()
        return self._texts

    def kill(self):
        self.killed = True


def test_a_program_runs_in_the_c_locale(near, far, monkeypatch):
    program = Program(output="MD_LEVEL=raid1\n")
    monkeypatch.setattr(far.subprocess, "Popen", program)
    assert near.run("mdadm", "--detail", "--export", "/dev/md0") == "MD_LEVEL=raid1\n"
    assert program.argv == ("mdadm", "--detail", "--export", "/dev/md0")
    assert program.options["env"]["LC_ALL"] == "C"


def test_a_program_says_no(near, far, monkeypatch):
    monkeypatch.setattr(far.subprocess, "Popen", Program(code=2, complaint="mdadm: no\n"))
    with pytest.raises(host.CommandError, match="ended with 2: mdadm: no") as caught:
        near.run("mdadm", "--stop", "/dev/md0")
    assert caught.value.definite


def test_a_program_that_hangs_is_killed_and_not_waited_for(near, far, monkeypatch):
    program = Program(hangs=True)
    monkeypatch.setattr(far.subprocess, "Popen", program)
    with pytest.raises(host.CommandError, match=r"not done after 0\.5 s") as caught:
        near.run("mdadm", "--stop", "/dev/md0", timeout=0.5)
    assert not caught.value.definite
    assert program.killed
    assert program.reaped.wait(5)


@pytest.mark.parametrize("argv", [("sh", "-c", "id"), ("/tmp/mdadm",), ()])
def test_other_programs_do_not_run(near, argv):
    with pytest.raises(host.CommandError, match="is not to be run") as caught:
        near.run(*argv)
    assert not caught.value.definite


def test_a_program_that_is_not_there(near, far, monkeypatch):
    def missing(*_args, **_options):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(far.subprocess, "Popen", missing)
    with pytest.raises(host.CommandError, match="No such file") as caught:
        near.run("mdadm", "--version")
    assert caught.value.returncode is None


def test_a_quick_verb_is_one_call(daemon, far, monkeypatch):
    monkeypatch.setitem(far.VERBS, "fabrics", lambda options: ("done", "instance=1,cntlid=1"))
    monkeypatch.setattr(far, "_GRACE", 10)

    def refuse(_seconds):
        raise AssertionError("waited")

    assert LocalHost(sleep=refuse).fabrics(OPTIONS) == "instance=1,cntlid=1"
    assert far._jobs == {}


def test_a_slow_verb_is_asked_for_until_it_is_done(daemon, far, monkeypatch):
    go, done, slept = threading.Event(), threading.Event(), []

    def slow(device, offset, length):
        go.wait(10)
        return "done", b"data"

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 5:
            go.set()
            assert next(iter(far._jobs.values())).done.wait(10)
            done.set()

    monkeypatch.setitem(far.VERBS, "read", slow)
    monkeypatch.setattr(far, "_GRACE", 0)
    times = iter(range(100))
    assert LocalHost(lambda: next(times) / 10, sleep).read("/dev/nvme0n1", 0, 4096) == b"data"
    assert slept == [0.0125, 0.025, 0.0375, 0.05, 0.05]
    assert far._jobs == {}


@pytest.mark.parametrize("verb", ["read", "run"])
def test_a_verb_that_never_ends_is_left_alone(daemon, far, monkeypatch, verb):
    go = threading.Event()
    monkeypatch.setitem(far.VERBS, verb, lambda *_arguments: (go.wait(10), ("done", b""))[1])
    monkeypatch.setattr(far, "_GRACE", 0)
    times = iter(range(0, 10000, 7))
    local = LocalHost(lambda: next(times), lambda _seconds: None)
    if verb == "read":
        with pytest.raises(TimeoutError, match="read is not done after"):
            local.read("/dev/nvme0n1", 0, 4096)
    else:
        with pytest.raises(host.CommandError, match="run is not done after") as caught:
            local.run("mdadm", "--stop", "/dev/md0")
        assert caught.value.returncode is None
    assert far._jobs == {}
    go.set()


def test_a_verb_that_breaks_is_an_error(daemon, far, monkeypatch):
    def broken(*_arguments):
        raise OSError("no number")

    monkeypatch.setitem(far.VERBS, "write", broken)
    monkeypatch.setattr(far, "_GRACE", 10)
    with pytest.raises(OSError, match="no number") as caught:
        LocalHost().write(CONTROLLER, "1")
    assert caught.value.errno == errno.EIO


@pytest.fixture
def links(far, monkeypatch, tmp_path):
    """A directory in place of /dev/md."""
    where = tmp_path / "md"
    monkeypatch.setattr(far, "_LINKS", re.compile(re.escape(str(where)) + "/[^/]+"))
    return where


def test_a_link_to_an_array_is_made_replaced_and_removed(near, links):
    path = links / "volume-1"
    near.link(str(path), "md127")
    assert os.readlink(path) == "../md127"
    (links / ".kumo-volume-1").symlink_to("left-by-one-who-was-killed")
    near.link(str(path), "md126")
    assert os.readlink(path) == "../md126"
    assert os.listdir(links) == ["volume-1"]
    near.link(str(path), "")
    near.link(str(path), "")
    assert os.listdir(links) == []


def test_what_is_no_link_is_not_replaced(near, links):
    links.mkdir()
    (links / "volume-1").write_text("precious")
    with pytest.raises(FileExistsError):
        near.link(str(links / "volume-1"), "md127")
    assert (links / "volume-1").read_text() == "precious"


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/etc/passwd", "md127"),
        ("/dev/md/a/b", "md127"),
        ("/dev/md/a", "../../etc"),
        ("/dev/md/", ""),
    ],
)
def test_no_other_links_are_made(near, path, target):
    with pytest.raises(PermissionError):
        near.link(path, target)
