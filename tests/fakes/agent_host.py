# SPDX-License-Identifier: Apache-2.0
"""What the agent needs of a faked host beyond the connector: more of md, and a provisioner.

:class:`AgentMd` shows more of an array in sysfs and takes what the agent writes there.
:class:`Storage` is the vendor's side: records under the provisioner's own rules, namespaces at the
targets of the faked kernel.
"""

import dataclasses
import errno

from kumo_client import errors
from kumo_provisioner.services import legs as law
from os_brick_nvmeof import props
from os_brick_nvmeof.agent import model, vendor
from tests.fakes.agent_world import Record
from tests.fakes.host_kernel import Kernel, refuse
from tests.fakes.host_md import Md
from tests.unit.brick import volumes

DEVICE_STATE = r"/sys/class/block/(md[\w.-]+)/md/dev-([\w.-]+)/state"
KNOBS = r"/sys/class/block/(md[\w.-]+)/md/(suspend_lo|suspend_hi|sync_speed_min|sync_speed_max)"


class AgentMd(Md):
    """:ivar held: (array, attribute, value) of each write that holds writes."""

    def __init__(self, kernel, udev=False):
        self.held = []
        self.busy = {}
        super().__init__(kernel, udev)
        kernel.writers.append((DEVICE_STATE, self._device_state))
        kernel.writers.append((KNOBS, self._knob))

    def _home(self, name):
        return self.kernel.root / "sys/devices/virtual/block" / name

    def _show(self, array):
        super()._show(array)
        if array.name not in self.arrays:
            return
        home = self._home(array.name) / "md"
        filling = any(one.filling for one in array.members.values())
        values = {
            "level": "raid1",
            "sync_action": "recover" if filling else "idle",
            "sync_completed": "512 / 2048" if filling else "none",
            "sync_speed": "2048" if filling else "none",
        }
        kept = {"sync_speed_min": "1000 (system)", "sync_speed_max": "200000 (system)"}
        kept |= {"suspend_lo": "0", "suspend_hi": "0"}
        for name, value in values.items():
            (home / name).write_text(f"{value}\n")
        for name, value in kept.items():
            if not (home / name).exists():
                (home / name).write_text(f"{value}\n")
        for device in array.members:
            link, at = home / f"dev-{device}" / "block", self.kernel.root / "sys/class/block"
            if not link.is_symlink() and (at / device).exists():
                link.symlink_to((at / device).resolve())

    def _device_state(self, path, word):
        name, device = path.split("/")[4], path.split("/")[6].removeprefix("dev-")
        array = self.arrays[name]
        if device not in array.members:
            refuse(errno.ENOENT, path)
        if self.busy.get(device):
            self.busy[device] -= 1
            refuse(errno.EBUSY, path)
        if word == "faulty":
            if len(array.in_sync()) == 1 and device in array.in_sync():
                refuse(errno.EBUSY, path)
            self.fail(name, device)
        elif word == "remove" and array.members[device].faulty:
            del array.members[device]
            holder = self._holders(device) / name
            if holder.is_dir():
                holder.rmdir()
            # md writes its superblocks when a device has gone (hot_remove_disk() in md.c).
            self._update(array, toggle=False, dirty=array.dirty)
            self._show(array)
        else:
            refuse(errno.EBUSY, path)

    def _knob(self, path, value):
        name, attribute = path.split("/")[4], path.split("/")[6]
        self.kernel._once(attribute)
        (self._home(name) / "md" / attribute).write_text(f"{value}\n")
        if attribute.startswith("suspend"):
            self.held.append((name, attribute, value))

    def _grow(self, args):
        wanted = [arg.partition("=")[2] for arg in args if arg.startswith("--raid-devices=")]
        if not wanted:
            return super()._grow(args)
        array, places = self._of(args[0]), int(wanted[0])
        if places < len(array.sound()):
            self._no("Cannot set device shape: Device or resource busy")
        array.places = places
        roles = {one.role for one in array.sound().values() if one.role < places}
        free = [role for role in range(places) if role not in roles]
        for device, one in array.sound().items():
            if one.role >= places:
                one.role = free.pop(0)
                if not one.in_sync:
                    one.filling = True
                    self._fill_later(array, device)
        self._update(array, toggle=False, dirty=array.dirty)
        self._show(array)
        return ""


