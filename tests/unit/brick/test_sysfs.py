# SPDX-License-Identifier: Apache-2.0
"""What sysfs shows, with and without native multipath, and while devices come and go."""

import errno
import ipaddress
import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from os_brick_nvmeof import identify, sysfs
from tests.fakes.host_kernel import HOST, Kernel

A = "0b6fe5d1-0000-4000-8000-00000000000a"
B = "0b6fe5d1-0000-4000-8000-00000000000b"
NQN = "nqn.node1"


def connect(kernel, nqn, address):
    kernel.fabrics(f"transport=tcp,traddr={address},trsvcid=4420,nqn={nqn},hostnqn={HOST}")


@pytest.fixture(params=[True, False], ids=["multipath", "single"])
def kernel(tmp_path, request):
    made = Kernel(tmp_path, multipath=request.param)
    target = made.target(NQN, ("tcp", "10.0.0.1", "4420"), ("tcp", "10.0.0.2", "4420"))
    target.publish(A, size=1 << 20)
    target.publish(B, size=1 << 21, block_size=4096, nsid=7)
    made.target("nqn.other", ("tcp", "10.0.0.3", "4420")).publish(A)
    connect(made, NQN, "10.0.0.1")
    connect(made, NQN, "10.0.0.2")
    connect(made, "nqn.other", "10.0.0.3")
    made.sim.sleep(1)
    return made


def test_controllers(kernel):
    root = kernel.root
    assert [each.name for each in sysfs.controllers(root)] == ["nvme0", "nvme1", "nvme2"]
    assert sysfs.controllers(root, "nqn.other") == [
        sysfs.Controller("nvme2", "nqn.other", "tcp", "10.0.0.3", "4420", HOST, "live")
    ]
    assert sysfs.controller(root, "nvme7") is None
    assert sysfs.controller(root, "power") is None
    assert sysfs.controller(root, "nvme2", NQN) is None
    assert (sysfs.state(root, "nvme0"), sysfs.state(root, "nvme9")) == ("live", "")
    assert sysfs.states(root) == {each.name: each.state for each in sysfs.controllers(root)}


def test_namespaces(kernel):
    root = kernel.root
    found = sysfs.namespaces(root, NQN)
    if kernel.multipath:
        assert found == [
            sysfs.Namespace("nvme0n1", A, 1, 1 << 20, 512, NQN),
            sysfs.Namespace("nvme0n2", B, 7, 1 << 21, 4096, NQN),
        ]
        assert sysfs.subsystem(root, NQN).paths["nvme0n1"] == ["nvme0", "nvme1"]
    else:
        names = ["nvme0n1", "nvme0n2", "nvme1n1", "nvme1n2"]
        assert [each.name for each in found] == names
        assert sysfs.subsystem(root, NQN).paths["nvme1n2"] == ["nvme1"]
    assert sysfs.namespaces(root, "nqn.nobody") == []
    assert sysfs.size(root, found[1].name) == 1 << 21
    seen = sysfs.subsystem(root, NQN, ["nvme1", "nvme7"])
    assert [each.name for each in seen.controllers] == ["nvme1"]
    assert sorted(seen.uuids.values()) == [A, B]
    kernel.nvme.drop(kernel.nvme.controllers[1])
    kernel.nvme.drop(kernel.nvme.controllers[0])
    assert sysfs.namespace(root, seen, next(iter(seen.uuids))) is None
    assert sysfs.size(root, "nvme9n9") is None


def test_a_namespace_is_found_by_uuid_in_its_subsystem(kernel):
    assert sysfs.find(kernel.root, NQN, B.upper()).nsid == 7
    assert sysfs.find(kernel.root, "nqn.other", A).name == "nvme2n1"
    assert sysfs.find(kernel.root, "nqn.other", B) is None


def test_a_live_controller_is_preferred(kernel):
    kernel.nvme.set_state(kernel.nvme.controllers[0], "connecting")
    expected = "nvme0n1" if kernel.multipath else "nvme1n1"
    assert sysfs.find(kernel.root, NQN, A).name == expected
    kernel.nvme.set_state(kernel.nvme.controllers[1], "connecting")
    assert sysfs.find(kernel.root, NQN, A).name == "nvme0n1"


def test_holders(kernel):
    assert sysfs.holders(kernel.root, "nvme0n1") == []
    kernel.hold("nvme0n1", "dm-0")
    assert sysfs.holders(kernel.root, "nvme0n1") == ["dm-0"]
    assert sysfs.holders(kernel.root, "nvme9n9") == []


