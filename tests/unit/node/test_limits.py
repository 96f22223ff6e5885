# SPDX-License-Identifier: Apache-2.0
"""Caps of replicas."""

import pytest

from kumo_client import errors
from kumo_client.schemas.node import Limits
from tests.unit.node.conftest import replica, uid

R1 = uid(1)
CAPS = Limits(max_iops=1000, max_bw=20480)


def test_caps_are_recorded_with_the_replica_and_changed_later(node):
    assert node.replicas.put(R1, replica(limits=CAPS)).limits == CAPS
    # A repetition of the first call does not take back what was set since.
    other = Limits(max_iops=5)
    assert node.caps.put(R1, other).limits == other
    assert node.replicas.put(R1, replica(limits=CAPS)).limits == other
    generation = node.ctx.spec.data.generation
    assert node.caps.put(R1, other).limits == other
    assert node.ctx.spec.data.generation == generation
    assert node.inventory().replicas[0].limits == other
    assert node.inventory().generation == node.info().generation == generation
    assert node.caps.put(R1, Limits()).limits == Limits()


def test_a_replica_that_is_not_there_has_no_caps(node):
    with pytest.raises(errors.NotExistsError):
        node.caps.put(R1, CAPS)
