# SPDX-License-Identifier: Apache-2.0
"""The parts around the loop: options, what is stored, what is watched and shown, the command."""

import dataclasses
import errno
import json
import logging
import os
import pathlib
import select
import signal
import socket
import threading

import pytest
from oslo_config import cfg, generator

from os_brick_nvmeof.agent import (
    conf,
    hold,
    main,
    model,
    status,
    vendor,
    watch,
)
from os_brick_nvmeof.agent.metrics import Metrics
from os_brick_nvmeof.agent.store import Store
from tests.fakes.agent_host import Host
from tests.fakes.agent_world import World
from tests.unit.brick.agent.test_plan import planned

ROOT = pathlib.Path(__file__).resolve().parents[4]
UUID = "0b6fe5d1-0000-4000-8000-00000000000a"


# -- options --------------------------------------------------------------------------------------


def test_the_reference_file_is_what_the_options_generate(tmp_path, monkeypatch):
    monkeypatch.setattr(generator, "_list_opts", lambda names: [(names[0], conf.list_opts())])
    made = tmp_path / "agent.conf.full"
    options = cfg.ConfigOpts()
    generator.register_cli_opts(options)
    given = ["--namespace", "os_brick_nvmeof.agent", "--output-file", str(made)]
    options(given, default_config_files=[])
    generator.generate(options)
    committed = (ROOT / "etc/kumo/agent.conf.full").read_text()
    assert made.read_text() == committed, "run tools/check genconfig and commit its result"


def test_the_sample_can_be_read():
    options = conf.load([str(ROOT / "etc/kumo/agent.conf.sample")])
    assert options.kumo_agent.provisioner_urls == ["https://10.77.0.1:8090"]
    assert options.kumo_agent.lock_path == "/var/lib/nova/tmp"
    assert options.kumo_agent.user == "nova"
    limits = conf.limits(options)
    assert limits.hold == 2.0
    assert limits.time_outs["replicated"].fast_io_fail == 4


# -- the store ------------------------------------------------------------------------------------


def test_what_is_stored_comes_back_as_it_was(tmp_path):
    world = World()
    world.tasks = {"t": model.Task("t", "RemoteMigration", "IDLE", "", 0.0, {"volId": "v"})}
    memory, _ = planned(world)
    asked = model.Asked(1.0, "v", frozenset({"a", "b"}), "c")
    memory = model.Memory(
        memory.lost, {"x": 2.0}, {"l": asked}, {"k": model.Tried(1, 2.0, "no")}, memory.members
    )
    memory = dataclasses.replace(memory, cut={"n0": 3.0})
    store = Store(tmp_path / "state")
    store.save_memory(memory)
    store.save_wanted(world.wanted())
    store = Store(tmp_path / "state")
    assert store.memory() == memory
    found = store.wanted()
    assert found.stale
    assert (found.volumes, found.nodes) == (world.wanted().volumes, world.wanted().nodes)
    assert found.tasks == world.wanted().tasks
    assert found.abilities == world.wanted().abilities


@pytest.mark.parametrize("text", ["", "{", "[]", '{"lost": 3}', '{"lost": {"a": "b"}}'])
def test_a_file_that_is_broken_is_put_aside(tmp_path, caplog, text):
    store = Store(tmp_path)
    (tmp_path / "memory.json").write_text(text)
    assert store.memory() == model.Memory()
    assert (tmp_path / "memory.bad").read_text() == text
    assert "is put aside" in caplog.text
    assert store.memory() == model.Memory()


# -- what wakes it --------------------------------------------------------------------------------


class Monitor:
    """Of pyudev: a descriptor, and devices to poll."""

    def __init__(self):
        self.ours, self.theirs = socket.socketpair()
        self.waiting = []

    def fileno(self):
        return self.ours.fileno()

    def poll(self, timeout):
        assert timeout == 0
        return self.waiting.pop() if self.waiting else None


