# SPDX-License-Identifier: Apache-2.0
import pytest

from lab.openstack.readiness import ServiceFailedError, Waiter, tail
from lab.openstack.service import Service


class World:
    """Processes and time: a service answers from a given second on, or dies at one."""

    def __init__(self, directory):
        self.now, self.dead, self.directory = 0.0, set(), directory
        self.at = {}

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        for moment, action in sorted(self.at.items()):
            if moment <= self.now:
                del self.at[moment]
                action()

    def log(self, name):
        return self.directory / f"{name}.log"

    def waiter(self):
        return Waiter(
            lambda probe: probe(),
            lambda name: name not in self.dead,
            self.log,
            self.clock,
            self.sleep,
        )

    def service(self, name, ready_at, marks=()):
        def ready():
            if self.now < ready_at - 1:
                raise ConnectionRefusedError
            return self.now >= ready_at

        return Service(name, [name], ready, failure_marks=marks)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_waits_for_all_and_reports_each_with_its_time(world):
    seen = []
    world.waiter().wait(
        [world.service("slow", 5), world.service("fast", 2)],
        30,
        lambda name, seconds: seen.append((name, round(seconds))),
    )
    assert seen == [("fast", 2), ("slow", 5)]


def test_deadline_names_who_is_late_and_shows_the_log(world):
    world.log("late").write_text("first\ncannot reach database\n")
    with pytest.raises(ServiceFailedError) as caught:
        world.waiter().wait(
            [world.service("late", 99), world.service("quick", 1)], 10, lambda *_: None
        )
    assert caught.value.name == "late"
    assert "not ready after 10 s (waiting for: late)" in str(caught.value)
    assert "cannot reach database" in str(caught.value)
    assert 10 < world.now < 11


def test_ended_process_is_reported_at_once(world):
    world.log("gone").write_text("Traceback: bad option\n")
    world.at[3.0] = lambda: world.dead.add("gone")
    with pytest.raises(ServiceFailedError, match=r"(?s)process ended.*bad option"):
        world.waiter().wait([world.service("gone", 99)], 60, lambda *_: None)
    assert world.now < 4


def test_failure_in_the_log_is_reported_at_once(world):
    world.at[2.0] = lambda: world.log("volume").write_text("ERROR Failed to start driver\n")
    service = world.service("volume", 99, marks=("Failed to start",))
    with pytest.raises(ServiceFailedError, match="log says 'Failed to start'"):
        world.waiter().wait([service], 60, lambda *_: None)
    assert world.now < 3


def test_failure_of_an_earlier_start_does_not_count(world):
    world.log("volume").write_text("ERROR Failed to start driver\n")
    service, waiter, seen = world.service("volume", 4, marks=("Failed to start",)), None, []
    waiter = world.waiter()
    waiter.expect(service)
    waiter.wait([service], 60, lambda name, _: seen.append(name))
    assert seen == ["volume"]


def test_a_bug_in_a_probe_is_not_taken_for_not_yet(world):
    def ready():
        raise KeyError("pools")

    with pytest.raises(KeyError):
        world.waiter().wait([Service("x", ["x"], ready)], 5, lambda *_: None)


def test_tail_of_a_log(tmp_path):
    log = tmp_path / "log"
    assert tail(log) == "(no log)"
    log.write_bytes(b"one\ntwo \xff\nthree\n")
    assert tail(log, lines=2) == "two \ufffd\nthree"
