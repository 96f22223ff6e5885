# SPDX-License-Identifier: Apache-2.0
"""What is seen, what is wanted and what the agent remembers: immutable, as of one moment.

Times are seconds since the epoch, so that they survive a restart. ``None`` always means that it
could not be told, which is never the same as no.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Mapping

from os_brick_nvmeof import sysfs
from os_brick_nvmeof.conf import TimeOuts
from os_brick_nvmeof.props import Portal

LIVE = "live"
# ``md/array_state`` of an array that lost all legs at once: the kernel takes no more writes until
# it is assembled anew, also when they are back (MD_BROKEN, drivers/md/md.c; seen with Linux 6.12).
BROKEN = "broken"
# What a leg of an array holds, by its superblock.
NOTHING = "nothing"
ARRAY = "array"
OTHER = "other"
# Replica states of the wire.
AVAILABLE = "Available"
SYNCHRONIZING = "Synchronizing"
MISSING = "Missing"
TERMINATING = "Terminating"
UNKNOWN = "Unknown"
# Of a node that is expected to be away.
MAINTENANCE = "Maintenance"
UNAVAILABLE = "Unavailable"
MAX_LEGS = 4
# Types and states of tasks.
MIGRATION = "RemoteMigration"
HOLD_WRITES = "HoldWrites"
IDLE = "IDLE"
RUNNING = "RUNNING"
FINISHED = "FINISHED"
FAILED = "FAILED"
# Abilities of a provisioner that change what is planned.
CAN_REPORT_ARRAYS = "array-report"


# -- seen ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Controller:
    """A connection to a portal of a subsystem.

    :ivar name: "nvme3". :ivar state: as in sysfs: "live", "connecting", ...
    :ivar host_nqn: under which this host connected; "" when the kernel does not tell.
    :ivar time_outs: None: could not be told.
    """

    name: str
    nqn: str
    transport: str
    address: str
    port: str
    state: str
    host_nqn: str = ""
    time_outs: TimeOuts | None = None

    def at(self, portal: Portal) -> bool:
        """Whether it goes to that portal."""
        same = (self.transport, self.port) == (portal.transport, portal.port)
        return same and sysfs.same_address(self.address, portal.address)


@dataclasses.dataclass(frozen=True)
class Namespace:
    """A block device "nvme0n1" with the UUID of its namespace.

    :ivar size: bytes. :ivar written: bytes written to it since it is there.
    """

    name: str
    uuid: str
    nqn: str
    size: int = 0
    written: int = 0


class Place(enum.Enum):
    """Where a leg is in its array."""

    IN_SYNC = "in sync"
    SYNCING = "synchronising"
    FAULTY = "faulty"
    OUT = "not in the array"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Member:
    """A device of an array.

    :ivar device: "nvme0n1". :ivar uuid: of its namespace; "" when the device is gone.
    :ivar place: IN_SYNC, SYNCING or FAULTY; UNKNOWN when md's answer makes no sense.
    """

    device: str
    uuid: str
    place: Place


@dataclasses.dataclass(frozen=True)
class Array:
    """An md array of level raid1.

    :ivar name: "md127". :ivar uuid: of the array. :ivar alias: its name in the superblock.
    :ivar state: ``md/array_state``: "clean", "active", "read-auto", "inactive", ...
    :ivar slots: ``md/raid_disks``.
    :ivar members: None: could not be told.
    :ivar done, total: sectors synchronised, of how many; 0 and 0 when nothing is.
    :ivar speed: KB/s. :ivar speed_min, speed_max: limits in KB/s; None: could not be told.
    :ivar events: event counter of its superblocks; 0 when not known.
    :ivar action: ``md/sync_action``.
    """

    name: str
    uuid: str
    alias: str
    state: str
    slots: int
    members: tuple[Member, ...] | None
    action: str = "idle"
    done: int = 0
    total: int = 0
    speed: int = 0
    speed_min: int | None = None
    speed_max: int | None = None
    events: int = 0

    @property
    def writable(self) -> bool:
        """Whether somebody writes, or may, so that repairing it writes nothing unexpected."""
        return self.state in ("clean", "active", "write-pending", "active-idle")

    @property
    def running(self) -> bool:
        """Whether it was started."""
        return self.state not in ("clear", "inactive")

    @property
    def percent(self) -> float:
        """Progress of a synchronisation; 0 when there is none."""
        return 100.0 * self.done / self.total if self.total else 0.0


@dataclasses.dataclass(frozen=True)
class Superblock:
    """What was found on a namespace that could become a leg.

    :ivar kind: NOTHING, ARRAY (``array`` is its uuid) or OTHER (data that is no array).
    """

    kind: str
    array: str = ""
    events: int = 0


@dataclasses.dataclass(frozen=True)
class Probed:
    """How a portal answers the agent's own probes.

    :ivar unanswered: probes since the last answer, each from a socket of its own.
    :ivar silent: seconds since the first of them was sent.
    :ivar stalled: I/O to it is under way on live controllers, and none was completed since; None:
        it could not be told.
    """

    unanswered: int = 0
    silent: float = 0.0
    stalled: bool | None = None


@dataclasses.dataclass(frozen=True)
class Seen:
    """The host, looked at once.

    :ivar controllers: None: could not be told; so with the others.
    :ivar superblocks: by uuid of the namespace, of those that are in no array; one that is absent
        was not read or could not be.
    :ivar multipath: the kernel joins the controllers of a subsystem.
    :ivar probed: of each portal; one that is absent is not probed, or it could not be told.
    """

    controllers: tuple[Controller, ...] | None = ()
    namespaces: tuple[Namespace, ...] | None = ()
    arrays: tuple[Array, ...] | None = ()
    superblocks: Mapping[str, Superblock] = dataclasses.field(default_factory=dict)
    host_nqn: str = ""
    multipath: bool = True
    probed: Mapping[Portal, Probed] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def by_uuid(self) -> Mapping[str, list[Array]]:
        """Arrays by UUID."""
        found: dict[str, list[Array]] = {}
        for one in self.arrays or ():
            found.setdefault(one.uuid, []).append(one)
        return found

    @functools.cached_property
    def named(self) -> Mapping[tuple[str, str], list[Namespace]]:
        """Namespaces by UUID and subsystem: there are as many as legs of volumes."""
        found: dict[tuple[str, str], list[Namespace]] = {}
        for one in self.namespaces or ():
            found.setdefault((one.uuid, one.nqn), []).append(one)
        return found


# -- wanted -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Leg:
    """A replica as the provisioner has it.

    :ivar node: id of its node. :ivar nqn: of the subsystem for this host; "" when there is none.
    :ivar freshness: "fresh", "stale", "blank"; "" when the provisioner does not say.
    :ivar since: when it got its state; takes no part in comparisons, as each answer tells how long
        ago that was, and so another moment.
    :ivar replaces: uuid of the leg that goes when this one is in sync.
    """

    uuid: str
    node: str
    nqn: str
    portals: tuple[Portal, ...]
    state: str = AVAILABLE
    freshness: str = ""
    events: int = 0
    since: float = dataclasses.field(default=0.0, compare=False)
    replaces: str = ""


@dataclasses.dataclass(frozen=True)
class Volume:
    """A volume that is published to this host.

    :ivar replicas: how many legs are wanted; 0 when the provisioner does not say.
    :ivar down_time: seconds after which a lost leg is replaced; 0: never.
    :ivar shared: another host has it, too.
    :ivar array_state: "new", "clean", "open" or "".
    """

    uuid: str
    alias: str
    legs: tuple[Leg, ...]
    replicated: bool = True
    replicas: int = 0
    down_time: float = 0.0
    shared: bool = False
    array_state: str = ""
    size: int = 0

    def leg(self, uuid: str) -> Leg | None:
        return next((leg for leg in self.legs if leg.uuid == uuid), None)

    @property
    def staying(self) -> tuple[Leg, ...]:
        """The legs that are not to go."""
        return tuple(leg for leg in self.legs if leg.state != TERMINATING)

    @property
    def io_class(self) -> str:
        return "replicated" if self.replicated else "plain"


@dataclasses.dataclass(frozen=True)
class Task:
    """Work for this host. :ivar progress: percent."""

    uuid: str
    kind: str
    state: str
    status: str
    progress: float
    tags: Mapping[str, str]

    @property
    def volume(self) -> str:
        return self.tags.get("volId", "")

    @property
    def open(self) -> bool:
        return self.state in (IDLE, RUNNING)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The provisioner's view of this host.

    :ivar time: when it was begun to be asked. :ivar stale: it could not be asked since.
    :ivar nodes: state of each storage node by id.
    :ivar abilities: extensions that the provisioner offers.
    """

    volumes: tuple[Volume, ...] = ()
    tasks: tuple[Task, ...] = ()
    nodes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    time: float = 0.0
    stale: bool = True
    abilities: frozenset[str] = frozenset()

    def volume(self, uuid: str) -> Volume | None:
        return next((one for one in self.volumes if one.uuid == uuid), None)


