# SPDX-License-Identifier: Apache-2.0
"""What the scenarios of the connector have in common, over a host that prints what it is told."""

from types import SimpleNamespace

import pytest

from lab.errors import LabError, ScenarioFailedError
from lab.scenario import Context
from lab.scenarios import _connector
from lab.scenarios._connector import Controller, Trial, edition, leg_uuids

CONTROLLERS = """\
nvme1 nqn.x:1 traddr=10.77.0.11,trsvcid=4420,src_addr=10.77.0.101 live
nvme2 nqn.x:2 traddr=10.77.0.12,trsvcid=4420 connecting
"""
ARRAY = "md127\n2\n{degraded}\nclean\n1048576\n{action}\n"


class FakeHost:
    def __init__(self):
        self.output = {}
        self.commands = []

    def run(self, command, *, check=True, timeout=120.0):
        self.commands.append(command)
        for part, text in self.output.items():
            if part in command:
                found = text.pop(0) if isinstance(text, list) else text
                return SimpleNamespace(stdout=found, returncode=0)
        return SimpleNamespace(stdout="", returncode=0)


class FakeVolumes:
    def __init__(self):
        self.attachments, self.deleted = {}, []

    def clear(self):
        self.attachments.clear()

    def nodes(self, volume):
        return {"leg1": "10.77.0.12"}

    def delete(self, volume):
        self.deleted.append(volume)


@pytest.fixture
def trial(screen, clock, monkeypatch):
    times = SimpleNamespace(monotonic=clock, sleep=clock.sleep)
    monkeypatch.setattr(_connector, "time", times)
    found = Trial.__new__(Trial)
    storage = [SimpleNamespace(address=f"10.77.0.1{n}", run=FakeHost().run) for n in (1, 2)]
    found.ctx = Context(SimpleNamespace(storage=storage), screen, clock=clock)
    found.edition = "ours"
    found.machine = FakeHost()
    found.volumes = FakeVolumes()
    found._made = []
    found._client = SimpleNamespace(close=lambda: None)
    return found


def show(trial, *arrays, controllers=""):
    trial.machine.output = {"nvme-fabrics": controllers, "/sys/block/md*": list(arrays)}


def test_which_os_brick_is_chosen(monkeypatch):
    monkeypatch.delenv("KUMO_LAB_OS_BRICK", raising=False)
    assert edition() == "ours"
    monkeypatch.setenv("KUMO_LAB_OS_BRICK", "stock")
    assert edition() == "stock"
    monkeypatch.setenv("KUMO_LAB_OS_BRICK", "mine")
    with pytest.raises(LabError, match="no edition 'mine'"):
        edition()


def test_connections_and_arrays_are_read(trial):
    show(trial, ARRAY.format(degraded=1, action="recover"), controllers=CONTROLLERS)
    assert trial.controllers() == [
        Controller("nvme1", "nqn.x:1", "10.77.0.11", "live"),
        Controller("nvme2", "nqn.x:2", "10.77.0.12", "connecting"),
    ]
    assert trial.array() == {
        "raid_disks": "2",
        "degraded": "1",
        "array_state": "clean",
        "component_size": "1048576",
        "sync_action": "recover",
    }
    show(trial, "")
    with pytest.raises(ScenarioFailedError, match="one array is wanted"):
        trial.array()


def test_waiting_for_an_array_to_be_whole(trial, clock):
    busy, done = (ARRAY.format(degraded=d, action=a) for d, a in ((1, "recover"), (0, "idle")))
    show(trial, busy, busy, done)
    assert trial.wait_whole() == 1.0
    show(trial, *[busy] * 500)
    with pytest.raises(ScenarioFailedError, match="the array stays"):
        trial.wait_whole()
    # Stock os-brick puts no leg back, and the scenario goes on.
    trial.edition, begin = "stock", clock()
    show(trial, *[busy] * 500)
    with pytest.raises(ScenarioFailedError, match="the array stays"):
        trial.wait_whole()
    assert clock() - begin == pytest.approx(30, abs=1)


