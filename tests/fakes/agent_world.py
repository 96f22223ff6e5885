# SPDX-License-Identifier: Apache-2.0
"""A host, its storage nodes and a provisioner, as the agent meets them: one replicated volume.

md, the kernel's paths and the nodes are a few dicts; the rules of the provisioner are its own
(kumo_provisioner/services/legs.py). Each deed of the agent is checked where it is done: what would
lose data, or touch what belongs to others, raises :class:`HarmError`.
"""

from __future__ import annotations

import dataclasses
import itertools

from kumo_client import errors
from kumo_provisioner.services import legs as law
from os_brick_nvmeof.agent import model
from os_brick_nvmeof.agent.model import Place
from os_brick_nvmeof.conf import TimeOuts
from os_brick_nvmeof.props import Portal

VOLUME = "0b6fe5d1-0000-4000-8000-000000000001"
FOREIGN = "0b6fe5d1-0000-4000-8000-0000000000ff"
HOST_NQN = "nqn.2014-08.org.nvmexpress:uuid:host"
RIGHT = TimeOuts(keep_alive=2, reconnect_delay=1, fast_io_fail=4, ctrl_loss=-1)
STOCK = TimeOuts(keep_alive=5, reconnect_delay=10, fast_io_fail=-1, ctrl_loss=600)
LIMITS = model.Limits(
    time_outs={"replicated": RIGHT, "plain": RIGHT},
    fail_after=2,
    spare_wait=10,
    move_wait=50,
    ask_again=20,
)
SYNC_TICKS = 2


class HarmError(AssertionError):
    """The agent did what it must never do."""


class RefusedError(Exception):
    """Something could not be done. ``definite``: it certainly was not."""

    def __init__(self, text, definite=True):
        super().__init__(text)
        self.definite = definite


@dataclasses.dataclass
class Record:
    """A replica in the provisioner, with the columns that its rules look at."""

    uuid: str
    backend_id: str
    state: str = "Available"
    freshness: str = "fresh"
    events: int = 0
    replaces: str = ""
    state_since: int = 0
    volume_id: str = VOLUME

    @property
    def in_sync(self):
        return self.state == "Available" and self.freshness == "fresh"


@dataclasses.dataclass
class Disk:
    """A namespace: what is on it, and whether this host may see it."""

    node: str
    version: int = 0
    kind: str = model.ARRAY
    array: str = VOLUME
    exported: bool = True


