# SPDX-License-Identifier: Apache-2.0
import pytest

from lab import qmp
from lab.qmp import QmpError
from tests.fakes.lab_guest import FakeMonitor


@pytest.fixture
def monitor():
    fake = FakeMonitor()
    yield fake
    fake.join()


def test_a_command_follows_greeting_and_capabilities(monitor):
    assert qmp.execute(monitor.connect, "query-status") == {"status": "running"}
    assert [name for name, _ in monitor.commands] == ["qmp_capabilities", "query-status"]


def test_arguments_are_passed(monitor):
    qmp.execute(monitor.connect, "device_del", id="ssd1")
    assert monitor.commands[-1] == ("device_del", {"id": "ssd1"})


def test_events_before_the_answer_are_skipped(monitor):
    monitor.events = 3
    qmp.execute(monitor.connect, "stop")
    assert qmp.execute(monitor.connect, "query-status") == {"status": "paused"}


def test_a_refused_command(monitor):
    monitor.errors["cont"] = "Resetting the Virtual Machine is required"
    with pytest.raises(QmpError, match="Resetting the Virtual Machine is required"):
        qmp.execute(monitor.connect, "cont")


def test_a_monitor_that_goes_away(monitor):
    monitor.hangup.add("stop")
    with pytest.raises(QmpError, match="does not answer stop: connection closed"):
        qmp.execute(monitor.connect, "stop")


def test_a_monitor_that_is_silent(monitor):
    monitor.raw = b""
    with pytest.raises(QmpError, match="does not answer stop: timed out"):
        qmp.execute(monitor.connect, "stop", timeout=0.1)


@pytest.mark.parametrize("line", [b"no JSON\n", b"7\n"])
def test_an_answer_that_makes_no_sense(monitor, line):
    monitor.raw = line
    with pytest.raises(QmpError, match="does not answer stop"):
        qmp.execute(monitor.connect, "stop")


def test_no_monitor(monitor):
    monitor.refuse = FileNotFoundError(2, "No such file or directory")
    with pytest.raises(QmpError, match=r"does not answer stop: .*No such file"):
        qmp.execute(monitor.connect, "stop")
