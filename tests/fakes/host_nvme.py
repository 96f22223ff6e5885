# SPDX-License-Identifier: Apache-2.0
"""NVMe of a host as its kernel shows it: the trees in /sys and /dev, targets and portals.

Laid out as drivers/nvme/host/{core,sysfs,multipath,fabrics}.c of Linux 6.1 and 6.12 do.
"""

import dataclasses
import shutil

LIVE = "live"
# The machine is up and nothing listens.
REFUSES = "refuses"
# No packet is answered.
SILENT = "silent"
# TCP answers, the target does not: a connect hangs.
FROZEN = "frozen"

FABRICS = "sys/devices/virtual/nvme-fabrics/ctl"
SUBSYSTEMS = "sys/devices/virtual/nvme-subsystem"


@dataclasses.dataclass
class Volume:
    """A namespace at a target. ``blocks``: offset -> 4096 bytes; what is missing reads as zeros."""

    uuid: str
    nsid: int
    size: int
    block_size: int = 512
    blocks: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Target:
    """A subsystem at a node.

    :ivar hosts: NQNs of the hosts that may connect.
    :ivar keys: DH-HMAC-CHAP keys of host and controller; empty: it does not ask for any.
    :ivar quiet: it sends no events (AEN) when its namespaces change.
    """

    kernel: object
    nqn: str
    hosts: tuple
    portals: tuple
    volumes: dict = dataclasses.field(default_factory=dict)
    quiet: bool = False
    keys: tuple = ()

    def publish(self, uuid, size=1 << 30, block_size=512, nsid=None):
        """Offer a namespace; hosts learn of it."""
        free = next(n for n in range(1, 2000) if n not in self.volumes)
        volume = Volume(uuid, nsid or free, size, block_size)
        self.volumes[volume.nsid] = volume
        self._tell()
        return volume

    def unpublish(self, uuid):
        self.volumes = {n: each for n, each in self.volumes.items() if each.uuid != uuid}
        self._tell()

    def resize(self, uuid, size):
        self.volume(uuid).size = size
        self._tell()

    def volume(self, uuid):
        return next(each for each in self.volumes.values() if each.uuid == uuid)

    def _tell(self):
        if not self.quiet:
            for each in self.kernel.nvme.controllers.values():
                if each.options["nqn"] == self.nqn:
                    self.kernel.nvme.scan_later(each)


@dataclasses.dataclass
class Controller:
    instance: int
    options: dict
    state: str = "new"
    # nsid -> name of the directory below it: a path, or the device itself.
    paths: dict = dataclasses.field(default_factory=dict)
    since: float = 0.0
    # Seconds; what fast_io_fail_tmo was when the connection broke, None for never.
    fails: float | None = None

    @property
    def name(self):
        return f"nvme{self.instance}"


@dataclasses.dataclass
class Subsystem:
    instance: int
    nqn: str
    # nsid -> instance of the head.
    heads: dict = dataclasses.field(default_factory=dict)


