# SPDX-License-Identifier: Apache-2.0
"""Where replicas go: filters, then weights, all of them pure.

Rules:

* Only nodes in state Available get new replicas, and a node at most one of a volume.
* A list of zones, racks or regions restricts the nodes that have a zone, rack or region set; a
  node without one takes part in every request. So a fleet without zones serves clients that always
  send one (Cinder sends the availability zone of the volume).
* Replicas go to different racks unless the request allows otherwise. A node without a rack counts
  as a rack of its own.
* The sum of the charges on a node never exceeds its pool. A THICK replica is charged with its
  size, a THIN one with its size divided by the over-subscription ratio.
* The node that is relatively emptiest afterwards comes first.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from kumo_client import errors
from kumo_client.naming import GIB
from kumo_client.schemas.backend import AVAILABLE


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A node as placement sees it. Sizes in bytes."""

    backend_id: str
    state: str
    total: int
    charged: int
    name: str = ""
    rack: str = ""
    zone: str = ""
    region: str = ""

    @property
    def free(self) -> int:
        return self.total - self.charged


@dataclasses.dataclass(frozen=True)
class Ask:
    """What is to be placed. ``charge``: bytes that each replica is charged with."""

    replicas: int
    charge: int
    zones: Sequence[str] = ()
    racks: Sequence[str] = ()
    regions: Sequence[str] = ()
    same_rack_allowed: bool = False


def charge(size: int, provisioning_type: str, thin_ratio: float) -> int:
    """Bytes that a replica of ``size`` bytes is charged with on its node."""
    return size if provisioning_type != "THIN" else math.ceil(size / thin_ratio)


def _state(candidate: Candidate, _ask: Ask) -> str | None:
    return None if candidate.state == AVAILABLE else f"its state is {candidate.state}"


def _zone(candidate: Candidate, ask: Ask) -> str | None:
    return _location("zone", candidate.zone, ask.zones)


def _rack(candidate: Candidate, ask: Ask) -> str | None:
    return _location("rack", candidate.rack, ask.racks)


def _region(candidate: Candidate, ask: Ask) -> str | None:
    return _location("region", candidate.region, ask.regions)


def _location(what: str, value: str, wanted: Sequence[str]) -> str | None:
    wanted = [item for item in wanted if item]
    if not wanted or not value or value in wanted:
        return None
    return f"its {what} {value} is not one of {', '.join(wanted[:8])}"


def _capacity(candidate: Candidate, ask: Ask) -> str | None:
    if ask.charge <= candidate.free:
        return None
    return (
        f"{_gib(ask.charge)} GiB are needed and {_gib(max(0, candidate.free))} of "
        f"{_gib(candidate.total)} GiB are free"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


FILTERS: tuple[Callable[[Candidate, Ask], str | None], ...] = (
    _state,
    _zone,
    _rack,
    _region,
    _capacity,
)


def refusal(candidate: Candidate, ask: Ask) -> str | None:
    """Why this node cannot take a replica; None when it can."""
    for check in FILTERS:
        reason = check(candidate, ask)
        if reason is not None:
            return reason
    return None


def weight(candidate: Candidate, ask: Ask) -> tuple[float, str]:
    """Smaller is better: the part of the pool sold afterwards, then a fixed order."""
    return ((candidate.charged + ask.charge) / max(1, candidate.total), candidate.backend_id)


def place(candidates: Sequence[Candidate], ask: Ask) -> list[str]:
    """Backend ids for the replicas, best first.

    :raises NoSpaceError: with the reason of every node when there are not enough.
    """
    reasons: dict[str, str] = {}
    chosen: list[Candidate] = []
    fitting = []
    for candidate in candidates:
        reason = refusal(candidate, ask)
        if reason is None:
            fitting.append(candidate)
        else:
            reasons[candidate.backend_id] = reason
    for candidate in sorted(fitting, key=lambda one: weight(one, ask)):
        if len(chosen) == ask.replicas:
            break
        taken = {one.rack for one in chosen if one.rack}
        if candidate.rack in taken and not ask.same_rack_allowed:
            reasons[candidate.backend_id] = f"rack {candidate.rack} holds another replica"
            continue
        chosen.append(candidate)
    if len(chosen) < ask.replicas:
        raise _no_space(candidates, chosen, reasons, ask)
    return [candidate.backend_id for candidate in chosen]


def _no_space(
    candidates: Sequence[Candidate],
    chosen: Sequence[Candidate],
    reasons: dict[str, str],
    ask: Ask,
) -> errors.NoSpaceError:
    if not candidates:
        return errors.NoSpaceError(
            "no storage node is registered", way_out="register one with 'kumo backend add'"
        )
    names = {candidate.backend_id: candidate.name for candidate in candidates}
    told = [f"{names[key] or key}: {reason}" for key, reason in sorted(reasons.items())[:20]]
    return errors.NoSpaceError(
        f"{ask.replicas} replica(s) need as many storage nodes and only {len(chosen)} can take "
        f"one ({'; '.join(told)})",
        details={"refusals": reasons},
    )
