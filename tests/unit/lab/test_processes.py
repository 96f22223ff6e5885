# SPDX-License-Identifier: Apache-2.0
import json
import signal

import pytest

from lab.errors import ProcessError

TERM, KILL = signal.SIGTERM, signal.SIGKILL


@pytest.fixture
def state(tmp_path):
    path = tmp_path / "state"
    path.mkdir()
    return path


@pytest.fixture
def processes(kernel, state):
    return kernel.processes(state, "kumo-test")


def test_start_runs_in_the_namespace_and_behind_the_gate(processes, kernel, tmp_path):
    pid = processes.start("api", ["serve", "a b"], {"A": "1"}, tmp_path)
    (seen,) = kernel.spawned
    assert seen.argv[:5] == ["ip", "netns", "exec", "kumo-test", "/bin/sh"]
    assert seen.argv[-2:] == ["serve", "a b"]
    assert (seen.env, seen.cwd, seen.log) == ({"A": "1"}, tmp_path, processes.log_path("api"))
    assert kernel.released == [pid]
    assert processes.alive("api")
    assert processes.pid("api") == pid


def test_start_without_a_namespace_runs_here(kernel, state):
    kernel.processes(state).start("api", ["serve"])
    assert kernel.spawned[0].argv[0] == "/bin/sh"


def test_the_record_is_on_disk_before_the_process_goes_on(processes, kernel, state, monkeypatch):
    records = []
    spawn = kernel.spawn

    def watching(*arguments):
        child = spawn(*arguments)
        child.release = lambda: records.append(json.loads((state / "processes.json").read_text()))
        return child

    monkeypatch.setattr(processes, "_spawn", watching)
    pid = processes.start("api", ["serve"])
    assert records[0]["api"]["pid"] == pid
    assert records[0]["api"]["start"] == 100000


def test_an_alive_name_cannot_be_started_again(processes, kernel):
    processes.start("api", ["serve"])
    with pytest.raises(ProcessError, match="api runs already"):
        processes.start("api", ["serve"])
    assert len(kernel.spawned) == 1


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", "a b"])
def test_a_name_must_do_for_a_file(processes, name):
    with pytest.raises(ProcessError, match="cannot be the name"):
        processes.start(name, ["serve"])


def test_what_cannot_be_started_is_an_error_and_leaves_no_record(processes, tmp_path):
    with pytest.raises(ProcessError, match="cannot start api"):
        processes.start("api", ["serve"], cwd=tmp_path / "absent")
    assert processes.names() == []


def test_a_process_that_is_gone_before_it_could_be_recorded(processes, kernel, monkeypatch):
    spawn = kernel.spawn

    def dying(*arguments):
        child = spawn(*arguments)
        kernel.remove(child.pid)
        return child

    monkeypatch.setattr(processes, "_spawn", dying)
    with pytest.raises(ProcessError, match="ended at once"):
        processes.start("api", ["serve"])
    assert processes.names() == []


def test_starting_a_dead_name_first_kills_what_its_session_left(processes, kernel):
    old = processes.start("api", ["serve"])
    worker = kernel.add(session=old)
    kernel.remove(old)
    new = processes.start("api", ["serve"])
    assert kernel.signals == [(worker, KILL)]
    assert processes.pid("api") == new


def test_another_program_finds_and_stops_the_process(processes, kernel, state):
    pid = processes.start("api", ["serve"])
    later = kernel.processes(state, "kumo-test")
    assert later.alive("api")
    later.stop("api")
    assert kernel.signals == [(pid, TERM)]
    assert not processes.alive("api")
    assert processes.names() == []


def test_a_stranger_with_the_same_number_is_neither_alive_nor_killed(processes, kernel, clock):
    pid = processes.start("api", ["serve"])
    kernel.remove(pid)
    clock.now += 5
    kernel.add(pid=pid)
    kernel.add(session=pid)
    assert not processes.alive("api")
    processes.stop("api")
    assert kernel.signals == []


def test_after_a_reboot_nothing_on_record_is_ours(processes, kernel):
    pid = processes.start("api", ["serve"])
    kernel.boot("another")
    assert not processes.alive("api")
    processes.stop_all()
    assert kernel.signals == []
    assert (kernel.proc / str(pid)).exists()


