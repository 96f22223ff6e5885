# SPDX-License-Identifier: Apache-2.0
"""What is to be done now, and why: a pure function of what is wanted, seen and remembered.

The ladder for a leg: reconnect its paths; put it back, so that md copies what the bitmap says;
after the time that its volume allows, ask for a replacement, synchronise that, let the old leg go.

Rules that hold for every plan (tests/unit/brick/agent/test_plan_properties.py):

* no leg is taken out of an array unless another one is in sync and can be reached;
* no leg is put in that was not found by its UUID, or whose superblock names another array;
* there is one replacement for one loss;
* nothing is done to arrays and controllers of others, to arrays that may not be written, and,
  paths aside, to volumes that another host has as well;
* when it is the network, there are only reconnects and reports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from os_brick_nvmeof.agent import judge, ladder, paths, remember, reports, silence, tasks
from os_brick_nvmeof.agent.actions import Action, OfNode
from os_brick_nvmeof.agent.model import Limits, Memory, Seen, Wanted
from os_brick_nvmeof.agent.round import Note, Round


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to do, in order, and for each volume what is the matter.

    :ivar waiting: actions that failed lately and are not due yet.
    :ivar network: why nothing but reconnects is done; "" when all is.
    :ivar views: the volumes that it was made for, as they are.
    """

    actions: tuple[Action, ...]
    notes: tuple[Note, ...]
    waiting: tuple[Action, ...] = ()
    network: str = ""
    views: tuple[judge.View, ...] = dataclasses.field(default=(), compare=False, repr=False)


def make(wanted: Wanted, seen: Seen, memory: Memory, now: float, limits: Limits) -> Plan:
    """Plan one round. The same input gives the same plan.

    :param memory: as :func:`.remember.look` left it for this very look.
    """
    views = tuple(judge.view(volume, seen, memory) for volume in wanted.volumes)
    network = judge.network(wanted, views)
    this = Round(wanted, seen, memory, now, limits)
    found: dict[str, Action] = {}
    notes: list[Note] = []
    for view in views:
        for item in _of_volume(this, view):
            if isinstance(item, Note):
                notes.append(item)
            elif _allowed(item, wanted, network):
                found.setdefault(item.key, item)
    actions = sorted(found.values(), key=lambda one: (one.rank, one.volume, one.key))
    due = remember.due(memory, actions, now)
    return Plan(
        tuple(due),
        tuple(notes),
        tuple(one for one in actions if one not in due),
        network,
        views,
    )


def still(action: Action, this: Round) -> bool:
    """Whether an action is what the situation asks for, looked at anew just before it is done."""
    volume = this.wanted.volume(action.volume)
    if volume is None:
        return False
    return action in _of_volume(this, judge.view(volume, this.seen, this.memory))


def hasten(wanted: Wanted, seen: Seen, memory: Memory, now: float, limits: Limits) -> Plan:
    """What is to be done at once about nodes that do not answer; see :mod:`.silence`.

    Nothing of it needs a look at what is on the devices.
    """
    views = tuple(judge.view(volume, seen, memory) for volume in wanted.volumes)
    network = judge.network(wanted, views)
    found = tuple(silence.of_nodes(Round(wanted, seen, memory, now, limits), views))
    actions = tuple(one for one in found if isinstance(one, OfNode))
    due = tuple(remember.due(memory, actions, now))
    return Plan(
        () if network else due,
        tuple(one for one in found if isinstance(one, Note)),
        tuple(one for one in actions if network or one not in due),
        network,
    )


def _allowed(action: Action, wanted: Wanted, network: str) -> bool:
    if wanted.stale and not action.away:
        return False
    return action.always or not network


def _of_volume(this: Round, view: judge.View) -> Iterator[Action | Note]:
    yield from ladder.unfinished(this, view)
    if not view.attached:
        return
    yield from paths.of_volume(this, view)
    if view.array is None:
        return
    yield from reports.of_volume(this, view)
    yield from ladder.of_volume(this, view)
    yield from tasks.of_volume(this, view)
