# SPDX-License-Identifier: Apache-2.0
"""What the snapshot says of each leg of a volume. Pure."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable

from os_brick_nvmeof.agent.model import (
    LIVE,
    MAINTENANCE,
    UNAVAILABLE,
    Array,
    Controller,
    Leg,
    Member,
    Memory,
    Namespace,
    Place,
    Seen,
    Superblock,
    Volume,
    Wanted,
)


class Path(enum.Enum):
    """Whether a leg can be reached."""

    LIVE = "live"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class LegView:
    """One leg, wanted and seen.

    :ivar controllers: those that lead to it, of this host.
    :ivar namespace: its block device, found by UUID; None: there is none, or it is not known.
    :ivar superblock: None: not known.
    """

    leg: Leg
    path: Path
    place: Place
    controllers: tuple[Controller, ...] = ()
    member: Member | None = None
    namespace: Namespace | None = None
    superblock: Superblock | None = None

    @property
    def uuid(self) -> str:
        return self.leg.uuid

    @property
    def good(self) -> bool:
        """In sync, and it can be reached."""
        return self.place is Place.IN_SYNC and self.path is Path.LIVE

    @property
    def lost(self) -> bool:
        """Definitely neither in sync nor about to be."""
        return self.place in (Place.FAULTY, Place.OUT)


@dataclasses.dataclass(frozen=True)
class View:
    """A volume, wanted and seen.

    :ivar array: None: there is none, or it is not known which one is meant.
    :ivar attached: the host uses the volume, so its paths matter.
    """

    volume: Volume
    array: Array | None
    legs: tuple[LegView, ...]
    attached: bool

    def leg(self, uuid: str) -> LegView | None:
        return next((one for one in self.legs if one.uuid == uuid), None)

    def good(self, *, besides: str = "") -> list[LegView]:
        """The legs that are in sync and can be reached."""
        return [one for one in self.legs if one.good and one.uuid != besides]


def view(volume: Volume, seen: Seen, memory: Memory) -> View:
    """Put a volume beside what is seen of it."""
    array = find_array(volume, seen) if volume.replicated else None
    legs = tuple(_leg(volume, leg, array, seen, memory) for leg in volume.legs)
    attached = array is not None
    if not volume.replicated:
        attached = any(one.namespace is not None or one.controllers for one in legs)
    return View(volume, array, legs, attached)


def find_array(volume: Volume, seen: Seen) -> Array | None:
    """The array of a volume: by uuid, or by name where stock os-brick made it.

    One of the right uuid is ours if a device in it is a leg of the volume; one of the right name
    only if all are that can be told. Two that would do are none.
    """
    arrays = seen.arrays or ()
    found = seen.by_uuid.get(volume.uuid, [])
    # What udev makes of a leg that comes back may have the same name and never start.
    found = [one for one in found if one.running] or found
    if len(found) == 1 and _strangers(volume, found[0]) and not _known(volume, found[0]):
        return None
    if not found:
        found = [
            one
            for one in arrays
            if one.alias == volume.alias
            and one.members is not None
            and not _strangers(volume, one)
            and _known(volume, one)
        ]
    return found[0] if len(found) == 1 else None


def _known(volume: Volume, array: Array) -> bool:
    return any(volume.leg(member.uuid) for member in array.members or ())


def _strangers(volume: Volume, array: Array) -> bool:
    """Whether some device of an array is definitely no leg of the volume."""
    return any(member.uuid and not volume.leg(member.uuid) for member in array.members or ())


def _leg(volume: Volume, leg: Leg, array: Array | None, seen: Seen, memory: Memory) -> LegView:
    controllers = controllers_of(volume, leg, seen)
    namespace = _namespace(leg, seen)
    member = _member(leg, array, memory)
    return LegView(
        leg=leg,
        path=_path(controllers),
        place=_place(array, member),
        controllers=controllers or (),
        member=member,
        namespace=namespace,
        superblock=seen.superblocks.get(leg.uuid),
    )


def controllers_of(volume: Volume, leg: Leg, seen: Seen) -> tuple[Controller, ...] | None:
    """This host's controllers that lead to a leg; None: could not be told.

    Some KumoScale releases offer all legs at one NQN; the portals tell them apart then.
    """
    if seen.controllers is None:
        return None
    if not leg.nqn:
        return ()
    found = [one for one in seen.controllers if one.nqn == leg.nqn and mine(one, seen)]
    if sum(other.nqn == leg.nqn for other in volume.legs) > 1:
        found = [one for one in found if any(one.at(portal) for portal in leg.portals)]
    return tuple(found)


def mine(controller: Controller, seen: Seen) -> bool:
    """Whether this host, under its own NQN, made the connection."""
    return controller.host_nqn in ("", seen.host_nqn)


def _path(controllers: Iterable[Controller] | None) -> Path:
    if controllers is None:
        return Path.UNKNOWN
    return Path.LIVE if any(one.state == LIVE for one in controllers) else Path.DEAD


def _namespace(leg: Leg, seen: Seen) -> Namespace | None:
    found = seen.named.get((leg.uuid, leg.nqn), [])
    return found[0] if len(found) == 1 else None


def _member(leg: Leg, array: Array | None, memory: Memory) -> Member | None:
    if array is None or array.members is None:
        return None
    for member in array.members:
        known = member.uuid or memory.members.get(f"{array.uuid}/{member.device}", "")
        if known == leg.uuid:
            return member
    return None


def _place(array: Array | None, member: Member | None) -> Place:
    if array is None or array.members is None:
        return Place.UNKNOWN
    if member is not None:
        return member.place
    # A device that is gone may be this leg.
    nameless = any(not one.uuid and one.place is not Place.FAULTY for one in array.members)
    return Place.UNKNOWN if nameless else Place.OUT


# -- the network ----------------------------------------------------------------------------------


def network(wanted: Wanted, views: Iterable[View]) -> str:
    """Why it is the network and not the nodes; "" when it is not.

    A third of four nodes or more, or two of three, are away: as the provisioner sees them, or as
    this host does. What both see as away is just away.
    """
    told = {node: state for node, state in wanted.nodes.items() if state != MAINTENANCE}
    away = {node for node, state in told.items() if state == UNAVAILABLE}
    if not wanted.stale and too_many(len(away), len(told)):
        return f"{len(away)} of {len(told)} storage nodes are away, so it is the network"
    paths = _paths(views)
    here = {node for node in paths if wanted.nodes.get(node) != MAINTENANCE}
    dead = {node for node in here if paths[node] is Path.DEAD}
    if not wanted.stale:
        dead -= away
    if too_many(len(dead), len(here)):
        return (
            f"this host reaches {len(dead)} of its {len(here)} storage nodes no more, "
            "so it is the network"
        )
    return ""


def too_many(away: int, total: int) -> bool:
    return 3 * away >= total if total > 3 else total == 3 and away >= 2


def _paths(views: Iterable[View]) -> dict[str, Path]:
    """Each node to which this host has had connections: live when any of its legs is."""
    found: dict[str, Path] = {}
    for one in views:
        for leg in one.legs if one.attached else ():
            known = found.get(leg.leg.node)
            # One that was never connected says nothing of its node.
            if not leg.leg.node or not (leg.controllers or leg.member):
                continue
            if known is None or known is Path.DEAD:
                found[leg.leg.node] = leg.path
    return found
