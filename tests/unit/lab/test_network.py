# SPDX-License-Identifier: Apache-2.0
import subprocess

import pytest

from lab import network
from lab.errors import LabError
from lab.network import Network


class Ip:
    """The ``ip`` command over one directory of namespaces, devices and their masters."""

    def __init__(self, root):
        self.root = root
        self.lines = []
        self.masters = {}
        self.broken = None

    def __call__(self, argv):
        line = " ".join(argv)
        self.lines.append(line)
        if self.broken is not None and self.broken in line:
            raise LabError(f"ip {line}: Operation not permitted")
        match list(argv):
            case ["netns", "add", name]:
                (self.root / name).touch(exist_ok=False)
            case ["netns", "delete", name]:
                (self.root / name).unlink()
                self.masters.clear()
            case ["-n", name, *words]:
                assert (self.root / name).exists()
                self.inside(words)

    def inside(self, words):
        match words:
            case ["link", "add", device, *_] | ["tuntap", "add", "dev", device, *_]:
                assert device not in self.masters
                self.masters[device] = None
            case ["link", "set", device, "master", master, *_]:
                assert master in self.masters
                assert device in self.masters
                self.masters[device] = master
            case ["link", "set", device, "nomaster"]:
                self.masters[device] = None


@pytest.fixture
def ip(tmp_path):
    return Ip(tmp_path)


@pytest.fixture
def net(ip, tmp_path):
    return Network("kumo-x", ip, tmp_path)


def test_create_makes_namespace_and_bridge_in_order(net, ip):
    assert not net.exists()
    net.create()
    assert net.exists()
    assert ip.lines == [
        "netns add kumo-x",
        "-n kumo-x link set lo up",
        "-n kumo-x link add br0 type bridge forward_delay 0",
        "-n kumo-x address add 10.77.0.1/24 dev br0",
        "-n kumo-x link set br0 up",
    ]


def test_cut_and_heal_move_a_tap_off_and_onto_the_bridge(net, ip):
    net.create()
    net.add_tap("tap-s1")
    assert ip.masters["tap-s1"] == "br0"
    for _ in range(2):
        net.cut("tap-s1")
        assert ip.masters["tap-s1"] is None
    for _ in range(2):
        net.heal("tap-s1")
        assert ip.masters["tap-s1"] == "br0"


def test_remove_can_be_repeated(net, ip):
    net.remove()
    assert ip.lines == []
    net.create()
    net.remove()
    net.remove()
    assert not net.exists()
    assert ip.lines.count("netns delete kumo-x") == 1


def test_a_namespace_that_was_made_in_part_can_be_removed(net, ip):
    ip.broken = "address add"
    with pytest.raises(LabError, match="Operation not permitted"):
        net.create()
    ip.broken = None
    net.remove()
    assert not net.exists()


def test_addresses_of_all_machines_differ():
    everything = [("storage", n) for n in range(1, 71)] + [("compute", n) for n in range(1, 71)]
    addresses = {network.address(role, n) for role, n in everything}
    addresses |= {network.second_address(n) for n in range(1, 71)}
    assert len(addresses | {network.CONTROL_ADDRESS}) == 211
    assert all(0 < int(text.rpartition(".")[2]) < 255 for text in addresses)
    assert len({network.mac(role, n) for role, n in everything}) == 140


@pytest.mark.parametrize("number", [0, -1, 71])
def test_a_number_that_has_no_address(number):
    with pytest.raises(LabError, match=f"1 to 70 storage machines, not number {number}"):
        network.address("storage", number)
    with pytest.raises(LabError, match=f"not number {number}"):
        network.second_address(number)


def test_run_ip_tells_what_failed(monkeypatch):
    seen = []

    def run(argv, **_):
        seen.append(argv)
        return subprocess.CompletedProcess(argv, len(seen) - 1, "", "Cannot open it\n")

    monkeypatch.setattr(subprocess, "run", run)
    network.run_ip(["netns", "add", "x"])
    with pytest.raises(LabError, match=r"ip netns add x: Cannot open it$"):
        network.run_ip(["netns", "add", "x"])
    assert seen == [["ip", "netns", "add", "x"]] * 2