# -- remembered ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Asked:
    """A replacement that was asked for.

    :ivar before: legs of the volume before. :ivar new: the leg that came of it; "" not known yet.
    """

    time: float
    volume: str
    before: frozenset[str]
    new: str = ""


@dataclasses.dataclass(frozen=True)
class Tried:
    """An action that failed ``count`` times in a row and is due again at ``next``."""

    count: int
    next: float
    error: str


@dataclasses.dataclass(frozen=True)
class Told:
    """What was reported: ``states`` of legs by uuid, and when the answer was there."""

    time: float
    states: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Memory:
    """What no look at the host can tell.

    :ivar lost: since when a leg is neither in sync nor synchronising, by its uuid.
    :ivar dead: since when a leg has no live path.
    :ivar asked: by the uuid of the leg that is to be replaced.
    :ivar tried: by the key of the action.
    :ivar members: uuid of the leg by "array/device", for devices that are gone.
    :ivar counted: when event counters of a volume were reported last.
    :ivar cut: when the connections to a node were ended last, by its id.
    :ivar told: states of legs as they were reported last, by volume.
    :ivar restarts: when it was begun to assemble the array of a volume anew.
    """

    lost: Mapping[str, float] = dataclasses.field(default_factory=dict)
    dead: Mapping[str, float] = dataclasses.field(default_factory=dict)
    asked: Mapping[str, Asked] = dataclasses.field(default_factory=dict)
    tried: Mapping[str, Tried] = dataclasses.field(default_factory=dict)
    members: Mapping[str, str] = dataclasses.field(default_factory=dict)
    counted: Mapping[str, float] = dataclasses.field(default_factory=dict)
    cut: Mapping[str, float] = dataclasses.field(default_factory=dict)
    told: Mapping[str, Told] = dataclasses.field(default_factory=dict)
    restarts: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the options say; seconds and KB/s.

    :ivar fail_after: without a live path, before the agent fails a leg itself.
    :ivar spare_wait: that a new leg may take to appear before it is reported Missing.
    :ivar move_wait: that the new leg of a migration may be lost before the migration fails.
    :ivar ask_again: before a replacement is asked for again when the first answer was lost.
    :ivar count_every: between two reports of event counters alone.
    :ivar hold: that writes are held at most.
    :ivar silence: of a node whose I/O waits, before its connections are ended; 0: never.
    :ivar cut_pause: before the connections to the same node are ended again.
    :ivar speed_min, speed_max: of a synchronisation; 0 leaves what the kernel has.
    """

    time_outs: Mapping[str, TimeOuts]
    fail_after: float = 5.0
    spare_wait: float = 60.0
    move_wait: float = 300.0
    ask_again: float = 120.0
    count_every: float = 60.0
    hold: float = 2.0
    silence: float = 2.0
    cut_pause: float = 30.0
    speed_min: int = 0
    speed_max: int = 0


@dataclasses.dataclass(frozen=True)
class Pace:
    """Seconds; ``parallel``: volumes at the same time; ``ask``: between two probes of a node."""

    look: float = 15.0
    busy: float = 1.0
    pull: float = 30.0
    probe: int = 10
    ask: float = 0.5
    parallel: int = 16
