# SPDX-License-Identifier: Apache-2.0
"""The scenario of transports: its volumes, what it writes down for nvmet, and how it judges."""

import ipaddress
from types import SimpleNamespace

import pytest

from lab.compute import Brick, BrickError
from lab.errors import LabError, ScenarioFailedError
from lab.scenario import Context
from lab.scenarios import connector_transports as scenario
from lab.scenarios._nvmet import KINDS, NODES, RDMA6, TCP4, TCP6, Nvmet, Volume, address
from os_brick_nvmeof import props, security

VOLUME = Volume("v", ((TCP4, TCP6), (RDMA6,)))


class FakeMachine:
    name, host_nqn = "compute1", "nqn.host"

    def __init__(self):
        self.commands = []
        self.answer = ("", 0)

    def run(self, command, *, check=True, timeout=120.0):
        self.commands.append(command)
        return SimpleNamespace(stdout=self.answer[0], stderr="", returncode=self.answer[1])


@pytest.fixture
def machine():
    return FakeMachine()


def test_the_connector_reads_of_a_volume_what_nvmet_offers(machine):
    parsed = props.parse(VOLUME.data("new"))
    assert (parsed.uuid, parsed.array_state, parsed.size) == (VOLUME.uuid, "new", 1 << 30)
    Nvmet(machine).export(VOLUME)
    (text,) = machine.commands
    for leg in parsed.legs:
        assert f"echo {leg.uuid} >" in text
        assert f"mkdir /sys/kernel/config/nvmet/subsystems/{leg.nqn}\n" in text
    first, second = parsed.legs
    assert [str(each) for each in first.portals] == ["tcp://10.78.0.1:4420", "tcp://[fd78::1]:4420"]
    assert [str(each) for each in second.portals] == ["rdma://[fd78::2]:4420"]
    assert text.count("/subsystems/\n") + text.endswith("/subsystems/") == 3


def test_each_node_has_a_port_of_each_kind(machine):
    Nvmet(machine).start()
    text = machine.commands[-1]
    for node in NODES:
        for kind in KINDS:
            found = ipaddress.ip_address(address(node, kind))
            assert f"echo {found} >" in text
            assert found.version == int(kind[-1])
    ports = [line for line in text.splitlines() if line.startswith("mkdir /sys")]
    assert len(set(ports)) == len(NODES) * len(KINDS)


def test_what_cannot_be_cleared_is_told(machine):
    machine.answer = ("/sys/kernel/config/nvmet/ports/10\n", 0)
    with pytest.raises(LabError, match="cannot be cleared: /sys/kernel"):
        Nvmet(machine).start()


def test_growing_events_and_refusing(machine):
    nvmet = Nvmet(machine)
    nvmet.resize(VOLUME, 2)
    assert f"truncate -s {VOLUME.size(2)} " in machine.commands[-1]
    machine.answer = ("          17\n", 0)
    assert nvmet.events(VOLUME, 1) == 17
    nvmet.refuse(2)
    nvmet.accept(2)
    inserted, deleted = machine.commands[-2:]
    assert inserted.replace("-I INPUT", "-D INPUT") == deleted
    assert "10.78.0.2" in deleted


def test_a_kernel_without_keys(machine):
    nvmet = Nvmet(machine)
    assert nvmet.authenticate("a", "b")
    machine.answer = ("", 1)
    assert not nvmet.authenticate("a", "b")


def test_keys_are_keys():
    assert security.is_key(scenario._key("host"))
    assert scenario._key("host") != scenario._key("wrong")


@pytest.fixture
def trial(machine, screen):
    ctx = Context(SimpleNamespace(compute=[machine]), screen)
    return scenario._Trial(ctx)


def answer(trial, found):
    def call(name, **arguments):
        if isinstance(found, Exception):
            raise found
        return found, 0.5

    trial.brick = SimpleNamespace(call=call)


def test_an_attach_that_should_fail(trial):
    answer(trial, BrickError("Security: no, leg x"))
    assert "leg x" in trial.refused({}, "Security:", "x")
    with pytest.raises(ScenarioFailedError, match="lacks"):
        trial.refused({}, "Stale:")
    answer(trial, {"path": "/dev/nvme0n1"})
    with pytest.raises(ScenarioFailedError, match="attached as /dev/nvme0n1"):
        trial.refused({}, "Security:")


def test_a_key_in_a_log_is_found(trial, machine):
    machine.answer = ("7\n", 0)
    with pytest.raises(ScenarioFailedError, match="a key is in the log"):
        scenario._unlogged(trial, scenario._key("host"))


def test_stopping_os_brick(machine):
    Brick(machine, "ours").stop()
    assert machine.commands == [["systemctl", "stop", "kumo-brick-ours"]]
