# SPDX-License-Identifier: Apache-2.0
from datetime import UTC, datetime

import pytest

from lab.errors import LabError, ScenarioFailedError
from lab.runner import Runner, summary
from lab.scenario import Needs, Scenario

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def runner(labs, screen, clock, tmp_path):
    def make(keep=False, kernel="6.12"):
        return Runner(
            labs,
            "t",
            screen,
            kernel=kernel,
            keep=keep,
            directory=tmp_path / "failures",
            clock=clock,
            now=lambda: NOW,
        )

    return make


def scenario(name="one", needs=None, run=lambda ctx: None):
    return Scenario(name, f"shows {name}", needs or Needs(), run, None)


def failing(error):
    def run(ctx):
        with ctx.step("attach"):
            pass
        with ctx.step("detach"):
            raise error

    return run


def up(labs, screen, storage=3, compute=1):
    lab = labs.up("t", storage=storage, compute=compute, progress=screen, kernel="6.12")
    labs.events.clear()
    return lab


def test_scenarios_share_one_lab_which_is_gone_at_the_end(runner, labs, clock):
    seen = []

    def run(ctx):
        with ctx.step("work"):
            clock.now += 2
        seen.append((ctx.lab, ctx.keep))

    r = runner()
    assert r.run([scenario("a", Needs(3, 2), run), scenario("b", Needs(1, 1), run)])
    assert labs.events == ["up t 3+2", "down t"]
    assert seen[0] == seen[1]
    assert labs.loaded == []
    assert [(o.scenario, o.steps, o.seconds, o.error) for o in r.outcomes] == [
        ("a", 1, 2.0, None),
        ("b", 1, 2.0, None),
    ]


def test_a_lab_is_made_once_and_large_enough_for_all_that_is_to_run(runner, labs):
    assert runner().run([scenario("a", Needs(3, 1)), scenario("b", Needs(1, 2))])
    assert labs.events == ["up t 3+2", "down t"]


def test_a_lab_that_is_too_small_is_made_anew_and_no_smaller(runner, labs, screen):
    up(labs, screen)
    assert runner().run([scenario("b", Needs(1, 2))])
    assert labs.events == ["down t", "up t 3+2", "down t"]


def test_one_whose_clock_counts_instructions_has_a_lab_of_its_own(runner, labs, screen):
    alone = Needs(0, 1, icount=True)
    assert runner().run([scenario("a", Needs(3, 1)), scenario("b", alone), scenario("c", alone)])
    counting = "up t 0+1 ('icount', True)"
    assert labs.events == ["up t 3+1", "down t", counting, "down t"]
    up(labs, screen)
    assert runner().run([scenario("b", alone)])
    assert labs.events == ["down t", counting, "down t"]
    assert str(alone) == "0 storage, 1 compute, clocks that count instructions"


def test_a_lab_that_was_there_is_used_and_left(runner, labs, screen):
    up(labs, screen)
    assert runner().run([scenario()])
    assert labs.events == []
    assert labs.loaded == ["t"]
    assert labs.exists("t")


def test_a_lab_that_was_there_but_does_not_fit_is_replaced_and_then_ours(runner, labs, screen):
    up(labs, screen, storage=1)
    assert runner().run([scenario()])
    assert labs.events == ["down t", "up t 3+1", "down t"]


@pytest.mark.parametrize("state", ["off", "paused", "booting"])
def test_a_lab_with_a_machine_that_does_not_run_is_not_shared(runner, labs, state):
    def leave(ctx):
        ctx.lab.machines["storage2"].status = state

    assert runner().run([scenario("a", run=leave), scenario("b")])
    assert labs.count() == {"up": 2, "down": 2}


@pytest.mark.parametrize("kernel", ["6.1", "6.120"])
def test_a_lab_with_another_kernel_is_not_shared(runner, labs, screen, kernel):
    up(labs, screen)
    assert runner(kernel=kernel).run([scenario()])
    assert labs.count() == {"down": 2, "up": 1}


@pytest.mark.parametrize("error", [ScenarioFailedError("bad checksum\nmore"), KeyError("x")])
def test_after_a_failure_logs_are_kept_and_the_lab_is_made_anew(runner, labs, tmp_path, error):
    r = runner()
    assert not r.run([scenario("a", run=failing(error)), scenario("b")])
    assert labs.events == ["up t 3+1", "down t", "up t 3+1", "down t"]
    first, second = r.outcomes
    assert (first.steps, first.error, second.error) == (1, str(error), None)
    assert first.evidence == tmp_path / "failures/20260102T030405Z-a"
    assert (first.evidence / "logs/provisioner.log").exists()
    assert (first.evidence / "storage1-journal.log").exists()


