# SPDX-License-Identifier: Apache-2.0
"""Commands that take their time: waiting for tasks, watching, and following events."""

import json

import pytest

from kumo_client import errors
from kumo_client.cli import event as event_command
from kumo_client.cli import output, progress, watch
from tests.fakes.http import Answer, ReadTimeout, Reset
from tests.unit.client.conftest import A
from tests.unit.client.operator import H1, V1, V2, J, shown

pytestmark = pytest.mark.usefixtures("operated", "_quiet_logging_afterwards")


# -- tasks ----------------------------------------------------------------------------------------


def begin(server, **fields):
    return server.begin("RemoteMigration", volume_id=V1, **fields)["taskId"]


def test_tasks(kumo, filled):
    task = begin(filled, host_id=H1)
    begin(filled, host_id="other")
    assert [item["taskId"] for item in shown(kumo("task", "list", "--host", "compute-1", *J))] == [
        task
    ]
    assert "RemoteMigration" in kumo("task", "list")[1]
    assert shown(kumo("task", "show", task, *J))["progress"] == 50
    filled.tasks_[task].state = "FINISHED"
    assert kumo("task", "delete", task, "-y") == (0, "", "")
    assert task not in filled.tasks_


def test_waiting_for_a_task(kumo, filled, slept):
    filled.steps = 4
    code, out, err = kumo("task", "wait", begin(filled), *J)
    assert (code, json.loads(out)["progress"]) == (0, 100)
    assert [line.rpartition(": ")[2] for line in err.splitlines()] == [
        "RUNNING, 50 %",
        "RUNNING, 75 %",
        "FINISHED, 100 %",
    ]
    assert slept == sorted(slept)


def test_a_task_that_fails(kumo, filled, slept):
    filled.fails = "no node\x1b[31m can take it"
    code, out, err = kumo("task", "wait", begin(filled))
    assert (code, out) == (1, "")
    assert "TaskFailed: task " in err
    assert "(RemoteMigration) failed: no node?[31m can take it" in err


def test_a_task_that_takes_too_long(kumo, filled, slept):
    filled.steps = 1000
    task = begin(filled)
    code, _, err = kumo("task", "wait", task, "--at-most", "10")
    assert code == 1
    assert f"it goes on; kumo task wait {task}" in err
    assert 10 <= sum(slept) < 20


def test_waiting_is_interrupted(kumo, filled, slept):
    filled.steps = 1000
    slept.left = 2
    task = begin(filled)
    code, _, err = kumo("task", "wait", task)
    assert code == 130
    assert f"kumo: the task goes on; kumo task wait {task}\n" in err


def test_a_provisioner_that_is_away_for_a_while_does_not_end_the_wait(kumo, filled, slept, network):
    task = begin(filled)
    fake = network.servers[A]
    looks = []

    def sometimes(request):
        looks.append(request.path)
        if len(looks) in (2, 3):
            raise Reset
        return fake(request)

    filled.steps = 6
    network.servers[A] = sometimes
    code, _, err = kumo("task", "wait", task, KUMO_TIMEOUT="0.01")
    assert code == 0
    assert "CommunicationError" in err
    assert "FINISHED, 100 %" in err


def test_a_task_that_vanishes(kumo, filled, monkeypatch):
    filled.steps = 5
    task = begin(filled)
    filled.tasks_[task].type = "Drain"
    monkeypatch.setattr(progress, "sleep", lambda seconds: filled.tasks_.clear())
    code, _, err = kumo("task", "wait", task)
    assert code == 1
    assert "does not exist any more" in err


def test_bars_on_a_terminal(kumo, filled, slept, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    filled.steps = 4
    task = filled.begin("Drain", backend_id="node-1")["taskId"]
    for number in range(2):
        filled.begin("OfflineMigration", volume_id=f"part-{number}", parent=task)
    code, _, err = kumo("task", "wait", task)
    assert code == 0
    assert "Drain node-1" in err
    assert "part-1" in err
    assert "100%" in err


# -- looking again and again ----------------------------------------------------------------------


def test_watching_without_a_terminal_prints_again(kumo, filled, slept):
    slept.left = 3
    code, out, err = kumo("volume", "list", "--watch")
    assert (code, err) == (0, "")
    assert out.count("| UUID") == 3
    assert slept == [2, 2, 2]


def test_watching_as_json_gives_a_line_for_each_object(kumo, filled, slept):
    slept.left = 2
    code, out, _ = kumo("backend", "list", "--watch=0.5", *J)
    names = [json.loads(line)["persistentID"] for line in out.splitlines()]
    assert (code, names) == (0, ["node-1", "node-2"] * 2)
    assert slept == [0.5, 0.5]
    slept.clear()
    assert json.loads(kumo("volume", "show", "v1", "--watch", *J)[1].splitlines()[1])["uuid"] == V1


@pytest.mark.parametrize("what", [("volume", "list"), ("volume", "show", "v1")])
def test_watching_on_a_terminal_keeps_one_place(kumo, filled, slept, monkeypatch, what):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    slept.left = 3
    code, out, err = kumo(*what, "--watch")
    assert (code, err) == (0, "")
    assert out.startswith("\x1b[?25l")
    assert out.endswith("\x1b[?25h")
    assert "\x1b[1A" in out


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_goes_on_while_the_provisioner_is_away(
    kumo, filled, slept, monkeypatch, network, terminal
):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "200")
    fake = network.servers[A]
    calls = []

    def sometimes(request):
        calls.append(request)
        if len(calls) == 2:
            raise ReadTimeout
        return fake(request)

    network.servers[A] = sometimes
    slept.left = 3
    code, out, err = kumo("backend", "list", "--watch", KUMO_TIMEOUT="0.01")
    assert code == 0
    assert "CommunicationError" in (out if terminal else err)
    assert len(calls) == 3


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_ends_when_the_object_is_gone(kumo, filled, slept, monkeypatch, terminal):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(watch, "sleep", lambda seconds: filled.volumes.clear())
    code, _, err = kumo("volume", "show", "v1", "--watch")
    assert code == 1
    assert "volume v1 does not exist" in err