class Nvme:
    """Controllers, subsystems and namespaces.

    :ivar scan_seconds: from a controller being live, or an event, to its scan.
    :ivar arrive_seconds: between the steps in which a device arrives: path, head, node.
    """

    def __init__(self, kernel, multipath):
        self.kernel = kernel
        self.multipath = multipath
        self.controllers = {}
        self.subsystems = {}
        self.scan_seconds = 0.01
        self.arrive_seconds = 0.002
        self.leave_seconds = 0.005
        self.ever = 0
        self._disks = 0
        root = kernel.root
        for path in (FABRICS, SUBSYSTEMS, "sys/class/nvme", "sys/class/block", "sys/block", "dev"):
            (root / path).mkdir(parents=True)
        self._link("sys/class/nvme-fabrics/ctl", FABRICS)
        self._link("sys/class/nvme-subsystem", SUBSYSTEMS)
        self._file("sys/module/nvme_core/parameters/multipath", "Y" if multipath else "N")

    # Controllers.

    def make(self, options):
        """A controller on its way; its subsystem is known when it is live."""
        # The number of a subsystem stays taken as long as that is there (nvme_free_ctrl).
        taken = {*self.controllers, *(each.instance for each in self.subsystems.values())}
        controller = Controller(next(n for n in range(1000) if n not in taken), options)
        self.controllers[controller.instance] = controller
        self.ever += 1
        return controller

    def live(self, controller):
        options = controller.options
        controller.state = LIVE
        nqn = options["nqn"]
        if nqn not in self.subsystems:
            self.subsystems[nqn] = Subsystem(controller.instance, nqn)
            home = f"{SUBSYSTEMS}/nvme-subsys{controller.instance}"
            self._file(f"{home}/subsysnqn", nqn)
            self._file(f"{home}/iopolicy", "numa")
        home = f"{FABRICS}/{controller.name}"
        own = {
            "subsysnqn": nqn,
            "transport": options["transport"],
            "address": f"traddr={options['traddr']},trsvcid={options['trsvcid']}"
            + (",src_addr=10.0.0.99" if options["transport"] == "tcp" else ""),
            "hostnqn": options["hostnqn"],
            "hostid": options.get("hostid", ""),
            "kato": options.get("keep_alive_tmo", "5"),
            "reconnect_delay": options.get("reconnect_delay", "10"),
            "ctrl_loss_tmo": _time_out(options.get("ctrl_loss_tmo", "600")),
            "fast_io_fail_tmo": _time_out(options.get("fast_io_fail_tmo", "-1")),
            "delete_controller": "",
            "rescan_controller": "",
            "reset_controller": "",
            "state": LIVE,
        }
        for name in ("dhchap_secret", "dhchap_ctrl_secret") if self.kernel.authenticates else ():
            own[name] = options.get(name, "none")
        for name, value in own.items():
            if name not in self.kernel.lacking:
                self._file(f"{home}/{name}", value)
        self._file(f"dev/{controller.name}", "")
        self._link(f"sys/class/nvme/{controller.name}", home)
        at = f"{SUBSYSTEMS}/nvme-subsys{self.subsystems[nqn].instance}/{controller.name}"
        self._link(at, home)
        self.scan_later(controller)

    def set_state(self, controller, state):
        controller.state = state
        controller.since = self.kernel.sim.now
        if state == "connecting":
            # It is looked at in this moment alone (nvme_start_failfast_work).
            home = self.kernel.root / FABRICS / controller.name / "fast_io_fail_tmo"
            text = home.read_text().strip() if home.exists() else "off"
            controller.fails = None if text == "off" else float(text)
        self._file(f"{FABRICS}/{controller.name}/state", state)
        if state == LIVE:
            self.scan_later(controller)

    def leave(self, controller):
        """Its block devices go; the controller itself later, with :meth:`drop`."""
        for nsid in list(controller.paths):
            self._remove(controller, nsid)

    def drop(self, controller):
        if self.controllers.get(controller.instance) is not controller:
            return
        self.leave(controller)
        nqn = controller.options["nqn"]
        del self.controllers[controller.instance]
        subsystem = self.subsystems[nqn]
        root = self.kernel.root
        shutil.rmtree(root / FABRICS / controller.name)
        home = root / SUBSYSTEMS / f"nvme-subsys{subsystem.instance}"
        for path in (
            root / "sys/class/nvme" / controller.name,
            root / "dev" / controller.name,
            home / controller.name,
        ):
            path.unlink()
        if not any(each.options["nqn"] == nqn for each in self.controllers.values()):
            shutil.rmtree(home)
            del self.subsystems[nqn]

    # Namespaces.

    def scan_later(self, controller, seconds=None):
        delay = self.scan_seconds if seconds is None else seconds
        self.kernel.sim.after(delay, lambda: self.scan(controller))

    def scan(self, controller):
        if (
            self.controllers.get(controller.instance) is not controller
            or controller.state != LIVE
            or self.kernel.portal_of(controller) != LIVE
        ):
            return
        offered = self.kernel.targets[controller.options["nqn"]].volumes
        for nsid in [each for each in controller.paths if each not in offered]:
            self._remove(controller, nsid)
        for nsid, volume in offered.items():
            if nsid not in controller.paths:
                self._add(controller, volume)
            else:
                name = self.device(controller, nsid)
                shown = self.kernel.root / "sys/class/block" / name
                if shown.exists() and (shown / "uuid").read_text().strip() != volume.uuid:
                    # Another namespace under the number of the old one (nvme_validate_ns).
                    self._remove(controller, nsid)
                    self._add(controller, volume)
                elif shown.exists():
                    (shown / "size").write_text(f"{volume.size // 512}\n")

    def device(self, controller, nsid):
        """Name of the block device of a namespace."""
        subsystem = self.subsystems[controller.options["nqn"]]
        of = subsystem.instance if self.multipath else controller.instance
        return f"nvme{of}n{subsystem.heads[nsid]}"

    def _add(self, controller, volume):
        subsystem = self.subsystems[controller.options["nqn"]]
        if volume.nsid not in subsystem.heads:
            free = (n for n in range(1, 1000) if n not in subsystem.heads.values())
            subsystem.heads[volume.nsid] = next(free)
        head = subsystem.heads[volume.nsid]
        home = f"{FABRICS}/{controller.name}"
        if not self.multipath:
            name = f"nvme{controller.instance}n{head}"
            controller.paths[volume.nsid] = name
            self._disk(f"{home}/{name}", name, volume)
            self.kernel.sim.after(self.arrive_seconds, lambda: self._node(name, volume))
            return
        path = f"nvme{subsystem.instance}c{controller.instance}n{head}"
        controller.paths[volume.nsid] = path
        self._disk(f"{home}/{path}", path, volume)
        name = f"nvme{subsystem.instance}n{head}"

        def arrive():
            if controller.paths.get(volume.nsid) != path or self._shown(name):
                return
            at = f"{SUBSYSTEMS}/nvme-subsys{subsystem.instance}/{name}"
            # The head begins with no size (nvme_mpath_alloc_disk).
            self._disk(at, name, dataclasses.replace(volume, size=0))
            self.kernel.sim.after(self.arrive_seconds, size)

        def size():
            if self._shown(name):
                self._file(f"sys/class/block/{name}/size", f"{volume.size // 512}")
                self.kernel.sim.after(self.arrive_seconds, lambda: self._node(name, volume))

        self.kernel.sim.after(self.arrive_seconds, arrive)

    def _node(self, name, volume):
        if self._shown(name):
            self._file(f"dev/{name}", "")
            self.kernel.arrived(name, volume)

    def _shown(self, name):
        return (self.kernel.root / "sys/class/block" / name).exists()

    def _remove(self, controller, nsid):
        name = self.device(controller, nsid)
        path = controller.paths.pop(nsid)
        subsystem = self.subsystems[controller.options["nqn"]]
        others = [
            each
            for each in self.controllers.values()
            if each.options["nqn"] == subsystem.nqn and nsid in each.paths
        ]
        self._undisk(f"{FABRICS}/{controller.name}/{path}", path)
        if not others:
            if self.multipath:
                self._undisk(f"{SUBSYSTEMS}/nvme-subsys{subsystem.instance}/{name}", name)
            del subsystem.heads[nsid]

    # Files.

    def _disk(self, home, name, volume):
        self._disks += 1
        own = {
            "dev": f"259:{self._disks}",
            "uuid": volume.uuid,
            "nsid": str(volume.nsid),
            "wwid": f"uuid.{volume.uuid}",
            "size": f"{volume.size // 512}",
            "ro": "0",
            "queue/logical_block_size": str(volume.block_size),
        }
        for attribute, value in own.items():
            self._file(f"{home}/{attribute}", value)
        (self.kernel.root / home / "holders").mkdir()
        self._link(f"sys/class/block/{name}", home)
        self._link(f"sys/block/{name}", home)

    def _undisk(self, home, name):
        root = self.kernel.root
        if (root / home).exists():
            shutil.rmtree(root / home)
            (root / "sys/class/block" / name).unlink()
            (root / "sys/block" / name).unlink()
        if (root / "dev" / name).exists():
            (root / "dev" / name).unlink()
            self.kernel.departed(name)

    def _file(self, path, text):
        at = self.kernel.root / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(f"{text}\n")

    def _link(self, path, to):
        at = self.kernel.root / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(self.kernel.root / to)


def _time_out(value):
    return "off" if int(value) < 0 else value