def test_the_path_of_the_logs_is_printed(runner, screen, tmp_path):
    runner().run([scenario("a", run=failing(ValueError("v")))])
    assert f"logs of a: {tmp_path}/failures/20260102T030405Z-a" in screen.text
    assert "a FAILED: v" in screen.text


def test_an_error_without_text_has_the_name_of_its_kind(runner):
    r = runner()
    r.run([scenario(run=failing(TimeoutError()))])
    assert r.outcomes[0].error == "TimeoutError"


def test_a_lab_that_cannot_be_made_fails_the_scenario(runner, labs):
    labs.broken = LabError("storage1: not up after 300 s")
    r = runner()
    assert not r.run([scenario("a"), scenario("b")])
    assert [o.error for o in r.outcomes] == ["storage1: not up after 300 s"] * 2
    assert "there was no lab" in (r.outcomes[0].evidence / "error.txt").read_text()


@pytest.mark.parametrize("ran", ["well", "badly"])
def test_keep_leaves_the_lab_after_the_last_scenario(runner, labs, ran):
    run = failing(ValueError()) if ran == "badly" else lambda ctx: None
    assert runner(keep=True).run([scenario("a", run=run)]) is (ran == "well")
    assert labs.events == ["up t 3+1"]


def test_keep_does_not_keep_a_failed_lab_for_the_next_scenario(runner, labs):
    runner(keep=True).run([scenario("a", run=failing(ValueError())), scenario("b")])
    assert labs.events == ["up t 3+1", "down t", "up t 3+1"]


@pytest.mark.parametrize(("keep", "left"), [(False, False), (True, True)])
def test_an_interrupt_takes_the_lab_down_and_ends_the_run(runner, labs, screen, keep, left):
    up(labs, screen)
    r = runner(keep=keep)
    with pytest.raises(KeyboardInterrupt):
        r.run([scenario("a"), scenario("b", run=failing(KeyboardInterrupt())), scenario("c")])
    assert labs.exists("t") is left
    assert [o.scenario for o in r.outcomes] == ["a"]


def test_an_interrupt_while_the_lab_comes_up(runner, labs):
    labs.broken = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        runner().run([scenario()])
    assert labs.events == ["up t 3+1"]


def test_a_lab_that_cannot_be_taken_down_ends_the_run(runner, labs):
    labs.stuck = True
    r = runner()
    with pytest.raises(LabError, match="survived SIGKILL"):
        r.run([scenario("a", run=failing(ValueError())), scenario("b")])
    assert [o.scenario for o in r.outcomes] == ["a"]


def test_the_summary_has_a_line_for_each_scenario(runner, screen):
    r = runner()
    r.run([scenario("good"), scenario("bad", run=failing(ValueError("[odd] text\nmore")))])
    screen.show(summary(r.outcomes))
    table = screen.text[screen.text.index("scenario") :]
    good, bad = (next(x for x in table.splitlines() if n in x) for n in ("good", "bad"))
    assert "passed" in good
    assert "FAILED [odd] text" in bad
    assert "more" not in table


def test_a_scenario_that_wants_other_disks_gets_a_lab_with_them(runner, labs, screen):
    up(labs, screen)
    small = scenario("small", Needs(1, 0, ssds=3, ssd_gib=2))
    assert runner().run([scenario("any"), small, small])
    assert labs.events == ["down t", "up t 3+1 ('ssds', 3) ('ssd_gib', 2)", "down t"]
    assert str(small.needs) == "1 storage, 0 compute, 3 SSDs, SSDs of 2 GiB"


def test_who_says_nothing_of_disks_never_gets_those_of_another(runner, labs):
    small = scenario("small", Needs(1, 0, ssd_gib=2))
    same = scenario("same", Needs(1, 0, ssds=2))
    assert runner().run([scenario("any"), same, small, scenario("any"), small])
    assert labs.events == [
        *("up t 3+1", "down t"),
        *("up t 3+1 ('ssd_gib', 2)", "down t"),
        *("up t 3+1", "down t"),
        # Nothing more is to come.
        *("up t 1+0 ('ssd_gib', 2)", "down t"),
    ]


def test_a_lab_that_somebody_made_is_taken_as_it_is(runner, labs, screen):
    labs.up("t", storage=3, compute=1, progress=screen, kernel="6.12", ssds=4, ssd_gib=1)
    labs.events.clear()
    assert runner().run([scenario("any")])
    assert labs.events == []