@pytest.mark.parametrize("value", ["x", "0", "-1", "nan", "1e9"])
def test_a_wrong_period(kumo, value):
    with pytest.raises(SystemExit) as caught:
        kumo("volume", "list", f"--watch={value}")
    assert caught.value.code == 2


# -- events ---------------------------------------------------------------------------------------


def numbers(result):
    return [event["seq"] for event in shown(result)]


def test_listing_events(kumo, filled):
    filled.say("volume.created", volume_id=V1, message="made\x1b[2J it")
    filled.say("backend.cordoned", backend_id="node-1", level="WARN")
    out = kumo("event", "list")[1]
    assert "made?[2J it" in out
    (event,) = shown(kumo("event", "list", "--volume", "v1", "--limit", "5", *J))
    assert event["type"] == "volume.created"
    assert shown(kumo("event", "list", "--since", "2", "--host", "compute-1", *J)) == []
    assert len(shown(kumo("event", "list", "--volume", V2.upper(), *J))) == 0
    assert kumo("event", "list", "--limit", "0")[0] == 2


def test_the_newest_events_or_all_since_one(kumo, filled, monkeypatch):
    monkeypatch.setattr(event_command, "AT_ONCE", 2)
    for number in range(7):
        filled.say("volume.created", volume_id=(V1, V2)[number % 2])
    assert numbers(kumo("event", "list", "--limit", "3", *J)) == [5, 6, 7]
    assert numbers(kumo("event", "list", "--volume", "v1", "--limit", "2", *J)) == [5, 7]
    assert numbers(kumo("event", "list", "--since", "1", *J)) == [2, 3, 4, 5, 6, 7]
    assert numbers(kumo("event", "list", "--since", "1", "--limit", "3", *J)) == [2, 3, 4]
    filled.forgotten = 3
    assert "have been forgotten" in kumo("event", "list", "--since", "2")[2]
    assert kumo("event", "list")[2] == ""


class Polls(list):
    """Does the next of these things before each long poll, then presses Ctrl-C."""

    def __init__(self, network, *steps):
        super().__init__()
        self.steps, self.fake = list(steps), network.servers[A]
        network.servers[A] = self

    def __call__(self, request):
        if "wait" in request.params:
            self.append(request.params)
            if not self.steps:
                raise KeyboardInterrupt
            answer = self.steps.pop(0)()
            if answer is not None:
                return answer
        return self.fake(request)


@pytest.mark.parametrize("form", ["table", "json"])
def test_following_events(kumo, filled, network, form):
    filled.say("volume.created", volume_id=V1)
    polls = Polls(
        network,
        lambda: filled.say("volume.deleted", volume_id=V1, host_id=H1, message="gone\nfor good"),
        lambda: None,
    )
    code, out, err = kumo("event", "list", "--follow", "--level", "INFO", "-f", form)
    assert (code, err) == (0, "kumo: go on with --since 2\n")
    lines = out.splitlines()
    assert len(lines) == 2
    assert [params["since"] for params in polls] == ["1", "2", "2"]
    assert polls[1]["wait"] == "20"
    if form == "json":
        assert [json.loads(line)["type"] for line in lines] == ["volume.created", "volume.deleted"]
    else:
        assert lines[1].endswith(f"volume.deleted gone for good volume={V1} host={H1}")


def test_following_survives_a_provisioner_that_restarts(kumo, filled, network, slept):
    def lost():
        raise ReadTimeout

    network.clock = None
    polls = Polls(
        network,
        lost,
        lambda: filled.say("volume.created"),
        lambda: Answer(errors.ForbiddenError("not any more").to_wire(), 403),
    )
    code, out, err = kumo("event", "list", "--follow", "--since", "0", KUMO_TIMEOUT="0.01")
    assert code == 1
    assert "volume.created" in out
    assert "Forbidden" in err
    assert [params["since"] for params in polls] == ["0", "0", "1"]


def test_following_that_is_interrupted_before_anything_came(kumo, network):
    def interrupt(request):
        raise KeyboardInterrupt

    network.servers[A] = interrupt
    assert kumo("event", "list", "--follow") == (0, "", "")
    assert kumo("event", "list")[0] == 130


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0 s"),
        (999, "0 s"),
        (61_000, "1 min 1 s"),
        (90_061_000, "1 d 1 h"),
        (86_460_000, "1 d 1 min"),
    ],
)
def test_durations(milliseconds, text):
    assert output.lasting(milliseconds) == text