class Storage(vendor.Vendor):
    """The provisioner of :class:`Host`.

    :ivar away: nobody answers. :ivar refuse: code of the next error.
    """

    def __init__(self, host):
        self.host = host
        self.records = [
            Record(volumes.LEGS[number], f"n{number}", volume_id=volumes.VOLUME)
            for number in range(host.legs)
        ]
        self.tasks = {}
        self.away = False
        self.array_state = "open"
        self.down_time = 60.0
        self.told, self.calls, self.script = [], [], []
        self.abilities = frozenset({model.CAN_REPORT_ARRAYS})
        self.published, self.busy, self.refuses = True, False, False

    def _call(self, *what):
        self.calls.append(what)
        if self.away:
            raise vendor.VendorError("nobody answers", away=True)

    def _checked(self, check, *args):
        try:
            check(*args)
        except errors.KumoError as error:
            raise vendor.VendorError(str(error), code=error.code, definite=True) from error

    def record(self, leg):
        return next(one for one in self.records if one.uuid == leg)

    def probe(self, *, seconds, abilities):
        self._call("probe", seconds, tuple(abilities))

    def pull(self, seen, now):
        self._call("pull")
        legs = tuple(
            model.Leg(
                one.uuid,
                one.backend_id,
                f"nqn.{one.backend_id[1:]}",
                (props.Portal(self.host.address(int(one.backend_id[1:])), "4420", "tcp"),),
                one.state,
                one.freshness,
                one.events,
                replaces=one.replaces,
            )
            for one in self.records
        )
        volume = model.Volume(
            volumes.VOLUME,
            "volume-1",
            legs,
            replicas=2,
            down_time=self.down_time,
            array_state=self.array_state,
            size=volumes.GIB,
        )
        nodes = {f"n{number}": self.host.state(number) for number in range(self.host.nodes)}
        return model.Wanted(
            (volume,) if self.published else (),
            tuple(self.tasks.values()),
            nodes,
            now,
            stale=False,
            abilities=self.abilities,
        )

    def report_leg(self, volume, leg, state):
        self._call("report", leg, state)
        law.note(self.record(leg), state, 0, proven=False, replicated=True)
        law.settle(self.records)

    def report_array(self, volume, legs):
        self._call("report", legs)
        seen = {}
        for leg, state, count in legs:
            law.note(self.record(leg), state, 0, proven=True, replicated=True)
            self.record(leg).events = count or self.record(leg).events
            seen[leg] = count
        law.judge(self.records, seen)

    def last_word(self, word):
        self._call("word", word)
        if self.refuses:
            raise vendor.VendorError("too old", code="Conflict", definite=True)
        return not self.busy

    def export(self, volume):
        self._call("export")
        for one in self.records:
            target = self.host.targets[int(one.backend_id[1:])]
            if one.uuid not in [each.uuid for each in target.volumes.values()]:
                target.publish(one.uuid, volumes.GIB + volumes.OVERHEAD)

    def request_replacement(self, volume, lost):
        self._call("replace", lost)
        self._checked(law.check_add, volume.uuid, self.records)
        used = {one.backend_id for one in self.records}
        node = next(f"n{n}" for n in range(self.host.nodes) if f"n{n}" not in used)
        leg = volumes.LEGS[int(node[1:])]
        self.records.append(Record(leg, node, "Unknown", "blank", replaces=lost))
        return leg

    def retire(self, volume, leg):
        self._call("retire", leg)
        self._checked(law.check_terminate, self.record(leg), self.records)
        law.enter(self.record(leg), "Terminating", 0)

    def confirm(self, volume, leg):
        self._call("confirm", leg.uuid)
        assert self.record(leg.uuid).state == "Terminating"
        self.records.remove(self.record(leg.uuid))
        self.host.targets[int(leg.node[1:])].unpublish(leg.uuid)

    def report_task(self, task, *, state, status, progress):
        self._call("task", state, status)
        self.tasks[task] = dataclasses.replace(self.tasks[task], state=state, progress=progress)

    def task(self, uuid):
        self._call("task?")
        if self.script:
            self.script.pop(0)()
        return self.tasks.get(uuid)

    def wait(self, since, seconds):
        self._call("wait", since)
        raise vendor.VendorError("no events here", code="NotAvailable", definite=True)

    def tell(self, level, message, details):
        self._call("tell")
        self.told.append((level, message))


class Host(volumes.World):
    """An attached volume with two legs on nodes n0 and n1; n2 to n3 are spare."""

    nodes = 4
    legs = 2

    def __init__(self, path):
        self.kernel = Kernel(path)
        self.md = AgentMd(self.kernel)
        self.ctx = self.kernel.context()
        self.targets = []
        for number in range(self.nodes):
            target = self.kernel.target(f"nqn.{number}", ("tcp", self.address(number), "4420"))
            if number < self.legs:
                target.publish(volumes.LEGS[number], volumes.GIB + volumes.OVERHEAD)
            self.targets.append(target)
        self.told = [(props.FRESH, 0)] * self.legs
        self.array_state = props.NEW
        self.storage = Storage(self)

    def state(self, number):
        up = self.kernel.nodes[self.address(number)] == "live"
        return "Available" if up else "Unavailable"

    def in_sync(self):
        return {volumes.LEGS[number] for number in self.legs_in_sync()}