def test_what_is_left_on_the_host_is_told(trial):
    show(trial, "")
    trial.check_empty()
    show(trial, *[""] * 100, controllers=CONTROLLERS)
    with pytest.raises(ScenarioFailedError, match=r"left on the host: .*10\.77\.0\.11"):
        trial.check_empty()


@pytest.mark.parametrize("chosen", ["ours", "stock"])
def test_a_case_that_fails_ends_the_scenario_unless_it_is_stock(trial, screen, chosen):
    trial.edition = chosen
    trial.volumes.attachments["a1"] = ("v", {})
    show(trial, "")

    def fail():
        with trial.case("attach"):
            trial.ctx.check(False, "old data")

    if chosen == "ours":
        with pytest.raises(ScenarioFailedError):
            fail()
        assert "a1" in trial.volumes.attachments
        return
    fail()
    assert trial.volumes.attachments == {}
    assert "STOCK FAILS: old data" in screen.text


def test_clearing_by_force_goes_on_until_nothing_is_there(trial):
    there = ARRAY.format(degraded=0, action="idle")
    show(trial, there, there, "")
    trial.force_clear()
    stops = [command for command in trial.machine.commands if "--stop" in command]
    assert len(stops) == 3


def test_load(trial, clock):
    trial.start_load("/dev/md127", 5.0)
    assert "lab.guest_load /dev/md127 5.0" in trial.machine.commands[-1]
    told = '{"write": {"count": 3, "longest": 1.5, "error": ""}}'
    trial.machine.output = {"cat /run/kumo-load": ["", "", told]}
    assert trial.load()["write"]["longest"] == 1.5
    trial.machine.output = {"cat /run/kumo-load": ""}
    with pytest.raises(LabError, match="does not end"):
        trial.load()


def test_data_sizes_and_legs(trial):
    trial.machine.output = {"sha256sum": "abc  -\n", "getsize64": "1073741824\n"}
    assert trial.write("/dev/md127", "mark") == "abc"
    assert trial.size("/dev/md127") == 1 << 30
    assert trial.node("v", "leg1").address == "10.77.0.12"
    assert trial.leg_device("v", "leg1") == ""
    attachment = SimpleNamespace(data={"volume_replicas": [{"vol_uuid": "u"}]})
    assert leg_uuids(attachment) == ["u"]


def test_at_the_end_volumes_go_and_nothing_may_be_left(trial, monkeypatch):
    left = {"compute1": []}
    monkeypatch.setattr(_connector, "inventory", lambda lab: left)
    trial._made = ["v1"]
    trial.volumes.attachments["a1"] = ("v1", {})
    trial.close()
    assert trial.volumes.deleted == ["v1"]
    left["compute1"] = ["controller nqn.x:1"]
    with pytest.raises(ScenarioFailedError, match="left behind"):
        trial.close()


def test_a_detach_in_order_is_reported(trial, monkeypatch):
    told = []
    show(trial, "")
    storage = FakeHost()
    storage.output = {"--examine": "         Events : 17\n", "lvs": "/dev/vg/r-u\n"}
    trial.ctx.lab.storage[1].run = storage.run
    monkeypatch.setattr(trial.volumes, "nodes", lambda volume: {"u": "10.77.0.12"})
    trial.volumes.report_clean = lambda *args: told.append(args)
    trial.compute = SimpleNamespace(
        disconnect=lambda a: told.append("disconnect"), forget=lambda a: told.append("forget")
    )
    data = {"volume_replicas": [{"vol_uuid": "u"}]}
    trial.detach(SimpleNamespace(data=data, volume="v", identifier="a1"))
    assert told == ["disconnect", ("a1", {"u": 17}), "forget"]
    assert "mdadm --examine /dev/vg/r-u | grep Events" in storage.commands