class World:
    """:ivar up: nodes that run. :ivar link: nodes that this host reaches.
    :ivar members: legs in the array. :ivar lossy: answers of the provisioner that get lost.
    """

    def __init__(self, replicas=2, nodes=5, down_time=30.0):
        self.now = 1_000_000.0
        self.volume, self.alias = VOLUME, "volume-1"
        self.up = {f"n{number}": True for number in range(nodes)}
        self.link = dict.fromkeys(self.up, True)
        self.modes: dict[str, str] = {}
        self.numbers = itertools.count(1)
        self.disks: dict[str, Disk] = {}
        self.records: list[Record] = []
        self.replicas, self.down_time = replicas, down_time
        self.version = 1
        self.slots = replicas
        self.members: dict[str, Place] = {}
        self.left: dict[str, int] = {}
        self.controllers: dict[str, TimeOuts] = {}
        self.state = "clean"
        self.open = False
        self.shared = False
        self.tasks: dict[str, model.Task] = {}
        self.answering = True
        self.abilities = frozenset({"array-report"})
        self.lossy = 0
        self.blind: set[str] = set()
        self.last = model.Wanted()
        self.asked: list[str] = []
        for node in list(self.up)[:replicas]:
            leg = self._new_disk(node, version=1)
            self.records.append(Record(leg, node))
            self.members[leg] = Place.IN_SYNC
            self.controllers[node] = STOCK

    def _new_disk(self, node, **what):
        leg = f"0b6fe5d1-0000-4000-8000-1000000000{next(self.numbers):02d}"
        self.disks[leg] = Disk(node, **what)
        return leg

    # -- what happens ----------------------------------------------------------------------------

    def reaches(self, node):
        return self.up[node] and self.link[node] and node in self.controllers

    def live(self, leg):
        disk = self.disks.get(leg)
        return disk is not None and self.reaches(disk.node) and disk.exported

    def good(self):
        return [leg for leg, place in self.members.items() if place is Place.IN_SYNC]

    def write(self):
        """Somebody writes: md fails the legs that it cannot write to, but never the last one."""
        reached = [leg for leg in self.good() if self.live(leg)]
        if not reached:
            return
        self.version += 1
        for leg in reached:
            self.disks[leg].version = self.version
        for leg in list(self.members):
            if not self.live(leg) and self.members[leg] is not Place.FAULTY:
                self.members[leg] = Place.FAULTY

    def tick(self, seconds=1.0):
        self.now += seconds
        source = any(self.live(leg) for leg in self.good())
        for leg, place in list(self.members.items()):
            if place is not Place.SYNCING or not source:
                continue
            if not self.live(leg):
                self.members[leg] = Place.FAULTY
                continue
            self.left[leg] -= 1
            if self.left[leg] <= 0:
                self.members[leg] = Place.IN_SYNC
                self.disks[leg].version = self.version

    # -- what is seen ----------------------------------------------------------------------------

    def nqn(self, node):
        return f"nqn.of.{node}"

    def portal(self, node):
        return Portal(f"10.0.0.{self.number(node)}", "4420", "tcp")

    def number(self, node):
        return list(self.up).index(node)

    def _controller(self, name, node):
        portal = self.portal(node)
        state = "live" if self.reaches(node) else "connecting"
        return model.Controller(
            f"nvme{self.number(node)}",
            self.nqn(node),
            "tcp",
            portal.address,
            portal.port,
            state,
            name,
            self.controllers.get(node, STOCK),
        )

    def seen(self):
        controllers = [self._controller(HOST_NQN, node) for node in self.controllers]
        # Somebody else's connections and arrays are there as well.
        controllers.append(
            model.Controller("nvme90", "nqn.other", "tcp", "10.9.9.9", "4420", "live", HOST_NQN)
        )
        namespaces = [
            model.Namespace(self.device(leg), leg, self.nqn(disk.node))
            for leg, disk in self.disks.items()
            if disk.exported and disk.node in self.controllers
        ]
        blocks = {
            leg: model.Superblock(disk.kind, disk.array, disk.version)
            for leg, disk in self.disks.items()
            if self.live(leg) and self.members.get(leg) in (None, Place.FAULTY)
        }
        return model.Seen(
            controllers=None if "controllers" in self.blind else tuple(controllers),
            namespaces=None if "namespaces" in self.blind else tuple(namespaces),
            arrays=None if "arrays" in self.blind else (self._array(), *self._others()),
            superblocks={} if "superblocks" in self.blind else blocks,
            host_nqn=HOST_NQN,
        )

    def device(self, leg):
        return f"nvme{1 + list(self.disks).index(leg)}n1"

    def _array(self):
        members = tuple(
            model.Member(self.device(leg), leg, place) for leg, place in self.members.items()
        )
        syncing = any(place is Place.SYNCING for place in self.members.values())
        return model.Array(
            "md127",
            self.volume,
            self.alias,
            self.state,
            self.slots,
            None if "members" in self.blind else members,
            done=50 if syncing else 0,
            total=100 if syncing else 0,
            events=0 if "events" in self.blind else self.version,
        )

    def _others(self):
        yield model.Array(
            "md1", FOREIGN, "volume-1", "clean", 2, (model.Member("sda", "", Place.FAULTY),)
        )

    def wanted(self):
        if not self.answering:
            self.last = dataclasses.replace(self.last, stale=True)
            return self.last
        legs = tuple(
            model.Leg(
                one.uuid,
                one.backend_id,
                self.nqn(one.backend_id),
                (self.portal(one.backend_id),),
                one.state,
                one.freshness,
                one.events,
                replaces=one.replaces,
            )
            for one in self.records
        )
        volume = model.Volume(
            VOLUME,
            "volume-1",
            legs,
            replicas=self.replicas,
            down_time=self.down_time,
            shared=self.shared,
            array_state="open",
        )
        nodes = {node: "Available" if up else "Unavailable" for node, up in self.up.items()}
        self.last = model.Wanted(
            (volume,),
            tuple(self.tasks.values()),
            nodes | self.modes,
            self.now,
            stale=False,
            abilities=self.abilities,
        )
        return self.last

    # -- what the agent does ---------------------------------------------------------------------

    def do(self, action):
        """Carry an action out; gives the new leg when one was asked for."""
        if action.volume != self.volume:
            raise HarmError(f"{action} is about somebody else's volume")
        array = (getattr(action, "name", "md127"), getattr(action, "array", self.volume))
        if array != ("md127", self.volume):
            raise HarmError(f"{action} is about somebody else's array")
        return getattr(self, f"_{action.kind}")(action)

    def _Reconnect(self, action):  # noqa: N802
        node = next(node for node in self.up if self.nqn(node) == action.nqn)
        if not (self.up[node] and self.link[node]):
            raise RefusedError("no answer")
        # nvmet listens on a port from its first export on.
        if not any(one.exported for one in self.disks.values() if one.node == node):
            raise RefusedError("connection refused")
        self.controllers[node] = RIGHT

    def _SetTimeOuts(self, action):  # noqa: N802
        number = int(action.controller.removeprefix("nvme"))
        node = dict(enumerate(self.up)).get(number)
        if node not in self.controllers:
            raise HarmError(f"{action} is about somebody else's controller")
        self.controllers[node] = RIGHT

    def _others_hold(self, leg, what):
        rest = [one for one in self.good() if one != leg and self.live(one)]
        if not any(self.disks[one].version == self.version for one in rest):
            raise HarmError(f"{what}: the last leg with all writes would go")

    def _FailLeg(self, action):  # noqa: N802
        self._others_hold(action.leg, "fail")
        if self.live(action.leg):
            raise HarmError("a leg that is reached was failed")
        self.members[action.leg] = Place.FAULTY

    def _put_in(self, action):
        leg, disk = action.leg, self.disks.get(action.leg)
        if action.device != self.device(leg):
            raise HarmError("another device was meant")
        if disk is None or not self.live(leg) or not any(map(self.live, self.good())):
            raise RefusedError("no such device")
        if disk.kind == model.OTHER or (disk.kind == model.ARRAY and disk.array != self.volume):
            raise HarmError("a leg with other data was put in")
        if self.members.get(leg) in (Place.IN_SYNC, Place.SYNCING):
            raise HarmError("a leg was put in twice")
        disk.kind, disk.array = model.ARRAY, self.volume
        self.members[leg] = Place.SYNCING
        self.left[leg] = SYNC_TICKS

    def _active(self):
        return sum(place is not Place.FAULTY for place in self.members.values())

    def _ReAdd(self, action):  # noqa: N802
        if self._active() >= self.slots:
            self.slots += 1
        self._put_in(action)

    def _AddSpare(self, action):  # noqa: N802
        self._put_in(action)
        self.slots = max(self.slots, action.slots)

    def _SetSlots(self, action):  # noqa: N802
        if action.slots < self._active():
            raise HarmError("a leg in use would lose its slot")
        self.slots = action.slots

    def _Restart(self, action):  # noqa: N802
        if self.state != "broken":
            raise HarmError("an array that takes writes was stopped")
        whole = [leg for leg in self.good() if self.disks[leg].version == self.version]
        if not any(map(self.live, whole)):
            raise HarmError("an array was stopped whose data cannot be reached")
        if self.open:
            raise RefusedError("somebody has it open")
        self.members = {leg: Place.IN_SYNC for leg in whole if self.live(leg)}
        self.state = "clean"

    def _RemoveLeg(self, action):  # noqa: N802
        self._others_hold(action.leg, "remove")
        del self.members[action.leg]

    def _HoldWrites(self, action):  # noqa: N802
        if not action.legs <= set(self.good()):
            raise HarmError("writes were held for legs that differ")
        self._end(action.task, model.FINISHED)

    def _end(self, uuid, state):
        self.tasks[uuid] = dataclasses.replace(self.tasks[uuid], state=state)

    # -- the provisioner -------------------------------------------------------------------------

    def _call(self):
        if not self.answering:
            raise RefusedError("no answer", definite=False)

    def _lose(self):
        if self.lossy:
            self.lossy -= 1
            raise RefusedError("the answer was lost", definite=False)

    def _record(self, leg):
        found = next((one for one in self.records if one.uuid == leg), None)
        if found is None:
            raise RefusedError("NotExists")
        return found

    def _ReportLeg(self, action):  # noqa: N802
        self._call()
        record = self._record(action.leg)
        law.note(record, action.state, 0, proven=False, replicated=True)
        law.settle(self.records)

    def _ReportArray(self, action):  # noqa: N802
        self._call()
        seen = {}
        for leg, state, events in action.legs:
            record = next((one for one in self.records if one.uuid == leg), None)
            if record is None or record.state == "Terminating":
                continue
            if state == "Available" and self.disks[leg].version != self.version:
                raise HarmError("a leg that lacks writes was reported Available")
            law.note(record, state, 0, proven=True, replicated=True)
            record.events = events or record.events
            seen[leg] = events
        law.judge(self.records, seen)
        # A leg that is to go stays in the array while it is the only one; nobody else gets it.
        fresh = [
            one.uuid
            for one in self.records
            if one.freshness == "fresh" or one.state == "Terminating"
        ]
        if not any(self.disks[leg].version == self.version for leg in fresh):
            raise HarmError("no leg with all writes is recorded as fresh any more")

    def _Export(self, action):  # noqa: N802
        self._call()
        disk = self.disks[action.leg]
        if not self.up[disk.node]:
            raise RefusedError("the node does not answer")
        disk.exported = True

    def away(self):
        return [node for node, up in self.up.items() if not up]

    def _AskReplacement(self, action):  # noqa: N802
        self._call()
        if 3 * len(self.away()) >= len(self.up) > 3:
            raise RefusedError("it is the network")
        for one in self.records:
            if one.replaces == action.leg:
                raise HarmError("a second replacement was asked for one loss")
        spare = law.spare(self.records)
        if spare and spare.freshness == "blank" and spare.state == "Missing":
            self._terminate(spare)
            raise RefusedError("the dead spare goes first")
        self._checked(law.check_add, VOLUME, self.records)
        used = {one.backend_id for one in self.records}
        free = [node for node, up in self.up.items() if up and node not in used]
        if not free:
            raise RefusedError("NoSpace")
        task = next((one for one in self.tasks.values() if one.open), None)
        lost = [one for one in self.records if one.state == "Missing"]
        old = task.tags["replicaId"] if task else (lost[0].uuid if lost else "")
        leg = self._new_disk(free[0], kind=model.NOTHING, array="", exported=False)
        self.records.append(Record(leg, free[0], "Unknown", "blank", replaces=old))
        self.asked.append(old)
        self._lose()
        return leg

    def _checked(self, check, *args):
        try:
            check(*args)
        except errors.KumoError as error:
            raise RefusedError(str(error)) from error

    def _terminate(self, record):
        self._checked(law.check_terminate, record, self.records)
        law.enter(record, "Terminating", 0)
        law.settle(self.records)

    def _RetireLeg(self, action):  # noqa: N802
        self._call()
        self._terminate(self._record(action.leg))
        self._lose()

    def _ConfirmRemoval(self, action):  # noqa: N802
        self._call()
        if action.leg in self.members:
            raise HarmError("a leg was given up that is in the array")
        record = self._record(action.leg)
        if record.state != "Terminating":
            raise HarmError("a leg was given up that nobody wanted to go")
        self.records.remove(record)
        self.disks[action.leg].exported = False
        self._lose()

    def _ReportTask(self, action):  # noqa: N802
        self._call()
        changed = dataclasses.replace(
            self.tasks[action.task], state=action.state, progress=action.progress
        )
        self.tasks[action.task] = changed
        spare = law.spare(self.records)
        if action.state == model.FAILED and spare and spare.freshness == "blank":
            self._terminate(spare)

    # -- judged ----------------------------------------------------------------------------------

    def redundant(self):
        staying = [one for one in self.records if one.state != "Terminating"]
        return (
            len(staying) == len(self.records) == self.replicas == self.slots == len(self.members)
            and all(one.in_sync for one in staying)
            and all(self.members.get(one.uuid) is Place.IN_SYNC for one in staying)
            and all(self.disks[one.uuid].version == self.version for one in staying)
        )
