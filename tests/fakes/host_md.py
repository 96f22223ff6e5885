# SPDX-License-Identifier: Apache-2.0
"""md and mdadm on a faked host: plugs into :class:`tests.fakes.host_kernel.Kernel`.

Superblocks are really written to what the namespaces hold at their nodes, with counters as
md_update_sb() in drivers/md/md.c has them; arrays are shown in sysfs; mdadm answers in its words
and with its exit codes (mdadm 4.2, Assemble.c, Create.c, Manage.c, Incremental.c). As Linux before
6.8 does, it takes a leg whose counter is one behind for good, whatever the others say of it.

With ``udev`` on, each leg with a superblock is given to ``mdadm --incremental`` as it appears, and
udev's file of the device is written after that.
"""

import errno
import shutil
import uuid as uuidlib

from os_brick_nvmeof.host import CommandError
from tests.fakes.host_arrays import Array, Member, load
from tests.fakes.host_kernel import LIVE, refuse
from tests.unit.brick import superblocks
from tests.unit.brick.superblocks import SPARE

DATA_OFFSET = 2048
DATA = DATA_OFFSET * 512
PATTERN = r"/sys/class/block/(md[\w.-]+)/md/(array_state|safe_mode_delay)"


class Md:
    """The arrays of a host.

    :ivar users: names of arrays that somebody has open.
    :ivar has_uuid: the kernel shows ``md/uuid``.
    :ivar fails: words of a command -> output; such a command fails once with exit code 1.
    :ivar die_in: the process is killed after that many steps of mdadm; None: never.
    :ivar resynced: names of arrays whose new part was resynchronised after growing.
    :ivar udev_seconds: what udev takes for a device, by the address of its node; ``None``: of all
        others.
    :ivar udev_assembles: udev has mdadm's rules.
    :ivar udev_holds: seconds from when its mdadm has a device open until it adds it to an array,
        which it does as well if the device has gone meanwhile: the array keeps it then.
    """

    def __init__(self, kernel, udev=False):
        self.kernel = kernel
        self.udev = udev
        self.arrays = {}
        self.users = set()
        self.has_uuid = True
        self.links = True
        self.lockless = False
        self.fails = {}
        self.die_in = None
        self.resynced = []
        self.fill_seconds = 0.2
        self.step_seconds = 0.005
        self.udev_seconds = {None: 0.004}
        self.udev_assembles = True
        self.udev_holds = 0
        self._known = {}
        if udev:
            (kernel.root / "run/udev/data").mkdir(parents=True)
            (kernel.root / "run/udev/control").write_text("")
        kernel.commands["mdadm"] = self.mdadm
        kernel.writers.append((PATTERN, self._attribute))
        kernel.on_arrival.append(self._arrived)
        kernel.on_departure.append(self._departed)
        (kernel.root / "sys/devices/virtual/block").mkdir(parents=True)
        (kernel.root / "proc/sys/kernel/osrelease").parent.mkdir(parents=True, exist_ok=True)
        self.release("6.12.0-amd64")

    def release(self, text):
        (self.kernel.root / "proc/sys/kernel/osrelease").write_text(f"{text}\n")

    # What tests do and look at.

    def volume(self, device):
        """What a block device holds, at its node."""
        return self.kernel.blocks[device].volume

    def write(self, name, data):
        """A user writes through an array; legs that do not answer are given up."""
        array = self.arrays[name]
        if array.state in ("readonly",):
            refuse(errno.EROFS, name)
        array.state = "active"
        if not array.dirty:
            self._update(array, toggle=True, dirty=True)
        for device in list(array.sound()):
            if not self._answers(device):
                self.fail(name, device)
        for device in array.sound():
            self.volume(device).blocks[DATA] = data.ljust(4096, b"\0")
        self._show(array)

    def read(self, name):
        """What readers of an array may get, each one of its legs that is in sync answering."""
        devices = self.arrays[name].in_sync()
        return {self.volume(device).blocks.get(DATA, b"").rstrip(b"\0") for device in devices}

    def idle(self, name):
        array = self.arrays[name]
        if array.dirty:
            self._update(array, toggle=True, dirty=False)
            array.state = "clean"
            self._show(array)

    def fail(self, name, device):
        """A member is lost; md keeps the last one."""
        array = self.arrays[name]
        one = array.members[device]
        if one.in_sync and len(array.in_sync()) == 1:
            return
        one.faulty, one.in_sync, one.filling = True, False, False
        self._update(array, toggle=False, dirty=array.dirty)
        self._show(array)

    def crash(self):
        """The host dies: nothing more is written, and what it had is gone."""
        for array in list(self.arrays.values()):
            self._vanish(array)
        self.users.clear()

    # mdadm.

    def mdadm(self, *argv, timeout=30.0):
        self._argv, self._end = argv, self.kernel.sim.now + timeout
        for words, output in list(self.fails.items()):
            if all(word in argv for word in words.split()):
                del self.fails[words]
                self._no(output)
        self._step()
        verb = argv[1].lstrip("-").replace("-", "_")
        return getattr(self, f"_{verb}")(argv[2:])

    def _no(self, output, code=1):
        raise CommandError(self._argv, code, f"mdadm: {output}")

    def _step(self):
        if self.die_in is not None:
            self.die_in -= 1
            if self.die_in < 0:
                self.die_in = None
                self.kernel.sim.kill()
        self.kernel.sim.sleep(self.step_seconds)

    def _create(self, args):
        options, words = _options(args)
        devices = [word.rpartition("/")[2] for word in words[1:] if word != "missing"]
        places = int(options["raid-devices"])
        if options["bitmap"] == "lockless" and not self.lockless:
            self._no("--bitmap value must contain a '/' or be 'internal', or 'none'", 2)
        if places == 1 and "force" not in options:
            self._no("'1' is an unusual number of drives for an array", 2)
        assert len(words) - 1 == places
        self._free(devices, "create aborted", 2)
        size = int(options.get("size", 0)) * 2
        for device in devices:
            room = self.volume(device).size // 512 - DATA_OFFSET
            size = size or room
            if size > room:
                self._no(f"/dev/{device} is smaller than given size.", 2)
        title = f"any:{options['name']}"
        array = self._new(_uuid(options["uuid"]), title, places, size)
        for number, device in enumerate(devices):
            array.members[device] = Member(number, number)
        self._hold(array)
        for device in devices:
            # Nothing is written before the superblock of all that was there is killed.
            self._store(array, device)
            self._step()
        self._start(array, "readonly" if "readonly" in options else "clean")
        return f"mdadm: array /dev/md/{array.alias} started.\n"

    def _assemble(self, args):
        options, words = _options(args)
        wanted = _uuid(options["uuid"])
        found = {}
        for word in words[1:]:
            device = word.rpartition("/")[2]
            sb = load(self.volume(device)) if device in self.kernel.blocks else None
            if sb and sb.array == wanted and not self._holder(device):
                found[device] = sb
        if not found:
            self._no("no recogniseable superblock, or every device is busy - skipping")
        freshest = max(found.values(), key=lambda sb: sb.events)
        taken = {
            device: sb
            for device, sb in found.items()
            if freshest.number in sb.active
            and sb.events + 1 >= freshest.events
            and (sb.size, sb.ctime) == (freshest.size, freshest.ctime)
        }
        array = self._new(wanted, freshest.name, freshest.places, freshest.size, freshest.ctime)
        array.events = freshest.events
        for device, sb in taken.items():
            self._join(array, device, sb)
        self._hold(array)
        self._step()
        if "run" not in options and len(array.in_sync()) < len(freshest.active):
            self._show(array)
            self._no(
                f"/dev/md/{array.alias} assembled from {len(taken)} drives - need all "
                f"{len(freshest.active)} to start it (use --run to insist)."
            )
        self._start(array, "readonly" if "readonly" in options else "clean")
        return f"mdadm: /dev/md/{array.alias} has been started with {len(taken)} drives.\n"

    def _stop(self, args):
        array = self._of(args[0])
        if array is None:
            self._no(f"error opening {args[0]}: No such file or directory")
        if array.name in self.users or any(self._holders(array.name).iterdir()):
            self._no(
                f"Cannot get exclusive access to {args[0]}:Perhaps a running process, mounted "
                "filesystem or active volume group?"
            )
        if array.dirty:
            for device in list(array.sound()):
                self._flush(array, device)
            self._update(array, toggle=True, dirty=False)
        array.state = "clear"
        self._show(array)
        self.kernel.sim.after(0.002, lambda: self._vanish(array))
        return f"mdadm: stopped {args[0]}\n"

    def _grow(self, args):
        options, words = _options(args)
        array, size = self._of(words[0]), int(options["size"]) * 2
        for device in array.sound():
            if self.volume(device).size // 512 < size + DATA_OFFSET:
                self._no(f"Cannot set device size for {words[0]}: No space left on device")
        array.size = size
        self._update(array, toggle=False, dirty=array.dirty)
        if "assume-clean" not in options:
            self.resynced.append(array.name)
        self.kernel.sim.after(0.003, lambda: self._show(array))
        return f"mdadm: component size of {words[0]} has been set to {size // 2}K\n"

    def _manage(self, args):
        options, words = _options(args)
        array, device = self._of(words[0]), words[1].rpartition("/")[2]
        if array.state == "readonly":
            self._no(f"add new device failed for {words[1]}: Read-only file system")
        self._free([device], "Device or resource busy", 1)
        sb = load(self.volume(device))
        places = {one.role for one in array.sound().values()}
        if "re-add" in options:
            numbers = {one.number for one in array.sound().values()}
            if not sb or sb.array != array.uuid or sb.number not in sb.active:
                self._no(f"--re-add for {words[1]} to {words[0]} is not possible")
            if sb.number in numbers or sb.roles[sb.number] in places or sb.size != array.size:
                self._no(f"--re-add for {words[1]} to {words[0]} is not possible")
            one = Member(sb.number, sb.roles[sb.number])
        else:
            assert "add-spare" in options
            numbers = [one.number for one in array.members.values()]
            free = [role for role in range(array.places) if role not in places]
            one = Member(max([array.places - 1, *numbers]) + 1, free[0] if free else SPARE)
        one.in_sync, one.filling = False, one.role != SPARE
        array.members[device] = one
        self._hold(array)
        self._update(array, toggle=False, dirty=array.dirty)
        self._fill_later(array, device)
        self._show(array)
        return f"mdadm: added {words[1]}\n"

    def _of(self, path):
        name = path.rpartition("/")[2]
        link = self.kernel.root / path[1:]
        if link.is_symlink():
            name = link.readlink().name
        return self.arrays.get(name)

    def _free(self, devices, words, code):
        for device in devices:
            if device not in self.kernel.blocks:
                self._no(f"cannot open /dev/{device}: No such file or directory", code)
            if self._holder(device):
                self._no(f"cannot open /dev/{device}: Device or resource busy; {words}", code)

    # udev.

    def _arrived(self, device):
        if not self.udev:
            return
        home = self.kernel.root / "sys/class/block" / device
        number = self._known[device] = (home / "dev").read_text().strip()
        address = self.kernel._serving(device)[0].options["traddr"]
        seconds = self.udev_seconds.get(address, self.udev_seconds[None])

        def event():
            if self._known.get(device) != number:
                return
            disk = self.kernel.blocks.get(device)
            opened = load(disk.volume) if disk and self.udev_assembles else None
            self.kernel.sim.after(self.udev_holds, lambda: add(opened))

        def add(opened):
            if self._known.get(device) == number:
                if self.udev_assembles:
                    self._incremental(device)
                data = self.kernel.root / "run/udev/data" / f"b{number}"
                data.write_text("I:123\nG:systemd\n")
            elif opened and all(one.uuid != opened.array for one in self.arrays.values()):
                array = self._new(opened.array, opened.name, opened.places, opened.size)
                self._join(array, device, opened)
                self._show(array)

        self.kernel.sim.after(seconds, event)

    def _incremental(self, device):
        disk = self.kernel.blocks.get(device)
        sb = load(disk.volume) if disk else None
        if not sb or self._holder(device):
            return
        array = next((one for one in self.arrays.values() if one.uuid == sb.array), None)
        if array is None:
            array = self._new(sb.array, sb.name, sb.places, sb.size, sb.ctime)
        elif array.state != "inactive":
            return
        self._join(array, device, sb)
        self._hold(array)
        blocks = [load(self.volume(name)) for name in array.members]
        freshest = max(blocks, key=lambda one: one.events)
        array.events = freshest.events
        good = [one for one in blocks if one.events + 1 >= freshest.events]
        if {one.number for one in good} >= freshest.active:
            self._start(array, "clean")
        else:
            self._show(array)

    def _departed(self, device):
        number = self._known.pop(device, None)
        (self.kernel.root / "run/udev/data" / f"b{number}").unlink(missing_ok=True)
        array = self._holder(device)
        if not array:
            return
        one = array.members[device]
        last = one.in_sync and len(array.in_sync()) == 1
        if array.state == "inactive" or not last:
            if array.state != "inactive":
                self.fail(array.name, device)
            del array.members[device]
            self._show(array)

    # The kernel.

    def _new(self, uuid, title, places, size, ctime=0):
        name = next(f"md{n}" for n in range(127, 0, -1) if f"md{n}" not in self.arrays)
        array = Array(name, uuid, title, places, size, ctime or int(self.kernel.sim.now * 1000))
        self.arrays[name] = array
        home = self.kernel.root / "sys/devices/virtual/block" / name
        (home / "md").mkdir(parents=True)
        (home / "holders").mkdir()
        (self.kernel.root / "sys/class/block" / name).symlink_to(home)
        (self.kernel.root / "dev" / name).write_text("")
        self._show(array)
        return array

    def _join(self, array, device, sb):
        active = sb.number in sb.active
        filling = bool(sb.features & 2)
        role = sb.roles[sb.number] if active else SPARE
        array.members[device] = Member(sb.number, role, active and not filling, False, filling)

    def _start(self, array, state):
        array.state = state
        self._show(array)
        if state == "clean":
            for device, one in list(array.members.items()):
                if one.filling:
                    self._fill_later(array, device)
        if self.links and self.udev:
            self.kernel.sim.after(0.003, lambda: self._link(array))
        elif self.links:
            self._link(array)

    def _link(self, array):
        at = self.kernel.root / "dev/md" / array.alias
        if array.name in self.arrays and not at.is_symlink():
            at.parent.mkdir(exist_ok=True)
            at.symlink_to(f"../{array.name}")

    def _fill_later(self, array, device):
        def filled():
            one = array.members.get(device)
            if array.state in ("clear", "readonly") or not one or not one.filling:
                return
            sources = [name for name in array.in_sync() if name in self.kernel.blocks]
            blocks = self.volume(device).blocks
            blocks.pop(DATA, None)
            if sources and DATA in self.volume(sources[0]).blocks:
                blocks[DATA] = self.volume(sources[0]).blocks[DATA]
            one.in_sync, one.filling = True, False
            self._update(array, toggle=False, dirty=array.dirty)
            self._show(array)

        self.kernel.sim.after(self.fill_seconds, filled)

    def _update(self, array, *, toggle, dirty):
        nospares = toggle and len(array.in_sync()) == array.places
        if nospares and not dirty and array.can_decrease and array.events != 1:
            array.events, array.can_decrease = array.events - 1, False
        else:
            array.events, array.can_decrease = array.events + 1, nospares
        array.dirty = dirty
        for device in array.sound():
            if device in self.kernel.blocks and self._answers(device):
                self._store(array, device)

    def _store(self, array, device):
        roles = [SPARE] * superblocks.MAX_DEV
        for one in array.sound().values():
            roles[one.number] = one.role
        own = array.members[device]
        self.volume(device).blocks[4096] = superblocks.superblock(
            own.number,
            array.events,
            roles,
            array=array.uuid,
            name=array.title.encode(),
            ctime=array.ctime,
            raid_disks=array.places,
            size=array.size,
            data_size=array.size,
            features=3 if own.filling else 1,
            recovery_offset=8 if own.filling else 0,
            resync_offset=0 if array.dirty else superblocks.MAX,
        )

    def _answers(self, device):
        serving = self.kernel._serving(device)
        return any(one.state == LIVE and self.kernel.portal_of(one) == LIVE for one in serving)

    def _flush(self, array, device):
        """Wait for the last write to a leg: until it is done or fails."""
        while not self._answers(device):
            if device not in self.kernel.blocks or self.kernel._failed_fast(device):
                self.fail(array.name, device)
                return
            if self.kernel.sim.now > self._end:
                raise CommandError(self._argv, None, "not done in time")
            self.kernel.sim.sleep(0.1)

    def _attribute(self, path, value):
        name, attribute = path.split("/")[4], path.split("/")[6]
        array = self.arrays.get(name)
        if array is None:
            refuse(errno.ENOENT, path)
        self.kernel._once(attribute)
        if attribute == "safe_mode_delay":
            array.delay = value
        elif value in ("readonly", "read-auto", "active"):
            array.state = value
        else:
            refuse(errno.EINVAL, path)
        self._show(array)

    # sysfs.

    def _holder(self, device):
        return next((one for one in self.arrays.values() if device in one.members), None)

    def _holders(self, name):
        return self.kernel.root / "sys/class/block" / name / "holders"

    def _hold(self, array):
        for device in array.members:
            if self._holders(device).is_dir():
                (self._holders(device) / array.name).mkdir(exist_ok=True)
        self._show(array)

    def _show(self, array):
        if array.name not in self.arrays:
            return
        home = self.kernel.root / "sys/devices/virtual/block" / array.name
        running = array.state not in ("inactive", "clear")
        values = {
            "size": array.size if running else 0,
            "md/array_state": array.state,
            "md/raid_disks": array.places if running else 0,
            "md/degraded": array.places - len(array.in_sync()),
            "md/component_size": array.size // 2,
            "md/safe_mode_delay": array.delay,
        }
        if self.has_uuid:
            values["md/uuid"] = array.uuid if running else str(uuidlib.UUID(int=0))
        for attribute, value in values.items():
            if array.shown.get(attribute) != value:
                (home / attribute).write_text(f"{value}\n")
        array.shown = values
        shown = {f"dev-{device}" for device in array.members}
        for old in (home / "md").glob("dev-*"):
            if old.name not in shown:
                shutil.rmtree(old)
        for device, one in array.members.items():
            at = home / "md" / f"dev-{device}"
            state = "faulty" if one.faulty else "in_sync" if one.in_sync else "spare"
            if not at.is_dir() or array.shown_members.get(device) != state:
                at.mkdir(exist_ok=True)
                (at / "state").write_text(f"{state}\n")
            array.shown_members[device] = state

    def _vanish(self, array):
        if self.arrays.get(array.name) is not array:
            return
        for device in array.members:
            at = self._holders(device) / array.name
            if at.is_dir():
                at.rmdir()
        del self.arrays[array.name]
        root = self.kernel.root
        shutil.rmtree(root / "sys/devices/virtual/block" / array.name)
        (root / "sys/class/block" / array.name).unlink()
        (root / "dev" / array.name).unlink()
        link = root / "dev/md" / array.alias
        if self.udev and link.is_symlink() and link.readlink().name == array.name:
            link.unlink()


def _options(args):
    """Options by name, and the rest in order."""
    named = [arg[2:].partition("=") for arg in args if arg.startswith("--")]
    return (
        {name: value for name, _, value in named},
        [arg for arg in args if not arg.startswith("--")],
    )


def _uuid(text):
    assert text.count(":") == 3
    return str(uuidlib.UUID(text.replace(":", "")))
