# SPDX-License-Identifier: Apache-2.0
"""What the Kumo connector does as root, in os-brick's own privileged daemon.

Installed as ``os_brick.privileged.kumo``: oslo.privsep lets a context run only functions of modules
below its own name (``PrivContext._entrypoint``), and os-brick's context is the one that every host
allows already. Seven verbs, each for few files or programs.

The daemon has as many threads as the host has processors (``thread_pool_size``), for all that
os-brick does. A connect to a dead portal or an mdadm behind a dead leg would hold one for seconds,
so each verb has a thread of its own: :func:`start` answers at once with a ticket, and
:func:`outcome` is asked until it is done.

Errors are answered, not raised: privsep makes an exception again of its class and ``args`` alone.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import re
import struct
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from os_brick import privileged

FABRICS = "/dev/nvme-fabrics"
BLOCK = 4096
LONGEST_READ = 4 << 20
# _IO(0x12, 97), include/uapi/linux/fs.h.
BLKFLSBUF = 0x1261
# _IOWR('N', 0x41, struct nvme_passthru_cmd), include/uapi/linux/nvme_ioctl.h: opcode, flags,
# nsid, cdw2, cdw3, metadata, address, both lengths, cdw10 to cdw15, time-out, result.
NVME_ADMIN = 0xC0484E41
_ADMIN_COMMAND = struct.Struct("=BBxxIIIQQIIIIIIIIII")
_IDENTIFY = 0x06
_ASKED = (0x00, 0x02, 0x03)
PROGRAMS = ("mdadm", "udevadm")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Quick verbs, which are most, are answered by start() itself.
_GRACE = 0.005

_ATTRIBUTES = re.compile(
    r"/sys/class/nvme-fabrics/ctl/nvme\d+/[a-z_]+"
    r"|/sys/devices/virtual/nvme-fabrics/ctl/nvme\d+/[a-z_]+"
    r"|/sys/class/nvme/nvme\d+/[a-z_]+"
    r"|/sys/class/nvme-subsystem/nvme-subsys\d+/iopolicy"
    r"|/sys/(class/block|block|devices/virtual/block)/"
    r"md[\w.-]+/(uevent|md/([a-z_0-9]+/)?[a-z_0-9]+|md/dev-[\w!.-]+/[a-z_]+)"
    r"|/sys/(class/block|block)/nvme\d+n\d+/uevent"
)
_DEVICES = re.compile(r"/dev/(nvme\d+n\d+|md[\w.-]+|md/[^/]+)")
_LINKS = re.compile(r"/dev/md/[^/\x00]{1,64}")
_ARRAYS = re.compile(r"(md[\w.-]+)?")
_CONTROLLERS = re.compile(r"/dev/nvme\d+")
_OPTIONS = re.compile(r"[^\x00-\x20]{1,3072}")

# ("done", result) | ("errno", number, text) | ("command", exit code or None, output)
# | ("pending", ticket)
Answer = tuple[Any, ...]


def fabrics(options: str) -> Answer:
    """Connect a controller: drivers/nvme/host/fabrics.c, nvmf_dev_write and nvmf_dev_show.

    Without options, the kernel tells those that it knows.
    """
    if options and (not _OPTIONS.fullmatch(options) or "nqn=" not in options):
        return _refused("these are no connect options")
    handle = os.open(FABRICS, os.O_RDWR | os.O_CLOEXEC)
    try:
        if options:
            os.write(handle, options.encode())
        return "done", os.read(handle, BLOCK).decode().strip()
    finally:
        os.close(handle)


def write(path: str, value: str) -> Answer:
    """Write an attribute of a controller or an array in sysfs."""
    if not _ATTRIBUTES.fullmatch(path) or len(value) > BLOCK:
        return _refused(f"{path} is not to be written")
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, value.encode())
    finally:
        os.close(handle)
    return "done", None


def read(device: str, offset: int, length: int) -> Answer:
    """Read a device past the page cache, whose pages may be older than what is on the device."""
    if not _DEVICES.fullmatch(device):
        return _refused(f"{device} is not to be read")
    if offset < 0 or offset % BLOCK or not 0 < length <= LONGEST_READ or length % BLOCK:
        return _refused(f"{length} bytes at {offset} are not whole blocks of {BLOCK}")
    handle = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        # O_DIRECT wants memory aligned to blocks (open(2)); anonymous memory begins at a page.
        with mmap.mmap(-1, length) as memory:
            count = os.preadv(handle, [memory], offset)
            return "done", memory[:count]
    finally:
        os.close(handle)


def flush(device: str) -> Answer:
    """Write out and empty the page cache of a device."""
    if not _DEVICES.fullmatch(device):
        return _refused(f"{device} is not to be flushed")
    handle = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, BLKFLSBUF)
    finally:
        os.close(handle)
    return "done", None


def identify(controller: str, cns: int, nsid: int) -> Answer:
    """What a controller says of its namespaces (NVMe base specification 2.0, 5.17)."""
    if not _CONTROLLERS.fullmatch(controller) or cns not in _ASKED:
        return _refused(f"{controller} is not to be asked for {cns}")
    data = ctypes.create_string_buffer(BLOCK)
    at = ctypes.addressof(data)
    command = bytearray(
        _ADMIN_COMMAND.pack(_IDENTIFY, 0, nsid, 0, 0, 0, at, 0, BLOCK, cns, 0, 0, 0, 0, 0, 0, 0)
    )
    handle = os.open(controller, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = fcntl.ioctl(handle, NVME_ADMIN, command)
    finally:
        os.close(handle)
    if status:
        return "errno", errno.EIO, f"{controller} answered with status {status:#x}"
    return "done", data.raw


def link(path: str, target: str) -> Answer:
    """Make a link to an array, as udev does (udev-md-raid-arrays.rules of mdadm), or remove it."""
    if not _LINKS.fullmatch(path) or not _ARRAYS.fullmatch(target):
        return _refused(f"{path} is not to be linked to {target}")
    there = os.path.lexists(path)
    if there and not os.path.islink(path):
        return "errno", errno.EEXIST, f"{path} is no link"
    if not target:
        if there:
            os.unlink(path)
        return "done", None
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    # Renamed into place: nobody ever sees no link.
    new = f"{os.path.dirname(path)}/.kumo-{os.path.basename(path)}"
    if os.path.lexists(new):
        os.unlink(new)
    os.symlink(f"../{target}", new)
    os.rename(new, path)
    return "done", None


def run(argv: tuple[str, ...], timeout: float) -> Answer:
    """Run one of :data:`PROGRAMS` in the C locale."""
    if not argv or argv[0] not in PROGRAMS:
        return _refused(f"{argv[:1]} is not to be run")
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={"PATH": _PATH, "LC_ALL": "C"},
    )
    try:
        output, complaint = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        # One that waits for a device does not die before the device answers.
        threading.Thread(target=process.communicate, daemon=True).start()
        return "command", None, f"not done after {timeout:g} s"
    if process.returncode:
        return "command", process.returncode, complaint or output
    return "done", output


def _refused(why: str) -> Answer:
    return "errno", errno.EPERM, why


VERBS: dict[str, Callable[..., Answer]] = {
    "fabrics": fabrics,
    "write": write,
    "read": read,
    "flush": flush,
    "identify": identify,
    "link": link,
    "run": run,
}


def perform(verb: str, arguments: tuple[Any, ...]) -> Answer:
    """Do it in this thread."""
    try:
        return VERBS[verb](*arguments)
    except OSError as error:
        return "errno", error.errno or errno.EIO, error.strerror or str(error)


class _Job:
    """One verb under way in a thread of its own."""

    def __init__(self, verb: str, arguments: tuple[Any, ...]) -> None:
        self.answer: Answer = ("errno", errno.EIO, f"{verb} ended without an answer")
        self.done = threading.Event()
        self._work = (verb, arguments)
        threading.Thread(target=self._run, name=f"kumo-{verb}", daemon=True).start()

    def _run(self) -> None:
        try:
            self.answer = perform(*self._work)
        finally:
            self.done.set()


_jobs: dict[int, _Job] = {}
_tickets = itertools.count(1)


@privileged.default.entrypoint
def start(verb: str, *arguments: Any) -> Answer:
    """Begin a verb; its answer, or ``("pending", ticket)``."""
    job = _Job(verb, arguments)
    if job.done.wait(_GRACE):
        return job.answer
    ticket = next(_tickets)
    _jobs[ticket] = job
    return "pending", ticket


@privileged.default.entrypoint
def outcome(ticket: int) -> Answer:
    """The answer of a verb, once; ``("pending", ticket)`` while there is none."""
    job = _jobs[ticket]
    if not job.done.is_set():
        return "pending", ticket
    del _jobs[ticket]
    return job.answer


@privileged.default.entrypoint
def forget(ticket: int) -> None:
    """Nobody waits for the answer of this one any more."""
    _jobs.pop(ticket, None)
