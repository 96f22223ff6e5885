# SPDX-License-Identifier: Apache-2.0
"""What is seen of a volume's legs at an attach, and what is decided on it."""

import dataclasses

from os_brick_nvmeof import freshness, props
from os_brick_nvmeof.freshness import Assemble, Refuse, Unreachable
from os_brick_nvmeof.superblock import parse as parse_block
from tests.unit.brick import histories as h
from tests.unit.brick.superblocks import superblock

GONE = Unreachable("no portal answered")
SIZE = 64 << 20


def sb(number=0, events=42, roles=(0, 1), **changes):
    return parse_block(superblock(number, events, roles, array=h.VOLUME, **changes), SIZE)


def legs(*records, state="Available"):
    return tuple(
        props.Leg(
            h.LEGS[at], f"nqn.{at}", (), node=f"n{at}", state=state, freshness=fresh, events=events
        )
        for at, (fresh, events) in enumerate(records)
    )


def volume(records=(("fresh", 0), ("fresh", 0)), **changes):
    plain = props.Volume(
        uuid=h.VOLUME,
        alias="volume-1",
        io_class=props.REPLICATED,
        size=8 << 20,
        legs=legs(*records),
        replicated=True,
        array_state=props.OPEN,
        told=True,
    )
    return dataclasses.replace(plain, **changes)


def decide(volume, *seen):
    return freshness.decide(
        volume, [freshness.View(*pair) for pair in zip(volume.legs, seen, strict=True)]
    )


def members(decision):
    assert isinstance(decision, Assemble), decision
    return [h.at(leg) for leg in decision.members]


def refused(decision, kind, leg=None):
    assert isinstance(decision, Refuse), decision
    error = decision.error
    assert isinstance(error, kind), error
    assert error.volume == h.VOLUME
    assert error.way_out
    if leg is not None:
        assert (error.leg, error.node) == (h.LEGS[leg], f"n{leg}")
    return str(error)
