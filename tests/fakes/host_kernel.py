# SPDX-License-Identifier: Apache-2.0
"""A host with its kernel, for :class:`os_brick_nvmeof.host.Host`: stateful, with its own time.

``Kernel(tmp_path)`` has /sys, /dev and /proc below ``root``. Storage nodes are made with
:meth:`Kernel.target`; ``kernel.nodes[address]`` says how a node behaves (:data:`host_nvme.LIVE`,
...). ``kernel.context()`` is what the code under test is given.

Others plug in: ``commands[name]`` runs a program, ``writers`` take writes to other attributes,
``blocks[name]`` answers reads of other block devices, ``on_arrival`` and ``on_departure`` are
called when an NVMe block device comes and goes (udev).
"""

import collections
import errno
import os
import pathlib
import re
import struct
import uuid

from oslo_config import cfg

from os_brick_nvmeof import conf
from os_brick_nvmeof.context import Context
from os_brick_nvmeof.host import CommandError
from tests.fakes import host_sim
from tests.fakes.host_nvme import FROZEN, LIVE, REFUSES, SILENT, Nvme, Target

HOST = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-4000-8000-00000000f00d"
HOST_ID = "00000000-0000-4000-8000-00000000f00d"
OPTIONS = re.findall(
    r"\w+",
    "transport traddr trsvcid nqn queue_size nr_io_queues reconnect_delay ctrl_loss_tmo "
    "keep_alive_tmo hostnqn host_traddr host_iface hostid duplicate_connect disable_sqflow "
    "hdr_digest data_digest nr_write_queues nr_poll_queues tos keyring tls_key fast_io_fail_tmo "
    "discovery dhchap_secret dhchap_ctrl_secret tls concat",
)
_ATTRIBUTE = re.compile(r"/sys/class/(?:nvme-fabrics/ctl|nvme)/nvme(\d+)/(\w+)")
_KEPT = ("reconnect_delay", "ctrl_loss_tmo", "fast_io_fail_tmo")
# Seconds: one SYN and one more (nvme_tcp_alloc_queue), an admin command, a live connect.
_SYN = 3.1
_ADMIN = 60.0


def refuse(number, about=""):
    raise OSError(number, os.strerror(number), about)


