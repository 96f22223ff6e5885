# SPDX-License-Identifier: Apache-2.0
"""Volumes with one replica, on a host whose kernel is a fake that behaves like Linux."""

import pytest

from os_brick_nvmeof import plain
from os_brick_nvmeof.props import Leg, Portal, Volume
from tests.fakes.host_kernel import Kernel

GIB = 1 << 30
NQN = "nqn.node1.plain"
A = "0b6fe5d1-0000-4000-8000-00000000000a"
B = "0b6fe5d1-0000-4000-8000-00000000000b"


def volume(uuid=A, *addresses, size=GIB, nqn=NQN):
    portals = tuple(Portal(each, "4420", "tcp") for each in addresses or ("10.0.0.1",))
    leg = Leg(uuid, nqn, portals, node="node1")
    return Volume(uuid, "", "plain", size, (leg,), False, told=True)


@pytest.fixture(params=[True, False], ids=["multipath", "single"])
def kernel(tmp_path, request):
    made = Kernel(tmp_path, multipath=request.param)
    target = made.target(NQN, ("tcp", "10.0.0.1", "4420"), ("tcp", "10.0.0.2", "4420"))
    target.publish(A)
    return made


def test_attach_and_detach(kernel):
    ctx = kernel.context()
    assert plain.attach(ctx, volume()) == "/dev/nvme0n1"
    assert plain.paths(ctx, volume()) == ["/dev/nvme0n1"]
    plain.detach(ctx, volume())
    assert (kernel.controllers(), kernel.devices()) == ([], [])
    assert plain.paths(ctx, volume()) == []
