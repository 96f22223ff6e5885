# SPDX-License-Identifier: Apache-2.0
"""What the scenarios of the connector have in common, over a host that prints what it is told."""

from types import SimpleNamespace

import pytest

from lab.compute import Attachment, BrickError
from lab.errors import LabError, ScenarioFailedError
from lab.guest_agent import GuestAgentError
from lab.scenario import Context
from lab.scenarios import _connector
from lab.scenarios._connector import Controller, Trial, edition, leg_uuids

CONTROLLERS = """\
nvme1 nqn.x:1 traddr=10.77.0.11,trsvcid=4420,src_addr=10.77.0.101 live
nvme2 nqn.x:2 traddr=10.77.0.12,trsvcid=4420 connecting
"""
ARRAY = "md127\n2\n{degraded}\nclean\n1048576\n{action}\n"


class FakeHost:
    """Prints ``output`` by parts of commands; what has ``hangs`` in it does not end."""

    def __init__(self):
        self.output = {}
        self.commands = []
        self.hangs = None
        self.power = []

    def kill(self):
        self.power.append("kill")
        # What hung is gone with the kernel that it hung in.
        self.hangs = None
        self.output = {}

    def start(self):
        self.power.append("start")

    def wait_ready(self):
        self.power.append("ready")

    def run(self, command, *, check=True, timeout=120.0):
        self.commands.append(command)
        if self.hangs and self.hangs in command:
            raise GuestAgentError(f"compute1: not done after {timeout:.0f} s")
        for part, text in self.output.items():
            if part in command:
                found = text.pop(0) if isinstance(text, list) else text
                return SimpleNamespace(stdout=found, returncode=0)
        return SimpleNamespace(stdout="", returncode=0)


class FakeCompute:
    """A connector; ``data`` is what its devices have by their paths."""

    def __init__(self):
        self.started, self.asked, self.attached = 0, [], []
        self.brick = SimpleNamespace(call=lambda name, **args: self.asked.append((name, args)))

    def start(self):
        self.started += 1

    def reserve(self, volume):
        return Attachment(f"of-{volume}", volume, {})

    def attach(self, volume):
        made = self.reserve(volume)
        made.device = {"path": "/dev/md127"}
        self.attached.append(volume)
        return made

    def detach(self, attachment):
        self.attached.remove(attachment.volume)


class FakeVolumes:
    def __init__(self):
        self.attachments, self.deleted, self.made = {}, [], []

    def create(self, replicas, gib, down_time):
        self.made.append((replicas, gib, down_time))
        return f"v{len(self.made)}"

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
    found.compute = FakeCompute()
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


@pytest.mark.parametrize("hangs", [True, False])
def test_a_host_that_stock_has_wedged_is_power_cycled(trial, screen, hangs):
    trial.edition = "stock"
    trial.volumes.attachments["a1"] = ("v", {})
    there = ARRAY.format(degraded=1, action="idle")
    show(trial, *[there] * 10)
    if hangs:
        trial.machine.hangs = "--stop"
    with trial.case("attach"):
        raise BrickError("no answer")
    assert trial.machine.power == ["kill", "start", "ready"]
    assert trial.compute.started == 1
    assert "STOCK: the host had to be power-cycled" in screen.text
    assert ("STOCK: compute1: not done after 60 s" in screen.text) is hangs
    assert trial.volumes.attachments == {}


def test_with_ours_a_host_that_cannot_be_cleared_is_a_failure(trial):
    trial.machine.hangs = "--stop"
    with pytest.raises(GuestAgentError, match="not done after 300 s"):
        trial.force_clear()
    assert trial.machine.power == []


def test_time_outs_of_ours_for_a_step(trial):
    def fail():
        with trial.patient(connect_timeout=15.0):
            raise BrickError("16 failed")

    with pytest.raises(BrickError):
        fail()
    group = "os_brick_nvmeof"
    assert trial.compute.asked == [
        ("configure", {"group": group, "options": {"connect_timeout": 15.0}}),
        ("configure", {"group": group, "options": {"connect_timeout": None}}),
    ]
    trial.edition, trial.compute.asked = "stock", []
    with trial.patient(connect_timeout=15.0):
        assert trial.compute.asked == []


def test_with_stock_later_cases_get_a_volume_of_their_own(trial):
    trial.machine.output = {"sha256sum": "abc  -\n"}
    assert trial.renewed("v", "old") == ("v", "old")
    assert trial.volumes.made == []
    trial.edition = "stock"
    assert trial.renewed("v", "old") == ("v1", "abc")
    assert trial.volumes.made == [(2, 1, 0)]
    assert trial._made == ["v1"]
    assert trial.compute.attached == []


def test_an_attachment_that_a_failed_case_has_cleared(trial, screen):
    attachment = Attachment("a1", "v", {})
    trial.volumes.attachments["a1"] = ("v", {})
    assert trial.holds(attachment)
    assert trial.standing(attachment) is attachment
    assert "not tried" not in screen.text
    trial.volumes.clear()
    assert not trial.holds(attachment)
    assert "not tried" in screen.text
    assert trial.standing(attachment).identifier == "of-v"


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
    trial.edition = "stock"
    show(trial, ARRAY.format(degraded=1, action="idle"), "")
    trial.close()
    assert trial.machine.output["/sys/block/md*"] == []
    trial.edition = "ours"
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
