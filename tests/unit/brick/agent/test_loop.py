# SPDX-License-Identifier: Apache-2.0
"""The loop: its threads, its queues, and what wakes it."""

import concurrent.futures
import dataclasses
import threading

from os_brick_nvmeof import props
from os_brick_nvmeof.agent import actions, loop, model, plan, vendor
from os_brick_nvmeof.agent.store import Store
from tests.fakes.agent_host import Host
from tests.fakes.agent_world import LIMITS


def test_rounds_go_on_until_it_is_stopped(tmp_path):
    host = Host(tmp_path)
    seen = []
    agent = loop.Agent(
        host.ctx,
        host.storage,
        Store(tmp_path / "state"),
        LIMITS,
        model.Pace(look=0.01, busy=0.01, pull=0.01, probe=1),
    )

    def alive():
        seen.append("round")
        if len(seen) == 3:
            agent.stop()

    assert agent.run(alive) is True
    assert seen == ["round"] * 3


def test_it_ends_while_something_hangs_and_remembers_what_it_knew(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STOP_SECONDS", 0.05)
    host = Host(tmp_path)
    agent = loop.Agent(host.ctx, host.storage, Store(tmp_path / "state"), LIMITS)
    begun, goes_on = threading.Event(), threading.Event()

    def hangs(_action):
        begun.set()
        return goes_on.wait(300)

    def alive():
        agent.known.memory = dataclasses.replace(agent.known.memory, counted={"v": 7.0})
        agent.messages.put("INFO", "a", {})

    made = plan.Plan((deed("v1"),), ())
    agent.perform, agent.round = hangs, lambda: made
    agent.wake.wait = lambda _seconds: begun.wait(300) and agent.stop()
    try:
        assert agent.run(alive) is False
        assert agent.store.memory().counted == {"v": 7.0}
        assert [one["text"] for one in agent.store.messages()] == ["a"]
    finally:
        goes_on.set()


def test_what_has_not_begun_when_it_ends_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "STOP_SECONDS", 300.0)
    host = Host(tmp_path)
    pace = model.Pace(parallel=1)
    agent = loop.Agent(host.ctx, host.storage, Store(tmp_path / "state"), LIMITS, pace)
    begun, done = threading.Semaphore(0), []

    def slow(action):
        begun.release()
        agent.stopping.wait(300)
        done.append(action)
        return True

    made = plan.Plan(tuple(deed(f"v{number}") for number in range(5)), ())
    agent.perform, agent.round = slow, lambda: made
    agent.wake.wait = lambda _seconds: begun.acquire(timeout=300) and agent.stop()
    assert agent.run() is True
    assert len(done) <= 2


def deed(volume, kind=actions.SetSlots, **more):
    given = {"array": volume, "name": "md1", "slots": 2} | more
    return kind(volume=volume, reason="r", **given)


def portal(volume, nqn):
    where = props.Portal("10.0.0.1", "4420", "tcp")
    given = {"leg": "l", "nqn": nqn, "portal": where, "io_class": "replicated"}
    return actions.Reconnect(volume=volume, reason="r", **given)


def test_a_slow_provisioner_does_not_keep_a_dead_leg_in_its_array(tmp_path):
    host = Host(tmp_path)
    agent = loop.Agent(host.ctx, host.storage, Store(tmp_path / "state"), LIMITS)
    agent._busy.add("v1")
    dead = actions.FailLeg(
        volume="v1", leg="l", array="v1", name="md1", device="nvme0n1", reason="r"
    )
    done = []
    agent.perform = lambda action: done.append(action) or True
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        concurrent.futures.wait(agent.dispatch(plan.Plan((deed("v1"), dead), ()), pool, pool))
    assert done == [dead]


def test_what_ended_while_a_plan_was_made_is_not_begun_again(tmp_path):
    host = Host(tmp_path)
    agent = loop.Agent(host.ctx, host.storage, Store(tmp_path / "state"), LIMITS)
    done = []
    agent.perform = lambda action: done.append(action) or True
    made = plan.Plan((deed("v1"),), ())
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        concurrent.futures.wait(agent.dispatch(made, pool, pool))
        assert agent.dispatch(made, pool, pool) == []
        # The next plan knows of it.
        agent.round()
        concurrent.futures.wait(agent.dispatch(made, pool, pool))
    assert len(done) == 2


def test_volumes_are_worked_on_at_the_same_time_and_each_one_in_order(tmp_path):
    host = Host(tmp_path)
    agent = loop.Agent(host.ctx, host.storage, Store(tmp_path / "state"), LIMITS)
    together = threading.Barrier(4)
    done = []

    def perform(action):
        done.append(action)
        if isinstance(action, actions.Reconnect) or action.slots == 2:
            # Broken, and so an error, unless all four get here.
            together.wait(20)
        return True

    agent.perform = perform
    first = [deed("v1"), deed("v1", slots=3), deed("v2"), deed("v3"), portal("v1", "nqn.1")]
    made = plan.Plan(tuple(first), ())
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = agent.dispatch(made, pool, pool)
        # What is under way is not begun again.
        agent._busy.add("v9")
        again = agent.dispatch(plan.Plan((deed("v9"),), ()), pool, pool)
        concurrent.futures.wait(futures)
    assert [future.exception() for future in futures] == [None] * 4
    assert again == []
    assert sorted(done, key=first.index) == first
    assert done.index(first[1]) > done.index(first[0])
    assert agent.wake.is_set()