def test_after_a_reboot_a_session_without_leader_is_not_ours_either(processes, kernel):
    pid = processes.start("api", ["serve"])
    kernel.remove(pid)
    kernel.add(session=pid)
    kernel.boot("another")
    processes.kill("api")
    assert kernel.signals == []


def test_a_zombie_is_dead_and_reaped_when_it_is_our_child(processes, kernel, state):
    pid = processes.start("api", ["serve"])
    kernel.add(pid=pid, state="Z")
    assert not kernel.processes(state).alive("api")
    assert (kernel.proc / str(pid)).exists()
    assert not processes.alive("api")
    assert not (kernel.proc / str(pid)).exists()


def test_stop_waits_for_children_that_end_with_their_leader(processes, kernel):
    pid = processes.start("api", ["serve"])
    worker = kernel.add(session=pid)
    kernel.on_term[pid] = [worker]
    processes.stop("api")
    assert kernel.signals == [(pid, TERM)]


def test_stop_kills_the_session_after_the_timeout(processes, kernel, clock):
    pid = processes.start("api", ["serve"])
    worker = kernel.add(session=pid)
    stranger = kernel.add()
    kernel.deaf |= {pid, worker}
    begin = clock.now
    processes.stop("api", timeout=3, sig=signal.SIGINT)
    assert kernel.signals[0] == (pid, signal.SIGINT)
    assert sorted(kernel.signals[1:]) == [(pid, KILL), (worker, KILL)]
    assert 3 <= clock.now - begin < 4
    assert (kernel.proc / str(stranger)).exists()


def test_children_that_outlive_their_leader_are_killed(processes, kernel, clock):
    pid = processes.start("api", ["serve"])
    worker = kernel.add(session=pid)
    begin = clock.now
    processes.stop("api")
    assert kernel.signals == [(pid, TERM), (worker, KILL)]
    assert clock.now - begin < 3


def test_kill_gives_no_chance(processes, kernel):
    pid = processes.start("api", ["serve"])
    processes.kill("api")
    assert kernel.signals == [(pid, KILL)]
    assert processes.names() == []


def test_a_survivor_of_sigkill_is_an_error_and_stays_on_record(processes, kernel):
    pid = processes.start("api", ["serve"])
    kernel.immortal.add(pid)
    with pytest.raises(ProcessError, match=f"api: processes {pid} survived SIGKILL"):
        processes.kill("api")
    assert processes.names() == ["api"]


def test_a_signal_reaches_the_whole_session_and_nobody_else(processes, kernel):
    pid = processes.start("api", ["serve"])
    worker = kernel.add(session=pid)
    kernel.add()
    processes.send("api", signal.SIGSTOP)
    assert sorted(kernel.signals) == sorted([(pid, signal.SIGSTOP), (worker, signal.SIGSTOP)])
    processes.send("nobody", signal.SIGSTOP)
    assert len(kernel.signals) == 2


def test_unknown_names_are_stopped_already(processes, kernel):
    processes.stop("api")
    processes.kill("api")
    processes.stop_all()
    assert kernel.signals == []
    assert not processes.alive("api")
    assert processes.pid("api") is None


def test_stop_all_goes_backwards_and_on_after_a_failure(processes, kernel):
    pids = [processes.start(name, ["serve"]) for name in ("a", "b", "c")]
    kernel.immortal.add(pids[1])
    with pytest.raises(ProcessError, match="b: processes"):
        processes.stop_all()
    assert [pid for pid, number in kernel.signals if number == TERM] == pids[::-1]
    assert processes.names() == ["b"]


def test_a_signal_may_meet_a_process_that_has_just_gone(processes, kernel, monkeypatch):
    pid = processes.start("api", ["serve"])

    def gone(number, _signal):
        kernel.remove(number)
        raise ProcessLookupError

    monkeypatch.setattr(processes, "_kill", gone)
    processes.stop("api")
    assert not (kernel.proc / str(pid)).exists()
    assert processes.names() == []


def test_tail_is_the_end_of_the_log(processes):
    processes.start("api", ["serve"])
    processes.log_path("api").write_text("1\n2\n3\n")
    assert processes.tail("api", 2) == ["2", "3"]
    assert processes.tail("absent") == []
