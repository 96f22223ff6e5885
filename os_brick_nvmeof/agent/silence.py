# SPDX-License-Identifier: Apache-2.0
"""When a storage node that does not answer is dead, and may be cut off. Pure.

All of this has to be so; what could not be told is not so:

* Each portal of the node that this host uses was asked :data:`ENOUGH` times, from as many sockets,
  for ``silence`` seconds, and nobody answered any of them or refused; half that time is enough when
  the provisioner has found the node to be away.
* In all that time I/O waited for the node on live connections, and none of it was completed.
* So few other nodes are silent that it is not the network, and the connections to this node were
  not ended a moment ago.
* Every volume that has a leg there can do without it: another leg is in sync, its path is live and
  its node answers, and none of the other legs in the array looks dead as well. Volumes with one
  replica wait for their node in any case. No connection to these portals is anybody else's.

The kernel may lose the node before that: then its own time-out runs, and nothing shortens it any
more. So it is 0 from when there is a doubt, and all else is so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from os_brick_nvmeof.agent import judge
from os_brick_nvmeof.agent.actions import CutNode, OfNode, ShortenWait
from os_brick_nvmeof.agent.judge import LegView, Path, View
from os_brick_nvmeof.agent.model import LIVE, UNAVAILABLE, Controller, Place, Probed
from os_brick_nvmeof.agent.round import Note, Round
from os_brick_nvmeof.props import Portal

# Unanswered probes in a row for a definite answer, and for a doubt.
ENOUGH = 3
DOUBT = 2
_INSIDE = (Place.IN_SYNC, Place.SYNCING)


@dataclasses.dataclass(frozen=True)
class Node:
    """A storage node that this host is connected to.

    :ivar portals: those that connections go to. :ivar strange: a connection goes elsewhere.
    """

    name: str
    portals: frozenset[Portal]
    strange: bool


def in_use(views: Sequence[View]) -> dict[str, Node]:
    """The nodes that volumes in use have connections to."""
    found: dict[str, Node] = {}
    for view in views:
        for leg in view.legs if view.attached else ():
            if leg.leg.node and leg.controllers:
                at = [
                    one for one in leg.leg.portals if any(each.at(one) for each in leg.controllers)
                ]
                strange = any(not any(map(each.at, at)) for each in leg.controllers)
                known = found.get(leg.leg.node, Node(leg.leg.node, frozenset(), False))
                found[leg.leg.node] = Node(
                    known.name, known.portals | frozenset(at), known.strange or strange
                )
    return found


def to_watch(views: Sequence[View]) -> dict[Portal, frozenset[str]]:
    """The portals to probe, with the names of the controllers that go there."""
    found: dict[Portal, frozenset[str]] = {}
    for view in views:
        for leg in view.legs if view.attached else ():
            for portal in leg.leg.portals:
                names = frozenset(one.name for one in leg.controllers if one.at(portal))
                if names and portal.transport == "tcp":
                    found[portal] = found.get(portal, frozenset()) | names
    return found


def of_nodes(this: Round, views: Sequence[View]) -> Iterator[OfNode | Note]:
    """What is to be done about nodes that are silent, and why not."""
    if not this.limits.silence:
        return
    nodes = in_use(views)
    doubted = {name for name, node in nodes.items() if not _answers(this, node)}
    for name in sorted(doubted):
        dead = _dead(this, nodes[name])
        if not dead and not _waited_for(this, nodes[name]):
            continue
        users = [
            (view, leg)
            for view in views
            for leg in view.legs
            if leg.leg.node == name and leg.controllers
        ]
        inside = [view for view, leg in users if view.array and leg.place in _INSIDE]
        if not inside:
            continue
        volume = min(view.volume.uuid for view in inside)
        why = _why_not(this, nodes, doubted, nodes[name], users)
        if dead and why:
            yield Note(volume, "", f"node {name} is silent and left to the kernel: {why}")
        elif dead:
            yield _cut(this, nodes[name], volume)
        elif not why:
            yield from _shorten(this, nodes[name], volume)


def _probed(this: Round, node: Node) -> list[Probed | None]:
    return [this.seen.probed.get(portal) for portal in node.portals]


def _answers(this: Round, node: Node) -> bool:
    """Whether somebody has just answered at one of its portals."""
    return any(one is not None and one.unanswered < DOUBT for one in _probed(this, node))


def _waited_for(this: Round, node: Node) -> bool:
    """Whether none of its portals answers, as far as a few probes can tell, and I/O waits."""
    told = [one for one in _probed(this, node) if one is not None]
    whole = len(told) == len(node.portals) and not node.strange
    return whole and any(one.stalled for one in told)


def _dead(this: Round, node: Node) -> bool:
    away = not this.wanted.stale and this.wanted.nodes.get(node.name) == UNAVAILABLE
    needed = this.limits.silence / 2 if away else this.limits.silence
    probed = _probed(this, node)
    told = [one for one in probed if one is not None and one.stalled is not None]
    silent = all(one.unanswered >= ENOUGH and one.silent >= needed for one in told)
    whole = bool(probed) and len(told) == len(probed) and not node.strange
    return whole and silent and any(one.stalled for one in told)


def _why_not(
    this: Round,
    nodes: dict[str, Node],
    doubted: set[str],
    node: Node,
    users: list[tuple[View, LegView]],
) -> str:
    if judge.too_many(len(doubted), len(nodes)) or len(doubted) == len(nodes):
        return f"{len(doubted)} of {len(nodes)} nodes do not answer, so it is the network"
    if node.name in this.memory.cut:
        return "its connections were ended a moment ago"
    ours = {one.nqn for _, leg in users for one in leg.controllers}
    if any(one.nqn not in ours or not judge.mine(one, this.seen) for one in _there(this, node)):
        return "somebody else is connected to it as well"
    for view, leg in users:
        if why := _needs(this, nodes, doubted, view, leg):
            return f"volume {view.volume.uuid}: {why}"
    return ""


def _there(this: Round, node: Node) -> list[Controller]:
    """All controllers that go to the portals of a node, whoever made them."""
    every = this.seen.controllers or ()
    return [one for one in every if any(one.at(portal) for portal in node.portals)]


def _needs(this: Round, nodes: dict[str, Node], doubted: set[str], view: View, leg: LegView) -> str:
    """Why a volume cannot do without a leg; "" when it can."""
    if not view.volume.replicated:
        waits = all(one.time_outs and one.time_outs.fast_io_fail < 0 for one in leg.controllers)
        return "" if waits else "it has one replica, and its I/O would fail"
    if view.volume.shared:
        return "another host has it as well"
    if view.array is None:
        return "" if _in_no_array(this, leg) else "its array could not be told"
    if not view.array.writable:
        return f"its array is {view.array.state}"
    if leg.lost:
        return ""
    if leg.place is Place.UNKNOWN:
        return "the members of its array could not be told"
    rest = [
        one for one in view.legs if one is not leg and one.place not in (Place.FAULTY, Place.OUT)
    ]
    if any(one.path is not Path.LIVE or one.leg.node in doubted for one in rest):
        return "another leg looks dead as well"
    if not any(one.good and one.leg.node in nodes for one in rest):
        return "no other leg is in sync and reachable"
    return ""


def _in_no_array(this: Round, leg: LegView) -> bool:
    """Whether it is known that nothing on this host is made of it."""
    known = this.seen.arrays
    return known is not None and all(
        one.members is not None and all(each.uuid not in ("", leg.uuid) for each in one.members)
        for one in known
    )


def _cut(this: Round, node: Node, volume: str) -> CutNode:
    return CutNode(
        volume=volume,
        node=node.name,
        portals=node.portals,
        controllers=_failing(this, node, at_least=0),
        reason=f"it has not answered for {_silent(this, node):.1f} s and I/O waits for it",
    )


def _shorten(this: Round, node: Node, volume: str) -> Iterator[ShortenWait]:
    controllers = _failing(this, node, at_least=1)
    if controllers:
        yield ShortenWait(
            volume=volume,
            node=node.name,
            controllers=controllers,
            reason=f"it has not answered for {_silent(this, node):.1f} s and may be dead",
        )


def _silent(this: Round, node: Node) -> float:
    return min(one.silent for one in _probed(this, node) if one is not None)


def _failing(this: Round, node: Node, *, at_least: int) -> frozenset[tuple[str, str]]:
    """Live controllers to a node whose I/O fails when so many seconds, or more, have passed."""
    return frozenset(
        (one.name, one.nqn)
        for one in _there(this, node)
        if one.state == LIVE and one.time_outs and one.time_outs.fast_io_fail >= at_least
    )


def in_doubt(this: Round, one: Controller) -> bool:
    """Whether nobody has answered lately where a controller goes."""
    return any(
        probed.unanswered >= DOUBT for portal, probed in this.seen.probed.items() if one.at(portal)
    )
