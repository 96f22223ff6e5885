# SPDX-License-Identifier: Apache-2.0
"""The whole agent and a node that dies without a word."""

import errno
import threading
import types

import pytest

from os_brick_nvmeof.agent import cutting, loop, plan
from os_brick_nvmeof.agent.hands import ActError
from os_brick_nvmeof.agent.model import Probed
from os_brick_nvmeof.agent.observe import Observer
from os_brick_nvmeof.agent.round import Note
from tests.unit.brick.agent.stories import A, B, Run

SILENT = Probed(5, 2.5, True)
WELL = Probed(1, 0.0, None)


class Probes:
    """What the probes would say. :ivar script: what they say first, one for each question."""

    def __init__(self, host):
        self.host, self.watched, self.script = host, {}, []
        self.silent = SILENT
        self.dead = set()

    def watch(self, portals):
        self.watched = portals

    def seen(self):
        if self.script:
            self.dead = self.script.pop(0)
        return {
            portal: self.silent if portal.address in self.dead else WELL for portal in self.watched
        }

    def stop(self):
        self.watched = {}


@pytest.fixture
def run(host, tmp_path):
    found = Run(host, tmp_path)
    found.agent.probes = Probes(host)
    found.rounds(2)
    return found


class Cutting:
    """The kernel ends connections.

    :ivar problem: error number instead. :ivar stops: seconds for which it stops queues.
    """

    def __init__(self, monkeypatch, host, run):
        self.host, self.portals, self.fails, self.closed = host, [], [], 0
        self.problem, self.stops = 0, 0.0
        monkeypatch.setattr(cutting, "cut", self.cut)
        monkeypatch.setattr(cutting, "channel", lambda: self)
        run.agent.hands._channel = lambda: self

    def close(self):
        self.closed += 1

    def time_outs(self):
        names = [f"nvme{number}" for number in self.host.kernel.nvme.controllers]
        return {name: self.host.kernel.attribute(name, "fast_io_fail_tmo") for name in names}

    def cut(self, portal, link):
        assert link is self
        self.fails.append(sorted(self.time_outs().values()))
        if self.problem:
            raise OSError(self.problem, "no")
        self.portals.append(portal.address)
        if self.stops:
            self.reset(portal.address)
        else:
            self.host.kernel.go(portal.address, "silent")
        return 3

    def reset(self, address):
        kernel = self.host.kernel
        for one in kernel.nvme.controllers.values():
            if one.options["traddr"] == address:
                kernel.nvme.set_state(one, "resetting")
                kernel.sim.after(self.stops, lambda one=one: kernel.lose(one))


@pytest.fixture
def cuts(monkeypatch, host, run):
    return Cutting(monkeypatch, host, run)


def die(host, run, number):
    host.kernel.go(host.address(number), "silent", noticed=False)
    run.agent.probes.dead = {host.address(number)}


def test_a_node_that_dies_without_a_word_is_cut_off_and_comes_back(host, run, cuts):
    assert sorted(portal.address for portal in run.agent.probes.watched) == [
        host.address(0),
        host.address(1),
    ]
    run.agent.hasten()
    assert cuts.portals == []
    die(host, run, 1)
    run.agent.hasten()
    assert cuts.portals == [host.address(1)]
    assert cuts.fails == [["0", "4"]]
    assert set(cuts.time_outs().values()) == {"4"}
    assert cuts.closed == 1
    assert run.agent.wake.is_set()
    assert run.agent.store.memory().cut.keys() == {"n1"}
    run.agent.messages.send()
    assert (
        "FATAL",
        "CutNode: volume " + run.agent.known.wanted.volumes[0].uuid,
    ) in host.storage.told
    host.md.write("md127", b"second")
    run.agent.hasten()
    assert len(cuts.portals) == 1
    run.rounds(4)
    assert host.in_sync() == {A}
    run.agent.probes.dead = set()
    host.back(1)
    host.settle(3)
    run.rounds(5)
    assert host.in_sync() == {A, B}
    assert host.md.read("md127") == {b"second"}