def test_a_path_is_shown_before_its_head(tmp_path):
    kernel = Kernel(tmp_path)
    kernel.target(NQN, ("tcp", "10.0.0.1", "4420")).publish(A)
    kernel.nvme.arrive_seconds = 1
    connect(kernel, NQN, "10.0.0.1")
    kernel.sim.sleep(0.5)
    assert (kernel.root / "sys/class/nvme-fabrics/ctl/nvme0/nvme0c0n1").exists()
    assert sysfs.namespaces(kernel.root, NQN) == []
    kernel.sim.sleep(1)
    assert [each.size for each in sysfs.namespaces(kernel.root, NQN)] == [0]
    kernel.sim.sleep(1)
    assert [each.size for each in sysfs.namespaces(kernel.root, NQN)] == [1 << 30]


def test_what_vanishes_while_it_is_read_is_left_out(kernel):
    home = kernel.root / "sys/class/nvme-fabrics/ctl"
    (home / "nvme0" / "state").unlink()
    assert [each.name for each in sysfs.controllers(kernel.root, NQN)] == ["nvme1"]


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENXIO])
def test_a_device_that_is_being_removed(kernel, monkeypatch, number):
    def gone(handle, length):
        raise OSError(number, "gone")

    monkeypatch.setattr(sysfs.os, "read", gone)
    assert sysfs.controllers(kernel.root) == []


def test_other_errors_are_not_taken_for_absence(kernel, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(sysfs.os, "listdir", broken)
    with pytest.raises(OSError, match="broken"):
        sysfs.controllers(kernel.root)
    monkeypatch.undo()
    monkeypatch.setattr(sysfs.os, "read", broken)
    with pytest.raises(OSError, match="broken"):
        sysfs.state(kernel.root, "nvme0")


def test_a_host_without_nvme(tmp_path):
    assert sysfs.controllers(tmp_path) == []
    assert sysfs.namespaces(tmp_path, NQN) == []


def test_names_of_devices():
    assert sysfs.device_name("nvme0n1") == "nvme0n1"
    assert sysfs.device_name("nvme10c3n12") == "nvme10n12"
    for other in ("nvme0", "nvme0n1p1", "nvme-subsys0", "power", "ng0n1"):
        assert sysfs.device_name(other) == ""


@given(st.ip_addresses())
def test_an_address_is_the_same_however_it_is_written(address):
    assert sysfs.same_address(address.compressed, address.exploded)
    assert sysfs.same_address(f"[{address.compressed.upper()}]", address.exploded)


@given(st.ip_addresses(), st.ip_addresses())
def test_other_addresses_are_others(one, other):
    assert sysfs.same_address(str(one), str(other)) == (
        ipaddress.ip_address(str(one)) == ipaddress.ip_address(str(other))
    )


def test_names_of_hosts_are_compared_as_text():
    assert sysfs.same_address("node1", "node1")
    assert not sysfs.same_address("node1", "node2")


class Teller:
    """A host whose controller tells what it is told to."""

    def __init__(self, answers):
        self.host = self
        self.answers = answers

    def identify(self, controller, cns, nsid):
        assert controller == "/dev/nvme0"
        return self.answers[cns, nsid].ljust(4096, b"\0")


@given(
    st.integers(0, 1 << 40),
    st.integers(9, 16),
    st.integers(0, 63),
)
def test_the_size_of_a_namespace(blocks, shift, chosen):
    data = bytearray(4096)
    struct.pack_into("<Q", data, 0, blocks)
    data[26] = (chosen & 0x0F) | ((chosen & 0x30) << 1)
    data[128 + 4 * chosen + 2] = shift
    teller = Teller({(0, 3): bytes(data)})
    assert identify.size(teller, "nvme0", 3) == blocks << shift


def test_a_full_list_is_read_on():
    own = uuid.UUID(A).bytes
    others = b"\x03\x10\0\0" + uuid.UUID(B).bytes
    answers = {(3, nsid): others for nsid in range(1, 1026)}
    answers[2, 0] = struct.pack("<1024I", *range(1, 1025))
    answers[2, 1024] = struct.pack("<I", 1025)
    assert not identify.offers(Teller(answers), "nvme0", A)
    # A namespace without UUID is known by its NGUID, as in sysfs.
    answers[3, 1025] = b"\x02\x10\0\0" + own
    assert identify.offers(Teller(answers), "nvme0", A)
