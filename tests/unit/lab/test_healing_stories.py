# SPDX-License-Identifier: Apache-2.0
"""The host's half of the stories in one machine."""

import json
from types import SimpleNamespace

import pytest

from lab import guest_stories
from lab.errors import ScenarioFailedError
from lab.scenario import Context
from lab.scenarios import healing_stories


class Machine:
    """:param told: lines that come, one with each look."""

    def __init__(self, told):
        self.told, self.looks, self.begun, self.ended = told, 0, [], False

    def run(self, command, *, check=True):
        if command[0] == "systemd-run":
            assert self.ended, "an earlier one may be there"
            self.begun.append(command[-1])
        if "systemctl kill" in command:
            self.ended = True
            return SimpleNamespace(returncode=0, stdout="")
        if "is-active" in command:
            return SimpleNamespace(returncode=int(self.looks > len(self.told)), stdout="")
        if "journalctl" in command:
            return SimpleNamespace(returncode=0, stdout="Traceback")
        self.looks += 1
        text = "\n".join(json.dumps(one) for one in self.told[: self.looks - 1])
        return SimpleNamespace(returncode=0, stdout=text)


@pytest.fixture
def play(screen, monkeypatch):
    monkeypatch.setattr(healing_stories, "_POLL", 0.0)
    monkeypatch.setenv("KUMO_LAB_SEED", "7")
    monkeypatch.delenv("KUMO_LAB_STORIES", raising=False)

    def run(told):
        machine = Machine(told)
        ctx = Context(SimpleNamespace(compute=[machine]), screen)
        healing_stories.run(ctx)
        return machine, ctx

    return run


def lines(names=tuple(healing_stories.STORIES)):
    return [{"story": name, "seconds": 9.0, "notes": [f"{name} went well"]} for name in names]


def test_each_story_is_a_step(play):
    machine, ctx = play(lines())
    assert [step.text for step in ctx.steps] == list(healing_stories.STORIES.values())
    assert f"guest_stories 7 {' '.join(healing_stories.STORIES)}" in machine.begun[0]
    assert {*healing_stories.STORIES, *healing_stories.ON_REQUEST} == set(guest_stories.STORIES)


def test_some_that_are_named(play, monkeypatch):
    monkeypatch.setenv("KUMO_LAB_STORIES", "many,both-brief")
    machine, ctx = play(lines(["many", "both-brief"]))
    assert [step.text for step in ctx.steps] == [
        healing_stories.ON_REQUEST["many"],
        healing_stories.STORIES["both-brief"],
    ]
    assert "guest_stories 7 many both-brief " in machine.begun[0]


def test_one_that_there_is_not(play, monkeypatch):
    monkeypatch.setenv("KUMO_LAB_STORIES", "few")
    with pytest.raises(ScenarioFailedError, match=r"no story \['few'\]; there are both-brief"):
        play([])


def test_one_that_goes_wrong_ends_it(play):
    told = lines()
    told[1]["error"] = "WrongError: data"
    with pytest.raises(ScenarioFailedError, match="power: WrongError: data"):
        play(told)


def test_an_end_without_a_word_is_told_with_the_log(play):
    with pytest.raises(ScenarioFailedError, match="before their time:\nTraceback"):
        play(lines()[:1])