def test_a_node_in_doubt_that_the_kernel_loses_first_holds_no_io_up(host, run, cuts):
    die(host, run, 1)
    run.agent.probes.silent = Probed(2, 0.6, True)
    run.agent.hasten()
    assert cuts.fails == []
    assert sorted(cuts.time_outs().values()) == ["0", "4"]
    run.rounds(2)
    assert sorted(cuts.time_outs().values()) == ["0", "4"]
    # Its keep-alive is missed.
    host.kernel.go(host.address(1), "silent")
    (lost,) = [one for one in host.kernel.nvme.controllers.values() if one.state != "live"]
    assert lost.fails == 0
    run.agent.probes.dead = set()
    assert "SetTimeOuts" not in run.rounds(2)
    host.back(1)
    host.settle(3)
    run.rounds(2)
    assert set(cuts.time_outs().values()) == {"4"}


@pytest.mark.parametrize("stops", [0.3, 5.0])
def test_its_time_out_is_short_until_it_begins_to_run(host, run, cuts, stops):
    """The kernel stops the queues of a lost connection before that."""
    cuts.stops = stops
    die(host, run, 1)
    run.agent.hasten()
    (lost,) = [one for one in host.kernel.nvme.controllers.values() if one.state != "live"]
    assert lost.state == ("connecting" if stops < 1 else "resetting")
    host.settle(6)
    assert (lost.state, lost.fails) == ("connecting", 0)
    run.agent.probes.dead = set()
    host.back(1)
    host.settle(3)
    run.rounds(3)
    assert set(cuts.time_outs().values()) == {"4"}


def test_a_node_that_answers_again_has_its_time_out_back_with_the_next_look(host, run, cuts):
    pace = run.agent.pace
    assert run.agent._pause(run.agent.round()) == pace.look
    die(host, run, 1)
    run.agent.probes.silent = Probed(2, 0.6, True)
    run.agent.hasten()
    assert sorted(cuts.time_outs().values()) == ["0", "4"]
    assert run.agent._pause(run.agent.round()) == pace.busy
    run.agent.probes.dead = set()
    run.rounds(1)
    assert set(cuts.time_outs().values()) == {"4"}
    assert run.agent._pause(run.agent.round()) == pace.look


def test_a_node_that_answers_just_before_its_wait_is_shortened_keeps_it(host, run, cuts):
    die(host, run, 1)
    run.agent.probes.silent = Probed(2, 0.6, True)
    run.agent.probes.script = [{host.address(1)}, set()]
    run.agent.hasten()
    assert set(cuts.time_outs().values()) == {"4"}


def test_a_node_that_answers_just_before_is_left_alone(host, run, cuts):
    die(host, run, 1)
    run.agent.probes.script = [{host.address(1)}, set()]
    run.agent.hasten()
    assert cuts.fails == []
    assert run.agent.known.memory.cut == {}
    # It dies in earnest: nothing holds that up.
    run.agent.probes.dead = {host.address(1)}
    run.agent.hasten()
    assert cuts.portals == [host.address(1)]


def test_a_path_that_the_kernel_has_lost_meanwhile_changes_nothing(host, run, cuts):
    die(host, run, 1)
    (action,) = run.agent._hasty().actions
    host.kernel.go(host.address(1), "silent")
    assert not run.agent._hasty().actions[0].controllers
    assert run.agent.perform(action)
    assert cuts.fails == [["4", "4"]]


@pytest.mark.parametrize("problem", [errno.EOPNOTSUPP, errno.EPERM])
def test_a_kernel_that_cannot_leaves_it_as_it_was(host, run, cuts, problem):
    cuts.problem = problem
    die(host, run, 1)
    run.agent.hasten()
    assert cuts.fails == [["0", "4"]]
    assert set(cuts.time_outs().values()) == {"4"}
    assert cuts.closed == 1
    assert run.agent.known.memory.tried["CutNode n1"].count == 1


def test_what_cannot_be_written_down_is_not_done(host, run, cuts):
    def full(_memory):
        raise OSError(errno.ENOSPC, "full")

    run.agent.store.save_memory = full
    die(host, run, 1)
    run.agent.hasten()
    assert cuts.fails == []
    assert "cannot be written down" in run.agent.known.memory.tried["CutNode n1"].error


