# SPDX-License-Identifier: Apache-2.0
"""A provisioner that does not answer holds up no healing, and is told of it afterwards."""

import concurrent.futures
import contextlib
import json
import threading

import pytest

from os_brick_nvmeof.agent import messages
from os_brick_nvmeof.agent.messages import Messages
from os_brick_nvmeof.agent.vendor import FATAL, INFO, VendorError
from tests.unit.brick.agent.stories import GOOD, A, B, records
from tests.unit.brick.volumes import VOLUME

AWAY = VendorError("nobody answers", away=True)
REFUSED = VendorError("not allowed", definite=True)
BROKEN = VendorError("internal error")


class Frozen:
    """Calls that hang until they are let go on."""

    def __init__(self):
        self.called, self.goes_on = threading.Event(), threading.Event()

    def __call__(self, call):
        def hangs(*args):
            self.called.set()
            assert self.goes_on.wait(300)
            return call(*args)

        return hangs


@pytest.fixture
def frozen():
    made = Frozen()
    yield made
    made.goes_on.set()


@contextlib.contextmanager
def running(work, stop):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    stop()
    thread.join(20)
    assert not thread.is_alive()


def one_worker():
    return concurrent.futures.ThreadPoolExecutor(1)


# -- stories --------------------------------------------------------------------------------------


def test_healing_goes_on_while_nobody_takes_what_is_told(host, run, frozen):
    host.storage.tell = frozen(host.storage.tell)
    run.lose()
    run.tells = False
    with running(run.agent.messages.run, run.agent.stop) as sender:

        def heal():
            run.rounds(2)
            host.back(1)
            host.settle(3)
            run.rounds(4)

        healer = threading.Thread(target=heal, daemon=True)
        healer.start()
        healer.join(200)
        assert not healer.is_alive()
        assert frozen.called.wait(20)
        assert host.in_sync() == {A, B}
        assert host.storage.told == []
        (entry,) = json.loads((run.path / "state/history.json").read_text())
        assert (entry["leg"], entry["ok"]) == (B, True)
        frozen.goes_on.set()
        for _ in range(6000):
            if len(host.storage.told) == 2:
                break
            sender.join(0.01)
    assert host.storage.told == [
        ("WARN", f"ReAdd: volume {VOLUME}"),
        (INFO, f"healed: volume {VOLUME}"),
    ]


def test_a_leg_is_put_back_while_a_report_is_not_answered(host, run, frozen):
    run.lose()
    host.storage.report_array = frozen(host.storage.report_array)
    run.agent.round()
    host.back(1)
    host.settle(3)
    run.agent.asking.pull()
    made = run.agent.round()
    assert [one.kind for one in made.actions] == ["ReportArray", "ReAdd"]
    with one_worker() as pool, one_worker() as saying:
        report, put_back = run.agent.dispatch(made, pool, saying)
        put_back.result(200)
        assert not report.done()
        # It is not begun twice.
        assert run.agent.dispatch(made, pool, saying) == []
        frozen.goes_on.set()
        report.result(200)
    host.settle(1)
    assert host.in_sync() == {A, B}
    run.rounds(2)
    assert records(host) == {A: GOOD, B: GOOD}


def test_what_was_done_is_told_in_order_when_the_provisioner_answers_again(host, run):
    run.lose()
    host.storage.away = True
    run.rounds(2)
    host.back(1)
    host.settle(3)
    run.rounds(4)
    assert host.in_sync() == {A, B}
    assert host.storage.told == []
    host.storage.away = False
    run.round()
    assert [text.partition(":")[0] for _, text in host.storage.told] == ["ReAdd", "healed"]


def test_one_round_alone_tells_what_it_did(host, run):
    run.lose()
    run.rounds(1)
    host.back(1)
    host.settle(3)
    run.agent.once()
    assert host.storage.told == [("WARN", f"ReAdd: volume {VOLUME}")]


# -- the queue ------------------------------------------------------------------------------------


class Vendor:
    """:ivar script: errors that come first; None: it is taken."""

    def __init__(self, *script):
        self.script, self.told, self.asked = list(script), [], threading.Semaphore(0)

    def tell(self, level, message, details):
        self.asked.release()
        problem = self.script.pop(0) if self.script else None
        if problem is not None:
            raise problem
        self.told.append((level, message, details))

    @property
    def texts(self):
        return [text for _, text, _ in self.told]


def queue(vendor, *texts):
    made = Messages(vendor, lambda: 1234.5678)
    for text in texts:
        made.put(INFO, text, {"leg": "l"})
    return made


def test_each_says_when_it_happened():
    vendor = Vendor()
    queue(vendor, "a").send()
    assert vendor.told == [(INFO, "a", {"leg": "l", "time": 1234.568})]


def test_what_cannot_be_sent_is_sent_again_first():
    vendor = Vendor(None, AWAY, AWAY)
    made = queue(vendor, "a", "b", "c")
    made.send()
    assert vendor.texts == ["a"]
    made.put(FATAL, "d", {})
    made.send()
    assert vendor.texts == ["a"]
    made.send()
    assert vendor.texts == ["a", "b", "c", "d"]


@pytest.mark.parametrize("problem", [REFUSED, ZeroDivisionError()])
def test_what_is_refused_does_not_hold_up_the_rest(problem, caplog):
    vendor = Vendor(problem)
    queue(vendor, "a", "b").send()
    assert vendor.texts == ["b"]
    assert "is not told 'a'" in caplog.text