def test_events_and_states_say_look_again(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/mdstat").write_text("Personalities : [raid1]\n")
    states, monitor = {"nvme0": "live"}, Monitor()
    seer = watch.Watch(tmp_path, lambda: dict(states), lambda: None, 0.01, monitor)
    with (tmp_path / "proc/mdstat").open("rb", buffering=0) as mdstat:
        assert seer.look(set(), mdstat)
        assert not seer.look(set(), mdstat)
        states["nvme0"] = "connecting"
        assert seer.look(set(), mdstat)
        assert seer.look({mdstat.fileno()}, mdstat)
        monitor.waiting = ["a", "b"]
        assert seer.look({monitor.fileno()}, mdstat)
        assert monitor.waiting == []


def test_events_that_got_lost_say_look_again_and_others_follow(tmp_path, monkeypatch, caplog):
    class Poll:
        def register(self, _handle, _mask):
            pass

        def poll(self, _milliseconds):
            if not caplog.records:
                raise OSError(errno.ENOBUFS, "No buffer space available")
            return []

    monkeypatch.setattr(watch.select, "poll", Poll)
    states, woken = ["connecting", "live"], []

    def wake():
        woken.append(states.pop())
        if not states:
            seer.stop()

    seer = watch.Watch(tmp_path, lambda: {"nvme0": states[-1]}, wake, 0.01)
    seer.run()
    assert woken == ["live", "connecting"]
    assert "could not be read" in caplog.text


@pytest.mark.parametrize("loaded", [True, False])
def test_the_thread_ends_when_it_is_told(tmp_path, loaded, monkeypatch):
    if loaded:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/mdstat").write_text("x")

    class Poll:
        def __init__(self):
            self.handles = []

        def register(self, handle, _mask):
            self.handles.append(handle)

        def poll(self, _milliseconds):
            # A regular file cannot be polled for what the kernel says of the real one.
            return [(handle, select.POLLPRI) for handle in self.handles]

    monkeypatch.setattr(watch.select, "poll", Poll)
    woken = threading.Event()
    seer = watch.Watch(tmp_path, lambda: {"nvme0": "live"}, woken.set, 0.01)
    seer.start()
    assert woken.wait(10)
    seer.stop()


def test_without_udev_there_is_the_timer(monkeypatch, caplog):
    import pyudev

    def none():
        raise ImportError("no libudev")

    monkeypatch.setattr(pyudev, "Context", none)
    assert watch.udev_monitor() is None
    assert "the timer only" in caplog.text


# -- metrics --------------------------------------------------------------------------------------


def test_metrics_say_what_the_status_says():
    world = World()
    leg = next(iter(world.members))
    world.members[leg] = model.Place.SYNCING
    world.left[leg] = 1
    memory, made = planned(world)
    shown = status.make(world.wanted(), memory, made, world.now)
    metrics = Metrics()
    metrics.note(shown)

    def value(name, **labels):
        return metrics.registry.get_sample_value(f"kumo_agent_{name}", labels)

    assert value("volumes", state="healing") == 1
    assert value("volumes", state="good") == 0
    assert value("legs", place="synchronising") == 1
    assert value("sync_progress_ratio", volume=world.volume) == 0.5
    assert value("provisioner_away") == 0
    page = (ROOT / "doc/source/reference/agent-metrics.rst").read_text()
    names = {one.name for one in metrics.registry.collect()}
    assert sorted(name for name in names if f"``{name}``" not in page) == []


# -- the guard of a hold --------------------------------------------------------------------------


def test_the_guard_is_a_shell_that_outlives_us(monkeypatch):
    started = []

    class Process:
        def __init__(self, argv, **options):
            started.append((argv, options["start_new_session"]))

        def kill(self):
            started.append("killed")

        def wait(self):
            started.append("waited")

    monkeypatch.setattr(hold.subprocess, "Popen", Process)
    hold.shell_guard("/sys/class/block/md127/md", 2.5)()
    argv, session = started[0]
    assert argv[0:2] == ["/bin/sh", "-c"]
    assert argv[2] == 'sleep "$2"; echo 0 > "$1/suspend_hi"; echo 0 > "$1/suspend_lo"'
    assert argv[4:] == ["/sys/class/block/md127/md", "2.50"]
    assert session
    assert started[1:] == ["killed", "waited"]


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def options(tmp_path):
    path = tmp_path / "agent.conf"
    path.write_text(
        f"[kumo_agent]\nstate_dir = {tmp_path}/state\nrun_dir = {tmp_path}/run\n"
        f"lock_path = {tmp_path}\nhost_id = h\n"
    )
    return path


def test_the_status_is_shown(options, tmp_path, capsys):
    assert main.main(["--config-file", str(options), "status"]) == 1
    assert "is the agent running?" in capsys.readouterr().err
    world = World()
    memory, made = planned(world)
    status.write(
        str(tmp_path / "run"),
        status.make(world.wanted(), memory, made, world.now),
    )
    assert main.main(["--config-file", str(options), "status", "-f", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["volumes"][0]["alias"] == "volume-1"
    assert main.main(["--config-file", str(options), "status"]) == 0
    assert "volume-1" in capsys.readouterr().out
    assert oct((tmp_path / "run/status.json").stat().st_mode)[-3:] == "644"


def test_there_is_one_agent_on_a_host(tmp_path):
    with main.only_one(str(tmp_path)):
        second = main.only_one(str(tmp_path))
        with pytest.raises(main.StartError, match="another kumo-agent runs"):
            second.__enter__()
    with main.only_one(str(tmp_path)):
        pass


@pytest.fixture
def on_host(tmp_path, monkeypatch):
    host = Host(tmp_path)
    host.attach()
    host.md.write("md127", b"x")
    monkeypatch.setattr(main, "context", lambda _options: host.ctx)
    monkeypatch.setattr(main, "_set_up_logs", lambda _options: None)
    monkeypatch.setattr(vendor, "load", lambda _name: lambda _options, _identity: host.storage)
    return host


class _ToldError(Exception):
    """In place of the end of the process."""


@pytest.mark.parametrize("whole", [True, False])
def test_the_process_ends_although_something_hangs(on_host, options, monkeypatch, whole):
    done = []

    def leave(code):
        done.append(code)
        raise _ToldError

    class Watch:
        def __init__(self, *_):
            pass

        def start(self):
            done.append("watch")

        def stop(self):
            done.append("stop")

    def run(self, alive):
        alive()
        return whole

    monkeypatch.setattr(main.watch, "Watch", Watch)
    monkeypatch.setattr(main.watch, "udev_monitor", lambda: None)
    monkeypatch.setattr(main.Agent, "start", lambda _self: None)
    monkeypatch.setattr(main.Agent, "run", run)
    monkeypatch.setattr(main.os, "_exit", leave)
    monkeypatch.setattr(main.logging, "shutdown", lambda: done.append("logs"))
    command = ["--config-file", str(options), "run"]
    if whole:
        assert main.main(command) == 0
    else:
        with pytest.raises(_ToldError):
            main.main(command)
    assert done == ["watch", "stop"] + ([] if whole else ["logs", 0])


def test_one_round_and_the_plan_for_it(on_host, options, tmp_path, capsys):
    command = ["--config-file", str(options)]
    assert main.main([*command, "plan", "-f", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["kind"] for one in found["actions"]] == ["ReportArray"]
    assert not [call for call in on_host.storage.calls if call[0] == "report"]
    assert main.main([*command, "run", "--once"]) == 0
    assert [call for call in on_host.storage.calls if call[0] == "report"]
    assert main.main([*command, "plan"]) == 0
    assert "Nothing is to be done." in capsys.readouterr().out
    on_host.storage.away = True
    assert main.main([*command, "plan", "-f", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["provisioner"]["away"]


def test_a_vendor_that_cannot_be_had_is_said(on_host, options, monkeypatch, capsys):
    def none(_name):
        raise vendor.VendorError("there is no vendor 'x'")

    monkeypatch.setattr(vendor, "load", none)
    assert main.main(["--config-file", str(options), "run", "--once"]) == 1
    assert "kumo-agent: there is no vendor 'x'" in capsys.readouterr().err


def test_what_is_missing_is_said(options, capsys, monkeypatch):
    monkeypatch.setattr(main, "_set_up_logs", lambda _options: None)
    options.write_text("[kumo_agent]\n")
    assert main.main(["--config-file", str(options), "plan"]) == 1
    assert "lock_path" in capsys.readouterr().err
    assert main.main(["--config-file", str(options) + ".none", "plan"]) == 1


@pytest.fixture
def usr1():
    before = signal.getsignal(signal.SIGUSR1)
    yield signal.SIGUSR1
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_is_handed_to_a_thread(usr1):
    told, names = threading.Event(), []

    def work():
        names.append(threading.current_thread().name)
        told.set()

    with main.on_signals([usr1], work):
        signal.raise_signal(usr1)
        assert told.wait(20)
        signal.raise_signal(usr1)
    assert names == ["signals"]
    assert "signals" not in [one.name for one in threading.enumerate()]


def test_without_a_signal_nothing_is_called(usr1):
    called = []
    with main.on_signals([usr1], lambda: called.append(usr1)):
        pass
    assert called == []


def test_systemd_is_told(monkeypatch):
    sent = []

    class Channel:
        def __init__(self, *_kind):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_exc):
            return None

        def sendto(self, data, address):
            sent.append((data, address))
            if len(sent) == 2:
                raise ConnectionRefusedError

    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    main.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "@kumo")
    monkeypatch.setattr(main.socket, "socket", Channel)
    main.notify("READY=1")
    main.notify("WATCHDOG=1")
    assert sent == [(b"READY=1", "\0kumo"), (b"WATCHDOG=1", "\0kumo")]


def test_a_line_of_the_log_is_json():
    try:
        raise ValueError("x")
    except ValueError:
        record = logging.LogRecord("a", logging.INFO, "", 1, "b %s", ("c",), os.sys.exc_info())
    line = json.loads(main.JsonFormatter().format(record))
    assert (line["level"], line["logger"], line["message"]) == ("INFO", "a", "b c")
    assert "ValueError: x" in line["exception"]