def test_the_last_leg_is_left_to_the_kernel_and_that_is_said_once(host, run, cuts, caplog):
    host.hide(0)
    host.md.write("md127", b"second")
    run.rounds(2)
    host.settle(3)
    die(host, run, 1)
    for _ in range(3):
        run.agent.hasten()
    assert cuts.fails == []
    assert caplog.text.count("is silent and left to the kernel") == 1


def test_nothing_is_read_from_devices_meanwhile(host, run):
    def refuse(*_):
        raise AssertionError("a device was read")

    host.kernel.read = refuse
    seen = run.agent.observer.look(run.agent.known.wanted, reading=False)
    assert [one.uuid for one in seen.arrays] == [run.agent.known.wanted.volumes[0].uuid]
    assert seen.superblocks == {}


# -- what is read of the I/O ----------------------------------------------------------------------


def test_io_of_live_controllers_is_counted(host):
    observer = Observer(host.ctx)
    at = host.kernel.root / "sys/class/nvme-fabrics/ctl"
    names = sorted(one.name for one in at.iterdir() if one.name.startswith("nvme"))
    assert len(names) == 2
    for name in names:
        (path,) = [one for one in (at / name).iterdir() if "n" in one.name[4:] and one.is_dir()]
        (path / "stat").write_text("  5 0 0 0 7 0 0 0 3 0 0 1 0 0 0 2 0\n")
    assert observer.io(names) == (frozenset(names), 30, 6)
    host.kernel.go(host.address(1), "silent")
    assert observer.io(names) == (frozenset(names[:1]), 15, 3)
    assert observer.io(["nvme77"]) == (frozenset(), 0, 0)
    (path / "stat").write_text("nonsense\n")
    host.kernel.go(host.address(1), "live")
    host.settle(3)
    assert observer.io(names) is None


# -- threads --------------------------------------------------------------------------------------


def test_the_thread_does_what_is_urgent_until_it_is_stopped(run):
    done = threading.Semaphore(0)

    def hasten():
        done.release()
        raise ActError("no")

    run.agent.hasten = hasten
    thread = threading.Thread(target=run.agent._hasten_loop)
    thread.start()
    for _ in range(2):
        run.agent.urgent.set()
        assert done.acquire(timeout=20)
    run.agent.stop()
    thread.join(20)
    assert not thread.is_alive()


def test_the_agent_starts_its_probes_unless_they_are_off(host, run, monkeypatch):
    started = []

    class Thread:
        def __init__(self, target, name, daemon):
            started.append(name)

        def start(self):
            pass

    off = Run(host, run.path, silence=0.0)
    monkeypatch.setattr(loop, "threading", types.SimpleNamespace(Thread=Thread))
    run.agent.probes.run = lambda: None
    monkeypatch.setattr(run.agent.hands, "prepare", lambda: started.append("prepared"))
    run.agent.start()
    assert started == ["prepared", "pull", "events", "messages", "hasten", "probes"]
    started.clear()
    off.agent.start()
    assert started == ["pull", "events", "messages"]


@pytest.mark.parametrize("problem", [0, errno.ENOENT])
def test_the_kernel_is_made_ready_or_it_is_said(run, cuts, monkeypatch, caplog, problem):
    def prepare(link):
        assert link is cuts
        if problem:
            raise OSError(problem, "no sock_diag")

    monkeypatch.setattr(cutting, "prepare", prepare)
    run.agent.hands.prepare()
    assert cuts.closed == 1
    assert ("cannot be cut off on this host" in caplog.text) == bool(problem)


def test_nothing_is_begun_any_more_when_it_ends(run, host, cuts, monkeypatch):
    die(host, run, 1)
    made = run.agent._hasty()
    assert made.actions
    run.agent.stop()
    monkeypatch.setattr(run.agent, "_hasty", lambda: plan.Plan(made.actions, (Note("", "", "x"),)))
    run.agent.hasten()
    assert cuts.fails == []
