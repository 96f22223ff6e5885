# SPDX-License-Identifier: Apache-2.0
"""The legs of a volume: what is known of each, and what may be done with them. Pure.

Two facts are kept of a leg. Its state is what hosts reported last. Its freshness says whether it
has all writes; ``in sync`` is state Available and freshness fresh, never one of them alone.

Rules that hold after every function here:

* A volume that has a fresh leg keeps one. When the last leg that took writes is lost, no write
  was acknowledged after it, so it stays fresh, and everything waits for it.
* As soon as some leg is in sync, every fresh leg that is not Available has missed writes.
* A leg that was not fresh becomes fresh only by proof. Existing agents report Available as soon as
  a device appears, before it is in sync, and repeat a report only when another state is stored.
  So their first Available for such a leg is stored as Synchronizing, and believed when they
  report it again. A host that reports whole arrays is believed at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from kumo_client import errors
from kumo_client.schemas.volume import (
    MAX_LEGS,
    REPLICA_AVAILABLE,
    REPLICA_MISSING,
    REPLICA_SYNCHRONIZING,
    REPLICA_TERMINATING,
    REPLICA_UNKNOWN,
)
from kumo_provisioner.db.models import BLANK, FRESH, STALE, Replica

REPORTED = (REPLICA_AVAILABLE, REPLICA_SYNCHRONIZING, REPLICA_MISSING)


def synced(legs: Iterable[Replica]) -> list[Replica]:
    """The legs that are in sync."""
    return [leg for leg in legs if leg.in_sync]


def enter(leg: Replica, state: str, now: int) -> bool:
    """Give a leg a state; the time in a state begins anew only when it is another one."""
    if leg.state == state:
        return False
    leg.state, leg.state_since = state, now
    return True


def settle(legs: Sequence[Replica]) -> None:
    """Mark what has missed writes, now that some leg is in sync."""
    if synced(legs):
        for leg in legs:
            if leg.freshness == FRESH and leg.state != REPLICA_AVAILABLE:
                leg.freshness = STALE


def note(leg: Replica, state: str, now: int, *, proven: bool, replicated: bool) -> bool:
    """Take over one report without looking at the other legs; gives whether the state changed.

    :raises InvalidInputError: when it is no state that can be reported.
    :raises ConflictError: when the leg is to go.
    """
    if state not in REPORTED:
        raise errors.InvalidInputError(f"a replica can be reported {', '.join(REPORTED)}")
    if leg.state == REPLICA_TERMINATING:
        raise errors.ConflictError(
            f"replica {leg.uuid} is {REPLICA_TERMINATING} and takes no reports",
            volume=leg.volume_id,
            way_out="take it out of the array and confirm that it may go",
        )
    if replicated and state == REPLICA_AVAILABLE and leg.freshness != FRESH:
        if proven or leg.state == REPLICA_SYNCHRONIZING:
            leg.freshness = FRESH
        else:
            state = REPLICA_SYNCHRONIZING
    return enter(leg, state, now)


def judge(legs: Sequence[Replica], seen: Mapping[str, int]) -> None:
    """Mark what has missed writes, after a report of a whole array.

    :param seen: md event counter by replica. When no leg is in sync any more, the ones that were
        left behind before the last are told by it.
    """
    settle(legs)
    counted = [leg for leg in legs if leg.uuid in seen and leg.freshness == FRESH]
    if not synced(legs) and counted:
        newest = max(seen[leg.uuid] for leg in counted)
        for leg in counted:
            if seen[leg.uuid] < newest:
                leg.freshness = STALE


def spare(legs: Iterable[Replica]) -> Replica | None:
    """A leg that is not in use yet: never in sync, or being synchronised."""
    unused = (REPLICA_SYNCHRONIZING, REPLICA_UNKNOWN)
    for leg in legs:
        if leg.state != REPLICA_TERMINATING and (leg.freshness == BLANK or leg.state in unused):
            return leg
    return None


def terminating(legs: Iterable[Replica]) -> Replica | None:
    """The leg that is to go."""
    return next((leg for leg in legs if leg.state == REPLICA_TERMINATING), None)


def check_add(volume_id: str, legs: Sequence[Replica], old: Replica | None = None) -> None:
    """Refuse one more leg.

    :param old: goes at once, so it may be a spare itself.
    :raises TooManyReplicasError: there are as many as there may be, or a spare is there already.
    :raises StaleError: no leg is in sync, so there is nothing to synchronise it from.
    """
    if len(legs) >= MAX_LEGS:
        raise errors.TooManyReplicasError(
            f"volume {volume_id} has {len(legs)} replicas; more are not possible",
            volume=volume_id,
        )
    unused = spare(leg for leg in legs if leg is not old)
    if unused is not None:
        raise errors.TooManyReplicasError(
            f"replica {unused.uuid} of volume {volume_id} is not in sync yet",
            volume=volume_id,
            node=unused.backend_id,
            way_out="synchronise it, or terminate it first",
        )
    if not synced(legs):
        raise errors.StaleError(
            f"volume {volume_id} has no replica in sync from which another one could be filled",
            volume=volume_id,
            way_out="bring the node of its freshest replica back",
        )


def check_terminate(leg: Replica, legs: Sequence[Replica]) -> None:
    """Refuse to let a leg go.

    :raises ConflictError: another one is on its way out, or the replacement is not in sync.
    :raises LastReplicaError: nothing would be left that has all writes.
    """
    others = [one for one in legs if one is not leg]
    fresh = [one for one in others if one.freshness == FRESH]
    if not (synced(others) if leg.freshness == FRESH else fresh):
        raise errors.LastReplicaError(
            f"replica {leg.uuid} is the last one of volume {leg.volume_id} that has all writes",
            volume=leg.volume_id,
            node=leg.backend_id,
            way_out="add a replica and let it be synchronised first",
        )
    going = terminating(others)
    if going is not None:
        raise errors.ConflictError(
            f"replica {going.uuid} of volume {leg.volume_id} is {REPLICA_TERMINATING} already",
            volume=leg.volume_id,
            way_out="wait until it is gone",
        )
    unused = spare(others)
    if unused is not None and spare([leg]) is None and leg.state != REPLICA_MISSING:
        raise errors.ConflictError(
            f"replica {unused.uuid} of volume {leg.volume_id} is not in sync yet",
            volume=leg.volume_id,
            node=unused.backend_id,
            way_out="let it be synchronised first",
        )
