# SPDX-License-Identifier: Apache-2.0
"""Which legs of a replicated volume may be handed out as its data: a pure decision.

What is known of a leg comes from two places: its own superblock, and the provisioner's record.

**Superblocks.** Each member carries what the array said of all its members at its last update
(``super_1_sync()``, drivers/md/md.c). md marks a lost member on the others before it acknowledges
a write that the lost one has not, and what was written then carries a higher event counter. So:

* A leg whose superblock gives no place to any device that is not seen has all writes: when it was
  updated for the last time, nobody else was there who could have gone on.
* A leg whose superblock gives a place to a device that is not seen may have been left behind by
  it, however clean it looks.
* Of two legs of which each gives no place to the other, both went on alone: none has all writes.
* A place is no proof of being in sync: a device that is being filled has one, too, and says so
  in its own superblock only.
* Kernel and mdadm accept a member whose counter is one lower even when the others have marked it
  as lost (``super_1_validate()``; Linux 6.8 looks closer). So only what the freshest leg itself
  lists is ever named to mdadm.

**The record.** It may lag behind, so alone it proves little. It is believed where it is confirmed:

* ``clean``: the last host detached in order, and had reported every loss before. Then a leg that
  is recorded fresh has all writes, if nothing seen contradicts it.
* With any other state it proves nothing of a leg that is not seen: a leg recorded as stale may have
  been put back since, in sync, without any change of counters, and then have gone on alone.
* A leg recorded as ``blank`` is never a source, whatever it holds: a node may have been filling it.
* md may have given a leg up and acknowledged writes after that, and could tell no superblock of it
  because the others were away as well (MD_BROKEN, drivers/md/raid1.c). Then all superblocks look as
  after a crash, and only the host that used the array could report the loss. So of legs that are
  not clean, one that is recorded as stale is filled from one that is recorded as fresh.
* A leg recorded as ``stale`` is a source only when every leg recorded as fresh is seen, and their
  superblocks tell that it went on after them: then the record lags.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import NamedTuple

from os_brick_nvmeof import errors, props
from os_brick_nvmeof.props import BLANK, CLEAN, FRESH, NEW, STALE, Leg, Volume
from os_brick_nvmeof.superblock import Blank, Content, Foreign, Superblock, Unknown

_RAID1 = 1
_LEFT_BEHIND = (STALE, BLANK)
_TO_GO = (props.MISSING, props.TERMINATING)


@dataclasses.dataclass(frozen=True)
class Unreachable:
    """The leg may be there and could not be reached; ``why`` in words."""

    why: str

    def __str__(self) -> str:
        return self.why


@dataclasses.dataclass(frozen=True)
class Absent:
    """Its node definitely does not offer the leg now; ``why`` in words."""

    why: str

    def __str__(self) -> str:
        return self.why


class View(NamedTuple):
    """A leg as it is recorded, and what was seen of it."""

    leg: Leg
    seen: Content | Unreachable | Absent


class Mode(enum.Enum):
    """How an array is assembled."""

    NORMAL = "may be written"
    READ_ONLY = "is read-only"
    # Nothing is written before the first write of the user: no superblock, no resync.
    UNTOUCHED = "is written only when its user writes"


@dataclasses.dataclass(frozen=True)
class Create:
    """Make the array: every leg definitely holds nothing that was ever written.

    :ivar legs: in their order in the record.
    :ivar missing: further places, of legs that are not there yet.
    """

    legs: tuple[Leg, ...]
    missing: int = 0
    mode: Mode = Mode.NORMAL


@dataclasses.dataclass(frozen=True)
class Rejoin:
    """A leg to be filled after assembly; ``full``: its bitmap and counters must not be used."""

    leg: Leg
    full: bool


@dataclasses.dataclass(frozen=True)
class Assemble:
    """Assemble exactly these legs.

    :ivar members: all have all writes; the freshest first.
    :ivar filling: places that were being filled, and go on with it.
    :ivar rejoin: to be added afterwards; empty unless the array may be written.
    :ivar places: of the array.
    :ivar warnings: what a person should know, in words.
    :ivar uuid: of the array: that of the volume unless stock os-brick made it.
    """

    members: tuple[Leg, ...]
    places: int
    uuid: str
    mode: Mode = Mode.NORMAL
    filling: tuple[Leg, ...] = ()
    rejoin: tuple[Rejoin, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def degraded(self) -> bool:
        """Some place has no leg in sync."""
        return len(self.members) < self.places


@dataclasses.dataclass(frozen=True)
class Refuse:
    """Hand out nothing, write nothing; ``error`` names the leg and its node where there is one."""

    error: errors.KumoBrickError


Decision = Create | Assemble | Refuse


class _Ours(NamedTuple):
    """A leg with a superblock of the array."""

    leg: Leg
    block: Superblock


class _RefusedError(Exception):
    def __init__(self, error: errors.KumoBrickError) -> None:
        super().__init__(str(error))
        self.error = error


def decide(volume: Volume, views: Sequence[View]) -> Decision:
    """Decide what may be done with the legs.

    :param views: one of each leg of the volume, those that are not handed out included.
    """
    try:
        ours = _ours(volume, views)
        if _never_written(volume, views):
            return _create(volume, views)
        if not ours:
            _refuse_nothing_there(volume, views)
        return _assemble(volume, views, ours)
    except _RefusedError as refused:
        return Refuse(refused.error)


def _ours(volume: Volume, views: Sequence[View]) -> list[_Ours]:
    """The legs with superblocks of the array; anything that is not ours refuses everything."""
    found: list[_Ours] = []
    uuids = {seen.array_uuid for _, seen in views if isinstance(seen, Superblock)}
    for leg, seen in views:
        if isinstance(seen, Foreign):
            raise _refuse(errors.ForeignDataError, volume, leg, str(seen), _FOREIGN_WAY)
        if not isinstance(seen, Superblock):
            continue
        # Of two arrays of that name, that of the volume's UUID is the one; else nobody can tell.
        doubtful = len(uuids) > 1 and seen.array_uuid != volume.uuid
        if doubtful or not seen.of(volume):
            text = f"it holds the superblock of array {seen.array_uuid} ({seen.name})"
            raise _refuse(errors.ForeignDataError, volume, leg, text, _FOREIGN_WAY)
        if seen.level != _RAID1 or seen.reshaping:
            text = f"its array has level {seen.level}" if seen.level != _RAID1 else "it is reshaped"
            raise _refuse(errors.UnknownDataError, volume, leg, text, "look at it with mdadm")
        found.append(_Ours(leg, seen))
    return found


# -- create -------------------------------------------------------------------------------------


def _never_written(volume: Volume, views: Sequence[View]) -> bool:
    """Whether each leg is seen, and none has ever taken a write.

    The counter of an array is 0 until it is made dirty for its first write, and never 0 again
    (``write_init_super1()`` in mdadm, ``md_update_sb()`` in the kernel). So an array that was
    begun and never used is made again.
    """
    if volume.array_state != NEW or volume.shared:
        return False
    handed_out = [view for view in views if not _is_spare_place(view)]
    return bool(handed_out) and all(
        isinstance(seen, Blank) or (isinstance(seen, Superblock) and seen.events == 0)
        for _, seen in handed_out
    )


def _is_spare_place(view: View) -> bool:
    """A leg that is recorded as blank and not handed out yet."""
    return not view.leg.nqn and view.leg.freshness == BLANK


def _create(volume: Volume, views: Sequence[View]) -> Create:
    legs = tuple(view.leg for view in views if not _is_spare_place(view))
    mode = Mode.READ_ONLY if volume.read_only else Mode.NORMAL
    return Create(legs, missing=len(views) - len(legs), mode=mode)


def _refuse_nothing_there(volume: Volume, views: Sequence[View]) -> None:
    """No leg holds the array, and it must not be made."""
    for leg, seen in views:
        if isinstance(seen, Unknown):
            raise _refuse(errors.UnknownDataError, volume, leg, str(seen), _UNKNOWN_WAY)
    for leg, seen in views:
        if isinstance(seen, Absent):
            raise _refuse(errors.NamespaceMissingError, volume, leg, str(seen), _BACK_WAY)
        if isinstance(seen, Unreachable):
            raise _refuse(errors.UnreachableError, volume, leg, str(seen), _BACK_WAY)
    state = volume.array_state or "not told"
    text = f"every leg is blank, and the array is not new (it is {state})"
    if volume.shared:
        text = "every leg is blank, and another host has the volume attached"
    raise _RefusedError(
        errors.ArrayError(
            text,
            volume=volume.uuid,
            way_out="find out what became of its data; nothing was written",
        )
    )


# -- assemble -----------------------------------------------------------------------------------


def _assemble(volume: Volume, views: Sequence[View], ours: list[_Ours]) -> Assemble:
    warnings: list[str] = []
    freshest = _freshest(volume, views, ours)
    others = [one for one in ours if one is not freshest]
    lost_history = _diverged(volume, freshest, others, warnings)
    _check_newer(volume, freshest, ours, warnings)
    _check_unseen(volume, views, freshest, ours, warnings)
    mode = _mode(volume)
    members = [freshest, *(one for one in others if _is_member(freshest, one))]
    filling = [one for one in others if mode is Mode.NORMAL and _is_filling(freshest, one)]
    used = {one.leg for one in (*members, *filling)}
    free = freshest.block.raid_disks - len(used)
    rejoin = [
        _rejoin(view, freshest)
        for view in views
        if view.leg not in used
        and view.leg not in lost_history
        and isinstance(view.seen, Superblock | Blank)
        and view.leg.state not in _TO_GO
    ]
    rejoin.sort(key=lambda one: one.full)
    return Assemble(
        members=tuple(one.leg for one in members),
        places=freshest.block.raid_disks,
        uuid=freshest.block.array_uuid,
        mode=mode,
        filling=tuple(one.leg for one in filling),
        rejoin=tuple(rejoin[: max(free, 0)]) if mode is Mode.NORMAL else (),
        warnings=tuple(warnings),
    )


def _mode(volume: Volume) -> Mode:
    if volume.read_only:
        return Mode.READ_ONLY
    return Mode.UNTOUCHED if volume.shared else Mode.NORMAL


def _freshest(volume: Volume, views: Sequence[View], ours: list[_Ours]) -> _Ours:
    """The leg that decides: in sync by its own word, with the highest counter."""
    numbers = [one.block.number for one in ours if one.leg.freshness != BLANK]
    for one in ours:
        if one.leg.freshness != BLANK and numbers.count(one.block.number) > 1:
            text = f"it claims to be device {one.block.number} of the array, as another leg does"
            raise _refuse(errors.UnknownDataError, volume, one.leg, text, "find out which is real")
    sources = [
        one
        for one in ours
        if one.block.in_sync and (one.leg.freshness != BLANK or volume.accept_stale)
    ]
    if not sources:
        leg, seen = next(
            ((leg, seen) for leg, seen in views if not isinstance(seen, Superblock | Blank)),
            views[0],
        )
        why = "its data is not complete" if isinstance(seen, Superblock) else str(seen)
        raise _refuse(
            errors.StaleError, volume, leg, f"no leg that is at hand has all data; {why}", _WAY
        )
    rank = {FRESH: 3, "": 2, STALE: 1, BLANK: 0}
    # When each went on without the other, the record is asked first: see _diverged().
    if volume.accept_stale and any(_is_diverged(a, b) for a in sources for b in sources):
        return max(sources, key=lambda one: (rank[one.leg.freshness], one.block.events))
    return max(
        sources,
        key=lambda one: (
            one.leg.freshness != BLANK,
            one.block.events,
            rank[one.leg.freshness],
        ),
    )


def _is_member(freshest: _Ours, other: _Ours) -> bool:
    """Both list each other, and the other has seen the last change, or all but that."""
    return (
        other.block.in_sync
        and other.leg.freshness != BLANK
        and _listed_alike(freshest, other)
        and freshest.block.number != other.block.number
        and not _given_up(freshest.leg, other.leg, other.block)
    )


def _given_up(freshest: Leg, other: Leg, block: Superblock) -> bool:
    """Whether the record alone tells that a leg may lack writes that another one has."""
    return freshest.freshness == FRESH and other.freshness == STALE and not block.clean


def _is_filling(freshest: _Ours, other: _Ours) -> bool:
    return (
        not other.block.in_sync
        and other.block.number in other.block.active
        and _listed_alike(freshest, other)
    )


def _listed_alike(freshest: _Ours, other: _Ours) -> bool:
    one, two = freshest.block, other.block
    return (
        two.number in one.active
        and one.number in two.active
        and one.events - 1 <= two.events <= one.events
        and (one.size, one.raid_disks) == (two.size, two.raid_disks)
    )


def _is_diverged(one: _Ours, other: _Ours) -> bool:
    """Whether ``other`` went on without ``one`` while ``one`` went on without it.

    A leg that knew a whole array and no ``one`` is only old: ``one`` joined later.
    """
    return (
        one is not other
        and one.block.number != other.block.number
        and one.block.number not in other.block.active
        and not other.block.whole
        and other.block.in_sync
    )


def _succeeded(freshest: _Ours, others: list[_Ours]) -> list[_Ours]:
    """Legs that the freshest succeeds, maybe by way of others.

    A leg that went on has all that those had with which it was in use until then. So has one that
    was filled from it, and went on when it was lost in turn.
    """
    heirs = [freshest]
    for heir in heirs:
        if heir is not freshest and not (heir.block.in_sync and heir.leg.freshness != BLANK):
            continue
        heirs += [
            one
            for one in others
            if one not in heirs
            and heir.block.number in one.block.active
            and one.block.events <= heir.block.events
        ]
    return heirs


def _diverged(
    volume: Volume, freshest: _Ours, others: list[_Ours], warnings: list[str]
) -> list[Leg]:
    """Legs with a history of their own that was not given up by the record."""
    found = []
    behind = _succeeded(freshest, others)
    for other in others:
        if other in behind or not _is_diverged(freshest, other):
            continue
        settled = freshest.leg.freshness == FRESH and other.leg.freshness in _LEFT_BEHIND
        if settled and other.block.events < freshest.block.events:
            continue
        found.append(other.leg)
        text = f"it and {freshest.leg} were each written without the other"
        _stale(volume, other.leg, text, warnings, way_out=_SPLIT_WAY)
    return found


def _check_newer(volume: Volume, freshest: _Ours, ours: list[_Ours], warnings: list[str]) -> None:
    """A leg that is no source itself can tell that something fresher exists."""
    for other in ours:
        if other.block.events > freshest.block.events + 1:
            text = (
                f"its event counter {other.block.events} is above that of {freshest.leg}, "
                f"{freshest.block.events}, and it cannot be used"
            )
            _stale(volume, other.leg, text, warnings)


def _check_unseen(
    volume: Volume,
    views: Sequence[View],
    freshest: _Ours,
    ours: list[_Ours],
    warnings: list[str],
) -> None:
    """Refuse when a leg that is not seen may have writes that the freshest has not."""
    doubtful = [
        (leg, seen)
        for leg, seen in views
        if not isinstance(seen, Superblock)
        and not (isinstance(seen, Blank) and leg.freshness in _LEFT_BEHIND)
    ]
    if freshest.leg.freshness in _LEFT_BEHIND:
        for leg, seen in doubtful:
            if leg.freshness not in _LEFT_BEHIND:
                text = f"{freshest.leg} is recorded as {freshest.leg.freshness}; {seen}"
                _stale(volume, leg, text, warnings)
                return
    # A leg recorded as blank may be a copy that a node makes of one that is not seen.
    seen_numbers = {
        one.block.number for one in ours if one.leg.freshness != BLANK or not one.block.in_sync
    }
    unseen = freshest.block.active - seen_numbers
    if not unseen:
        return
    if not doubtful and volume.told:
        # Places of legs that were given up: the record has no leg that could be one of them.
        return
    if doubtful and _confirmed(volume, freshest, [leg for leg, _ in doubtful]):
        return
    which, why = doubtful[0] if doubtful else (freshest.leg, "a further leg is not known here")
    text = f"it may have newer data than {freshest.leg}, which was in use with it: {why}"
    if not doubtful:
        text = f"another leg was in use with it, may have newer data, and {why}"
    _stale(volume, which, text, warnings)


def _confirmed(volume: Volume, freshest: _Ours, doubtful: list[Leg]) -> bool:
    """Whether the record proves that none of the legs has writes that the freshest has not."""
    leg, block = freshest
    if leg.freshness != FRESH or volume.array_state != CLEAN:
        return False
    counted = block.events >= max(one.events for one in volume.legs) and all(
        one.freshness in _LEFT_BEHIND or (one.freshness == FRESH and one.events > 0)
        for one in doubtful
    )
    # A leg that was lost in the middle of a write is not clean. Neither is one that was
    # detached while it was resynchronised after a crash; the record then has its counter.
    in_order = block.clean or block.events <= leg.events
    # Without counters nobody told of losses in the last session: not even that a leg recorded as
    # behind was not brought up to date, and the fresh one lost after that.
    return in_order and counted and leg.events > 0


def _rejoin(view: View, freshest: _Ours) -> Rejoin:
    """The bitmap may be used only on a leg that took no write that the freshest has not."""
    leg, seen = view
    if isinstance(seen, Superblock):
        after = (
            freshest.block.number in seen.active
            and (seen.number not in freshest.block.active or _given_up(freshest.leg, leg, seen))
            and seen.number != freshest.block.number
            and seen.events <= freshest.block.events
        )
        return Rejoin(leg, full=leg.freshness == BLANK or not after)
    return Rejoin(leg, full=True)


# -- words --------------------------------------------------------------------------------------

_BACK_WAY = "bring its node back"
_FOREIGN_WAY = "find out whose data it is; nothing was written"
_UNKNOWN_WAY = "look after its node; nothing was written"
_WAY = (
    "bring its node back, or override the check for this volume (accept_stale) and lose what was "
    "written since"
)
_SPLIT_WAY = "decide which of them counts and override the check for this volume (accept_stale)"


def _refuse(
    kind: type[errors.KumoBrickError], volume: Volume, leg: Leg, text: str, way_out: str
) -> _RefusedError:
    return _RefusedError(
        kind(text, volume=volume.uuid, leg=leg.uuid, node=leg.node, way_out=way_out)
    )


def _stale(volume: Volume, leg: Leg, text: str, warnings: list[str], way_out: str = _WAY) -> None:
    """Refuse, unless an operator has overridden it for this volume."""
    refused = _refuse(errors.StaleError, volume, leg, text, way_out)
    if not volume.accept_stale:
        raise refused
    warnings.append(f"Overridden for this volume: {refused}")
