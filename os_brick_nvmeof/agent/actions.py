# SPDX-License-Identifier: Apache-2.0
"""What the agent may do, as data. ``reason`` is for people and takes no part in comparisons."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from os_brick_nvmeof.agent.model import Leg
from os_brick_nvmeof.props import Portal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Action:
    """Base.

    :cvar rank: those of a lower rank come first.
    :cvar always: done also when so many nodes are away that it is the network.
    :cvar away: done also when the provisioner is away.
    :ivar volume: uuid.
    """

    rank: ClassVar[int] = 50
    always: ClassVar[bool] = False
    away: ClassVar[bool] = False
    volume: str
    reason: str = dataclasses.field(compare=False)

    @property
    def kind(self) -> str:
        return type(self).__name__

    @property
    def about(self) -> str:
        """What it is done to, besides the volume."""
        return ""

    @property
    def key(self) -> str:
        """The same for the same deed in each round."""
        return " ".join(filter(None, (self.kind, self.volume, self.about)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfLeg(Action):
    """``leg`` is its uuid."""

    leg: str

    @property
    def about(self) -> str:
        return self.leg


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfArray(Action):
    """``array`` is its uuid, ``name`` what the kernel calls it ("md127")."""

    array: str
    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfMember(OfArray):
    """``leg`` is the uuid of the leg, ``device`` its block device ("nvme0n1")."""

    leg: str
    device: str

    @property
    def about(self) -> str:
        return self.leg


# -- what needs nobody's decision -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconnect(OfLeg):
    """Connect a portal that no controller goes to."""

    rank: ClassVar[int] = 30
    always: ClassVar[bool] = True
    away: ClassVar[bool] = True
    nqn: str
    portal: Portal
    io_class: str

    @property
    def key(self) -> str:
        # Volumes share subsystems.
        return f"{self.kind} {self.nqn} {self.portal}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetTimeOuts(Action):
    """Give a controller the time-outs of its class; stock os-brick sets none."""

    rank: ClassVar[int] = 20
    away: ClassVar[bool] = True
    controller: str
    nqn: str
    io_class: str

    @property
    def key(self) -> str:
        return f"{self.kind} {self.controller}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfNode(Action):
    """``controllers``: names and subsystems of those to the node ``node`` whose I/O may fail.
    ``volume`` is one of those that go on with another leg."""

    rank: ClassVar[int] = 0
    away: ClassVar[bool] = True
    node: str
    controllers: frozenset[tuple[str, str]]

    @property
    def about(self) -> str:
        return self.node

    @property
    def key(self) -> str:
        # Volumes share nodes.
        return f"{self.kind} {self.node}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortenWait(OfNode):
    """Have I/O to a storage node that is in doubt fail as soon as the kernel loses it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutNode(OfNode):
    """End the connections to a storage node that is dead, so that its I/O fails at once."""

    portals: frozenset[Portal]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restart(OfArray):
    """Assemble an array anew to which the kernel lets nobody write; not while somebody has it
    open."""

    rank: ClassVar[int] = 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishRestart(Action):
    """Assemble what :class:`Restart` has stopped and not brought up again, unless it was detached
    meanwhile."""

    rank: ClassVar[int] = 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailLeg(OfMember):
    """Let the array go on without a leg that has no live path."""

    rank: ClassVar[int] = 10
    away: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReAdd(OfMember):
    """Put a leg back; md copies what the bitmap says, or all of it."""

    rank: ClassVar[int] = 40
    away: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddSpare(OfMember):
    """Put a leg in that has nothing yet; md copies all. ``slots``: the array has at least so many
    afterwards."""

    rank: ClassVar[int] = 40
    away: ClassVar[bool] = True
    slots: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetSlots(OfArray):
    """Make an array have ``slots`` legs, in sync or not."""

    rank: ClassVar[int] = 45
    slots: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetSpeed(OfArray):
    """Limit the speed of synchronisation, in KB/s; 0: leave as it is."""

    rank: ClassVar[int] = 45
    away: ClassVar[bool] = True
    minimum: int
    maximum: int


# -- with the provisioner -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportLeg(OfLeg):
    """Tell the state of one leg."""

    rank: ClassVar[int] = 5
    always: ClassVar[bool] = True
    state: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportArray(Action):
    """Tell states and event counters of all legs that are known: (uuid, state, events)."""

    rank: ClassVar[int] = 5
    always: ClassVar[bool] = True
    legs: tuple[tuple[str, str, int], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(OfLeg):
    """Ask the provisioner to let this host reach a leg."""

    rank: ClassVar[int] = 35


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskReplacement(OfLeg):
    """Ask for a leg in place of ``leg``; ``before``: the legs that the volume has now."""

    rank: ClassVar[int] = 60
    before: frozenset[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetireLeg(OfLeg):
    """Ask for the deletion of a leg whose replacement is in sync."""

    rank: ClassVar[int] = 65


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoveLeg(OfMember):
    """Take a leg that is to go out of its array."""

    rank: ClassVar[int] = 70


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfirmRemoval(OfLeg):
    """Release a leg that is to go and is in no array, and say so. ``nqn``: of its subsystem."""

    rank: ClassVar[int] = 75
    gone: Leg


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportTask(Action):
    """Tell how a task is. ``progress`` in percent."""

    rank: ClassVar[int] = 80
    task: str
    state: str
    status: str
    progress: float

    @property
    def about(self) -> str:
        return self.task


@dataclasses.dataclass(frozen=True, kw_only=True)
class HoldWrites(OfArray):
    """Hold the writes to an array for a snapshot, for ``seconds`` at most."""

    rank: ClassVar[int] = 1
    task: str
    seconds: float
    legs: frozenset[str]

    @property
    def about(self) -> str:
        return self.task
