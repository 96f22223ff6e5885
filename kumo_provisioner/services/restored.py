# SPDX-License-Identifier: Apache-2.0
"""Whether the database is an old copy; until an operator has accepted it, nodes are only looked at.

An old copy does not know what was made and published since, so what it would take away from nodes
may be in use. It is noticed by what nodes remember (:mod:`kumo_provisioner.stamps`). Nodes refuse
by themselves to give up anything to an older state than theirs; here it is not even asked of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from oslo_log import log
from sqlalchemy import select
from sqlalchemy.orm import Session

from kumo_client import errors
from kumo_client.api.node import Node
from kumo_client.schemas.event import FATAL
from kumo_client.schemas.node import NodeInfo, Stamp, StampSpec
from kumo_provisioner import stamps
from kumo_provisioner.core import Core, now_ms
from kumo_provisioner.db import models
from kumo_provisioner.nodes import Address
from kumo_provisioner.services import events

LOG = log.getLogger(__name__)
WAY_OUT = "an operator looks with 'kumo restored show' and decides with 'kumo restored accept'"
_WHY = {
    stamps.OLDER: "the database is an old copy",
    stamps.LEFT: "it was away when a copy of the database was accepted, and has changed since that "
    "copy was made",
    stamps.OTHER: "it follows a database that is not known here",
}


def note(core: Core, backend_id: str, memory: Stamp | None) -> str:
    """Judge what a node remembers; gives the judgement."""
    known = core.stamps.known
    if known is None or known.judge(backend_id, memory) == stamps.FINE:
        return stamps.FINE
    # Another instance may have raised the number: what was read before the answer is too old.
    known = core.stamps.load()
    verdict = known.judge(backend_id, memory)
    if verdict in _WHY and memory is not None:
        enter(
            core,
            verdict,
            f"backend {backend_id} was told of the database {memory.plain}, and ours, "
            f"{known.line.now}, does not come from there: {_WHY[verdict]}",
        )
    return verdict


def enter(core: Core, doubt: str, reason: str) -> None:
    """From now on nothing is taken away from nodes, unless that is known already.

    :param doubt: a constant of :mod:`kumo_provisioner.stamps`.
    """
    known = core.stamps.known
    if known is not None and stamps.RANK[known.doubt] >= stamps.RANK[doubt]:
        return
    core.db.run(lambda session: doubted(session, doubt, reason))
    core.stamps.load()


def doubted(session: Session, doubt: str, reason: str) -> None:
    """Write a doubt down, unless there is one that weighs as much."""
    row = stamps.row(session)
    if stamps.RANK[row.doubt] >= stamps.RANK[doubt]:
        return
    row.doubt, row.reason = doubt, events.plain(reason)
    row.since = row.since or now_ms()
    events.record(
        session,
        "database.doubted",
        f"nothing is taken away from storage nodes until an operator has accepted the database: "
        f"{reason}",
        level=FATAL,
        doubt=doubt,
    )


def advance(core: Core) -> None:
    """Raise the number when it is time; notice that the database was replaced under our feet."""
    before = core.stamps.advance()
    if before is not None and core.stamps.known is not None:
        now = core.stamps.known.line.now
        enter(core, stamps.OLDER, f"the database was {before} and is {now}: it was replaced")


def hear(core: Core) -> None:
    """Ask all nodes what they remember, once after a start, before anything is taken away.

    One that does not answer refuses by itself, when it is back, what it must not give up.
    """
    if core.stamps.heard:
        return
    with core.stamps.hearing:
        if core.stamps.heard:
            return
        with core.db.read() as session:
            found = [Address.of(row) for row in session.scalars(select(models.Backend))]
        calls = {one.backend_id: (one, _ask) for one in found}
        for backend_id, outcome in core.nodes.call_all(calls, probing=True).items():
            if outcome.value is not None and outcome.value.persistent_id == backend_id:
                note(core, backend_id, outcome.value.stamp)
        core.stamps.heard = True


def _ask(node: Node) -> NodeInfo:
    return node.info()


def looking_only(core: Core) -> bool:
    """Whether nothing may be taken away from nodes now."""
    hear(core)
    return core.stamps.doubted


def refuse(core: Core, what: str) -> None:
    """See that something may be given up.

    :param what: for people, such as ``volume <uuid> is not deleted``.
    :raises OutdatedRecordError: nobody can tell whether it is in use.
    """
    if not looking_only(core):
        return
    reason = core.stamps.known.reason if core.stamps.known is not None else ""
    raise errors.OutdatedRecordError(f"{what}: {reason}", way_out=WAY_OUT)


def array_state(core: Core, volume: models.Volume) -> str:
    """What a host may believe of the array of a replicated volume.

    That it was never written, or was left in order, is what an old copy cannot know.
    """
    known = core.stamps.known
    if known is None or volume.created >= believed_until(known):
        return volume.array_state
    return models.ARRAY_OPEN


def refuse_capture(core: Core, volume: models.Volume) -> None:
    """See that it is known whether a host writes to a volume that is to be captured.

    :raises OutdatedRecordError: the database is an old copy that nobody has accepted.
    """
    known = core.stamps.known
    if known is not None and volume.replicated and volume.created < believed_until(known):
        raise errors.OutdatedRecordError(
            f"volume {volume.uuid} is not captured: {known.reason}",
            volume=volume.uuid,
            way_out=WAY_OUT,
        )


def believed_until(known: stamps.Known) -> int:
    """Of volumes made before (ms since the epoch) the states of arrays may be old."""
    return {stamps.OLDER: known.since, stamps.OTHER: known.made}.get(known.doubt, 0)


def catch_up(core: Core, memories: Iterable[tuple[Address, Stamp]]) -> list[str]:
    """Have nodes follow our database; gives the ids of those that could not be told.

    :param memories: each with what it remembers now.
    """
    known = core.stamps.load()
    calls = {
        address.backend_id: (address, _follow(Stamp.of(known.line.now), memory))
        for address, memory in memories
    }
    left = []
    for backend_id, outcome in core.nodes.call_all(calls).items():
        if outcome.error is not None:
            LOG.warning("Backend %s does not follow us yet: %s", backend_id, outcome.error)
            left.append(backend_id)
    return left


def _follow(now: Stamp, memory: Stamp) -> Callable[[Node], Stamp]:
    spec = StampSpec(stamp=now, replaces=memory)

    def call(node: Node) -> Stamp:
        return node.put_stamp(spec)

    return call