class Kernel:
    """The host.

    :ivar nodes: address -> how its node behaves now.
    :ivar options: connect options that the kernel knows; None: it does not tell them.
    :ivar lacking: attributes of controllers that this kernel does not have.
    :ivar refusing: "fabrics", or an attribute -> errno that it answers next time, once.
    :ivar log: the kernel's log, as far as connect options get into it.
    :ivar authenticates: it was built with NVME_HOST_AUTH (NVME_AUTH before Linux 6.7).
    :ivar tls_keys: NQNs of subsystems that its key ring has a key for. ``tlshd``: that runs.
    :ivar dirty: block devices with unwritten data in the page cache.
    :ivar calls: what was asked of the host, in order.
    :ivar kill_at: the process is killed in the call of that index; None: never. ``kill_late``:
        when the call was done instead of before.
    """

    def __init__(self, path, multipath=True, seed=0):
        self.root = pathlib.Path(path) / "host"
        self.root.mkdir(parents=True)
        self.sim = host_sim.Sim(seed)
        self.multipath = multipath
        self.nvme = Nvme(self, multipath)
        self.targets = {}
        self.nodes = {}
        self.options = list(OPTIONS)
        self.tells_options = True
        self.lacking = set()
        self.refusing = {}
        self.log = []
        self.authenticates = True
        self.tls_keys = set()
        self.tlshd = False
        self.dirty = set()
        self.connect_seconds = 0.02
        self.delete_seconds = 0.01
        self.calls = []
        self.kill_at = None
        self.kill_late = False
        self.commands = {}
        self.writers = []
        self.blocks = {}
        self.on_arrival = []
        self.on_departure = []
        self._connects = collections.deque()
        self._lock_directory = pathlib.Path(path) / "locks"
        self._lock_directory.mkdir()
        self.boot()

    # Set up.

    def target(self, nqn, *portals, hosts=(HOST,)):
        """A subsystem; ``portals`` are (transport, address, port)."""
        found = Target(self, nqn, hosts, portals)
        self.targets[nqn] = found
        for _transport, address, _port in portals:
            self.nodes.setdefault(address, LIVE)
        return found

    def boot(self):
        """A new boot id; controllers have to be gone."""
        at = self.root / "proc/sys/kernel/random"
        at.mkdir(parents=True, exist_ok=True)
        (at / "boot_id").write_text(f"{uuid.uuid4()}\n")

    def context(self, multipath=None, directory="", **options):
        """What the code under test runs in; ``options`` are those of ``[os_brick_nvmeof]``."""
        registered = cfg.ConfigOpts()
        conf.register(registered)
        for name, value in options.items():
            registered.set_override(name, value, group=conf.GROUP)
        where = str(self._lock_directory) if directory == "" else directory
        return Context(
            host=self,
            conf=registered,
            host_nqn=HOST,
            host_id=HOST_ID,
            multipath=self.multipath if multipath is None else multipath,
            clock=self.sim.clock,
            sleep=self.sim.sleep,
            locks=self._locks(where),
            threads=host_sim.Threads(self.sim),
        )

    def _locks(self, where):
        known = self.__dict__.setdefault("_known_locks", {})
        if where not in known:
            known[where] = host_sim.Locks(self.sim, where)
        return known[where]

    def go(self, address, behaviour, noticed=True):
        """A node changes: its connections break, as far as this host notices."""
        self.nodes[address] = behaviour
        for each in list(self.nvme.controllers.values()):
            if each.options["traddr"] != address:
                continue
            if behaviour != LIVE and noticed and each.state == LIVE:
                self.lose(each)

    def lose(self, controller):
        """Its connection is gone: the kernel tries to make it again."""
        self.nvme.set_state(controller, "connecting")
        self._reconnect_later(controller)

    def _reconnect_later(self, controller):
        delay = float(self.attribute(controller.name, "reconnect_delay"))

        def attempt():
            if controller.state != "connecting":
                return
            if self.portal_of(controller) == LIVE:
                self.nvme.set_state(controller, LIVE)
            else:
                self._reconnect_later(controller)

        self.sim.after(delay, attempt)

    # What tests look at.

    def portal_of(self, controller):
        return self.nodes[controller.options["traddr"]]

    def attribute(self, name, attribute):
        return (self.root / "sys/class/nvme" / name / attribute).read_text().strip()

    def controllers(self):
        """(NQN, address) of all controllers, sorted."""
        every = self.nvme.controllers.values()
        return sorted((each.options["nqn"], each.options["traddr"]) for each in every)

    def devices(self):
        """Names of block devices in /dev."""
        return sorted(p.name for p in (self.root / "dev").iterdir() if "n" in p.name[4:])

    def hold(self, name, holder="md127"):
        """A device is made of another one."""
        (self.root / "sys/class/block" / name / "holders" / holder).mkdir()

    def let_go(self, name, holder="md127"):
        (self.root / "sys/class/block" / name / "holders" / holder).rmdir()

    def arrived(self, name, volume):
        self.blocks[name] = _Disk(self, name, volume)
        for each in self.on_arrival:
            each(name)

    def departed(self, name):
        self.blocks.pop(name, None)
        self.dirty.discard(name)
        for each in self.on_departure:
            each(name)

    # The host.

    def fabrics(self, options):
        return self._call(("fabrics", options), lambda: self._fabrics(options))

    def write(self, path, value):
        self._call(("write", path, value), lambda: self._write(path, value))

    def read(self, device, offset, length):
        return self._call(("read", device), lambda: self._block(device).read(offset, length))

    def link(self, path, target):
        def work():
            self._once("link")
            at = self.root / path[1:]
            at.parent.mkdir(exist_ok=True)
            at.unlink(missing_ok=True)
            if target:
                at.symlink_to(f"../{target}")

        self._call(("link", path, target), work)

    def run(self, *argv, timeout=30.0):
        def work():
            if argv[0] not in self.commands:
                raise CommandError(argv, None, "not there")
            return self.commands[argv[0]](*argv, timeout=timeout)

        return self._call(("run", *argv), work)

    def probe(self, address, port, timeout):
        return self._call(("probe", address, port), lambda: self._probe(address, timeout))

    def flush(self, device):
        return self._call(("flush", device), lambda: self._flush(device))

    def identify(self, controller, cns, nsid):
        return self._call(
            ("identify", controller, cns, nsid), lambda: self._identify(controller[5:], cns, nsid)
        )

    def _call(self, what, work):
        self.sim.check()
        number = len(self.calls)
        self.calls.append(what)
        if self.kill_at == number and not self.kill_late:
            self.sim.kill()
        self.sim.step()
        try:
            return work()
        finally:
            if self.kill_at == number and self.kill_late and not self.sim.dead:
                self.sim.kill()

    def _once(self, key):
        if key in self.refusing:
            refuse(self.refusing.pop(key), key)

    # Connecting.

    def _probe(self, address, timeout):
        behaviour = self.nodes.get(address, SILENT)
        self.sim.sleep(timeout if behaviour == SILENT else 0.0005)
        if behaviour == SILENT:
            raise TimeoutError("timed out")
        if behaviour == REFUSES:
            refuse(errno.ECONNREFUSED)

    def _fabrics(self, text):
        self._once("fabrics")
        if not text:
            if not self.tells_options:
                refuse(errno.EINVAL)
            patterns = ",".join(f"{name}=%s" for name in self.options)
            return f"instance=-1,cntlid=-1,{patterns}\n"
        # One at a time on the whole host (nvmf_dev_mutex); what has begun goes on when the
        # process that asked dies.
        job = _Job(host_sim.Event(self.sim), text)
        self._connects.append(job)
        if len(self._connects) == 1:
            self._begin(job)
        job.done.wait()
        if job.error:
            refuse(job.error, "/dev/nvme-fabrics")
        return job.answer

    def _begin(self, job):
        seconds, number = self._judge(job)
        self.sim.after(seconds, lambda: self._end(job, number))

    def _judge(self, job):
        """Seconds until it ends, and the errno, or 0."""
        options = dict(part.partition("=")[::2] for part in job.text.split(","))
        job.options = options
        if not self._parsed(job.text) or {"transport", "traddr", "nqn"} - set(options):
            return 0, errno.EINVAL
        for each in self.nvme.controllers.values():
            same = ("transport", "traddr", "trsvcid", "nqn", "hostnqn")
            if not each.state.startswith("deleting") and all(
                each.options.get(key) == options.get(key) for key in same
            ):
                return 0, errno.EALREADY
        behaviour = self.nodes.get(options["traddr"], SILENT)
        if behaviour == SILENT:
            return _SYN, errno.ETIMEDOUT
        if behaviour == REFUSES:
            return 0.001, errno.ECONNREFUSED
        return self.connect_seconds, self._permit(options)

    def _parsed(self, text):
        """Whether all options are good; if not, the log tells (nvmf_parse_options)."""
        for part in text.split(","):
            name, _, value = part.partition("=")
            if name not in self.options:
                self.log.append(f"unknown parameter or missing value '{part}'")
                return False
            if name.startswith("dhchap") and (len(value) < 11 or not value.startswith("DHHC-1:")):
                self.log.append(f"Invalid DH-CHAP secret {value}")
                return False
        return True

    def _permit(self, options):
        # nvme_tcp_create_ctrl, nvme_tcp_start_tls, nvme_auth_negotiate of Linux 6.12.
        if "tls" in options and options["nqn"] not in self.tls_keys:
            return errno.ENOKEY
        if "tls" in options and not self.tlshd:
            return errno.ESRCH
        target = self.targets.get(options["nqn"])
        wanted = (options["transport"], options["traddr"], options["trsvcid"])
        if not target or wanted not in target.portals or options["hostnqn"] not in target.hosts:
            return errno.EIO
        if not target.keys:
            return 0
        if not self.authenticates:
            return errno.EIO
        given = [options.get(name) for name in ("dhchap_secret", "dhchap_ctrl_secret")]
        if not given[0]:
            return errno.ENOKEY
        good = all(each in (None, key) for each, key in zip(given, target.keys, strict=True))
        return 0 if good else errno.EKEYREJECTED

    def _end(self, job, number, waited=0.0):
        behaviour = self.nodes.get((job.options or {}).get("traddr"), SILENT)
        if not number and behaviour != LIVE:
            if waited < _ADMIN:
                self.sim.after(0.1, lambda: self._end(job, 0, waited + 0.1))
                return
            number = errno.ETIMEDOUT
        if number:
            job.error = number
        else:
            controller = self.nvme.make(job.options)
            self.nvme.live(controller)
            job.answer = f"instance={controller.instance},cntlid=1\n"
        job.done.set()
        self._connects.popleft()
        if self._connects:
            self._begin(self._connects[0])

    # Attributes.

    def _write(self, path, value):
        for pattern, writer in self.writers:
            if re.fullmatch(pattern, path):
                writer(path, value)
                return
        match = _ATTRIBUTE.fullmatch(path)
        controller = match and self.nvme.controllers.get(int(match[1]))
        if not controller or not (self.root / path[1:]).exists():
            refuse(errno.ENOENT, path)
        self._once(match[2])
        if match[2] in _KEPT:
            text = "off" if int(value) < 0 else value
            (self.root / path[1:]).write_text(f"{text}\n")
        elif match[2] == "rescan_controller":
            self.nvme.scan_later(controller)
        elif match[2] == "delete_controller":
            self._delete(controller, path)
        else:
            refuse(errno.EACCES, path)

    def _delete(self, controller, path):
        # Whoever comes second finds the attribute gone (device_remove_file_self).
        (self.root / path[1:]).unlink()
        silent = controller.state == LIVE and self.portal_of(controller) != LIVE
        self.nvme.set_state(controller, "deleting")
        done = host_sim.Event(self.sim)

        def last():
            self.nvme.drop(controller)
            done.set()

        self.sim.after(self.nvme.leave_seconds, lambda: self.nvme.leave(controller))
        self.sim.after(_ADMIN if silent else self.delete_seconds, last)
        done.wait()

    # Block devices.

    def _block(self, device):
        name = os.path.basename(os.path.realpath(self.root / device[1:]))
        if name not in self.blocks:
            refuse(errno.ENOENT, device)
        return self.blocks[name]

    def _flush(self, device):
        name = self._block(device) and os.path.basename(device)
        self._once("flush")
        begun = self.sim.now
        while name in self.dirty:
            serving = [each for each in self._serving(name) if self.portal_of(each) == LIVE]
            if any(each.state == LIVE for each in serving):
                self.dirty.discard(name)
            elif name not in self.blocks or self._failed_fast(name):
                refuse(errno.EIO, device)
            else:
                self.sim.sleep(0.1)
                assert self.sim.now - begun < 3600

    def _serving(self, name):
        return [
            each
            for each in self.nvme.controllers.values()
            if any(self.nvme.device(each, nsid) == name for nsid in each.paths)
        ]

    def _failed_fast(self, name):
        for each in self._serving(name):
            late = each.state == "connecting" and each.fails is not None
            if not late or self.sim.now < each.since + each.fails:
                return False
        return True

    def _identify(self, name, cns, nsid):
        controller = self.nvme.controllers.get(int(name[4:]))
        if not controller:
            refuse(errno.ENOENT, name)
        self._once("identify")
        if self.portal_of(controller) != LIVE:
            self.sim.sleep(_ADMIN)
            refuse(errno.EINTR, name)
        volumes = self.targets[controller.options["nqn"]].volumes
        if cns == 2:
            active = sorted(each for each in volumes if each > nsid)[:1024]
            return struct.pack(f"<{len(active)}I", *active).ljust(4096, b"\0")
        if nsid not in volumes:
            refuse(errno.EIO, name)
        volume = volumes[nsid]
        if cns == 3:
            # Type, length, two reserved bytes, value: EUI64, then UUID, then CSI.
            own = uuid.UUID(volume.uuid).bytes
            return (b"\x01\x08\0\0" + own[:8] + b"\x03\x10\0\0" + own).ljust(4096, b"\0")
        data = bytearray(4096)
        struct.pack_into("<Q", data, 0, volume.size // volume.block_size)
        data[26] = 1
        data[130], data[134] = 9, volume.block_size.bit_length() - 1
        return bytes(data)


class _Job:
    def __init__(self, done, text):
        self.done = done
        self.text = text
        self.options = None
        self.error = 0
        self.answer = ""


class _Disk:
    """A namespace as a block device."""

    def __init__(self, kernel, name, volume):
        self._kernel = kernel
        self._name = name
        self.volume = volume

    def read(self, offset, length):
        assert offset % 4096 == 0
        assert length % 4096 == 0
        self._kernel._once("read")
        limit = min(offset + length, self.volume.size)
        parts = (self.volume.blocks.get(at, bytes(4096)) for at in range(offset, limit, 4096))
        return b"".join(parts)


__all__ = ["FROZEN", "HOST", "HOST_ID", "LIVE", "REFUSES", "SILENT", "Kernel", "refuse"]