def test_a_defect_in_one_action_does_not_end_the_others(tmp_path, caplog):
    host = Host(tmp_path)
    host.attach()
    host.md.write("md127", b"x")
    agent = loop.Agent(host.ctx, host.storage, Store(tmp_path / "state"), LIMITS)

    def defect(_volume, _legs):
        raise ZeroDivisionError

    host.storage.report_array = defect
    agent.once()
    assert "A defect" in caplog.text
    assert agent.known.memory.tried[next(iter(agent.known.memory.tried))].error.startswith(
        "ZeroDivisionError"
    )


def test_the_threads_that_ask_go_on_after_a_failure(tmp_path, caplog):
    host = Host(tmp_path)
    agent = loop.Agent(
        host.ctx, host.storage, Store(tmp_path / "state"), LIMITS, model.Pace(busy=0.01, pull=0.01)
    )
    asked = []

    def pull():
        asked.append("pull")
        if len(asked) == 1:
            raise ZeroDivisionError
        agent.stop()
        return True

    agent.asking.pull = pull
    agent.asking.run()
    assert asked == ["pull", "pull"]
    assert "A defect of thread" in caplog.text


def test_an_answer_like_the_last_one_wakes_nobody(tmp_path):
    host = Host(tmp_path)
    agent = loop.Agent(host.ctx, host.storage, Store(tmp_path / "state"), LIMITS)

    def woken():
        agent.wake.clear()
        agent.asking.pull()
        return agent.wake.is_set()

    assert woken()
    saved = (tmp_path / "state/wanted.json").stat().st_mtime_ns
    assert not woken()
    assert (tmp_path / "state/wanted.json").stat().st_mtime_ns == saved
    host.storage.tasks["t"] = model.Task("t", model.MIGRATION, model.IDLE, "", 0.0, {})
    assert woken()
    host.storage.records[0].state = "Missing"
    assert woken()
    assert not woken()
    host.storage.away = True
    assert woken()
    assert not woken()
    host.storage.away = False
    assert woken()
    # Whether it has what it was told, the answer alone tells.
    agent.known.memory = dataclasses.replace(agent.known.memory, told={"v": model.Told(1.0, {})})
    assert woken()


def test_how_long_ago_a_leg_got_its_state_is_no_news():
    leg = model.Leg("l", "n1", "nqn.1", (), since=1.0)
    assert leg == dataclasses.replace(leg, since=1.001)
    assert leg != dataclasses.replace(leg, state="Missing")


def test_a_sign_of_life_with_a_defect_ends_no_thread(tmp_path, caplog):
    host = Host(tmp_path)
    agent = loop.Agent(
        host.ctx,
        host.storage,
        Store(tmp_path / "state"),
        LIMITS,
        model.Pace(busy=0.01, pull=0.01, probe=0.001),
    )
    asked = []

    def probe():
        if asked:
            raise ZeroDivisionError

    def pull():
        asked.append("pull")
        if len(asked) == 3:
            agent.stop()
        return True

    agent.asking.probe, agent.asking.pull = probe, pull
    agent.asking.run()
    assert asked == ["pull"] * 3
    assert "A defect of thread" in caplog.text


def test_the_memory_is_written_by_one_at_a_time_and_the_newest_last(tmp_path):
    host = Host(tmp_path)
    agent = loop.Agent(host.ctx, host.storage, Store(tmp_path / "state"), LIMITS)
    begun, goes_on, written = threading.Semaphore(0), threading.Event(), []

    def save(memory):
        begun.release()
        assert goes_on.wait(20)
        written.append(sorted(memory.asked))

    agent.store.save_memory = save

    def ask(leg):
        agent._intend(
            actions.AskReplacement(volume="v", leg=leg, before=frozenset("ab"), reason="r")
        )

    first = threading.Thread(target=ask, args=("a",), daemon=True)
    first.start()
    assert begun.acquire(timeout=20)
    second = threading.Thread(target=ask, args=("b",), daemon=True)
    second.start()
    # It waits for the first.
    assert not begun.acquire(timeout=0.1)
    goes_on.set()
    for one in (first, second):
        one.join(20)
    assert written == [["a"], ["a", "b"]]
    # Nor does one that comes late write less than is known by then.
    agent.known.save_memory("the memory")
    assert written[-1] == ["a", "b"]


def test_events_lead_to_a_question(tmp_path):
    host = Host(tmp_path)
    agent = loop.Agent(
        host.ctx, host.storage, Store(tmp_path / "state"), LIMITS, model.Pace(busy=0.01)
    )
    given = [
        vendor.News(7, look=True),
        ZeroDivisionError(),
        vendor.VendorError("away", away=True),
    ]
    asked = []

    def wait(since, _seconds):
        asked.append((since, agent.asking.again.is_set()))
        one = given.pop(0)
        if isinstance(one, Exception):
            if not given:
                agent.stopping.set()
            raise one
        return one

    host.storage.wait = wait
    agent.asking.listen()
    assert asked == [(None, False), (7, True), (None, True)]
