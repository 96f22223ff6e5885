# SPDX-License-Identifier: Apache-2.0
"""Exports through the configfs tree of the Linux NVMe target (drivers/nvme/target/configfs.c).

One subsystem for each (host, class), which allows exactly that host; one port for each portal.
Only subsystems whose NQN the node's record leads to are touched. The order of making is host,
subsystem, allowed host, namespace, port link, so that nothing is reachable before it is complete;
the order of removal is the reverse.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import pathlib
import uuid
import zlib
from collections.abc import Sequence

from oslo_log import log

from kumo_client import errors
from kumo_node.conf import NodePortal

LOG = log.getLogger(__name__)
ROOT = "/sys/kernel/config/nvmet"
MODEL = "Kumo"
# Linking the first subsystem makes a port listen. These say that it cannot now, though it may
# later: the address is not up yet, the port is taken, the RDMA device is not there.
_NOT_NOW = {
    errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.ENODEV, errno.ENETUNREACH, errno.ENETDOWN,
    errno.EHOSTUNREACH, errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.ENXIO,
}  # fmt: skip


class Configfs:
    """File operations below one root; every access to the tree goes through here."""

    def __init__(self, root: str | os.PathLike[str] = ROOT) -> None:
        self.root = pathlib.Path(root)

    def exists(self, *parts: str) -> bool:
        return os.path.lexists(self.root.joinpath(*parts))

    def names(self, *parts: str) -> list[str]:
        """Names in a directory; none when it is not there."""
        try:
            return sorted(os.listdir(self.root.joinpath(*parts)))
        except FileNotFoundError:
            return []

    def mkdir(self, *parts: str) -> None:
        """Make a directory unless it is there."""
        try:
            self.root.joinpath(*parts).mkdir()
        except FileExistsError:
            pass

    def rmdir(self, *parts: str) -> None:
        """Remove a directory unless it is gone."""
        try:
            self.root.joinpath(*parts).rmdir()
        except FileNotFoundError:
            pass

    def link(self, target: Sequence[str], *parts: str) -> None:
        """Make a link to another directory of the tree."""
        self.root.joinpath(*parts).symlink_to(self.root.joinpath(*target))

    def unlink(self, *parts: str) -> None:
        try:
            self.root.joinpath(*parts).unlink()
        except FileNotFoundError:
            pass

    def read(self, *parts: str) -> str:
        # Thousands of times in a round; pathlib would take most of the time.
        with open(os.path.join(self.root, *parts)) as stream:
            return stream.read().strip()

    def write(self, value: str, *parts: str) -> None:
        # One write call: the kernel takes each as a whole value.
        handle = os.open(self.root.joinpath(*parts), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(handle, value.encode())
        finally:
            os.close(handle)

    def set(self, value: str, *parts: str) -> None:
        """Write an attribute unless it has that value."""
        if self.read(*parts) != value:
            self.write(value, *parts)


@dataclasses.dataclass(frozen=True)
class Namespace:
    """One export as the kernel needs it."""

    subsystem: str
    host_nqn: str
    nsid: int
    uuid: str
    device: str


def serial(subsystem: str) -> str:
    """Serial number, at most 20 characters: the same after each boot.

    A host that reconnects compares it with what it saw before.
    """
    return hashlib.sha256(subsystem.encode()).hexdigest()[:20]


def port_id(portal: NodePortal) -> int:
    """Number of our port for a portal: 1 to 65535, the same after each boot."""
    return zlib.crc32(str(portal).encode()) % 65535 + 1


class Nvmet:
    """The target.

    :param max_io_queues: queues a host may open to a subsystem; 0 leaves the kernel's limit.
    """

    def __init__(
        self, configfs: Configfs, portals: Sequence[NodePortal], *, max_io_queues: int = 0
    ) -> None:
        self.fs = configfs
        self.portals = list(portals)
        self.max_io_queues = max_io_queues

    def used_nsids(self, subsystem: str) -> set[int]:
        return {int(name) for name in self.fs.names("subsystems", subsystem, "namespaces")}

    def has_host(self, host_nqn: str) -> bool:
        return self.fs.exists("hosts", host_nqn)

    # Making.

    def apply(self, namespace: Namespace) -> list[NodePortal]:
        """Make the export complete; what is there already stays.

        :returns: the portals on which it can be reached.
        :raises ConflictError: the nsid is taken by something else.
        :raises BackendUnavailableError: it can be reached on none.
        """
        self.fs.mkdir("hosts", namespace.host_nqn)
        self._apply_subsystem(namespace.subsystem, namespace.host_nqn)
        self._apply_namespace(namespace)
        done = [portal for portal in self.portals if self._apply_link(portal, namespace.subsystem)]
        if not done:
            raise errors.BackendUnavailableError(
                f"No portal of the node is up, of {', '.join(map(str, self.portals))}",
                way_out="Check the addresses of the data network; the node tries again by itself",
            )
        return done

    def _apply_subsystem(self, nqn: str, host_nqn: str) -> None:
        base = ("subsystems", nqn)
        new = not self.fs.exists(*base)
        self.fs.mkdir(*base)
        self.fs.set("0", *base, "attr_allow_any_host")
        # Refused by the kernel once a host has seen the subsystem; then they are right already.
        self.fs.set(serial(nqn), *base, "attr_serial")
        self.fs.set(MODEL, *base, "attr_model")
        if new and self.max_io_queues and self.fs.exists(*base, "attr_qid_max"):
            self.fs.set(str(self.max_io_queues), *base, "attr_qid_max")
        for other in self.fs.names(*base, "allowed_hosts"):
            if other != host_nqn:
                LOG.warning("Subsystem %s allowed a further host; taken away", nqn)
                self.fs.unlink(*base, "allowed_hosts", other)
        if not self.fs.exists(*base, "allowed_hosts", host_nqn):
            self.fs.link(("hosts", host_nqn), *base, "allowed_hosts", host_nqn)

    def _apply_namespace(self, namespace: Namespace) -> None:
        base = ("subsystems", namespace.subsystem, "namespaces", str(namespace.nsid))
        self.fs.mkdir(*base)
        seen = uuid.UUID(self.fs.read(*base, "device_uuid") or str(uuid.UUID(int=0)))
        wanted = uuid.UUID(namespace.uuid)
        if self.fs.read(*base, "enable") == "1":
            if seen != wanted:
                raise errors.ConflictError(
                    f"Namespace {namespace.nsid} of {namespace.subsystem} is {seen}, not {wanted}",
                    way_out="Somebody else changed the target; remove that namespace",
                )
            return
        # A namespace that is not enabled may be half-made: everything is written again.
        self.fs.write(namespace.device, *base, "device_path")
        self.fs.write(str(wanted), *base, "device_uuid")
        self.fs.write(str(wanted), *base, "device_nguid")
        self.fs.write("1", *base, "enable")

    def _apply_link(self, portal: NodePortal, nqn: str) -> bool:
        port = self._apply_port(portal)
        if self.fs.exists("ports", port, "subsystems", nqn):
            return True
        try:
            self.fs.link(("subsystems", nqn), "ports", port, "subsystems", nqn)
        except OSError as error:
            if error.errno not in _NOT_NOW:
                raise
            LOG.warning("Portal %s cannot be used now: %s", portal, os.strerror(error.errno or 0))
            return False
        return True

    def _apply_port(self, portal: NodePortal) -> str:
        """Name of the port of a portal, made when there is none."""
        wanted = {
            "addr_trtype": portal.trtype,
            "addr_adrfam": portal.adrfam,
            "addr_traddr": portal.ip,
            "addr_trsvcid": str(portal.port),
        }
        mine = str(port_id(portal))
        # An address can be listened on once: a port that others made for it is shared.
        for name in [mine, *self.fs.names("ports")]:
            if self.fs.exists("ports", name) and self._address(name, wanted) == wanted:
                return name
        if self.fs.names("ports", mine, "subsystems"):
            raise errors.ConflictError(
                f"nvmet port {mine} has another address than {portal}",
                way_out="Somebody else made it; remove it or move it to another number",
            )
        self.fs.mkdir("ports", mine)
        for name, value in wanted.items():
            self.fs.set(value, "ports", mine, name)
        return mine

    def _address(self, port: str, like: dict[str, str]) -> dict[str, str]:
        return {name: self.fs.read("ports", port, name) for name in like}

    # State.

    def linked(self, nqn: str) -> list[NodePortal]:
        """The portals on which a subsystem can be reached."""
        found = []
        for name in self.fs.names("ports"):
            if self.fs.exists("ports", name, "subsystems", nqn):
                read = [self.fs.read("ports", name, f"addr_{key}") for key in _KEYS]
                found.append(tuple(read))
        return [p for p in self.portals if (p.trtype, p.ip, str(p.port)) in found]

    def complete(self, namespace: Namespace, whole: dict[tuple[str, str], bool]) -> bool:
        """True when the export is there and reachable on every portal.

        :param whole: what was found of (subsystem, host) so far, for the exports of one round: a
            subsystem may have thousands of namespaces.
        """
        base = ("subsystems", namespace.subsystem)
        try:
            enabled = self.fs.read(*base, "namespaces", str(namespace.nsid), "enable") == "1"
            seen = self.fs.read(*base, "namespaces", str(namespace.nsid), "device_uuid")
        except FileNotFoundError:
            return False
        key = (namespace.subsystem, namespace.host_nqn)
        if key not in whole:
            hosts = self.fs.names(*base, "allowed_hosts")
            linked = self.linked(namespace.subsystem)
            whole[key] = hosts == [namespace.host_nqn] and len(linked) == len(self.portals)
        return enabled and seen == namespace.uuid and whole[key]

    def revalidate(self, namespace: Namespace) -> None:
        """Tell the hosts that the size changed; nothing to do when it is not enabled."""
        base = ("subsystems", namespace.subsystem, "namespaces", str(namespace.nsid))
        if self.fs.exists(*base) and self.fs.read(*base, "enable") == "1":
            self.fs.write("1", *base, "revalidate_size")

    # Removing.

    def remove(self, namespace: Namespace, *, drop_host: bool) -> None:
        """Remove the export, and its subsystem with its last namespace.

        :param drop_host: also remove the host's directory, which this node made.
        """
        base = ("subsystems", namespace.subsystem)
        where = (*base, "namespaces", str(namespace.nsid))
        if self.fs.exists(*where):
            self.fs.set("0", *where, "enable")
            self.fs.rmdir(*where)
        if self.fs.exists(*base) and not self.fs.names(*base, "namespaces"):
            self._remove_subsystem(namespace.subsystem)
        if drop_host:
            self._remove_host(namespace.host_nqn)

    def disable(self, namespace: Namespace) -> None:
        """Let go of the device and leave the rest of the export."""
        where = ("subsystems", namespace.subsystem, "namespaces", str(namespace.nsid))
        if self.fs.exists(*where):
            self.fs.set("0", *where, "enable")

    def _remove_subsystem(self, nqn: str) -> None:
        for port in self.fs.names("ports"):
            if self.fs.exists("ports", port, "subsystems", nqn):
                # Ends the controllers of the host.
                self.fs.unlink("ports", port, "subsystems", nqn)
        for host in self.fs.names("subsystems", nqn, "allowed_hosts"):
            self.fs.unlink("subsystems", nqn, "allowed_hosts", host)
        self.fs.rmdir("subsystems", nqn)

    def _remove_host(self, host_nqn: str) -> None:
        try:
            self.fs.rmdir("hosts", host_nqn)
        except OSError as error:
            # Linked by a subsystem that is not ours.
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            LOG.info("Host %s is still allowed elsewhere; its entry stays", host_nqn)


_KEYS = ("trtype", "traddr", "trsvcid")
