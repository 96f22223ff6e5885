# SPDX-License-Identifier: Apache-2.0
"""Caps on replicas, kept by the kernel of this node.

The NVMe target has no caps of its own. Its I/O is done by kernel threads, which belong to the root
control group. Version 2 of control groups has no ``io.max`` there; version 1 has
``blkio.throttle.*_device`` in the root group as well (``throtl_legacy_files``,
block/blk-throttle.c; Documentation/admin-guide/cgroup-v1/blkio-controller.rst). So the controller
is mounted as version 1 where version 2 does not use it. Facts seen on Linux 6.12:

* reads and writes are capped apart, each with the value of the cap;
* an operation that spans several allocation units of the thin pool counts once for each;
* the caps hold while the hierarchy is mounted somewhere; unmounting it suspends them;
* they go with the device: a volume that is activated again has none;
* while it is mounted, version 2 cannot use ``io`` (enabling it fails with EBUSY), and the reverse.

A host times out a command after 30 s (``nvme_core.io_timeout``) and then resets its connection. A
cap so low that a full queue takes longer would break the volume instead of slowing it, so lower
caps are raised to a floor.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib

from oslo_log import log

from kumo_client import errors
from kumo_node.executor import CommandError, Executor
from kumo_node.spec import ReplicaRecord

LOG = log.getLogger(__name__)
AUTO, OFF, REQUIRED = "auto", "off", "required"
MOUNT = "run/kumo/blkio"
KIB = 1024
# blk-throttle keeps operations per second in 32 bits.
_MOST_IOPS = (1 << 32) - 1
_FILES = {
    "iops": ("blkio.throttle.read_iops_device", "blkio.throttle.write_iops_device"),
    "bps": ("blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device"),
}


@dataclasses.dataclass(frozen=True)
class Cap:
    """Operations and bytes per second in each direction; 0 is no cap."""

    iops: int = 0
    bps: int = 0


class Cgroup:
    """File operations on the root group of the blkio hierarchy."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def lines(self, name: str) -> list[str]:
        return (self.path / name).read_text().splitlines()

    def write(self, name: str, line: str) -> None:
        # One write call is one rule; the file is not replaced.
        handle = os.open(self.path / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


class Throttle:
    """The caps of this node.

    :param mode: ``auto``, ``off`` or ``required``.
    :param least_iops: floor of caps on operations per second. :param least_bw: in KB/s.
    :param cgroup: makes the file operations for a path.
    :ivar reason: why there are no caps; "" when there are.
    """

    def __init__(
        self,
        executor: Executor,
        root: str | os.PathLike[str] = "/",
        *,
        mode: str = AUTO,
        least_iops: int = 0,
        least_bw: int = 0,
        cgroup: type[Cgroup] = Cgroup,
    ) -> None:
        self.executor = executor
        self.root = pathlib.Path(root)
        self.mode = mode
        self.least = Cap(least_iops, least_bw * KIB)
        self.reason = "not prepared"
        self._cgroup = cgroup
        self._group: Cgroup | None = None

    @property
    def works(self) -> bool:
        """True when caps hold."""
        return self._group is not None

    # Preparing.

    def prepare(self) -> None:
        """Find or mount the hierarchy.

        :raises ConfigError: caps are required and cannot be had.
        """
        if self.mode == OFF:
            self.reason = "option throttle is off"
            self._leave()
            return
        path = self._find() or self._mount()
        if path is None:
            if self.mode == REQUIRED:
                raise errors.ConfigError(
                    f"Option throttle is required, and the kernel cannot cap: {self.reason}",
                    way_out="See the installation guide on caps",
                )
            LOG.warning("Replicas cannot be capped on this node: %s", self.reason)
            return
        self._group, self.reason = self._cgroup(path), ""

    def _find(self) -> pathlib.Path | None:
        try:
            lines = (self.root / "proc/self/mounts").read_text().splitlines()
        except OSError as error:
            LOG.warning("The mounts of this system cannot be read: %s", error)
            return None
        for line in lines:
            _device, path, kind, options = line.split()[:4]
            if kind == "cgroup" and "blkio" in options.split(","):
                return self.root / path.lstrip("/")
        return None

    def _mount(self) -> pathlib.Path | None:
        path = self.root / MOUNT
        mount = ("mount", "-t", "cgroup", "-o", "blkio", "kumo-blkio", str(path))
        # The service has a mount namespace of its own, which ends with it; the caps would too.
        outside = ("nsenter", "--mount=/proc/1/ns/mnt", "--", *mount)
        for command in (outside, mount):
            try:
                path.mkdir(parents=True, exist_ok=True)
                self.executor.run(*command)
            except OSError as error:
                self.reason = f"{path} cannot be made: {error}"
            except CommandError as error:
                self.reason = self._why(error)
            found = self._find()
            if found is not None:
                return found
        return None

    def _why(self, error: CommandError) -> str:
        control = self.root / "sys/fs/cgroup/cgroup.subtree_control"
        try:
            used = "io" in control.read_text().split()
        except OSError:
            used = False
        if used:
            return (
                "version 2 of control groups uses the io controller; a unit of systemd has an "
                "IO setting, such as IOWeight"
            )
        return f"the blkio controller cannot be mounted: {error.stderr}"

    def _leave(self) -> None:
        """Unmount what an earlier run with another mode has mounted."""
        path = self.root / MOUNT
        if self._find() == path:
            try:
                self.executor.run("nsenter", "--mount=/proc/1/ns/mnt", "--", "umount", str(path))
            except CommandError as error:
                LOG.warning("Caps set earlier stay until the next boot: %s", error.stderr)

    # Caps.

    def wanted(self, record: ReplicaRecord) -> Cap:
        """The cap of a replica as the kernel is to keep it."""
        iops, bps = record.max_iops, record.max_bw * KIB
        return Cap(
            min(max(iops, self.least.iops), _MOST_IOPS) if iops else 0,
            max(bps, self.least.bps) if bps else 0,
        )

    def seen(self) -> dict[str, Cap]:
        """The caps that the kernel keeps, by device number; those that are uneven read as none.

        :raises OSError: they cannot be read.
        """
        group = self._group
        if group is None:
            return {}
        values: dict[str, dict[str, list[int]]] = {}
        for kind, names in _FILES.items():
            for name in names:
                for line in group.lines(name):
                    device, value = line.split()
                    values.setdefault(device, {}).setdefault(kind, []).append(int(value))
        return {device: Cap(_both(kinds, "iops"), _both(kinds, "bps")) for device, kinds in
                values.items()}  # fmt: skip

    def apply(self, device: str, cap: Cap) -> None:
        """Let the kernel keep a cap; without caps at all it does nothing.

        :param device: ``major:minor``.
        :raises InternalError: the kernel refuses it.
        """
        if self._group is None:
            return
        try:
            for kind, value in (("iops", cap.iops), ("bps", cap.bps)):
                for name in _FILES[kind]:
                    self._group.write(name, f"{device} {value}")
        except OSError as error:
            raise errors.InternalError(
                f"The kernel does not cap device {device}: {error}",
                way_out="The node tries again by itself",
            ) from error


def _both(kinds: dict[str, list[int]], kind: str) -> int:
    """The value of both directions; -1, which nothing wants, when they differ."""
    found = kinds.get(kind, [0, 0])
    return found[0] if len(found) == 2 and found[0] == found[1] else -1