def test_what_is_answered_with_an_error_each_time_is_given_up(caplog):
    vendor = Vendor(*[BROKEN] * messages.TRIES)
    made = queue(vendor, "a", "b")
    for _ in range(messages.TRIES - 1):
        made.send()
    assert vendor.texts == []
    assert "is not told" not in caplog.text
    made.send()
    assert vendor.texts == ["b"]
    assert "is not told 'a'" in caplog.text


def test_the_oldest_are_dropped_when_there_are_too_many(monkeypatch, caplog):
    monkeypatch.setattr(messages, "MOST", 2)
    vendor = Vendor(AWAY)
    made = queue(vendor, "a", "b")
    made.send()
    made.put(INFO, "c", {})
    assert "dropped: a" in caplog.text
    made.send()
    assert vendor.texts == ["b", "c"]


def test_one_that_is_dropped_while_it_is_sent_takes_no_other_with_it(monkeypatch):
    monkeypatch.setattr(messages, "MOST", 1)
    vendor = Vendor()
    made = queue(vendor, "a")
    tell = vendor.tell

    def slow(level, message, details):
        vendor.tell = tell
        made.put(INFO, "b", {})
        tell(level, message, details)

    vendor.tell = slow
    made.send()
    assert vendor.texts == ["a", "b"]


def test_the_thread_sends_what_waits_as_soon_as_it_is_answered(monkeypatch):
    monkeypatch.setattr(messages, "PAUSE", 60.0)
    vendor = Vendor(AWAY)
    made = queue(vendor)
    with running(made.run, made.stop):
        made.again()
        made.put(INFO, "a", {})
        assert vendor.asked.acquire(timeout=20)
        made.again()
        assert vendor.asked.acquire(timeout=20)
    assert vendor.texts == ["a"]


def test_the_thread_sends_again_after_a_pause(monkeypatch):
    monkeypatch.setattr(messages, "PAUSE", 0.01)
    vendor = Vendor(AWAY, AWAY)
    made = queue(vendor, "a")
    with running(made.run, made.stop):
        for _ in range(3):
            assert vendor.asked.acquire(timeout=20)
    assert vendor.texts == ["a"]


def test_it_ends_when_it_is_told_and_says_what_is_left(caplog):
    vendor = Vendor(AWAY)
    made = queue(vendor, "a", "b")
    with running(made.run, made.stop):
        assert vendor.asked.acquire(timeout=20)
    assert vendor.texts == []
    assert "2 messages are told when the agent runs again" in caplog.text


# -- what waits outlives the process --------------------------------------------------------------


def test_what_waits_is_told_by_the_next_process(host, run):
    run.lose()
    host.storage.away = True
    run.tells = False
    with running(run.agent.messages.run, run.agent.stop):
        run.rounds(2)
        host.back(1)
        host.settle(3)
        run.rounds(4)
    assert host.storage.told == []
    run.start()
    host.storage.away = False
    run.agent.messages.send()
    assert [text.partition(":")[0] for _, text in host.storage.told] == ["ReAdd", "healed"]
    run.agent.messages.keep()
    run.start()
    run.agent.messages.send()
    assert len(host.storage.told) == 2


def test_an_agent_that_is_killed_has_kept_what_it_could_not_send(host, run):
    """Not only when it ends in order."""
    host.storage.away = True
    made = run.agent.messages
    asked = threading.Event()

    def tell(*_):
        asked.set()
        raise AWAY

    host.storage.tell = tell
    with running(made.run, made.stop):
        made.put(INFO, "a", {"leg": "l"})
        assert asked.wait(20)
        for _ in range(6000):
            if run.agent.store.messages():
                break
            threading.Event().wait(0.01)
        (kept,) = run.agent.store.messages()
    assert (kept["level"], kept["text"], kept["details"]["leg"]) == (INFO, "a", "l")


def test_as_many_are_kept_as_may_wait(monkeypatch):
    monkeypatch.setattr(messages, "MOST", 2)
    vendor = Vendor()
    kept = [{"level": INFO, "text": text, "details": {}, "tried": 4} for text in "abc"]
    made = Messages(vendor, lambda: 1.0, kept)
    made.put(INFO, "d", {})
    made.send()
    assert vendor.texts == ["c", "d"]


def test_how_often_one_was_tried_is_kept(caplog):
    vendor = Vendor(BROKEN, BROKEN)
    kept = [{"level": INFO, "text": "a", "details": {}, "tried": messages.TRIES - 1}]
    made = Messages(vendor, lambda: 1.0, kept)
    made.send()
    assert "is not told 'a'" in caplog.text
    made.send()
    assert vendor.texts == []


def test_nothing_is_written_while_nothing_changes():
    saved, fails = [], [OSError(28, "full")]

    def save(waiting):
        if fails:
            raise fails.pop()
        saved.append([one["text"] for one in waiting])

    vendor = Vendor(AWAY, AWAY)
    made = Messages(vendor, lambda: 1.0, (), save)
    made.keep()
    assert saved == []
    made.put(INFO, "a", {})
    made.keep()
    assert saved == []
    for _ in range(3):
        made.keep()
    assert saved == [["a"]]
    made.send()
    made.keep()
    assert saved == [["a"]]
    made.send()
    made.send()
    made.keep()
    assert saved == [["a"], []]


@pytest.mark.parametrize("text", ["nonsense", "[1]", '[{"level": "INFO"}]', "{}"])
def test_messages_that_cannot_be_read_are_put_aside(host, run, text):
    (run.path / "state/messages.json").write_text(text)
    run.start()
    run.agent.messages.send()
    assert host.storage.told == []
